"Settings that are checked, stages that are skipped, continued or refused, and a record of it all."
import errno
import json
import re
import shutil
from configparser import ConfigParser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qponder import run as module
from qponder import stage as stage_module
from qponder.cli import main
from qponder.data import load_sample
from qponder.manifest import disk_error, seed_all, write_json
from qponder.parts import Parts, Run, load_parts, sha
from qponder.run import STAGES, evaluate_stage, run_stages
from qponder.scale import QPonderError
from qponder.settings import (Common, Entry, build, convert, default_file, entries, read_ini, read_overrides,
                              read_settings, stage_settings)
from qponder.stage import Stage, difference, run_stage, student_sha
from qponder.store import read_rows

ROOT = Path(__file__).resolve().parents[1]
INI = '[DEFAULT]\nseed = 0\nsft_epochs = 2\ngrpo_steps = 10\n[nano]\nsft_epochs = 3\n[mine]\ninherits = nano\nlow = 0\n'


@dataclass(frozen=True)
class SFT:
    epochs: int = 8
    rate: float = .001
    bold: bool = False
    kind: Literal['a', 'b'] = 'a'

    def __post_init__(self):
        if not 0 < self.epochs < 100: raise QPonderError(f'epochs = {self.epochs} is out of range: 1 to 99')
        if self.epochs > 50 and self.bold: raise QPonderError('epochs and bold do not go together')


@dataclass(frozen=True)
class GRPO:
    steps: int = 5


KINDS = {'sft': SFT, 'grpo': GRPO}


@pytest.fixture
def ini(tmp_path):
    path = tmp_path/'settings.ini'
    path.write_text(INI)
    return path


def refused(words, call, *args, **kwargs):
    "The call fails with one line that holds all of `words`."
    with pytest.raises(QPonderError) as e: call(*args, **kwargs)
    assert '\n' not in str(e.value)
    for word in words: assert word in str(e.value), str(e.value)


# settings

def test_inheritance(ini):
    assert [read_settings(p, ini, kinds=KINDS).stages['sft'].epochs for p in ('nano', 'mine')] == [3, 3]
    mine = read_settings('mine', ini, ['sft_epochs=7', 'seed=5'], KINDS)
    assert (mine.stages['sft'].epochs, mine.stages['grpo'].steps, mine.common.seed, mine.common.low) == (7, 10, 5, 0.)
    assert mine.flat()['grpo_steps'] == 10 and 'inherits' not in mine.flat()


@pytest.mark.parametrize('line, words', [
    ('sft_epohcs=3', ['sft_epohcs = 3', 'no such key', 'did you mean sft_epochs?']),
    ('epochs=3', ['epochs = 3', 'no such key']),
    ('sft_epochs=two', ['sft_epochs = two', 'whole number']),
    ('sft_epochs=2.5', ['sft_epochs = 2.5', 'whole number']),
    ('sft_epochs=0', ['sft_epochs = 0', 'out of range: 1 to 99']),
    ('sft_epochs=', ['sft_epochs', 'whole number']),
    ('sft_rate=inf', ['sft_rate = inf', 'a number']),
    ('sft_bold=perhaps', ['sft_bold = perhaps', 'yes or no']),
    ('sft_kind=c', ['sft_kind = c', 'one of a, b']),
    ('low=wide', ['low = wide', 'a number']),
    ('val_share=0.9', ['val_share = 0.9', '0.05 to 0.5']),
    ('teacher=nobody', ['teacher = nobody', 'one of measured, served']),
])
def test_a_mistake_is_named_wherever_it_stands(ini, line, words):
    refused(['command line:', *words], read_settings, 'nano', ini, [line], KINDS)
    key, _, value = line.partition('=')
    kept = re.sub(rf'(?m)^{key} = .*\n', '', INI)
    ini.write_text(kept.replace('[mine]\n', f'[mine]\n{key} = {value}\n'))
    refused([f'{ini} [mine]', *words], read_settings, 'mine', ini, kinds=KINDS)


def test_values_that_do_not_go_together_are_refused(ini):
    both = ['sft_epochs=60', 'sft_bold=yes']
    refused(['sft_epochs = 60', 'do not go together'], read_settings, 'nano', ini, both, KINDS)


def test_unknown_preset_lists_those_there_are(ini):
    refused([str(ini), '[huge]', 'nano, mine'], read_settings, 'huge', ini, kinds=KINDS)


def test_unknown_parent_and_circles(ini):
    ini.write_text('[a]\ninherits = b\n[b]\ninherits = a\n[c]\ninherits = gone\n')
    refused(['[b] inherits = a', 'from itself'], read_settings, 'a', ini, kinds=KINDS)
    refused(['[gone]', 'a, b, c'], read_settings, 'c', ini, kinds=KINDS)


def test_several_parents(ini):
    "A later parent wins with its own lines, and takes nothing back with those it only inherits; an heir wins over all."
    ini.write_text('[DEFAULT]\nseed = 0\nsft_epochs = 2\n[student]\nseed = 4\nsft_epochs = 9\ngrpo_steps = 7\n'
                   '[peer]\nsft_epochs = 3\n[child]\ninherits = student\nseed = 5\n'
                   '[both]\ninherits = student, peer\ngrpo_steps = 1\n[kin]\ninherits = child ,student,peer\n')
    read = lambda preset: [(s.common.seed, s.stages['sft'].epochs, s.stages['grpo'].steps)
                           for s in [read_settings(preset, ini, kinds=KINDS)]][0]
    assert [read(p) for p in ('both', 'kin', 'student,peer', 'peer, student', 'peer')] == [
        (4, 3, 1), (5, 3, 7), (4, 3, 7), (4, 9, 7), (0, 3, 5)]
    assert read_settings('student,peer', ini, ['seed=8'], KINDS).common.seed == 8


@pytest.mark.parametrize('parents, words', [
    ('nano, gone', ['[gone]', 'nano, mine']), ('nano nano', ['[nano nano]']), ('nano,', ['no preset []']),
    ('nano, mine', ['[mine] inherits from itself']), ('', ['no preset []'])])
def test_a_mistake_among_several_parents(ini, parents, words):
    ini.write_text(f'[nano]\n[mine]\ninherits = {parents}\n')
    refused([f'{ini} [mine] inherits = {parents}', *words], read_settings, 'mine', ini, kinds=KINDS)
    refused(['settings.ini: there is no preset [gone]'], read_settings, 'nano,gone', ini, kinds=KINDS)


@pytest.mark.parametrize('peer', ['q-insight', 'visualquality-r1', 'refine-iqa', 'q-hawkeye', 'mr-iqa', 'deqa-score'])
def test_a_peer_goes_together_with_the_papers_student(peer):
    sections = read_ini(ROOT/'settings.ini')
    student = sections['qwen2.5-vl-7b']
    for key, line in entries(ROOT/'settings.ini', f'qwen2.5-vl-7b, {peer}').items():
        assert line == sections[peer].get(key, student.get(key, sections['DEFAULT'][key]))
    assert read_settings(f'qwen2.5-vl-7b,{peer}', ROOT/'settings.ini').common.student == student['student'].text


@pytest.mark.parametrize('text', ['no section', '[nano]\nseed', '[nano]\nseed=1\nseed=2\n', '[nano]\n[nano]\n'])
def test_a_file_that_is_no_ini(ini, text):
    ini.write_text(text)
    refused([str(ini), 'not a settings file'], read_settings, 'nano', ini, kinds=KINDS)


def test_a_file_that_is_not_there(tmp_path):
    refused(['no.ini', 'qponder init'], read_settings, 'nano', tmp_path/'no.ini', kinds=KINDS)
    refused([str(tmp_path)], read_settings, 'nano', tmp_path, kinds=KINDS)
    (tmp_path/'bytes.ini').write_bytes(b'\xff\xfe\x00')
    refused(['bytes.ini', 'not a settings file'], read_settings, 'nano', tmp_path/'bytes.ini', kinds=KINDS)


@pytest.mark.parametrize('preset', [
    'q-ponder', 'q-insight', 'visualquality-r1', 'refine-iqa', 'q-hawkeye', 'mr-iqa'])
def test_presets_of_other_papers_are_read_and_have_what_they_need(preset):
    from qponder.reward import RewardSettings, check_needs
    s = read_settings(preset, ROOT/'settings.ini').stages
    check_needs(s['reward'], ['one'] * 99, [None] * 99, s['distill'].spoiled > 0, s['grpo'].prompts_per_step,
                s['grpo'].scale_rewards)
    assert (s['reward'] == RewardSettings()) == (preset == 'q-ponder')


@pytest.mark.parametrize('line, words', [
    ('reward_rank=elo', ['reward_rank = elo', 'one of fidelity, margin']),
    ('reward_consistency=oracle', ['reward_consistency = oracle', 'one of vote, care']),
    ('reward_w_rank=-1', ['reward_w_rank = -1', 'weight from 0']),
    ('reward_min_words=100', ['min_words', 'above max_words']),
    ('reward_w_elo=1', ['reward_w_elo = 1', 'no such key', 'did you mean reward_w_']),
])
def test_a_mistake_in_a_reward_is_named(line, words):
    refused(words, read_settings, 'nano', ROOT/'settings.ini', [line])


def test_the_judge_is_the_served_model_without_temperature(tmp_path):
    from qponder.readers import judge_messages
    ask = lambda *lines: Run(tmp_path, read_settings('nano', ROOT/'settings.ini', lines)).judge
    assert ask() is None and ask('reward_consistency=judge', 'reward_w_consistency=0') is None
    judge = ask('reward_consistency=judge', 'served_model=big', 'served_temperature=.7')
    assert judge.settings.model == 'big' and judge.settings.temperature == 0 and judge.messages is judge_messages


def test_weights_that_sum_to_nothing():
    nothing = [f'reward_w_{p}=0' for p in ('format', 'accuracy', 'consistency')]
    refused(['are all 0', 'give one a weight'], read_settings, 'nano', ROOT/'settings.ini', nothing)


def test_percent_signs_are_plain_text(ini):
    assert read_settings('nano', ini, ['data=100%(x)s.csv'], KINDS).common.data == '100%(x)s.csv'


def test_empty_means_none(ini):
    assert read_settings('mine', ini, ['low=', 'std_col='], KINDS).common.low is None


@given(st.integers(-10**6, 10**6))
def test_whole_numbers_come_back(n): assert convert(Entry('k', str(n), 'x'), int) == n


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(x): assert convert(Entry('k', repr(x), 'x'), float | None) == x


@given(st.text(max_size=30))
def test_nothing_but_our_own_error_escapes(text):
    for kind in (int, float, bool, Literal['a'], tuple[int, ...], float | None):
        try: convert(Entry('k', text, 'x'), kind)
        except QPonderError: continue


def test_working_folder_comes_first(ini, monkeypatch):
    monkeypatch.chdir(ini.parent)
    assert default_file().read_text() == INI
    ini.unlink()
    assert default_file().read_text(encoding='utf-8') == (ROOT/'settings.ini').read_text(encoding='utf-8')


def test_a_file_with_nothing_but_a_preset_of_ones_own(ini, monkeypatch):
    "It inherits from what ships; what it says of a preset that ships replaces that one; a mistake names its file."
    ini.write_text('[mine]\ninherits = nano\nsft_epochs = 2\n')
    monkeypatch.chdir(ini.parent)
    mine, nano = (read_settings(p).flat() for p in ('mine', 'nano'))
    assert {k for k in nano if mine[k] != nano[k]} == {'sft_epochs'} and nano['data'] == 'sample'
    ini.write_text('[nano]\ndata = my.csv\n')
    assert (read_settings('nano').common.data, read_settings('nano').stages['reward'].width) == ('my.csv', .5)
    ini.write_text('[DEFAULT]\nseed = 9\n')
    assert read_settings('nano').common.seed == 9
    refused(['settings.ini: there is no preset [huge]', 'nano'], read_settings, 'huge')


# the file that ships

def test_every_key_of_the_stages_stands_in_the_file():
    lines = read_ini(ROOT/'settings.ini')['DEFAULT']
    known = [f'{p}_{k}' for p, cls in stage_settings().items() for k in cls.__dataclass_fields__]
    assert set(lines) == set(known) | set(Common.__dataclass_fields__)


@pytest.mark.parametrize('preset', ['nano', 'nano-biq2021-start', 'nano-biq2021', 'qwen2.5-vl-7b'])
def test_presets_are_valid(preset):
    settings = read_settings(preset, ROOT/'settings.ini')
    assert set(settings.stages) == {'served', 'distill', 'reward', 'see', 'sft', 'grpo', 'student'}


def test_defaults_in_the_file_are_those_of_the_code():
    "Whoever calls a stage from Python gets what the file says, unless a preset says otherwise."
    lines = entries(ROOT/'settings.ini', 'DEFAULT')
    for prefix, cls in stage_settings().items(): assert build(cls, f'{prefix}_', lines) == cls()


def test_every_key_has_a_comment():
    own = (ROOT/'settings.ini').read_text(encoding='utf-8').split('\n[nano]')[0].splitlines()
    bare = [row for row in own if '=' in row and '#' not in row]
    assert not bare


def test_a_served_teacher_needs_a_name_before_any_photo_is_opened():
    settings = read_settings('qwen2.5-vl-7b', ROOT/'settings.ini', ['served_model='])
    run = Run(Path('x'), settings, load=lambda common: pytest.fail('opened'))
    refused(['model is not set', 'served_model'], run_stages, run)


def test_the_paper_trains_on_all_photos_that_its_file_has_for_training(tmp_path):
    rows = load_sample().select_columns(['path', 'score', 'split']).select(range(24)).to_list()
    heading, paths = ['image,mos,split'], [f'{r["path"]},{r["score"]:.4f}' for r in rows]
    parts = ['train'] * 12 + ['val'] * 5 + ['test'] * 7
    csv, bare = tmp_path/'koniq.csv', tmp_path/'bare.csv'
    csv.write_text('\n'.join(heading + [f'{p},{s}' for p, s in zip(paths, parts)]))
    bare.write_text('\n'.join(['image,mos', *paths]))
    common = lambda *lines: read_settings('qwen2.5-vl-7b', ROOT/'settings.ini', lines).common
    found = load_parts(common(f'data={csv}'))
    assert [len(p) for p in (found.train, found.val, found.test)] == [12, 5, 7]
    refused(['bare.csv', "no column 'split'", '--split-col= for none'], load_parts, common(f'data={bare}'))
    assert len(load_parts(common(f'data={bare}', 'split_col=')).test) == 7


@pytest.mark.parametrize('lines, words', [
    (['distill_ask_words=150, 250'], ['distill_ask_words = 150, 250', 'beyond the 20 to 80 words that are kept']),
    (['distill_ask_words=10,50'], ['distill_ask_words = 10,50', 'beyond the 20 to 80']),
    (['distill_ask_words=50,30'], ['distill_ask_words = 50,30', 'two numbers']),
    (['distill_ask_words=50'], ['distill_ask_words = 50', 'two numbers']),
    (['distill_ask_words=30,40,50'], ['two numbers']),
    (['distill_ask_words=thirty, forty'], ['distill_ask_words = thirty', 'a whole number']),
])
def test_words_that_would_be_asked_for_and_dropped(lines, words):
    refused(words, read_settings, 'nano', ROOT/'settings.ini', lines)


def test_the_papers_preset_asks_for_long_reasons_and_keeps_them():
    asked = read_settings('qwen2.5-vl-7b', ROOT/'settings.ini')
    d, s = asked.stages['distill'], asked.stages['served']
    assert d.ask_words == (150, 250) and d.min_words <= 150 and d.max_words >= 250 and s.max_tokens >= 2 * 250
    short = read_settings('qwen2.5-vl-7b', ROOT/'settings.ini', ['distill_ask_words=', 'distill_min_words=20'])
    stage = STAGES[0]
    run = lambda settings: Run(Path('x'), settings, lambda common: Parts([], [], [], 'photos'))
    long_inputs, short_inputs = (stage_module.inputs(stage, run(x)) for x in (asked, short))
    assert long_inputs['prompt expert'] != short_inputs['prompt expert'] == '7e8acaaf71ce'
    assert long_inputs['distill_ask_words'] == [150, 250] and json.loads(json.dumps(long_inputs)) == long_inputs
    refused(['distill_ask_words = 150, 250', 'beyond the 100 to 200'],
            read_settings, 'qwen2.5-vl-7b', ROOT/'settings.ini', ['distill_max_words=200'])


@pytest.mark.parametrize('lines, words', [
    (['sft_epochs=0', 'grpo_steps=0'], ['sft_epochs and grpo_steps are all 0', 'nothing would be trained']),
    (['sft_epochs=-1'], ['sft_epochs = -1', 'from 0 to 1000']),
])
def test_a_run_that_trains_nothing(lines, words):
    refused(words, read_settings, 'nano', ROOT/'settings.ini', lines)
    assert read_settings('nano', ROOT/'settings.ini', ['sft_epochs=0']).stages['sft'].epochs == 0
    assert read_settings('nano', ROOT/'settings.ini', ['sft_epochs=0', 'grpo_steps=0', 'see_epochs=1'])


@pytest.mark.parametrize('lines, refuses', [
    ([], False), (['sft_epochs=0'], True), (['sft_epochs=0', 'teacher=measured'], False),
    (['sft_epochs=0', 'reward_consistency=text'], False),
    (['sft_epochs=0', 'reward_consistency=text', 'reward_w_consistency=0'], True)])
def test_nobody_pays_for_words_that_nobody_reads(lines, refuses, tmp_path):
    settings = read_settings('qwen2.5-vl-7b', ROOT/'settings.ini', lines)
    rows = load_sample().select(range(3))
    run = Run(tmp_path, settings, lambda common: Parts(rows, rows, rows, 'photos'))
    if refuses: refused(['sft_epochs = 0', 'set teacher = measured'], module.check_objective_of, run)
    else: module.check_objective_of(run)


def test_no_nbdev_key_hides_here():
    "nbdev reads pyproject.toml; a settings file with its keys would puzzle both."
    parser = ConfigParser()
    parser.read(ROOT/'settings.ini')
    assert 'lib_name' not in parser.defaults()


# stages

def made(folder=None, *overrides, file, parts='photos'):
    return Run(folder, read_settings('nano', file, overrides, KINDS), lambda common: Parts([], [], [], parts))


@pytest.fixture
def run(tmp_path, ini): return made(tmp_path/'runs'/'one', file=ini)


class Counter:
    "A stage's work that counts its calls, and leaves one file."
    def __init__(self, name, fail=None): self.name, self.fail, self.calls = name, fail, 0

    def __call__(self, run):
        self.calls += 1
        if self.fail and self.calls == 1: raise self.fail
        (run.folder/self.name/'out.txt').write_text(f'{self.name} {np.random.rand()}')


def stages(**fails):
    a, b = Counter('a', fails.get('a')), Counter('b', fails.get('b'))
    return a, b, [Stage('a', a, ('sft_',)), Stage('b', b, ('grpo_',), ('a/out.txt',))]


def quiet(text): pass


def test_finished_stages_are_skipped_and_say_so(run):
    a, b, both = stages()
    said = []
    for _ in range(2): run_stages(run, both, say=said.append)
    assert (a.calls, b.calls) == (1, 1)
    assert said == ['a: starts', 'b: starts', 'a: finished, not run again', 'b: finished, not run again']


@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('broken'), QPonderError('wrong')])
def test_a_stopped_stage_leaves_no_manifest_and_goes_on(run, error):
    a, b, both = stages(b=error)
    with pytest.raises(type(error)): run_stages(run, both, say=quiet)
    assert not (run.folder/'b'/'manifest.json').exists()
    run_stages(run, both, say=quiet)
    assert (a.calls, b.calls) == (1, 2)
    assert json.loads((run.folder/'b'/'manifest.json').read_text())['starts'] == 2


def test_another_setting_is_refused_and_named(run, ini):
    a, b, both = stages()
    run_stages(run, both, say=quiet)
    before = sha(run.folder)
    other = made(run.folder, 'sft_epochs=9', file=ini)
    refused(['sft_epochs = 3', 'sft_epochs = 9', '--fresh', '--name'], run_stages, other, both, say=quiet)
    assert sha(run.folder) == before and (a.calls, b.calls) == (1, 1)


def test_a_setting_of_a_later_stage_leaves_earlier_ones_alone(run, ini):
    a, b, both = stages()
    run_stages(run, both, say=quiet)
    other = made(run.folder, 'grpo_steps=9', file=ini)
    refused(['b was made with grpo_steps = 10'], run_stages, other, both, say=quiet)
    run_stages(other, both, fresh=True, say=quiet)
    assert (a.calls, b.calls) == (1, 2)


def test_a_stopped_stage_is_not_continued_with_other_settings(run, ini):
    a, b, both = stages(a=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): run_stages(run, both, say=quiet)
    refused(['sft_epochs = 3'], run_stages, made(run.folder, 'sft_epochs=9', file=ini), both, say=quiet)


def test_other_photos_are_refused(run, ini):
    a, b, both = stages()
    run_stages(run, both, say=quiet)
    other = made(run.folder, file=ini, parts='others')
    refused(['data = photos, now data = others'], run_stages, other, both, say=quiet)


def test_the_photo_that_is_another_one_is_named(tmp_path, ini):
    "A run that was begun before photos were listed says what it said before."
    photos = [tmp_path/f'{n}.png' for n in 'abcdef']
    noise = lambda seed: Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for i, photo in enumerate(photos): noise(i).save(photo)
    csv = tmp_path/'own.csv'
    csv.write_text('image,mos,split\n' + ''.join(f'{p.name},3,{"test" if p is photos[-1] else "train"}\n'
                                               for p in photos))
    ask = lambda **more: Run(tmp_path/'runs'/'one', replace(settings, common=replace(settings.common, **more)))
    settings = read_settings('nano', ini, [f'data={csv}', 'low=1', 'high=5', 'split_col=split'], KINDS)
    a, b, both = stages()
    run_stages(ask(), both, say=quiet)
    noise(9).save(photos[-1])
    refused(['a was made with data = ', '(photos, scores or parts): f.png has another file: give'],
            run_stages, ask(), both, say=quiet)
    for kept in (tmp_path/'runs'/'one').glob('photos-*.txt'): kept.unlink()
    refused(['a was made with data = ', '(photos, scores or parts): give'], run_stages, ask(), both, say=quiet)
    run_stages(ask(), both, fresh=True, say=quiet)
    run_stages(ask(), both, say=quiet)
    assert a.calls == b.calls == 2


def test_a_photo_is_named_where_all_are_brought_to_one_size(tmp_path, ini):
    rows = load_sample('test').select(range(3))
    one = [rows.select([i]) for i in range(3)]
    settings = read_settings('nano', ini, ['side=64'], KINDS)
    begun = lambda *said: Run(tmp_path/'one', settings, lambda common: Parts(*one, 'x' + said[0], said))
    a, b, both = stages()
    run_stages(begun('train 3.0 11\ta.png'), both, say=quiet)
    refused(['a.png has another score or part'], run_stages, begun('train 4.0 11\ta.png'), both, say=quiet)


def test_another_seed_is_refused(run, ini):
    a, b, both = stages()
    run_stages(run, both, say=quiet)
    refused(['seed = 0, now seed = 1'], run_stages, made(run.folder, 'seed=1', file=ini), both, say=quiet)


def test_fresh_keeps_the_old_aside_and_what_follows_is_made_anew(run, ini):
    a, b, both = stages()
    run_stages(run, both, say=quiet)
    old = (run.folder/'a'/'out.txt').read_text()
    new = Stage('a', lambda run: (run.folder/'a'/'out.txt').write_text('new'), ('sft_',))
    run_stages(made(run.folder, 'sft_epochs=9', file=ini), [new, both[1]], fresh=True, say=quiet)
    assert (run.folder/'a.1'/'out.txt').read_text() == old and (run.folder/'a'/'out.txt').read_text() == 'new'
    assert b.calls == 2 and (run.folder/'b.1'/'manifest.json').exists()


def test_other_weights_under_the_same_name_are_noticed(run, tmp_path, ini):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'model.safetensors').write_text('1')
    stage = Stage('a', lambda run: None, ('student',))
    run_stage(stage, made(run.folder, f'student={tmp_path}/mine', file=ini), say=quiet)
    (tmp_path/'mine'/'model.safetensors').write_text('2')
    again = made(run.folder, f'student={tmp_path}/mine', file=ini)
    refused(['a was made with student weights'], run_stage, stage, again, say=quiet)


def test_what_decides_answers_is_hashed_and_nothing_else(tmp_path):
    "A card, a licence, what git or a hub leaves: not. Weights, words, the policy, and weights beside the folder: yes."
    base, student = tmp_path/'base', tmp_path/'student'
    for folder in base, student: folder.mkdir()
    (base/'tower.safetensors').write_text('tower')
    (base/'more.safetensors').write_text('not of this student')
    index = {'weight_map': {'a': '../base/tower.safetensors', 'b': 'language.safetensors'}}
    (student/'model.safetensors.index.json').write_text(json.dumps(index))
    for name in ('language.safetensors', 'tokenizer.json', 'image_policy.json'): (student/name).write_text('1')
    first = student_sha(student)
    for name in ('README.md', 'LICENSE', 'NOTICE.txt', '.gitattributes', '.cache/known.json'):
        (student/name).parent.mkdir(exist_ok=True)
        (student/name).write_text('2')
    (base/'more.safetensors').write_text('nor now')
    assert student_sha(student) == first
    for file in (base/'tower.safetensors', *(student/n for n in ('language.safetensors', 'image_policy.json'))):
        was = file.read_text()
        file.write_text('3')
        assert student_sha(student) != first, file
        file.write_text(was)
    assert student_sha(student) == first
    (student/'model.safetensors.index.json').write_text('{')
    refused(['model.safetensors.index.json: is damaged'], student_sha, student)


def test_stored_figures_are_of_the_students_that_ship():
    figures = ROOT/'nbs'/'tutorials'/'nano'
    stored = json.loads((figures/'accuracy.json').read_text(encoding='utf-8'))['models']
    for name, told in stored.items(): assert told == student_sha(name.partition('@')[0]), name
    for path in figures.glob('*faults*.json'):
        told = json.loads(path.read_text(encoding='utf-8'))
        assert told['weights'] == student_sha(told['model']), path.name
    for told in read_rows(figures/'grpo-speed.jsonl'): assert told['weights'] == student_sha(told['student'])


def test_checkpoints_go_when_the_model_is_there(run):
    def train(run, fail=None):
        for name in ('checkpoints/checkpoint-5', 'checkpoint-5', 'model', 'completions'):
            (run.folder/'a'/name).mkdir(parents=True, exist_ok=True)
        if fail: raise fail
    with pytest.raises(KeyboardInterrupt):
        run_stage(Stage('a', lambda run: train(run, KeyboardInterrupt()), ()), run, say=quiet)
    assert (run.folder/'a'/'checkpoint-5').is_dir() and (run.folder/'a'/'checkpoints'/'checkpoint-5').is_dir()
    run_stage(Stage('a', train, ()), run, say=quiet)
    assert sorted(p.name for p in (run.folder/'a').iterdir() if p.is_dir()) == ['completions', 'model']


def test_a_stage_alone_needs_the_ones_before(run):
    a, b, both = stages()
    refused(['b needs a/out.txt', 'not finished', 'qponder run'], run_stage, both[1], run, say=quiet)


def test_a_result_changed_by_hand_is_noticed(run):
    a, b, both = stages()
    run_stages(run, both, say=quiet)
    (run.folder/'a'/'out.txt').write_text('other')
    refused(['b was made with a/out.txt'], run_stages, run, both, say=quiet)


def test_another_prompt_is_noticed(run, monkeypatch):
    a, b, both = stages()
    run_stages(run, both, say=quiet)
    monkeypatch.setattr(stage_module, 'REASON', replace(stage_module.REASON, text='Rate it.'))
    refused(['prompt'], run_stages, run, both, say=quiet)


def test_manifest_holds_what_another_person_needs(run):
    a, b, both = stages()
    (run.folder/'b'/'model').mkdir(parents=True)
    (run.folder/'b'/'model'/'image_policy.json').write_text('{"size": 224}')
    run_stages(run, both, say=quiet)
    m = json.loads((run.folder/'b'/'manifest.json').read_text())
    want = {'seed': 0, 'grpo_steps': 10, 'data': 'photos', 'a/out.txt': sha(run.folder/'a'/'out.txt')}
    assert m['inputs'].items() >= want.items()
    assert sum(k.startswith('prompt ') for k in m['inputs']) == 3 and 'sft_epochs' not in m['inputs']
    assert m['image_policy'] == {'size': 224} and {'torch', 'trl', 'python'} <= set(m['versions'])
    assert m['wall_seconds'] >= 0 and m['peak_memory_mb'] > 10 and m['stage'] == 'b'


def test_same_seed_same_numbers_whether_alone_or_in_sequence(tmp_path, ini):
    texts = []
    for name in ('one', 'two'):
        run, (_, _, both) = made(tmp_path/name, file=ini), stages()
        if name == 'two': np.random.rand(3)
        run_stages(run, both, say=quiet)
        texts.append([(run.folder/s/'out.txt').read_text() for s in 'ab'])
    assert texts[0] == texts[1]


def test_seed_reaches_all_three():
    import random
    import torch
    draws = []
    for seed in (0, 0, 1):
        seed_all(seed)
        draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert draws[0] == draws[1] and all(x != y for x, y in zip(draws[1], draws[2]))


# disks

@pytest.mark.parametrize('error', [
    OSError(errno.ENOSPC, 'No space left on device'), OSError(errno.EDQUOT, 'Disk quota exceeded'),
    RuntimeError('[enforce fail at inline_container.cc:664] PytorchStreamWriter failed: file write failed'),
    stage_module.SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)'),
])
def test_a_full_disk_is_one_plain_error_and_nothing_is_lost(run, error):
    a, b, both = stages(b=error)
    refused([str(run.folder), 'disk is full', 'same command'], run_stages, run, both, say=quiet)
    run_stages(run, both, say=quiet)
    assert (a.calls, b.calls) == (1, 2)


def test_a_disk_that_fills_up_with_the_manifest(run, monkeypatch):
    a, b, both = stages()
    real = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == 'manifest.json.part': raise OSError(errno.ENOSPC, 'No space left on device')
        return real(self, *args, **kwargs)
    monkeypatch.setattr(Path, 'write_text', full)
    refused(['disk is full'], run_stages, run, both, say=quiet)
    assert not (run.folder/'a'/'manifest.json').exists()
    monkeypatch.undo()
    run_stages(run, both, say=quiet)
    assert (a.calls, b.calls) == (2, 1)


@pytest.mark.parametrize('taken', ['runs', 'runs/one', 'runs/one/a'])
def test_a_file_where_the_folder_should_be(run, tmp_path, taken):
    (tmp_path/taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path/taken).write_text('mine')
    a, b, both = stages()
    refused([str(tmp_path/taken), 'cannot be written', '--runs'], run_stages, run, both, say=quiet)
    assert (tmp_path/taken).read_text() == 'mine' and a.calls == 0


def test_a_folder_without_permission(run, monkeypatch):
    def denied(self, *args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied', str(self))
    monkeypatch.setattr(Path, 'mkdir', denied)
    refused(['Permission denied', '--runs'], run_stages, run, stages()[2], say=quiet)


def test_errors_that_are_not_the_disks_stay_as_they_are(run):
    _, _, both = stages(a=RuntimeError('a mistake of ours'))
    with pytest.raises(RuntimeError, match='a mistake of ours'): run_stages(run, both, say=quiet)
    assert disk_error(PermissionError(errno.EACCES, 'Permission denied', '/elsewhere/photo.jpg'), run.folder) is None


def test_writing_is_all_or_nothing(tmp_path):
    write_json(tmp_path/'x.json', {'a': 1})
    with pytest.raises(TypeError): write_json(tmp_path/'x.json', {'a': object()})
    assert json.loads((tmp_path/'x.json').read_text()) == {'a': 1}


def test_a_torn_note_is_an_error_that_names_it(run):
    a, b, both = stages()
    run_stages(run, both, say=quiet)
    (run.folder/'a'/'manifest.json').write_text('{"inp')
    refused(['manifest.json', 'delete'], run_stages, run, both, say=quiet)


# the rest

@given(st.dictionaries(st.text(max_size=3), st.integers()), st.dictionaries(st.text(max_size=3), st.integers()))
def test_difference_is_none_only_for_equals(a, b): assert (difference(a, b) is None) == (a == b)


def test_a_photo_that_would_be_rated_twice_is_found_before_anything_is_trained(tmp_path, ini):
    rows = lambda paths: Dataset.from_dict(dict(path=list(paths)))
    run = lambda val, test: Run(tmp_path/'r', read_settings('nano', ini, ['data=my.csv'], KINDS),
                                lambda _: Parts(rows('aa'), rows(val), rows(test), 'hash'))
    module.check_photos_of(run('bc', 'd'))
    for val, test in (('b', 'cc'), ('bc', 'dc')):
        refused(['my.csv: c is there 2 times'], run_stages, run(val, test), STAGES[-1:])


def test_folders_hash_by_content_and_names(tmp_path):
    for name in 'ab':
        (tmp_path/name).mkdir()
        (tmp_path/name/'x').write_text('1')
    assert sha(tmp_path/'a') == sha(tmp_path/'b')
    (tmp_path/'b'/'x').rename(tmp_path/'b'/'y')
    assert sha(tmp_path/'a') != sha(tmp_path/'b')


def test_stage_names_and_order():
    assert [s.name for s in STAGES] == ['distill', 'cold-start', 'grpo', 'evaluate']


def test_every_setting_belongs_to_a_stage():
    """A key that no manifest holds could change a result unnoticed. Those about photos are in the hash of the data, and
    how patiently a teacher is asked does not change what it says."""
    photos = {'data', 'image_col', 'score_col', 'low', 'high', 'lower_is_better', 'std_col', 'split_col',
              'skip_bad', 'side', 'test_share', 'val_share'}
    asking = {f'served_{k}' for k in ('url', 'key_env', 'at_once', 'per_minute', 'timeout', 'retries', 'price_in',
                                      'price_out', 'spend')}
    uses = [u for s in STAGES for u in s.uses] + ['seed', *photos, *asking]
    own = [f'{p}_{k}' for p, cls in stage_settings().items() for k in cls.__dataclass_fields__]
    keys = [*Common.__dataclass_fields__, *own]
    assert not [k for k in keys if not any(k == u or u.endswith('_') and k.startswith(u) for u in uses)]


def test_overrides_keep_what_follows_the_first_equals_sign():
    assert read_overrides(['data=a=b.csv'])['data'].text == 'a=b.csv'
    refused(['--set sft_epochs', 'KEY=VALUE'], read_overrides, ['sft_epochs'])


# the whole way, with the student that ships: few photos, few steps

END_TO_END = """[nano]
data = photos.csv
low = 0
high = 100
split_col = split
sft_epochs = 2
sft_batch_size = 4
sft_score_only_every = 0
sft_eval_every = 1
sft_save_every = 1
grpo_steps = 2
grpo_group_size = 2
grpo_prompts_per_step = 2
grpo_preflight_prompts = 0
grpo_eval_every = 1
grpo_save_every = 1
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    "A working folder with twelve rated photos."
    monkeypatch.chdir(tmp_path)
    sample = load_sample().select_columns(['path', 'mos'])
    split = ['train'] * 4 + ['val'] * 3 + ['test'] * 5
    rows = ''.join(f'{r["path"]},{r["mos"]},{s}\n' for r, s in zip(sample.select(range(0, 300, 25)), split))
    Path('photos.csv').write_text('image,mos,split\n' + rows)
    Path('settings.ini').write_text(END_TO_END)


class Once:
    "Calls a function, but raises an error in place of its nth call."
    def __init__(self, function, n, error): self.function, self.left, self.error = function, n, error

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if not self.left: raise self.error
        return self.function(*args, **kwargs)


def fails(module, name, n, error):
    "A patch for `main`: the nth call of a function fails, once."
    return lambda patch: patch.setattr(module, name, Once(getattr(module, name), n, error))


def said_by_students(folder):
    rows = map(json.loads, (folder/'evaluate'/'predictions.jsonl').read_text().splitlines())
    return {(r['model'], r['split'], Path(r['path']).name): (r['text'], r['expected'], r['reward'])
            for r in rows if r['text']}


@pytest.mark.parametrize('tone', ['yes', 'no'])
def test_evaluation_tones_as_the_traces_were_toned(tmp_path, monkeypatch, tone):
    told = []
    monkeypatch.setattr('qponder.evaluate.evaluate', lambda *a, distilled: told.append(distilled))
    settings = read_settings('nano', default_file(), [f'distill_tone={tone}', 'distill_decimals=2'])
    evaluate_stage(Run(tmp_path, settings, lambda common: Parts([], [], [], 'photos')))
    assert [(d.tone, d.decimals) for d in told] == [(tone == 'yes', 2)]
    assert {'distill_tone', 'distill_decimals'} <= set(STAGES[-1].uses)


@pytest.mark.parametrize('device, dtype', [('cpu', torch.float32), ('cuda', torch.bfloat16)])
def test_the_student_before_training_rates_in_the_precision_of_the_others(tmp_path, monkeypatch, device, dtype):
    held, rated = [], []
    monkeypatch.setattr('qponder.model.best_device', lambda: device)
    monkeypatch.setattr('qponder.adapt.load_trainee', lambda name, how, *held_as: held.append(held_as) or name)
    monkeypatch.setattr('qponder.evaluate.evaluate', lambda students, *a, **more: rated.extend(students))
    settings = read_settings('nano', ROOT/'settings.ini', ['student_max_pixels=5000'])
    evaluate_stage(Run(tmp_path, settings, lambda common: Parts([], [], [], 'photos')))
    assert (held, rated) == ([(device, dtype)], ['base', 'Q-Ponder-CI', 'Q-Ponder'])


def test_end_to_end_interrupted_in_every_stage_gives_the_same_numbers(photos, monkeypatch, capsys):
    from qponder import distill, predict, watch
    assert main(['run', '--name', 'whole']) == 0
    stops = (fails(distill, 'ask', 3, KeyboardInterrupt()), fails(watch, 'validation', 2, KeyboardInterrupt()),
             fails(watch, 'validation', 2, OSError(errno.ENOSPC, 'No space left on device')),
             fails(predict, 'write_records', 10, KeyboardInterrupt()))
    for stage, code, stop in zip(('distill', 'cold-start', 'grpo', 'evaluate'), (130, 130, 2, 130), stops):
        with monkeypatch.context() as patch:
            stop(patch)
            assert main(['run', '--name', 'halting']) == code
        assert not Path('runs', 'halting', stage, 'manifest.json').exists()
        capsys.readouterr()
    assert main(['run', '--name', 'halting']) == 0
    out = capsys.readouterr().out
    assert [s for s in ('distill', 'cold-start', 'grpo') if f'{s}: finished, not run again' not in out] == []
    assert 'evaluate: goes on' in out and 'report: ' in out
    whole, halting = (Path('runs', n) for n in ('whole', 'halting'))
    for model in ('cold-start/model', 'grpo/model'): assert sha(whole/model) == sha(halting/model)
    assert said_by_students(whole) == said_by_students(halting) and len(said_by_students(whole)) == 3 * (3 + 5)
    first, second = (read_rows(f/'grpo'/'log.jsonl') for f in (whole, halting))
    assert [r['reward'] for r in first if 'reward' in r] == [r['reward'] for r in second if 'reward' in r]
    page = (halting/'report.html').read_text()
    assert 'Q-Ponder-CI' in page and page.count('<svg') == 3 and 'class="missing">The' not in page
    assert not [p for p in halting.rglob('checkpoint*')]


def moved(here, there):
    "The same photos in another place, listed in a CSV file of the same name, which is given back."
    (there/'ph').mkdir(parents=True)
    for photo in (here/'ph').iterdir(): shutil.copy(photo, there/'ph')
    shutil.copy(here/'photos.csv', there)
    shutil.rmtree(here)
    return str(there/'photos.csv')


@pytest.fixture
def own(photos):
    "Twelve rated photos of one's own, in a folder that may be moved."
    Path('d/ph').mkdir(parents=True)
    lines = Path('photos.csv').read_text().splitlines()
    for i, line in enumerate(lines[1:], 1):
        path, rest = line.split(',', 1)
        shutil.copy(path, f'd/ph/{i}.jpg')
        lines[i] = f'ph/{i}.jpg,{rest}'
    Path('d/photos.csv').write_text('\n'.join(lines) + '\n')
    return Path('d')


def test_a_run_goes_on_when_its_photos_or_its_folder_have_moved(own, monkeypatch, capsys):
    "Stopped in the cold start, it goes on from another place; stopped in the evaluation, from another working folder."
    from qponder import predict, watch
    from qponder.build import tiny_student
    from qponder.model import save_student
    args = ['--set', f'student={save_student(tiny_student(), Path("tiny").resolve())}', '--set', 'grpo_steps=0']
    def stopped(*command, stop):
        with monkeypatch.context() as patch:
            stop(patch)
            assert main([*command, *args]) == 130
    assert main(['distill', '--data', 'd/photos.csv', *args]) == 0
    stopped('sft', '--data', 'd/photos.csv', stop=fails(watch, 'validation', 2, KeyboardInterrupt()))
    csv = moved(own, Path('e'))
    assert main(['sft', '--data', csv, *args]) == 0
    stopped('evaluate', '--data', csv, stop=fails(predict, 'write_records', 10, KeyboardInterrupt()))
    here = Path.cwd().name
    monkeypatch.chdir('..')
    args += ['--settings', f'{here}/settings.ini', '--runs', f'{here}/runs']
    assert main(['evaluate', '--data', moved(Path(here, 'e'), Path(here, 'f')), *args]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if 'goes on' in line] == [
        'cold-start: goes on', 'evaluate: goes on']
    stored = [(p.model, p.path) for p in predict.read_predictions(Path(here, 'runs/nano/evaluate/predictions.jsonl'))]
    assert len(stored) == len({*stored}) and all(Path(path).exists() for _, path in stored)
    figures = json.loads(Path(here, 'runs/nano/evaluate/metrics.json').read_text())
    assert {m['photos'] for m in figures} == {5}


def test_copies_of_one_size_move_with_their_run(own):
    assert main(['distill', '--data', 'd/photos.csv', '--set', 'side=64']) == 0
    settings = read_settings('nano', None, [f'data={moved(own, Path("e"))}', 'side=64'])
    Path('runs').rename('elsewhere')
    found = module.traces(Run(Path('elsewhere/nano'), settings))
    assert found and {str(Path(r.path).parent) for r in found} == {str(Path('elsewhere/nano/photos'))}


def test_each_trace_stays_with_its_photo_when_names_change(own, monkeypatch):
    from qponder.photo import open_image
    from qponder.teacher import image_sha
    assert main(['distill', '--data', 'd/photos.csv', '--set', 'distill_spoiled=1']) == 0
    rows = Path('d/photos.csv').read_text().replace('ph/', 'ph/x').replace('ph/x2.', 'ph/x0.').replace(
        'ph/x1.', 'ph/x2.').replace('ph/x0.', 'ph/x1.')
    for i in range(1, 13): Path(f'd/ph/{i}.jpg').rename(f'd/ph/x{ {1: 2, 2: 1}.get(i, i)}.jpg')
    Path('d/photos.csv').write_text(rows)
    settings = read_settings('nano', None, ['data=d/photos.csv', 'distill_spoiled=1'])
    found = module.traces(Run(Path('runs/nano'), settings))
    plain = [r for r in found if not r.damage]
    assert len(plain) >= 2 and all(image_sha(open_image(r.path)) == r.image_sha for r in plain)
    assert all(Path(r.path).is_file() for r in found)


def test_without_a_list_of_photos_the_remedy_works_and_asks_nothing_again(own, monkeypatch, capsys):
    from qponder import distill
    assert main(['distill', '--data', 'd/photos.csv']) == 0
    for kept in Path('runs/nano').glob('photos-*.txt'): kept.unlink()
    csv = moved(own, Path('e'))
    args = ['--data', csv, '--set', 'student=nano-ci', '--set', 'sft_epochs=0']
    assert main(['run', *args]) == 2
    err = capsys.readouterr().err
    assert f'{Path("runs/nano/distill/kept.jsonl")}: {Path("d/ph")}' in err and 'distill.old' in err
    Path('runs/nano/distill').rename('runs/nano/distill.old')
    monkeypatch.setattr(distill, 'ask', Once(distill.ask, 1, AssertionError('asked again')))
    assert main(['sft', *args, '--fresh']) == 2 and 'not finished' in capsys.readouterr().err
    for stage in ('distill', 'sft'): assert main([stage, *args, '--fresh']) == 0


OWN = 'def brevity(answers):\n    return [min(1, 10 / len(a.reasoning.split())) for a in answers]\n'


def test_a_reward_of_ones_own_from_the_settings_is_an_input_of_the_run(photos, capsys):
    Path('my_rewards.py').write_text(OWN)
    lines = 'student=nano-ci', 'sft_epochs=0', 'reward_own=my_rewards.py:brevity', 'reward_w_own=1'
    args = [x for line in lines for x in ('--set', line)]
    for stage in ('distill', 'sft', 'grpo', 'grpo'): assert main([stage, *args]) == 0
    assert 'grpo: finished, not run again' in capsys.readouterr().out
    means = [r['rewards/brevity/mean'] for r in read_rows(Path('runs/nano/grpo/log.jsonl')) if 'reward' in r]
    assert len(means) == 2 and all(0 < m <= 1 for m in means)
    kept = json.loads(Path('runs/nano/grpo/manifest.json').read_text())['inputs']
    assert (kept['reward_own'], kept['reward_w_own']) == ('my_rewards.py:brevity', 1)
    assert kept['reward_own source'] == sha(Path('my_rewards.py'))
    Path('my_rewards.py').write_text(OWN.replace('10', '20'))
    assert main(['grpo', *args]) == 2
    assert 'grpo was made with reward_own source = ' in capsys.readouterr().err


@pytest.mark.parametrize('lines, words', [
    (['reward_own=gone.py:f'], 'reward_own = gone.py:f: there is no file'),
    (['reward_own=abc'], 'reward_own = abc: FUNCTION is missing: write FILE.py:FUNCTION'),
    (['reward_own=gone.module:f'], 'reward_own = gone.module:f: there is no module'),
    (['reward_own=my_rewards.py:levity'], "there is no function 'levity' in my_rewards.py"),
    (['reward_own=my_rewards.py:accuracy'], 'accuracy is a part of the reward already'),
    (['reward_own=my_rewards.py:many'], '3 marks for 2 answers'), (['reward_own=my_rewards.py:high'], '5 is no mark'),
    (['reward_own=my_rewards.py:fails'], 'it fails on 2 answers (ZeroDivisionError'),
    (['reward_w_own=1'], 'reward_w_own = 1: w_own pays for a reward of yours, but there is none'),
    (['reward_own=my_rewards.py:brevity', 'reward_w_own=101'], 'reward_w_own = 101: w_own must be a weight from 0'),
])
def test_a_mistake_in_a_reward_of_ones_own_ends_the_run_before_it_begins(photos, capsys, lines, words):
    Path('my_rewards.py').write_text(OWN + 'def accuracy(a): return [1] * len(a)\ndef many(a): return [1, 1, 1]\n'
                                     'def high(a): return [5, 5]\ndef fails(a): return 1 / 0\n')
    assert main(['run', *(x for line in lines for x in ('--set', line))]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1 and not Path('runs').exists()


@pytest.mark.parametrize('lines, words', [
    ([], 'set distill_ask_words to nothing, distill_min_words = 20, or'),
    (['distill_ask_words='], 'set distill_min_words = 20, or'), (['distill_ask_words=', 'distill_min_words=20'], None)])
def test_the_measured_teacher_says_at_once_what_it_cannot_write(lines, words):
    settings = read_settings('qwen2.5-vl-7b', ROOT/'settings.ini', ['teacher=measured', *lines])
    run = Run(Path('x'), settings, load=lambda common: pytest.fail('opened'))
    if words: refused(['a few words of English', words, 'teacher = served'], run_stages, run)
    else: assert run.teacher.name.startswith('measured')


def test_other_filters_ask_the_teacher_nothing_that_it_has_answered(photos, monkeypatch, capsys):
    from qponder import distill
    assert main(['distill']) == 0
    records = lambda folder: [(r['id'], r['raw']) for r in read_rows(Path('runs', 'nano', folder, 'traces.jsonl'))]
    monkeypatch.setattr(distill, 'ask', Once(distill.ask, 1, AssertionError('asked again')))
    assert main(['distill', '--set', 'distill_max_words=79', '--fresh']) == 0
    assert records('distill') == records('distill.1') and len(records('distill')) == 4
    with pytest.raises(AssertionError, match='asked again'):
        main(['distill', '--set', 'distill_max_words=79', '--set', 'distill_views=2', '--fresh'])
    assert main(['distill', '--set', 'distill_max_words=79', '--set', 'distill_views=2']) == 0
    assert len(records('distill')) == 8 and {*records('distill.2')} < {*records('distill')}
