"The command line: quick help, one plain line for a mistake, and every command leads to its function."
import errno
import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from qponder import __version__, run, settings
from qponder.cli import RUNS, SETTINGS, given, main, make_parser
from qponder.filters import Record
from qponder.parts import Parts, Run
from qponder.photo import pristine
from qponder.predict import Prediction
from qponder.run import STAGES
from qponder.scale import QPonderError
from qponder.settings import Common
from qponder.stage import Stage
from qponder.store import write_records
from qponder.tables import declare

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
    names = 'run', 'distill', 'sft', 'grpo', 'evaluate', 'report', 'sheet', 'compare', 'pairs', 'rate', 'init', \
        'check', 'base', 'doctor', 'estimate', 'parity', 'shards'
    assert not [n for n in names if f'\n    {n} ' not in out]


def test_the_script_is_installed():
    found = [e.value for e in entry_points(group='console_scripts') if e.name == 'qponder']
    assert found == ['qponder.cli:main']


def test_two_models_of_a_run_are_compared(tmp_path, capsys):
    said = [Prediction(model, f'{i}.jpg', 'test', 1 + i / 10, greedy=1 + (i * step % 41) / 10)
            for model, step in (('base', 7), ('Q-Ponder', 1)) for i in range(41)]
    write_records(tmp_path/'predictions.jsonl', said)
    file = str(tmp_path/'predictions.jsonl')
    assert main(['compare', file, file, '--models', 'base', 'Q-Ponder']) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| SRCC')]
    assert len(rows) == 1 and '| 1.000 [1.000, 1.000] |' in rows[0] and rows[0].endswith('| better |')
    assert main(['compare', file, file, '--models', 'a', 'b', 'c']) == 2 and '--models' in capsys.readouterr().err
    (tmp_path/'report.html').write_text('<p>')
    assert main(['compare', str(tmp_path/'report.html'), file]) == 2
    assert "report.html: give a run's folder, or the predictions.jsonl in it" in capsys.readouterr().err


WRONG = ([], ['rats'], ['rate'], ['run', '--preste', 'nano'], ['check'], ['base', 'x.onnx', 'a.png'],
         ['rate', 'a.jpg', '--score'], ['compare', 'a'], ['check', 'a.csv', '--hig', '9'], ['doctor', '--run', 'x'])


@pytest.mark.parametrize('args', WRONG)
def test_wrong_usage_is_code_2(args):
    with pytest.raises(SystemExit) as e: main(args)
    assert e.value.code == 2


@pytest.mark.parametrize('args, words', [
    (['run', '--preset', 'huge'], ['[huge]', 'nano, nano-biq2021-start, nano-biq2021, qwen2.5-vl-7b']),
    (['run', '--settings', 'gone.ini'], ['gone.ini', 'qponder init']),
    (['run', '--set', 'sft_epohcs=2'], ['sft_epohcs = 2', 'did you mean sft_epochs?']),
    (['sft', '--set', 'sft_epochs=-1'], ['sft_epochs = -1', 'command line']),
    (['run', '--set', 'sft_epochs'], ['KEY=VALUE']),
    (['run', '--low', 'deep'], ['low = deep', 'a number']),
    (['run', '--set', 'teacher=served'], ['qponder: served_model is not set']),
    (['run', '--set', 'student=nothere'], ['qponder: student = nothere: no such student ships with qponder (']),
    (['check', 'a.csv', '--image-col='], ['image_col = : image_col must name a column']),
    (['run', '--data', 'a.csv', '--low', '0', '--high', '9', '--score-col='], ['score_col = : score_col must name a']),
    (['sft', '--name', 'new'], ['cold-start needs distill/kept.jsonl', 'not finished']),
    (['report', '--name', 'none'], ['none', 'there is no run here']),
    (['report', '--preset', 'nanoo'], ['there is no preset [nanoo]']),
    (['sheet', '--preset', 'nanoo'], ['there is no preset [nanoo]']),
    (['run', '--name', '..'], ['..: is no name for a folder in runs', '--name', '--runs']),
    (['distill', '--name', 'a/b'], ['a/b: is no name', '--runs']), (['report', '--name', r'a\b'], ['is no name']),
    (['pairs', '--set', 'teacher=served', '--set', 'served_model=m', '--margin', '-1'], ['--margin -1', 'from 0 to 4']),
    (['pairs', '--margin', 'nan'], ['--margin nan', 'from 0 to 4']),
    (['check', 'gone.csv'], ['gone.csv', 'No such file']),
    (['sheet', '--name', 'none'], ['none/distill/traces.jsonl', 'run `qponder distill` first']),
    (['run', '--set', 'distill_language=fr'], ['distill_language = fr', 'must be one of en, zh']),
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
        monkeypatch.setattr(Run, 'parts', Parts([], [], [], 'photos'))
        monkeypatch.setattr(settings, 'stage_settings', dict)
        monkeypatch.setattr(Run, 'teacher', None)
        Path('settings.ini').write_text('[DEFAULT]\n[nano]\ndata = sample\n')
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
    fake('report', monkeypatch, report=page, summary=lambda folder: 'SRCC', gone_pictures=lambda folder: '')
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


def test_init_where_nothing_can_be_written(here, monkeypatch, capsys):
    def refuse(name, mode): raise PermissionError(errno.EACCES, 'Permission denied', name)
    monkeypatch.setattr('builtins.open', refuse)
    assert main(['init']) == 2
    assert capsys.readouterr().err == ('qponder: settings.ini: cannot be written (Permission denied); choose a folder '
                                       'of yours\n')


def test_init_adds_layouts_to_what_is_there(here, capsys):
    (here/'settings.ini').write_text('mine')
    (here/'accelerate').mkdir()
    (here/'accelerate'/'gpu-1.yaml').write_text('mine')
    assert main(['init', '--accelerate']) == 0
    names = sorted(f.name for f in (ROOT/'qponder/configs').iterdir())
    assert names == sorted(f.name for f in (here/'accelerate').iterdir()) and 'gpu-1.yaml' in names
    assert all((here/name).read_text() == 'mine' for name in ('settings.ini', 'accelerate/gpu-1.yaml'))
    assert capsys.readouterr().out.count('wrote accelerate/') == len(names) - 1


def test_a_csv_that_is_not_there_keeps_nobody_from_the_next(here, capsys):
    for name in ('a.csv', 'c.csv'): Path(name).write_text(f'image,mos\n{pristine()[0]},3\n')
    assert main(['check', 'a.csv', 'b.csv', 'c.csv', '--low', '1', '--high', '5']) == 2
    said = capsys.readouterr()
    assert [line for line in said.out.splitlines() if line[0] != ' '] == [f'{n}.csv: 1 rows, 1 problems' for n in 'ac']
    assert said.err.startswith('qponder: b.csv: No such file') and said.err.count('\n') == 1


@pytest.mark.parametrize('told, said', [
    ([], 'low and high not given, 1 to 5 assumed'), (['--low', '0'], 'high not given, 0 to 5 assumed'),
    (['--high', '100'], 'low not given, 1 to 100 assumed'), (['--low', '1', '--high', '5'], None)])
def test_check_says_which_scale_it_took_for_granted(here, capsys, told, said):
    Path('a.csv').write_text(f'image,mos\n{pristine()[0]},3\n')
    main(['check', 'a.csv', *told])
    assert [line.strip() for line in capsys.readouterr().out.splitlines() if 'assumed' in line] == [
        f'{said}; a run needs --low and --high'] * bool(said)


@pytest.mark.parametrize('problems, code', [([], 0), (['row 3: no photo'], 1)])
def test_check(here, monkeypatch, capsys, problems, code):
    class Report(SimpleNamespace):
        def __str__(self): return f'{self.csv} {self.low} {self.higher_is_better}: {len(self.problems)}'
    fake('tables', monkeypatch, check_csv=lambda csv, **kw: Report(csv=csv, problems=problems, **kw),
         declare=declare)
    assert main(['check', 'a.csv', '--low', '0', '--high', '9', '--lower-is-better']) == code
    assert capsys.readouterr().out == f'a.csv 0.0 False: {len(problems)}\n'


def test_check_reads_the_settings_that_a_run_would(here, capsys):
    "Columns and scale of the preset, unless they are given by hand; another file and another preset, too."
    Path('own.csv').write_text(f'photo,score\n{pristine()[0]},55\n')
    Path('settings.ini').write_text('[DEFAULT]\nimage_col = photo\n[nano]\nscore_col = score\nlow = 0\nhigh = 100\n'
                                    '[small]\ninherits = nano\nhigh = 50\n')
    kinds = lambda *args: (main(['check', 'own.csv', *args]), re.findall('line 2, (.*?):', capsys.readouterr().out))
    assert kinds() == (1, ['parts']) # one photo is too few, and that is all
    assert kinds('--preset', 'small') == kinds('--high', '50') == (1, ['score', 'parts'])
    Path('settings.ini').rename('mine.ini')
    assert main(['check', 'own.csv']) == 2 and "no column 'image'" in capsys.readouterr().err
    assert kinds('--settings', 'mine.ini') == (1, ['parts'])
    assert main(['check', 'own.csv', '--settings', 'mine.ini', '--preset', 'huge']) == 2


@pytest.fixture
def rated(monkeypatch):
    "A rater that knows every photo but gone.jpg."
    def rater(model, device, size):
        if model == 'none': raise QPonderError('none: no student')

    def rate_many(rater, photos, reasons):
        for p in photos:
            ok = p != 'gone.jpg'
            text = f'{p}: 3.4 of 5' if ok else f'{p}: no score'
            r = type('Rating', (), dict(score=3.4 if ok else None, to_json=lambda self, p=p: json.dumps({'path': p}),
                                        __str__=lambda self, text=text: text))
            yield r()
    fake('rate', monkeypatch, Rater=rater, rate_many=rate_many, find_photos=list)


def test_rate(rated, capsys):
    assert main(['rate', 'a.jpg', 'b.jpg', '--json']) == 0
    assert [json.loads(line)['path'] for line in capsys.readouterr().out.splitlines()] == ['a.jpg', 'b.jpg']
    assert main(['rate', 'gone.jpg', 'a.jpg']) == 1
    assert capsys.readouterr().out == 'gone.jpg: no score\na.jpg: 3.4 of 5\n'
    assert main(['rate', 'a.jpg', '--model', 'none']) == 2


def test_rating_real_photos(here, capsys):
    "What ships can rate; a file that is no photo costs nothing but its own score."
    model = 'nano'
    Path('torn.jpg').write_bytes(pristine()[0].read_bytes()[:999])
    photo = str(pristine()[0])
    assert main(['rate', photo, 'torn.jpg', '--model', model, '--json']) == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good['path'] == photo and good['status'] == 'ok' and 1 <= good['score'] <= 5 and 1 <= good['expected'] <= 5
    assert good['reasoning'] and good['level'] and good['scale'].startswith('1-5') and good['policy'] == '252x252'
    assert (bad['path'], bad['score'], bad['status']) == ('torn.jpg', None, 'unreadable') and 'torn.jpg' in bad['error']
    assert main(['rate', photo, '--model', model]) == 0
    assert f'{good["score"]:.1f} of 5' in capsys.readouterr().out
    assert main(['rate', photo, '--model', model, '--score-only', '--size', '224', '--json']) == 0
    bare = json.loads(capsys.readouterr().out)
    assert bare['status'] == 'ok' and bare['reasoning'] == '' and 1 <= bare['expected'] <= 5
    assert bare['policy'] == '224x224' and main(['rate', photo, '--size', '100']) == 2
    assert 'multiple of 14 pixels' in capsys.readouterr().err


@pytest.mark.parametrize('encoding, name, spelt', [
    ('utf-8', 'caf\udce9.jpg', r'caf\udce9.jpg'), ('ascii', '写真.jpg', r'\u5199\u771f.jpg'),
    ('cp1252', 'é写.jpg', 'é\\u5199.jpg')])
def test_names_that_a_terminal_cannot_spell_are_escaped(here, monkeypatch, encoding, name, spelt):
    said = TextIOWrapper(BytesIO(), encoding)
    for wanted in (name, 'plain.jpg'): Path(wanted).write_bytes(pristine()[0].read_bytes())
    monkeypatch.setattr(sys, 'stdout', said)
    assert main(['rate', name, 'plain.jpg', '--score-only']) == 0
    said.flush()
    lines = said.buffer.getvalue().decode(encoding).splitlines()
    assert [line.partition(':')[0] for line in lines] == [spelt, 'plain.jpg'] and ' of 5, ' in lines[0]


def test_an_address_is_spelt_as_it_was_given_and_said_not_to_be_fetched(here, capsys):
    assert main(['rate', 'http://x.y/a.jpg']) == 1
    assert capsys.readouterr().out == ('http://x.y/a.jpg: no score (no such file; addresses are not fetched, download '
                                       'it first)\n')


def test_a_sheet_without_its_photos_says_so(here, capsys):
    records = [Record(id=str(i), path=p, verdict='kept') for i, p in enumerate(('gone.jpg', str(pristine()[0])))]
    write_records(Path('runs/nano/distill/traces.jsonl'), records)
    assert main(['sheet']) == 0
    page, gone = capsys.readouterr().out.splitlines()
    assert page.startswith('sheet: ') and gone.startswith('1 of 2 pictures are missing from it, the first is gone.jpg:')
    assert gone.endswith('and give `qponder sheet` again')


def test_rate_without_photos(here, capsys):
    (here/'empty').mkdir()
    assert main(['rate', 'empty']) == 2
    assert capsys.readouterr().err.startswith('qponder: empty: no photo')


# nano-base, built again

@pytest.fixture(scope='module')
def small_tower(tmp_path_factory):
    "A DINOv2 of random weights: nine layers, 64 wide."
    import torch
    from transformers import Dinov2Config, Dinov2Model
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('tower')
    shape = Dinov2Config(hidden_size=64, num_hidden_layers=10, num_attention_heads=1, image_size=518, patch_size=14)
    Dinov2Model(shape).save_pretrained(folder)
    return str(folder)


def test_base_reads_photos_builds_and_releases(here, small_tower, monkeypatch, capsys):
    from qponder import base
    from qponder.model import load_student, save_student
    asked = {}

    def build_base(tower, photos, out, ordinary, seed, progress):
        asked.update(photos=len(photos), ordinary=len(ordinary), seed=seed)
        texts = ['The photo is sharp.', 'The photo is blurred.']
        return save_student(base.build_nano(tower, texts, base.NanoSettings(width=32, depth=1, heads=2), seed=seed),
                            Path(out)/'model')
    monkeypatch.setattr(base, 'build_base', build_base)
    photos = str(pristine()[0].parent)
    assert main(['base', small_tower, photos, '--ordinary', str(pristine()[1]), '--out', 'made', '--seed', '3']) == 0
    assert asked == {'photos': len(pristine()), 'ordinary': 1, 'seed': 3}
    assert capsys.readouterr().out == f'nano-base: {Path("made/nano-base")}\n'
    assert load_student(here/'made'/'nano-base').model.config.vision_config.num_hidden_layers == 9


@pytest.mark.parametrize('tower', ['gone.onnx', 'no-such-folder'])
def test_a_tower_that_is_none(here, capsys, tower):
    assert main(['base', tower, str(pristine()[0]), '--out', 'made']) == 2
    err = capsys.readouterr().err
    assert err.startswith(f'qponder: {tower}: there is no such file or folder') and err.count('\n') == 1
    assert not Path('made').exists()
