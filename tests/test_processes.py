"Several processes: they wait for each other's files, and their update is that of one."
import json
import subprocess
import sys

import pytest
from launch import ENV, ROOT, fsdp, gloo, zero3
from safetensors.torch import load_file

from qponder.build import tiny_student
from qponder.model import save_student
from qponder.processes import Place, place, shared, shared_groups
from qponder.scale import QPonderError
from qponder.store import read_rows


@pytest.mark.parametrize('world', [1, 2, 4, 8, 16])
def test_an_update_stays_what_the_settings_say(world):
    for rows, turns in (shared(16, 2, world, 'keys'), shared_groups(16, 8, 8, world)):
        assert rows * turns * world in (16, 128) and rows <= 8


def test_processes_that_cannot_share():
    with pytest.raises(QPonderError, match='multiple of 3'): shared(16, 2, 3, 'sft_batch_size')
    with pytest.raises(QPonderError, match='grpo_group_size make an update of 6 rows'): shared_groups(1, 6, 8, 4)


def test_a_launcher_says_the_place():
    assert place({'RANK': '3', 'WORLD_SIZE': '4'}) == Place(3, 4, 4) and place({}) == Place()


@pytest.fixture(scope='module', params=[gloo, fsdp, pytest.param(zero3, marks=pytest.mark.slow)])
def both(request, tmp_path_factory):
    "The folder of one process, and that of two. A student in parts has a stock tower, so the one process has it, too."
    from together import train
    alone, two = (tmp_path_factory.mktemp(n) for n in ('alone', 'two'))
    for folder in (alone, two): save_student(tiny_student(), folder/'start')
    command = [*request.param(two), str(ROOT/'tests'/'together.py'), str(two)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('qponder.share.in_parts', lambda: request.param is not gloo)
        train(alone)
    return alone, two


LOGGED = dict.fromkeys(('sft', 'order'), ['loss', 'grad_norm']) | dict(
    grpo=['loss', 'grad_norm', 'reward'], twice=['loss', 'grad_norm', 'clip_ratio/high_mean'],
    rank=['loss', 'grad_norm', 'reward', 'rewards/rank/mean', 'rewards/rank/std'])


@pytest.mark.parametrize('part, keys', LOGGED.items())
def test_two_processes_have_the_losses_of_one(both, part, keys):
    logs = [[r for r in read_rows(f/part/'log.jsonl') if 'loss' in r] for f in both]
    assert [r['step'] for r in logs[0]] == [r['step'] for r in logs[1]] and logs[0]
    for a, b in zip(*logs):
        for key in keys: assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key
    if part in ('grpo', 'rank'): assert any(abs(r['grad_norm']) > 1e-4 for r in logs[0])
    if part == 'twice':
        assert [r['step'] for r in logs[1] if 'reward' in r] == [1, 3] and len(logs[1]) == 4
        held = [r['clip_ratio/high_mean'] for r in logs[1]]
        assert not any(held[::2]) and any(held[1::2]), 'words are held back when they are learned from again'


def test_two_processes_validate_as_one(both):
    one, two = ([r for r in read_rows(f/'watched'/'log.jsonl') if 'val_srcc' in r] for f in both)
    assert one == two and [r['step'] for r in one] == [1] and one[0]['val_srcc'] is not None


@pytest.mark.parametrize('part', [*LOGGED, 'none'])
def test_two_processes_have_the_student_of_one(both, part):
    one, two = (load_file(f/part/'model'/'model.safetensors') for f in both)
    assert one.keys() == two.keys()
    for k in one: assert (one[k] - two[k]).abs().max() < 2e-4, k
    begun = load_file(both[1]/'start'/'model.safetensors')
    assert all((two[k] == begun[k]).all() for k in begun) == (part == 'none'), 'without a cold start it stays as it is'


STAGES = '''
import sys
from pathlib import Path
from qponder.parts import Parts, Run
from qponder.processes import place, wait_for
from qponder.run import run_stages
from qponder.settings import Common, Settings
from qponder.stage import Stage
Run.teacher = None
here = Path(sys.argv[1])
note = lambda name: lambda run: (run.folder/f'{name}-{place().rank}').write_text('was here')
def result(run):
    note('alone')(run)
    (run.folder/'alone'/'result.txt').write_text('1')
def all_of_us(run):
    note('together')(run)
    for n in range(place().world): wait_for(lambda: (run.folder/f'together-{n}').exists() or None, .1)
stages = [Stage('alone', result, ()), Stage('together', all_of_us, (), ('alone/result.txt',), True)]
run = Run(here/'run', Settings('test', Common(), {}), lambda common: Parts([], [], [], 'photos'))
run_stages(run, stages, say=lambda text: (here/f'said-{place().rank}').open('a').write(text + chr(10)))
'''


def test_the_first_works_and_the_others_wait(tmp_path):
    def start(rank): return subprocess.Popen([sys.executable, '-c', STAGES, str(tmp_path)],
                                            env=ENV | {'RANK': str(rank), 'WORLD_SIZE': '2'})
    for _ in range(2):
        late = [start(1), start(0)]
        assert [p.wait(600) for p in late] == [0, 0]
    assert {p.name for p in (tmp_path/'run').glob('*-*')} == {'alone-0', 'together-0', 'together-1'}
    assert [p.name for p in tmp_path.glob('said-*')] == ['said-0']
    assert json.loads((tmp_path/'run'/'together'/'manifest.json').read_text())['starts'] == 1


def test_those_on_other_machines_hear_of_a_failure(tmp_path):
    works, fails = "(run.folder/'alone'/'result.txt').write_text('1')", "raise ValueError('the teacher is gone')"
    script = STAGES.replace(works, fails)
    def start(rank): return subprocess.Popen([sys.executable, '-c', script, str(tmp_path)], text=True,
                                            stderr=subprocess.PIPE, env=ENV | {'RANK': str(rank), 'WORLD_SIZE': '2'})
    both = [start(1), start(0)]
    said = [p.communicate(timeout=600)[1] for p in both]
    assert all(p.returncode for p in both)
    assert 'nothing is left to wait for: the teacher is gone' in said[0]


CONFIGS = sorted((ROOT/'qponder'/'configs').glob('*.yaml'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_our_layouts(path):
    from accelerate.commands.config.config_args import load_config_from_file
    config = load_config_from_file(str(path))
    name = path.stem.split('-')
    assert config.num_processes == (16 if '2x8' in name else int(name[1]))
    kinds = {'gpu': 'NO', 'ddp': 'MULTI_GPU', 'fsdp': 'FSDP', 'zero3': 'DEEPSPEED'}
    assert config.distributed_type == kinds[name[0]]


def test_init_writes_layouts_beside_the_settings(tmp_path, monkeypatch):
    from qponder.cli import main
    monkeypatch.chdir(tmp_path)
    assert main(['init', '--accelerate']) == 0
    assert [p.read_text() for p in sorted((tmp_path/'accelerate').iterdir())] == [p.read_text() for p in CONFIGS]
    assert (tmp_path/'settings.ini').is_file() and main(['init', '--accelerate']) == 2
