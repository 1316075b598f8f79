"Metrics agree with the textbooks, failures are never lost, and nothing is fitted on what it judges"
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy import stats

import qponder.baselines as page
import qponder.compare
from qponder.baselines import (baselines, bell, brisque_features, brisque_scores, brisque_svr, constant,
                               measured_ridge, score_with)
from qponder.compare import compare_runs, contrast, contrast_words
from qponder.distill import ask as trace
from qponder.evaluate import (Fitted, chain, compare, evaluate, fit_on, grounding, metrics, spread, swapped, tabulate,
                              whole)
from qponder.filters import DistillSettings
from qponder.metrics import (Interval, Logistic4, _interval, bootstrap, krcc, logistic4_fit, paired_bootstrap, plcc,
                             rmse, srcc)
from qponder.photo import ImageError
from qponder.predict import Prediction, predict, read_predictions, stand_ins, values
from qponder.scale import QPonderError
from qponder.store import write_records
from qponder.teacher import MeasuredTeacher

pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(10, 50)), min_size=3, max_size=30).map(
    lambda found: np.array(found, dtype=float).T / 10)


def answer(score: float, words: str = 'The photo is sharp. Overall the quality is fair.', **more) -> SimpleNamespace:
    "What a student may say"
    text = f'<think>{words}</think><answer>{score}</answer>'
    return SimpleNamespace(**dict(text=text, finished=True, expected=score) | more)


def photos(n: int, seed: int = 0) -> list[dict]:
    "Rated photos: noise of several strengths, the weaker the better"
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        strength = rng.uniform(0, 60)
        pixels = np.tile(np.linspace(60, 200, 48), (40, 1))[..., None] + rng.normal(size=(40, 48, 3)) * strength
        image = Image.fromarray(pixels.clip(0, 255).astype('uint8'))
        out.append(dict(image=image, path=f'{seed}-{i}.png', score=round(5 - strength / 15, 2), mos=100 - strength))
    return out


def predictions(n: int = 30, model: str = 'm', split: str = 'test', seed: int = 0) -> list[Prediction]:
    "Predictions that are right within a point or so"
    rng = np.random.default_rng(seed)
    said = [(s, float(np.clip(s + rng.normal() * .5, 1, 5))) for s in rng.uniform(1, 5, n)]
    return [Prediction(model, f'{split}{i}.png', split, s, greedy=round(g, 1), expected=g)
            for i, (s, g) in enumerate(said)]


@given(pairs)
def test_correlations_are_those_of_scipy(data):
    pred, target = data
    for ours, theirs in ((plcc, stats.pearsonr), (srcc, stats.spearmanr), (krcc, stats.kendalltau)):
        if np.ptp(pred) == 0 or np.ptp(target) == 0: assert np.isnan(ours(pred, target))
        else: assert math.isclose(float(ours(pred, target)), theirs(pred, target).statistic, abs_tol=1e-9)


@given(pairs)
def test_rank_correlations_ignore_how_the_scale_is_bent(data):
    pred, target = data
    for fn in (srcc, krcc): assert np.array_equal(fn(np.exp(pred), target), fn(pred, target), equal_nan=True)
    assert np.allclose(plcc(3 * pred - 7, target), plcc(pred, target), equal_nan=True)


@given(st.integers(3, 12), st.integers(1, 4), st.integers(0, 99))
def test_many_rows_at_once_are_one_row_at_a_time(n, rows, seed):
    rng = np.random.default_rng(seed)
    p, t = rng.integers(0, 5, (rows, n)) * 1., rng.integers(0, 5, (rows, n)) * 1.
    for fn in (plcc, srcc, krcc, rmse):
        assert np.allclose(fn(p, t), [fn(a, b) for a, b in zip(p, t)], equal_nan=True)


def test_constant_predictions_have_no_correlation():
    for value in (2.7, 1 / 3, 0):
        for fn in (plcc, srcc, krcc): assert np.isnan(fn(np.full(7, value), np.arange(7)))
    assert bootstrap(srcc, np.full(9, 3.), np.arange(9.)).value != 0


def test_bootstrap_is_repeatable_and_depends_on_its_seed():
    p = predictions()
    pred, target = values(p, 'expected'), np.array([q.score for q in p])
    assert bootstrap(srcc, pred, target) == bootstrap(srcc, pred, target, seed=0)
    assert bootstrap(srcc, pred, target) != bootstrap(srcc, pred, target, seed=1)


def test_bootstrap_is_that_of_one_resample_after_the_other():
    pred, target, rng = np.arange(12.), np.random.default_rng(3).permutation(12) * 1., np.random.default_rng(5)
    draws = [float(plcc(pred[i], target[i])) for i in rng.integers(0, 12, (400, 12))]
    found = bootstrap(plcc, pred, target, n=400, seed=5)
    assert np.allclose([found.low, found.high], np.percentile(draws, (2.5, 97.5)))


OTHERS = dict(scipy=lambda p, t: stats.spearmanr(p, t)[0], first_axis=lambda p, t: np.abs(p - t).mean(0),
              whole=lambda p, t: float(((p - t) ** 2).mean()))


@pytest.mark.parametrize('name', OTHERS)
def test_a_metric_of_ones_own_sees_one_resample_at_a_time(name):
    "With as many resamples as photos, not even the shape would tell"
    pred, target, fn = np.arange(20.), np.random.default_rng(3).permutation(20) * 1., OTHERS[name]
    draws = [fn(pred[i], target[i]) for i in np.random.default_rng(0).integers(0, 20, (20, 20))]
    found = bootstrap(fn, pred, target, n=20)
    assert np.allclose([found.value, found.low, found.high], [fn(pred, target), *np.percentile(draws, (2.5, 97.5))])
    pair = paired_bootstrap(fn, pred, pred[::-1], target, n=20)
    drawn = np.random.default_rng(0).integers(0, 20, (20, 20))
    other = [d - fn(pred[::-1][i], target[i]) for d, i in zip(draws, drawn)]
    assert np.allclose([pair.low, pair.high], np.percentile(other, (2.5, 97.5)))


def test_a_metric_that_gives_no_number_is_refused():
    with pytest.raises(QPonderError, match=r'shape \(20,\)'): bootstrap(np.subtract, np.arange(20.), np.arange(20.))


@given(pairs)
@settings(max_examples=30)
def test_interval_is_in_order_and_within_the_possible(data):
    i = bootstrap(srcc, *data, n=200)
    if not np.isnan(i.low): assert -1 - 1e-9 <= i.low <= i.high <= 1 + 1e-9


@pytest.mark.parametrize('n', [0, 1, 2])
def test_too_few_photos_have_no_metric(n):
    assert np.isnan(bootstrap(srcc, np.arange(n), np.arange(n)).value)
    assert np.isnan(paired_bootstrap(srcc, np.arange(n), np.arange(n), np.arange(n)).value)


def test_three_photos_have_a_metric():
    assert bootstrap(srcc, np.arange(3), np.arange(3)).value == 1
    assert paired_bootstrap(srcc, np.arange(3), -np.arange(3), np.arange(3)).value == 2


def test_interval_of_an_almost_constant_model_is_withheld():
    pred = np.full(30, 3.); pred[0] = 4
    i = bootstrap(srcc, pred, np.arange(30.), n=500)
    assert not np.isnan(i.value) and np.isnan(i.low) and i.noise


@pytest.mark.parametrize('undefined, shown', [(5, True), (6, False)])
def test_interval_lives_with_one_undefined_draw_in_twenty(undefined, shown):
    found = _interval(.5, np.r_[np.full(undefined, np.nan), np.full(100 - undefined, .5)])
    assert found.value == .5 and (found.low == found.high == .5) == shown


def test_shorter_intervals_with_more_photos():
    few, many = (bootstrap(srcc, values(p), np.array([q.score for q in p])) for p in map(predictions, (20, 400)))
    assert many.high - many.low < .5 * (few.high - few.low)


def test_paired_difference_is_the_difference_and_changes_sign():
    rng = np.random.default_rng(0)
    t = rng.normal(size=50); a, b = t + rng.normal(size=50), t + rng.normal(size=50)
    one, other = paired_bootstrap(srcc, a, b, t), paired_bootstrap(srcc, b, a, t)
    assert math.isclose(one.value, float(srcc(a, t) - srcc(b, t))) and math.isclose(one.value, -other.value)
    assert np.allclose([one.low, one.high], [-other.high, -other.low])


@given(st.floats(1, 2.5), st.floats(3, 5), st.floats(-3, 3), st.floats(.3, 1.2), st.floats(.1, 50), st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_logistic_finds_the_curve_that_made_the_data(bottom, top, middle, width, unit, shift):
    x = np.linspace(-4, 4, 60)
    y = Logistic4(top, bottom, middle, max(width, .6))(x)
    assert np.abs(logistic4_fit(x * unit + shift, y)(x * unit + shift) - y).max() < .02


def test_logistic_turns_a_scale_that_runs_the_other_way():
    x = np.linspace(0, 100, 40)
    y = 5 - x / 25
    assert plcc(logistic4_fit(x, y)(x), y) > .99


def test_logistic_is_finite_far_outside():
    assert np.allclose(Logistic4(5, 1, 3, 1e-3)([-1e9, 1e9]), [1, 5])


@pytest.mark.parametrize('pred', [[], [1, 2, 3], np.full(20, 2.)])
def test_logistic_refuses_what_determines_no_curve(pred):
    with pytest.raises(QPonderError, match='no curve'): logistic4_fit(pred, np.arange(len(pred)))


def test_curve_is_never_applied_to_its_own_photos():
    val, test = predictions(split='val'), predictions(split='test', seed=1)
    fit = fit_on(val, 'expected')
    assert metrics(test, 'expected', fit, n=50).fitted_on == '30 val'
    with pytest.raises(QPonderError, match='val0.png'): metrics([*test, val[0]], 'expected', fit, n=50)


def test_no_curve_without_variety():
    assert fit_on([replace(p, greedy=3.) for p in predictions()]) is None
    assert fit_on(predictions(7)) is None and fit_on([]) is None
    assert len(fit_on(predictions(8)).paths) == 8
    assert np.isnan(metrics(predictions(), n=50).plcc_fitted.value)


def test_worst_case_is_no_better_than_any_other_reading():
    p = [replace(q, status='truncated', greedy=None) if i % 5 == 0 else q for i, q in enumerate(predictions(60))]
    m, target = metrics(p, n=50), np.array([q.score for q in p])
    assert m.failed == 12 and m.photos == 60 and m.srcc_worst < m.srcc.value
    worst = values(p, worst=True)
    for guess in (1, 2, 3, 4, 5):
        filled = np.where(np.isnan(values(p)), guess, values(p))
        assert rmse(filled, target) <= rmse(worst, target) + 1e-12
        assert m.srcc_worst <= srcc(filled, target) + 1e-9


@pytest.mark.parametrize('low, high', [(-60, 0), (0, 100), (1, 5), (-3, 3)])
def test_the_worst_case_is_the_worst_on_any_scale(low, high):
    "A scale of its own, on which every photo above 3 failed, and then every photo below"
    right = [replace(p, greedy=low + (high - low) * (p.score - 1) / 4, expected=None) for p in predictions(60)]
    target = np.array([p.score for p in right])
    for fails in (lambda p: p.score > 3, lambda p: p.score <= 3, lambda p: int(p.path[4:-4]) % 3 == 0):
        p = [replace(q, status='truncated', greedy=None) if fails(q) else q for q in right]
        there, worst = values(p), values(p, worst=True)
        failed = np.isnan(there)
        ends = (1, 5) if (low, high) == (1, 5) else (np.nanmin(there), np.nanmax(there))
        assert set(worst[failed]) <= set(ends) and np.array_equal(worst[~failed], there[~failed])
        m = metrics(p, n=20)
        assert m.srcc.value > .99 > .5 > m.srcc_worst
        for guess in np.linspace(*ends, 9): assert m.srcc_worst <= srcc(np.where(failed, guess, there), target) + 1e-9


def test_a_readable_answer_without_an_expected_score_has_not_failed():
    "As the students have it who spell scores: 20 of 60 answers, all of them near what people said"
    one = predictions(60)
    other = [replace(p, expected=None) if i < 20 else p for i, p in enumerate(one)]
    m = tabulate(other, n=20)['m', 'expected']
    assert (m.failed, m.stand_ins, stand_ins(other)) == (0, 20, 20)
    assert m.srcc.value > .8 and m.srcc_worst == m.srcc.value
    assert values(other, 'expected')[:20].tolist() == [p.greedy for p in one[:20]]
    assert abs(contrast(one, other, n=20).more.value) < .01
    table = tabulate(other, n=20)
    assert '20 by m.' in str(table) and 'by the written one' not in str(tabulate(one, n=20))
    assert [row['stand_ins'] for row in table.dicts()] == [0, 20]


def test_a_reversed_scorer_is_not_turned_round():
    of = lambda split, seed: [replace(p, greedy=6 - p.score, expected=None) for p in predictions(40, 'm', split, seed)]
    m, = tabulate([*of('val', 1), *of('test', 0)], n=20).rows
    assert m.plcc.value < -.99 and np.isnan(m.plcc_fitted.value) and m.fitted_on == ''
    good = [replace(p, greedy=6 - p.greedy) for p in (*of('val', 1), *of('test', 0))]
    m, = tabulate(good, n=20).rows
    assert m.plcc_fitted.value > .99 and m.fitted_on == '40 val'


def test_without_failures_both_rules_agree():
    m = metrics(predictions(), n=50)
    assert m.failed == 0 and math.isclose(m.srcc_worst, m.srcc.value)


def test_failures_count_zero_in_the_reward():
    p = [replace(q, reward={'total': 1., 'agreement': .5}) for q in predictions(10)]
    p[0] = replace(p[0], status='no_answer', greedy=None, reward={})
    m = metrics(p, n=50)
    assert math.isclose(m.reward.value, .9) and math.isclose(m.agreement.value, .45)


def test_all_failures_are_shown_and_score_nothing():
    silent = [replace(p, status='no_answer', greedy=None, expected=None) for p in predictions(5)]
    m = metrics(silent, n=50)
    assert (m.photos, m.failed, m.spread.distinct) == (5, 5, 0) and np.isnan(m.srcc.value) and np.isnan(m.rmse.value)
    assert '5 (100.0%)' in str(tabulate(silent, n=50))


def test_expected_score_of_a_failed_answer_is_not_used():
    p = replace(predictions(1)[0], status='not_a_number', greedy=None, expected=3.3)
    assert np.isnan(values([p], 'expected')).all()


def test_error_in_points_only_for_scores_in_points():
    assert np.isnan(metrics([replace(p, greedy=-20 * p.greedy) for p in predictions()], n=50).rmse.value)


@given(st.lists(st.integers(10, 50), min_size=1, max_size=40))
def test_spread(found):
    s = spread(np.array(found) / 10)
    assert s.distinct == len(set(found)) and s.commonest == max(map(found.count, found)) / len(found)
    assert math.isclose(s.std, np.std(np.array(found) / 10), abs_tol=1e-12)


def test_greedy_and_expected_stand_side_by_side():
    table = tabulate([*predictions(), *predictions(split='val', seed=1)], n=50)
    assert [(m.model, m.which) for m in table.rows] == [('m', 'greedy'), ('m', 'expected')]
    text = table._repr_markdown_()
    assert '| m, greedy |' in text and '| m, expected |' in text and '30 val' in text and 'nan' not in text


def test_table_is_fit_for_json():
    rows = [replace(p, greedy=3., expected=None) for p in predictions()]
    found = json.loads(json.dumps(tabulate(rows, n=50).dicts(), allow_nan=False))
    assert found[0]['srcc']['value'] is None and found[0]['spread']['distinct'] == 1


def test_same_predictions_same_table():
    rows = [*predictions(), *predictions(split='val', seed=1), *predictions(model='other', seed=2)]
    assert str(tabulate(rows, n=200)) == str(tabulate(rows, n=200))
    assert {m.model for m in tabulate(rows, n=50).rows} == {'m', 'other'}


def test_copies_of_one_reference_image_are_no_independent_evidence():
    "Ten copies of each photo: the intervals are as wide as those of a tenth of the photos, wherever there is one."
    few = [replace(p, reward={'total': 1 - abs(p.greedy - p.score) / 4}) for p in predictions(20, seed=3)]
    copies = [replace(p, path=f'{k} {p.path}', reference=p.path) for p in few for k in range(10)]
    apart = [replace(p, reference=None) for p in copies]
    width = lambda i: i.high - i.low
    for measure in (lambda said: metrics(said, n=200).srcc, lambda said: metrics(said, n=200).reward,
                    lambda said: compare(said, [replace(p, greedy=6 - p.score) for p in said], n=200)):
        narrow, wide, right = (width(measure(said)) for said in (apart, copies, few))
        assert narrow < .6 * wide and wide == pytest.approx(right, rel=.25)


def test_comparison_needs_the_same_photos_and_leaves_out_failures_of_either():
    one, other = predictions(seed=0), [replace(p, model='o', greedy=5 - p.greedy + 1) for p in predictions(seed=0)]
    assert compare(one, other).low > 0 and compare(one, one) == Interval(0, 0, 0)
    assert compare(one, other[::-1]) == compare(one, other)
    failed = [replace(other[0], status='no_answer', greedy=None), *other[1:]]
    assert compare(one, failed) == compare(one[1:], other[1:])
    far = 1. if other[0].score > 3 else 5.
    assert compare(one, failed, worst=True) == compare(one, [replace(other[0], greedy=far), *other[1:]])
    with pytest.raises(QPonderError, match='different photos'): compare(one, other[1:])


@pytest.mark.parametrize('measure', [contrast, contrast_words, lambda a, b, n: compare(a, b, n=n)])
def test_either_run_may_know_the_references(measure):
    "And a contradiction is an error, whichever run comes first"
    rng = np.random.default_rng(0)
    one = [replace(p, reward={'agreement': rng.random()}) for p in predictions(60)]
    other = [replace(p, greedy=float(g), expected=float(g), reward={'agreement': rng.random()})
             for p, g in zip(one, rng.uniform(1, 5, 60))]
    known = lambda some: [replace(p, reference=f'{i // 10}.png') for i, p in enumerate(some)]
    both = measure(known(one), known(other), n=100)
    assert measure(known(one), other, n=100) == both == measure(one, known(other), n=100) != measure(one, other, n=100)
    wrong = [*known(other)[:-1], replace(other[-1], reference='x.png')]
    for pair in ((known(one), wrong), (wrong, known(one))):
        with pytest.raises(QPonderError, match='test59.png: it is a copy of 5.png in one list and of x.png in the'):
            measure(*pair, n=100)


def test_two_models_of_one_run_are_read_once(tmp_path, monkeypatch):
    said, read = [*predictions(), *predictions(model='other', seed=2)], []
    said[30:] = [replace(q, score=p.score) for p, q in zip(said, said[30:])]
    for run in 'ab': write_records(tmp_path/run/'evaluate'/'predictions.jsonl', said)
    def count(file): read.append(file.parts[-3]); return read_predictions(file)
    monkeypatch.setattr(qponder.compare, 'read_predictions', count)
    one = compare_runs(tmp_path/'a', tmp_path/'a', ('m', 'other'), n=20)
    two = compare_runs(tmp_path/'a', tmp_path/'b', ('m', 'other'), n=20)
    assert one.rows == two.rows and read[0] == 'a' and sorted(read[1:]) == ['a', 'b']


def test_evaluation_is_rewarded_as_in_training(tmp_path):
    "What the teacher wrote for photos that people liked, and what is measured there: with and without toning"
    rows = [dict(r, score=4.84) for r in photos(8) if r['score'] < 4]
    found = {}
    for tone in (True, False):
        how = DistillSettings(tone=tone, decimals=2)
        traces = [trace(r, r['image'], MeasuredTeacher(), how) for r in rows]
        said = [SimpleNamespace(text=t.raw, finished=True, expected=None) for t in traces]
        ask = lambda _, images, said=said: said
        found[tone] = predict(None, rows, tmp_path/'p.jsonl', f'{tone}', ask=ask, distilled=how)
        assert [p.faults for p in found[tone]] == [t.faults for t in traces]
        assert {p.reward['agreement'] for p in found[tone]} == {1}
    assert max(found[True][0].faults.values()) == 1 < max(found[False][0].faults.values())


def test_predictions_survive_the_disk(tmp_path):
    broken = Prediction('m', 'ü.png', 'test', 2., status='unreadable', note='«broken»', faults={'blur': 2})
    p = [*predictions(3), broken]
    write_records(tmp_path / 'p.jsonl', p)
    assert read_predictions(tmp_path / 'p.jsonl') == p


def test_a_torn_line_is_asked_again(tmp_path):
    rows, file, calls = photos(5), tmp_path / 'p.jsonl', []
    def ask(_, images): calls.append(len(images)); return [answer(3.1) for _ in images]
    whole = predict(None, rows, file, 'm', ask=ask, batch_size=2)
    text = file.read_text()
    file.write_text(text[:-30])
    assert predict(None, rows, file, 'm', ask=ask, batch_size=2) == whole
    assert calls == [2, 2, 1, 1] and file.read_text() == text


def test_interrupted_prediction_goes_on_where_it_was(tmp_path):
    rows, file = photos(6), tmp_path / 'p.jsonl'
    def fails(_, images):
        if file.exists(): raise KeyboardInterrupt
        return [answer(3.) for _ in images]
    with pytest.raises(KeyboardInterrupt): predict(None, rows, file, 'm', ask=fails, batch_size=4)
    assert len(read_predictions(file)) == 4
    done = predict(None, rows, file, 'm', ask=lambda _, images: [answer(2.) for _ in images], batch_size=4)
    assert [p.greedy for p in done] == [3.] * 4 + [2.] * 2 and [p.path for p in done] == [r['path'] for r in rows]


def test_a_photo_that_was_copied_elsewhere_is_not_asked_about_again(tmp_path):
    from qponder.data import DatasetCard, make_rows, same_size
    asked = []
    def ask(_, images): asked.append(len(images)); return [answer(3.) for _ in images]
    for home in ('one', 'clone'):
        (tmp_path/home).mkdir()
        for i, row in enumerate(photos(3)): row['image'].save(tmp_path/home/f'{i}.png')
        paths = sorted((tmp_path/home).iterdir())
        rows = make_rows(pd.DataFrame(dict(path=paths, mos=[1., 2., 3.])), DatasetCard('mine', 1, 5))
        predict(None, same_size(rows, 24, tmp_path/'copies'), tmp_path/'p.jsonl', 'm', ask=ask)
    assert asked == [3]


def test_models_and_splits_share_a_file(tmp_path):
    rows, ask = photos(2), lambda _, images: [answer(3.) for _ in images]
    for model in 'ab':
        for split in ('val', 'test'): predict(None, rows, tmp_path / 'p.jsonl', model, split, ask=ask)
    assert len({(p.model, p.split, p.path) for p in read_predictions(tmp_path / 'p.jsonl')}) == 8


def test_a_photo_twice_or_under_another_score_is_refused_before_anybody_is_asked(tmp_path):
    rows, file, asked = photos(3), tmp_path / 'p.jsonl', []
    def ask(_, images): asked.append(len(images)); return [answer(3.) for _ in images]
    twice = [*rows, rows[0] | dict(image=rows[1]['image'])]
    with pytest.raises(QPonderError, match='0-0.png: two rows have this path'): predict(None, twice, file, 'm', ask=ask)
    assert not asked and not file.exists()
    predict(None, rows[:2], file, 'm', ask=ask)
    corrected = [dict(rows[0], score=1.5), *rows[1:]]
    with pytest.raises(QPonderError, match="0-0.png.*is 1.5, and was .*p.jsonl.*'m'"):
        predict(None, corrected, file, 'm', ask=ask)
    assert asked == [2] and len(read_predictions(file)) == 2
    for model, split in (('m', 'val'), ('other', 'test')):
        assert predict(None, corrected, file, model, split, ask=ask)[0].score == 1.5


@pytest.mark.parametrize('text, finished, status', [
    ('no idea', True, 'no_answer'), ('<think>It is', False, 'truncated'), ('<answer>9</answer>', True, 'out_of_range'),
    ('<answer>good</answer>', True, 'not_a_number'), ('', True, 'no_answer')])
def test_failed_answers_keep_text_and_status_and_get_no_score(tmp_path, text, finished, status):
    said = SimpleNamespace(text=text, finished=finished, expected=3.)
    p, = predict(None, photos(1), tmp_path / 'p.jsonl', 'm', ask=lambda *_: [said])
    assert (p.status, p.text, p.finished, p.greedy, p.expected) == (status, text, finished, None, None)
    assert not p.ok and set(p.reward.values()) == {0}


def test_a_photo_that_was_away_for_a_while_is_asked_about_when_it_is_back(tmp_path):
    away = tmp_path/'away.png'
    rows = [dict(photos(1)[0], path='here.png'), {'path': str(away), 'score': 3.}]
    say = lambda: predict(None, rows, tmp_path/'p.jsonl', 'm', ask=lambda _, images: [answer(3.) for _ in images])
    with pytest.raises(ImageError, match='away.png.*the same command goes on'): whole(say())
    Image.new('RGB', (40, 40), 'gray').save(away)
    whole(found := say())
    assert [p.status for p in found] == ['ok', 'ok'] and read_predictions(tmp_path/'p.jsonl') == found


def test_unreadable_photos_are_rows_and_nobody_is_asked_about_them(tmp_path):
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'\xff\xd8\xff nothing')
    rows = [photos(1)[0], {'path': str(broken), 'score': 3.}, {'path': str(tmp_path / 'gone.png'), 'score': 2.}]
    asked = []
    def ask(_, images): asked.append(len(images)); return [answer(3.) for _ in images]
    found = predict(None, rows, tmp_path / 'p.jsonl', 'm', ask=ask)
    assert asked == [1] and [p.status for p in found] == ['ok', 'unreadable', 'unreadable']
    assert 'broken.jpg' in found[1].note and 'gone.png' in found[2].note and metrics(found, n=10).failed == 2
    assert [p.status for p in score_with(constant(rows), rows, 'c')] == ['ok', 'unreadable', 'unreadable']


@pytest.mark.parametrize('line', ['nonsense', '[1]', '{"model": "m"}', '3'])
def test_a_line_that_is_no_prediction_is_named(tmp_path, line):
    write_records(tmp_path / 'p.jsonl', predictions(1))
    with open(tmp_path / 'p.jsonl', 'a') as f: f.write(line + '\n')
    with pytest.raises(QPonderError, match='p.jsonl, line 2'): read_predictions(tmp_path / 'p.jsonl')


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(QPonderError, match='cannot be written'):
        write_records(tmp_path / 'file' / 'p.jsonl', predictions(1))


def test_baselines_know_only_the_training_photos():
    train, test = photos(24), photos(6, seed=1)
    images = [r['image'] for r in test]
    assert np.allclose(constant(train)(images), np.mean([r['score'] for r in train]))
    for fit in (measured_ridge, brisque_svr):
        pred = fit(train)(images)
        assert pred.shape == (6,) and (pred >= 1).all() and (pred <= 5).all()
        assert srcc(pred, [r['score'] for r in test]) > .5
        assert np.array_equal(pred, fit(train)(images))


def test_scores_do_not_depend_on_the_company():
    train, images = photos(24), [r['image'] for r in photos(4, seed=2)]
    for fit in (constant, measured_ridge, brisque_svr):
        scorer = fit(train)
        assert np.allclose(scorer(images)[::-1], scorer(images[::-1]))
        assert np.allclose(scorer(images), [scorer([i])[0] for i in images])


@given(st.integers(16, 40), st.integers(16, 40), st.sampled_from(['flat', 'noise', 'half']))
@settings(max_examples=25, deadline=None)
def test_brisque_features_are_finite_for_any_photo(w, h, kind):
    x, rng = np.full((h, w, 3), 255, 'uint8'), np.random.default_rng(w * h)
    if kind == 'noise': x = rng.integers(0, 256, (h, w, 3), 'uint8')
    if kind == 'half': x[:, :w // 2] = rng.integers(0, 256, 3)
    found = brisque_features(Image.fromarray(x))
    assert found.shape == (36,) and np.isfinite(found).all()


@pytest.mark.parametrize('alpha', [.7, 1, 2, 4])
def test_bell_finds_the_shape_that_made_the_data(alpha):
    "Twice as wide on the right, so twice as many there: else the density would jump at 0, and be no such curve"
    x = stats.gennorm.rvs(alpha, size=200_000, random_state=0)
    skewed = np.abs(x) * np.where(np.random.default_rng(1).random(x.size) < 2 / 3, 2, -1)
    shape, mean, left, right = bell(skewed)
    assert abs(bell(x)[0] - alpha) < .05 * alpha and abs(bell(x)[1]) < .02 * x.std()
    assert abs(shape - alpha) < .05 * alpha and abs(mean - skewed.mean()) < .02 * skewed.std()
    assert abs(right / left - 4) < .2


def test_brisque_features_are_those_of_the_package():
    brisque = pytest.importorskip('brisque', exc_type=ImportError)
    cv2, rgb2gray = pytest.importorskip('cv2', exc_type=ImportError), page.rgb2gray
    model, rng = brisque.BRISQUE(url=False), np.random.default_rng(0)
    for w, h in ((64, 48), (61, 50), (63, 49), (30, 97)):
        small = Image.fromarray(rng.integers(0, 256, (h // 3, w // 3, 3), 'uint8'))
        photo = small.resize((w, h), Image.Resampling.BICUBIC)
        grey = rgb2gray(np.asarray(photo))
        half = cv2.resize(grey, None, fx=.5, fy=.5, interpolation=cv2.INTER_CUBIC)
        theirs = [np.asarray(f).item() for x in (grey, half) for f in model.calculate_brisque_features(x, 7, 7 / 6)]
        assert np.allclose(brisque_features(photo), theirs, atol=1e-6, rtol=1e-5)
        assert math.isclose(brisque_scores([photo])[0], -model.calculate_image_quality_score(theirs), abs_tol=1e-3)


def test_rounding_errors_in_flat_areas_do_not_reach_the_features(monkeypatch):
    "Another order of summing, as another machine may have it, gives other errors"
    x = np.random.default_rng(0).integers(0, 256, (60, 80, 3), 'uint8')
    x[:30], x[30:45] = 255, 77
    photo = Image.fromarray(x)
    one = brisque_features(photo)
    other = lambda rgb: (rgb[..., 2] * .0721 + rgb[..., 1] * .7154 + rgb[..., 0] * .2125) / 255
    monkeypatch.setattr(page, 'rgb2gray', other)
    monkeypatch.setattr(page, '_SEEN', {})
    assert np.allclose(brisque_features(photo), one, rtol=1e-8, atol=1e-12)


def test_stored_scores_of_baselines_hold_no_rounding_errors():
    for said in (2.34567812, 2.34567812 + 3e-13, 2.34567812 - 3e-13):
        p, = score_with(lambda images, said=said: np.array([said]), photos(1), 'm')
        assert p.greedy == 2.345678


@pytest.fixture
def without_brisque(monkeypatch):
    "A machine where the package is missing, or cannot be imported"
    page._stock_brisque.cache_clear()
    monkeypatch.setitem(sys.modules, 'brisque', None)
    yield
    page._stock_brisque.cache_clear()


def test_stock_brisque_without_its_package_names_the_extra(without_brisque):
    with pytest.raises(QPonderError, match=r'qponder\[baselines\]'): brisque_scores([photos(1)[0]['image']])


def test_baselines_go_without_the_package(without_brisque):
    assert list(baselines(photos(12))) == ['constant', 'measured + ridge', 'BRISQUE + SVR']


def test_grounded_reasoning_gains_by_its_own_photo_and_a_parrot_does_not():
    said = {'noise': 'The photo is very noisy.', 'blur': 'The photo is heavily blurred.'}
    kinds = ['noise', 'blur', 'blur', 'noise'] * 5
    rows = [replace(p, faults={k: 3}, text=answer(3., said[k]).text) for p, k in zip(predictions(20), kinds)]
    assert grounding(rows, n=200).gain.low > 0
    assert grounding([replace(p, text=rows[0].text) for p in rows], n=200).gain.noise


def test_swapped_by_hand():
    "One text for three photos; five aspects are fine and not spoken of: 2 of 7, 1 of 7 and nothing is right"
    text = '<think>The photo is blurred.</think><answer>3</answer>'
    three = [Prediction('m', str(i), 'test', 3., text=text, faults=f)
             for i, f in enumerate(({'blur': 2}, {'blur': 1}, {'noise': 2}))]
    own, others = swapped(three)
    assert np.allclose([own, others], [[2 / 7, 1 / 7, 0], [1 / 14, 2 / 14, 3 / 14]])


def test_chain_by_hand():
    "Three of four scores are right, one just so; the reasons are worth 2.5, of which 1.5 beside a right score"
    rows = [Prediction('m', '', 'test', 3., greedy=g, reward={'aspects': a})
            for g, a in ((3.2, 1.), (4.9, 1.), (3.5, 0.), (3., .5))]
    found = chain(rows)
    assert (found.score, found.reasoning, found.forward, found.backward) == (.75, .625, .6, .5)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=20))
def test_chain_is_bounded_and_perfect_only_for_the_perfect(marks):
    rows = [Prediction('m', '', 'test', 3., greedy=3. if h else 5., reward={'aspects': c}) for h, c in marks]
    found = chain(rows)
    assert all(np.isnan(v) or 0 <= v <= 1 + 1e-9 for v in (found.score, found.reasoning, found.forward, found.backward))
    if all(h for h, _ in marks) and any(c > 0 for _, c in marks): assert math.isclose(found.forward, 1)


def test_failed_answers_break_the_chain():
    found = chain([Prediction('m', '', 'test', 3., status='no_answer')])
    assert found.score == 0 and np.isnan(found.forward) and np.isnan(found.backward)


def test_the_stage_leaves_predictions_and_metrics_and_asks_nothing_twice(tmp_path):
    train, val, test, asked = photos(16), photos(9, 1), photos(10, 2), []
    def ask(student, images):
        asked.append(len(images))
        return [answer(round(2 + i / 10, 1)) for i, _ in enumerate(images)]
    first = evaluate({'base': object(), 'CI': object()}, train, val, test, tmp_path / 'e', ask=ask, n=50)
    assert sum(asked) == 2 * 19 and (tmp_path / 'e' / 'metrics.json').is_file()
    again = evaluate({'base': object(), 'CI': object()}, train, val, test, tmp_path / 'e', ask=ask, n=50)
    assert sum(asked) == 2 * 19 and str(first) == str(again)
    assert str(tabulate(read_predictions(tmp_path / 'e' / 'predictions.jsonl'), n=50)) == str(first)
    assert {('CI', 'greedy'), ('CI', 'expected'), ('constant', 'greedy')} <= {(m.model, m.which) for m in first.rows}


def test_an_answer_without_an_expected_score_costs_the_table_nothing():
    val, test = predictions(split='val'), predictions(seed=1)
    table = tabulate([replace(val[0], expected=None), *val[1:], replace(test[0], expected=None), *test[1:]], n=50)
    found = table['m', 'expected']
    assert (found.photos, found.failed, found.fitted_on) == (30, 0, '30 val') and not np.isnan(found.plcc_fitted.value)


def test_a_line_that_two_processes_wrote_counts_once(tmp_path):
    rows, file = photos(3), tmp_path / 'p.jsonl'
    say = lambda score: lambda _, images: [answer(score) for _ in images]
    def meanwhile(_, images):
        predict(None, rows[1:], file, 'm', ask=say(4.))
        predict(None, rows, file, 'other', ask=say(4.))
        return say(2.)(_, images)
    predict(None, rows, file, 'm', ask=meanwhile)
    assert len(read_predictions(file)) == 8
    with pytest.raises(QPonderError, match="0-1.png: two predictions by 'm' for 'test'.*again"):
        tabulate(read_predictions(file), n=10)
    assert [p.greedy for p in predict(None, rows, file, 'm', ask=None)] == [2.] * 3
    assert [m.photos for m in tabulate(read_predictions(file), n=10).rows] == [3] * 4


def test_fitted_remembers_only_readable_photos():
    p = predictions()
    assert isinstance(fit := fit_on([replace(p[0], status='no_answer', greedy=None), *p[1:]]), Fitted)
    assert p[0].path not in fit.paths and len(fit.paths) == 29
