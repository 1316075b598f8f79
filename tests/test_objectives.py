"Objectives of the cold start: labels keep their mean, gradients stay where they belong, words are read."
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from qponder import sft, watch
from qponder.ask import generate
from qponder.build import tiny_student
from qponder.claims import claims
from qponder.cli import main
from qponder.data import load_sample
from qponder.decode import answer, asked_as, reads_levels, verdict_of, verdict_place
from qponder.fast import load_nano
from qponder.filters import Record
from qponder.model import load_student, save_student
from qponder.objectives import (Objective, fidelity_loss, level_masses, level_trace, mixed, one_hot, prompts_of, refit,
                                soft_label)
from qponder.parts import Run
from qponder.photo import open_image, pristine
from qponder.rank import fidelity
from qponder.rate import Rater
from qponder.run import run_stages
from qponder.scale import LEVELS, LEVEL_SCORES, QPonderError
from qponder.settings import read_settings
from qponder.sft import SFTSettings, cold_start, sft_rows
from qponder.store import read_rows
from qponder.tiny import KINDS, tiny_vlm
from qponder.trace import LEVEL, REASON, SCORE_ONLY, parse, render, well_formed

ROOT = Path(__file__).resolve().parents[1]
WORDED = [o for o in get_args(Objective) if o != 'trace']
GRID = np.array([*LEVEL_SCORES.values()])
RECORDS = [Record(path=str(p), target=s, std=.5, name='two', status='ok', raw=render(level_trace(s, f'It is {w}.')))
           for p, s, w in zip(pristine(), (4.6, 1.4), ('sharp', 'blurred'))]
HOW = SFTSettings(epochs=120, batch_size=2, learning_rate=.01, claim_weight=0, mix=1., eval_every=1000, save_every=1000)
scores, stds = st.floats(1, 5), st.floats(0, 4)

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning')


# labels

@given(scores, stds)
def test_a_soft_label_is_a_distribution_with_the_mean_that_people_gave(score, std):
    label = soft_label(score, std)
    assert (label >= 0).all() and label.sum() == pytest.approx(1) and label @ GRID == pytest.approx(score, abs=1e-6)


@given(scores, stds)
def test_labels_are_mirrored_with_the_scale(score, std):
    assert soft_label(6 - score, std) == pytest.approx(soft_label(score, std)[::-1], abs=1e-4)


@given(st.floats(1.5, 4.5), st.floats(.2, 1))
def test_mending_solves_the_two_equations_of_the_paper(score, std):
    p = level_masses(score, std)
    if abs(score - 3) < .01: return
    stretch, lift = np.linalg.solve([[p.sum(), 5], [p @ GRID, 15]], [1, score])
    assert refit(p, GRID, score) == pytest.approx(stretch * p + lift, abs=1e-6)


def test_where_nothing_is_negative_the_label_is_the_papers():
    """Spread 1 around 2.6. The normal table gives masses of .1178 .3245 .3558 .1553 .0269: A = .9803, B = 2.5897,
    alpha = -.4 / (B - 3A) = 1.1394, beta = (1 - alpha A) / 5 = -.0234."""
    by_hand = 1.1394 * np.array([.1178, .3245, .3558, .1553, .0269]) - .0234
    assert soft_label(2.6, 1.) == pytest.approx(by_hand, abs=2e-4) == refit(level_masses(2.6, 1.), GRID, 2.6)


@pytest.mark.parametrize('score, word', [
    (1, 'bad'), (1.8, 'bad'), (1.81, 'poor'), (3, 'fair'), (4.2, 'good'), (5, 'excellent')])
def test_one_word(score, word):
    assert LEVELS[int(one_hot(score).argmax())] == word and one_hot(score).sum() == 1
    trace = level_trace(score)
    assert claims(trace.reasoning).level == word and well_formed(render(trace)) and parse(render(trace)).trace == trace


# order

def test_order_is_the_mean_over_pairs_of_one_set():
    means, people = torch.tensor([4.2, 2., 3.3, 1.5, 4.9]), torch.tensor([4., 2.5, 3., 2., 1.2])
    spread, sets = torch.tensor([.5, .7, .6, .4, .9]), torch.tensor([0, 0, 1, 0, 1])
    phi = lambda x: float(torch.special.ndtr(torch.as_tensor(x)))
    pairs = [(0, 1), (0, 3), (1, 3), (2, 4)]
    known = [phi((people[a] - people[b]) / (spread[a] ** 2 + spread[b] ** 2) ** .5) for a, b in pairs]
    seen = [phi((means[a] - means[b]) / 2 ** .5) for a, b in pairs]
    by_hand = np.mean([1 - fidelity(s, k) for s, k in zip(seen, known)])
    assert float(fidelity_loss(means, people, spread, sets)) == pytest.approx(by_hand, abs=1e-4)


def test_nothing_is_compared_across_datasets():
    means = torch.tensor([4., 2, 3], requires_grad=True)
    loss = fidelity_loss(means, torch.tensor([1., 5, 3]), torch.zeros(3), torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0 and means.grad.tolist() == [0, 0, 0]


@given(st.lists(scores, min_size=2, max_size=6), st.integers(0, 9))
def test_order_has_a_finite_gradient(people, seed):
    means = (1 + 4 * torch.rand(len(people), generator=torch.Generator().manual_seed(seed))).requires_grad_()
    loss = fidelity_loss(means, torch.tensor(people), torch.zeros(len(people)), torch.zeros(len(people)))
    loss.backward()
    assert 0 <= loss.item() <= 1 and means.grad.isfinite().all()


# the mix

@given(st.integers(1, 500), st.floats(0, 1))
def test_every_photo_is_taught_and_the_balance_is_kept(n, share):
    why, short = mixed(n, share)
    assert {*why} | {*short} == {*range(n)} and len({*why}) == len(why) and len({*short}) == len(short)
    assert abs(len(short) - share * (len(why) + len(short))) <= 1


def test_a_mix_of_the_old_kind_stays_as_it_was():
    before, after = sft.both_ways(sft.sft_row, RECORDS, 2), sft_rows(RECORDS, 2)
    texts = lambda rows: [(r['prompt'], r['completion']) for r in rows]
    assert texts(before) == texts(after)


def test_rows_in_words():
    rows = sft_rows(RECORDS, 1, objective='soft')
    asked = [r['prompt'][0]['content'][1]['text'] for r in rows]
    assert asked == [REASON.text] * 2 + [LEVEL.text] * 2
    said = [r['completion'][0]['content'][0]['text'] for r in rows]
    assert said[0] == '<think>It is sharp. Overall the quality is excellent.</think>\n<answer>5.0</answer>'
    assert said[3] == '<think>Overall the quality is bad.</think>\n<answer>1.0</answer>'
    assert sft_rows(RECORDS, mix=1.)[0]['prompt'][0]['content'][1]['text'] == SCORE_ONLY.text


# words that are read

@pytest.mark.parametrize('kind', ['llava', *KINDS])
def test_a_verdict_is_found_in_every_vocabulary(kind):
    words = tiny_vlm(kind).processor.tokenizer
    verdict = verdict_of(words)
    for score, word in zip(GRID, LEVELS):
        text = render(level_trace(score, 'A good photo. The overall quality is fair.'))
        ids = torch.tensor([words(text, add_special_tokens=False)['input_ids']])
        place, = verdict_place(ids, verdict)
        assert int(ids[0, place]) == verdict.ids[score]
        assert words.decode(ids[0, :place]).rstrip().endswith('quality is') and word.startswith(
            words.decode(ids[0, place]).strip())


def test_words_that_begin_alike_are_refused():
    spell = lambda text, add_special_tokens: [ord(c) for c in text.replace('bad', 'foul')]
    with pytest.raises(QPonderError, match='begins two level words alike'):
        verdict_of(SimpleNamespace(encode=spell))


# training

def losses(folder): return [r['loss'] for r in read_rows(folder/'log.jsonl') if 'loss' in r]


@pytest.mark.parametrize('objective', WORDED)
def test_training_lowers_the_loss(objective, tmp_path):
    cold_start(tiny_student(), RECORDS, tmp_path, replace(HOW, epochs=20, objective=objective, mix=.5))
    first, *_, last = losses(tmp_path)
    assert last < .7 * first


def rated(folder): return [Rater(folder).rate(r.path, reasons) for reasons in (True, False) for r in RECORDS]


@pytest.mark.parametrize('objective, kind', [*((o, 'qwen2.5-vl') for o in WORDED), ('soft+fidelity', 'llava')])
def test_taught_in_words_rated_in_numbers(objective, kind, tmp_path):
    "A student with score tokens and one that spells digits, taught one way only, are asked and read that way."
    model = cold_start(tiny_vlm(kind), RECORDS, tmp_path, replace(HOW, objective=objective))
    ratings = rated(model)
    assert [r.score for r in ratings] == [5, 1, 5, 1] and [r.level for r in ratings] == ['excellent', 'bad'] * 2
    means = [5, 1] if objective == 'level' else [4.6, 1.4]
    assert [r.expected for r in ratings] == pytest.approx(means * 2, abs=.2)


@pytest.mark.slow
def test_reasons_and_words_in_one_student(tmp_path):
    model = cold_start(tiny_vlm('qwen2.5-vl'), RECORDS, tmp_path, replace(HOW, objective='soft', mix=.5))
    ratings = rated(model)
    assert [r.reasoning for r in ratings] == [f'{why}Overall the quality is {word}.' for why, word in (
        ('It is sharp. ', 'excellent'), ('It is blurred. ', 'bad'), ('', 'excellent'), ('', 'bad'))]
    assert [r.expected for r in ratings] == pytest.approx([4.6, 1.4] * 2, abs=.2)


def test_nano_reads_words_like_the_stock_classes(tmp_path):
    model = cold_start(tiny_student(), RECORDS, tmp_path, replace(HOW, objective='soft', mix=None))
    photos = [open_image(r.path) for r in RECORDS]
    for mode in ('reason', 'score'):
        ours, theirs = answer(load_nano(model, bf16=False), photos, mode), generate(load_student(model), photos, mode)
        assert [a.text for a in ours] == [a.text for a in theirs]
        assert [a.expected for a in ours] == pytest.approx([a.expected for a in theirs], abs=1e-3)


def test_a_student_remembers_how_it_was_taught(tmp_path):
    model = cold_start(tiny_student(), RECORDS, tmp_path/'one', replace(HOW, epochs=1, objective='level'))
    config = json.loads((model/'config.json').read_text())
    assert config['prompts'] == prompts_of('level', 1) and reads_levels(config)
    assert asked_as(config, 'reason') == asked_as(config, 'score') == 'level'
    again = cold_start(load_student(model), RECORDS, tmp_path/'two', replace(HOW, epochs=1, mix=None))
    assert not reads_levels(json.loads((again/'config.json').read_text()))


@pytest.mark.parametrize('objective', ['level', 'soft'])
def test_accumulated_batches_weigh_as_one(objective, tmp_path):
    how = replace(HOW, epochs=6, objective=objective)
    cold_start(tiny_student(), RECORDS, tmp_path/'one', how)
    cold_start(tiny_student(), RECORDS, tmp_path/'two', replace(how, batch_size=1, accumulate=2))
    assert losses(tmp_path/'one') == pytest.approx(losses(tmp_path/'two'), rel=1e-3)


def test_one_word_at_weight_1_is_cross_entropy(tmp_path):
    how = replace(HOW, epochs=6, objective='level', score_weight=1.)
    cold_start(tiny_student(), RECORDS, tmp_path/'ours', how)
    tiny, plain = tiny_student(), []
    rows = sft_rows(RECORDS, mix=1., objective='level')
    stock = sft.SFTTrainer(tiny.model, args=sft.sft_config(tmp_path, how), train_dataset=rows,
                           processing_class=tiny.processor)
    stock.train()
    plain = [r['loss'] for r in stock.state.log_history if 'loss' in r]
    assert losses(tmp_path/'ours') == pytest.approx(plain, rel=1e-4)


def test_stopped_and_continued_is_as_if_never_stopped(tmp_path, ctrl_c):
    val = Dataset.from_list([dict(path=r.path, score=r.target) for r in RECORDS])
    how = replace(HOW, epochs=6, objective='soft+fidelity', save_every=2)
    whole, again = tiny_student(), tiny_student(seed=1)
    cold_start(whole, RECORDS, tmp_path/'whole', how, val)
    with ctrl_c(watch.Validate, 'on_step_end', 5): cold_start(tiny_student(), RECORDS, tmp_path/'parts', how, val)
    cold_start(again, RECORDS, tmp_path/'parts', how, val)
    weights = [s.model.state_dict() for s in (whole, again)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


# what is missing is said first

@pytest.mark.parametrize('objective', ['soft', 'soft+fidelity'])
def test_no_spread_is_an_error_before_anything_is_trained(objective, tmp_path):
    blind = [RECORDS[0], replace(RECORDS[1], std=None)]
    with pytest.raises(QPonderError, match='1 of 2 photos have none: name its column with std_col'):
        cold_start(tiny_student(), blind, tmp_path/'out', replace(HOW, objective=objective))
    assert not (tmp_path/'out').exists()


def test_no_spread_is_an_error_before_the_first_stage(tmp_path):
    rows = Dataset.from_list([dict(path='x.jpg', score=3., std=None, name='mine')] * 4)
    settings = read_settings('nano', ROOT/'settings.ini', ['sft_objective=soft'])
    run = Run(tmp_path/'run', settings, load=lambda common: SimpleNamespace(train=rows))
    with pytest.raises(QPonderError, match='4 of 4 photos have none'): run_stages(run)
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('preset', ['q-align', 'deqa-score', 'q-sit'])
def test_presets_are_valid(preset):
    s = read_settings(preset, ROOT/'settings.ini').stages['sft']
    assert s.objective in WORDED and s.mix == (.22 if preset == 'q-sit' else 1)


@pytest.mark.parametrize('line, words', [
    ('sft_objective=hard', 'one of trace, level, soft, soft\\+fidelity'),
    ('sft_mix=1.5', 'sft_mix = 1.5: is out of range'),
    ('sft_fidelity_weight=-1', 'sft_fidelity_weight = -1: is out')])
def test_a_mistake_is_named(line, words):
    with pytest.raises(QPonderError, match=words): read_settings('nano', ROOT/'settings.ini', [line])


# the whole way

SMALL = dict(data='photos.csv', low=0, high=100, std_col='std', split_col='split', sft_epochs=150, sft_batch_size=4,
             sft_learning_rate=.01, sft_eval_every=1000, sft_save_every=1000)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['llava', 'qwen2.5-vl'])
@pytest.mark.parametrize('preset', ['q-align', 'deqa-score', 'q-sit'])
def test_from_photos_to_a_report(preset, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sample, split = load_sample().select_columns(['path', 'mos', 'std']), ['train'] * 4 + ['val'] * 3 + ['test'] * 5
    rows = zip(sample.select(range(0, 300, 25)), split)
    lines = [f'{r["path"]},{r["mos"]},{25 * r["std"]},{s}\n' for r, s in rows]
    Path('photos.csv').write_text('image,mos,std,split\n' + ''.join(lines))
    save_student(tiny_vlm(kind), 'base')
    command = ['run', '--preset', preset, '--set', 'student=base']
    for key, value in SMALL.items(): command += ['--set', f'{key}={value}']
    assert main(command) == 0, capsys.readouterr().err
    assert not Path('runs', preset, 'grpo').exists()
    assert 'ended with the cold start (grpo_steps = 0)' in Path('runs', preset, 'report.html').read_text()
    config = json.loads(Path('runs', preset, 'cold-start', 'model', 'config.json').read_text())
    assert config['prompts'] == prompts_of('level', None if preset == 'q-sit' else 1)
    said = [json.loads(line) for line in Path('runs', preset, 'evaluate', 'predictions.jsonl').read_text().splitlines()]
    mine = [r for r in said if r['model'] == 'Q-Ponder-CI']
    read = [r['expected'] for r in mine if r['expected'] is not None]
    assert len(mine) == 8 and all(1 <= e <= 5 for e in read) and (len(read) > 3 or preset == 'q-sit')
