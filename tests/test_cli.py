"The command line: quick help, one plain line for a mistake, and every command leads to its function."
import errno
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from qponder import __version__, run
from qponder.cli import RUNS, SETTINGS, given, main, make_parser
from qponder.run import STAGES, Common, Parts, Stage
from qponder.scale import QPonderError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {'torch', 'transformers', 'trl', 'datasets', 'numpy', 'PIL', 'matplotlib', 'pandas', 'scipy'}


def shell(*args, cwd=None):
    "Run the console script in a process of its own."
    code = 'import sys; from qponder.cli import main; sys.exit(main())'
    return subprocess.run([sys.executable, '-c', code, *args], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working folder."
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fake(name, monkeypatch, **members):
    "Put a module in the place of a heavy one."
    module = ModuleType(f'qponder.{name}')
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, f'qponder.{name}', module)


# quick and plain

@pytest.mark.parametrize('args', [['--help'], ['--version'], ['run', '--help'], ['rate', '--help']])
def test_help_imports_nothing_heavy(args):
    code = ('import sys; from qponder.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit as e: code = e.code\n'
            f'print(code, sorted({HEAVY} & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == '0 []', done.stdout + done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as e: main(['--version'])
    assert e.value.code == 0 and capsys.readouterr().out == f'qponder {__version__}\n'


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit): main(['--help'])
    out = capsys.readouterr().out
    names = 'run', 'distill', 'sft', 'grpo', 'evaluate', 'report', 'rate', 'init', 'check'
    assert not [n for n in names if f'\n    {n} ' not in out]


def test_the_script_is_installed():
    found = [e.value for e in entry_points(group='console_scripts') if e.name == 'qponder']
    assert found == ['qponder.cli:main']


@pytest.mark.parametrize('args', [[], ['rats'], ['rate'], ['run', '--preste', 'nano'], ['check']])
def test_wrong_usage_is_code_2(args):
    with pytest.raises(SystemExit) as e: main(args)
    assert e.value.code == 2


@pytest.mark.parametrize('args, words', [
    (['run', '--preset', 'huge'], ['[huge]', 'nano, qwen2.5-vl-7b']),
    (['run', '--settings', 'gone.ini'], ['gone.ini', 'qponder init']),
    (['run', '--set', 'sft_epohcs=2'], ['sft_epohcs = 2', 'did you mean sft_epochs?']),
    (['sft', '--set', 'sft_epochs=-1'], ['sft_epochs = -1', 'command line']),
    (['run', '--set', 'sft_epochs'], ['KEY=VALUE']),
    (['run', '--low', 'deep'], ['low = deep', 'a number']),
    (['run', '--preset', 'qwen2.5-vl-7b'], ['served', 'not part of this version']),
    (['sft', '--name', 'new'], ['cold-start needs distill/kept.jsonl', 'not finished']),
    (['report', '--name', 'none'], ['none', 'there is no run here']),
])
def test_mistakes_are_one_line(here, capsys, args, words):
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith('qponder: ') and err.count('\n') == 1 and 'Traceback' not in err
    for word in words: assert word in err, err


def test_no_traceback_in_a_real_shell(here):
    done = shell('run', '--preset', 'huge', cwd=here)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1) and 'Traceback' not in done.stderr


def raising(error):
    def do(run): raise error
    return [Stage('distill', do, ())]


@pytest.fixture
def stages(monkeypatch):
    "Replace the stages and the photos of `qponder run`."
    def put(some):
        monkeypatch.setattr(run, 'STAGES', some)
        monkeypatch.setattr(run.Run, 'parts', Parts([], [], [], 'photos'))
        monkeypatch.setattr(run, 'stage_settings', dict)
        monkeypatch.setattr(run.Run, 'teacher', None)
        Path('settings.ini').write_text('[nano]\ndata = sample\n')
    return put


def test_ctrl_c(here, stages, capsys):
    stages(raising(KeyboardInterrupt()))
    assert main(['distill']) == 130
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'same command goes on' in err


def test_a_full_disk(here, stages, capsys):
    stages(raising(OSError(errno.ENOSPC, 'No space left on device')))
    assert main(['distill']) == 2
    assert 'disk is full' in capsys.readouterr().err


def test_our_own_mistakes_are_not_hidden(here, stages):
    stages(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError): main(['distill'])


# commands

def test_stages_run_in_order_and_the_report_comes_last(here, stages, monkeypatch, capsys):
    done = []
    stages([Stage(s.name, lambda run, name=s.name: done.append(name), ()) for s in STAGES])
    page = lambda folder: done.append('report') or folder/'report.html'
    fake('report', monkeypatch, report=page, summary=lambda folder: 'SRCC')
    assert main(['run']) == 0
    assert done == ['distill', 'cold-start', 'grpo', 'evaluate', 'report']
    assert capsys.readouterr().out.endswith(f'SRCC\n\nreport: {Path("runs/nano/report.html")}\n')
    assert main(['grpo', '--name', 'other', '--runs', 'elsewhere']) == 0
    assert done[5:] == ['grpo'] and (here/'elsewhere'/'other'/'grpo'/'manifest.json').is_file()


def test_every_stage_has_a_command():
    named = [s for _, some in RUNS.values() for s in some]
    assert {s.name for s in STAGES} <= set(named) and set(RUNS['run'][1]) == {s.name for s in STAGES} | {'report'}


def test_fresh_and_overrides_reach_the_run(here, stages, capsys):
    stages([Stage('distill', lambda run: None, ('val_share',))])
    assert main(['distill']) == 0
    assert main(['distill', '--set', 'val_share=.2']) == 2
    assert 'val_share = 0.15, now val_share = 0.2' in capsys.readouterr().err
    assert main(['distill', '--set', 'val_share=.2', '--fresh']) == 0
    assert sorted(p.name for p in (here/'runs'/'nano').iterdir()) == ['distill', 'distill.1']


def test_options_are_settings():
    assert {k.replace('-', '_') for k in SETTINGS} <= set(Common.__dataclass_fields__)
    args = make_parser().parse_args(['run', '--data', 'a.csv', '--low', '0', '--lower-is-better', '--set', 'low=1'])
    assert given(args) == ['data=a.csv', 'low=0', 'lower_is_better=yes', 'low=1']


def test_negative_numbers_are_values():
    assert given(make_parser().parse_args(['check', 'a.csv', '--low', '-3.5'])) == ['low=-3.5']


def test_init_writes_and_never_overwrites(here, capsys):
    assert main(['init']) == 0
    assert (here/'settings.ini').read_bytes() == (ROOT/'settings.ini').read_bytes()
    (here/'settings.ini').write_text('mine')
    assert main(['init']) == 2
    assert 'already here' in capsys.readouterr().err and (here/'settings.ini').read_text() == 'mine'


@pytest.mark.parametrize('problems, code', [([], 0), (['row 3: no photo'], 1)])
def test_check(here, monkeypatch, capsys, problems, code):
    class Report(SimpleNamespace):
        def __str__(self): return f'{self.csv} {self.low} {self.higher_is_better}: {len(self.problems)}'
    fake('data', monkeypatch, check_csv=lambda csv, **kw: Report(csv=csv, problems=problems, **kw))
    assert main(['check', 'a.csv', '--low', '0', '--high', '9', '--lower-is-better']) == code
    assert capsys.readouterr().out == f'a.csv 0.0 False: {len(problems)}\n'


class FakeRater:
    def __init__(self, model):
        if model == 'none': raise QPonderError('none: no student')

    def rate_many(self, photos):
        for p in photos:
            ok = p != 'gone.jpg'
            r = dict(path=p, score=3.4 if ok else None, level='fair', reasoning='Soft.', status='ok' if ok else 'no',
                     error='' if ok else 'no such file')
            yield SimpleNamespace(**r, to_json=lambda r=r: json.dumps(r))


def test_rate(here, monkeypatch, capsys):
    fake('rate', monkeypatch, Rater=FakeRater)
    assert main(['rate', 'a.jpg', 'b.jpg', '--json']) == 0
    assert [json.loads(line)['path'] for line in capsys.readouterr().out.splitlines()] == ['a.jpg', 'b.jpg']
    assert main(['rate', 'gone.jpg', 'a.jpg']) == 1
    assert capsys.readouterr().out == 'gone.jpg: not rated (no such file)\na.jpg: 3.4 of 5, fair. Soft.\n'
    assert main(['rate', 'a.jpg', '--model', 'none']) == 2
