"The reward is bounded, repeatable and hard to cheat"
import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qponder.reward import (RewardParts, RewardSettings, accuracy_reward, aspect_agreement, consistency,
                            format_reward, gated, kernel, level_agreement, overlap, read_faults, reward, trl_rewards)
from qponder.scale import LEVELS, QPonderError, level, level_centre
from qponder.trace import ASPECTS, FAULTS, FINE, Claims, Trace, claims, render

KINDS = 'gaussian', 'exponential', 'linear', 'threshold'
scores = st.integers(10, 50).map(lambda i: i / 10)
widths = st.floats(.05, 4)
pieces = ['<think>', '</think>', '<answer>', '</answer>', '3.4', '7', 'nan', 'The photo is blurred.',
          'Overall the quality is poor.', 'noise', ' ', '\n']
soup = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=15).map(''.join)
settings = st.builds(RewardSettings, kernel=st.sampled_from(KINDS), width=widths, w_format=st.floats(0, 2),
                     w_accuracy=st.floats(.01, 2), w_consistency=st.floats(0, 2), aspect_share=st.floats(0, 1),
                     gate=st.floats(.05, 1))


def first_of_each_aspect(found: dict[str, int]) -> dict[str, int]:
    "At most one fault an aspect"
    first = {FAULTS[f].aspect: f for f in reversed(found)}
    return {f: d for f, d in found.items() if first[FAULTS[f].aspect] == f}


known = st.dictionaries(st.sampled_from(sorted(FAULTS)), st.integers(1, 3), max_size=6).map(first_of_each_aspect)


def describe(faults: dict[str, int], word: str | None = None) -> str:
    "A reasoning that says exactly this"
    spoiled = {FAULTS[f].aspect for f in faults}
    said = [FAULTS[f].words[d-1] for f, d in faults.items()] + [FINE[a][0] for a in ASPECTS if a not in spoiled]
    return ' '.join(f'The photo is {s}.' for s in said) + (f' Overall the quality is {word}.' if word else '')


def values(parts: RewardParts) -> list[float]:
    return [parts.format, parts.accuracy, parts.consistency, parts.total, parts.agreement, parts.level, parts.aspects]


@given(st.floats(-4, 4), st.sampled_from(KINDS), widths)
def test_kernel_is_bounded_even_and_best_at_zero(error, kind, width):
    assert 0 <= kernel(error, kind, width) <= 1 == kernel(0, kind, width)
    assert kernel(error, kind, width) == kernel(-error, kind, width)


@given(st.floats(0, 4), st.floats(0, 4), st.sampled_from(KINDS), widths)
def test_kernel_falls_with_the_error(a, b, kind, width):
    near, far = sorted((a, b))
    assert kernel(near, kind, width) >= kernel(far, kind, width)


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=9), st.sampled_from(KINDS), widths)
def test_kernel_of_an_array_is_that_of_its_numbers(errors, kind, width):
    assert np.allclose(kernel(np.array(errors), kind, width), [kernel(e, kind, width) for e in errors], atol=1e-12)


@pytest.mark.parametrize('width', [0, -1, float('nan'), float('inf')])
def test_kernel_refuses_a_width_without_meaning(width):
    with pytest.raises(QPonderError, match='width'): kernel(1, 'gaussian', width)


@given(soup, scores, known | st.none(), settings)
def test_everything_is_bounded_whatever_was_written(text, target, faults, how):
    parts = reward(text, target, faults, how)
    assert all(0 <= v <= 1 for v in values(parts))
    assert parts == reward(text, target, faults, how)
    assert parts.consistency <= parts.agreement


@given(soup, scores, known, settings)
def test_unreadable_earns_nothing_in_any_part(text, target, faults, how):
    broken = text.replace('<answer>', '<answer>not ')
    assert reward(broken, target, faults, how) == RewardParts()


@pytest.mark.parametrize('text', [
    '', '3.4', '<answer></answer>', '<answer>0.9</answer>', '<answer>5.1</answer>', '<answer>nan</answer>',
    '<answer>3</answer><answer>3</answer>', '<think>Overall the quality is fair.</think><answer>3.'])
def test_known_ways_of_being_unreadable(text):
    for finished in (True, False): assert reward(text, 3, {'blur': 2}, finished=finished) == RewardParts()


@given(scores, scores, scores, known, settings)
def test_closer_is_never_worse(one, two, target, faults, how):
    "Same words, same agreement with the score: only the distance to the human score differs"
    near, far = sorted((one, two), key=lambda s: abs(s - target))
    told = [reward(render(Trace(describe(faults, level(s)), s)), target, faults, how) for s in (near, far)]
    assert told[0].accuracy >= told[1].accuracy and told[0].total >= told[1].total - 1e-12


@given(scores, known, settings)
def test_right_answer_earns_everything(target, faults, how):
    parts = reward(render(Trace(describe(faults, level(target)), target)), target, faults, how)
    assert np.allclose(values(parts), 1)


numbers = st.sampled_from(['5.0', '1', '½', '٣', '3.4/5', 'four', '100%', '2,5'])


@given(scores, known, settings, st.lists(numbers, min_size=1, max_size=6), st.randoms())
def test_numbers_in_the_reasoning_cannot_matter(target, faults, how, numbers, rng):
    words = describe(faults, level(target)).split(' ')
    for n in numbers: words.insert(rng.randrange(len(words) + 1), n)
    pay = lambda text: reward(render(Trace(text, target)), target, faults, how)
    assert pay(' '.join(words)) == pay(describe(faults, level(target)))


@given(known, st.sampled_from(LEVELS), scores)
def test_consistency_pays_nothing_without_accuracy(faults, word, target):
    how = RewardSettings(kernel='linear', width=.5)
    score = level_centre(word)
    parts = reward(render(Trace(describe(faults, word), score)), target, faults, how)
    assert parts.agreement == pytest.approx(1)
    if abs(score - target) >= .5:
        assert parts.consistency == parts.accuracy == 0 and parts.total == pytest.approx(.1)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(.01, 1))
def test_gate_only_opens(agreement, one, two, gate):
    low, high = sorted((one, two))
    assert 0 <= gated(agreement, low, gate) <= gated(agreement, high, gate) <= agreement
    assert gated(agreement, gate, gate) == agreement and gated(agreement, 0, gate) == 0


@given(st.sampled_from(LEVELS), scores, scores)
def test_level_agreement_falls_away_from_its_bin(word, one, two):
    near, far = sorted((one, two), key=lambda s: abs(s - level_centre(word)))
    assert level_agreement(word, near) >= level_agreement(word, far) - 1e-9
    assert level_agreement(level(one), one) == 1


@given(known, known)
def test_overlap_is_one_only_for_the_truth(claimed, facts):
    mark = aspect_agreement(claims(describe(claimed)), facts)
    assert 0 <= mark <= 1
    assert (mark == 1) == (claimed == facts)


@given(st.dictionaries(st.text(), st.integers(1, 3)), st.dictionaries(st.text(), st.integers(1, 3)))
def test_overlap_is_symmetrical(one, two):
    assert overlap(one, two) == overlap(two, one)


@given(known, st.sampled_from(ASPECTS))
def test_leaving_out_an_aspect_costs(facts, aspect):
    said = claims(describe(facts))
    silent = Claims(None, {a: d for a, d in said.degrees.items() if a != aspect},
                    {f: d for f, d in said.faults.items() if FAULTS[f].aspect != aspect})
    assert aspect_agreement(silent, facts) < aspect_agreement(said, facts) == 1


@given(known, st.sampled_from(sorted(FAULTS)), st.integers(1, 3))
def test_making_up_a_fault_costs(facts, fault, degree):
    if fault in facts: return
    invented = describe(facts) + f' The photo is {FAULTS[fault].words[degree-1]}.'
    assert aspect_agreement(claims(invented), facts) < 1


@given(known)
def test_claiming_everything_does_not_pay(facts):
    all_words = [f.words[2] for f in FAULTS.values()] + [p for phrases in FINE.values() for p in phrases]
    everything = describe(facts) + ''.join(f' The photo is {w}.' for w in all_words)
    assert aspect_agreement(claims(everything), facts) <= .5
    assert aspect_agreement(claims(everything), facts) < 1 == aspect_agreement(claims(describe(facts)), facts)


def test_one_step_of_degree_costs_less_than_two():
    marks = [aspect_agreement(claims(describe({'noise': d})), {'noise': 3}) for d in (3, 2, 1)]
    assert marks[0] == 1 > marks[1] > marks[2] > aspect_agreement(claims(describe({})), {'noise': 3})


def test_consistency_without_facts_is_about_the_level_alone():
    assert consistency('Overall the quality is good.', 3.8, None) == (1, 1, 0)
    assert consistency('', 3.8, None) == (0, 0, 0)
    assert consistency('', 3.8, {}) == (0, 0, 0)


def test_an_answer_without_reasoning_is_paid_for_its_score_alone():
    parts = reward('<answer>3.0</answer>', 3, {})
    assert (parts.format, parts.accuracy, parts.consistency, parts.total) == (0, 1, 0, pytest.approx(.6))
    assert format_reward('<answer>3.0</answer>', mode='score') == 1


def test_a_target_on_another_scale_is_an_error():
    for target in (0, 62.5, float('nan')):
        with pytest.raises(QPonderError, match='Scale.to_score'): accuracy_reward(3, target)


@pytest.mark.parametrize('bad', [
    dict(kernel='l2'), dict(width=0), dict(w_format=-.1), dict(w_accuracy=float('nan')), dict(w_consistency=101),
    dict(aspect_share=1.1), dict(gate=0), dict(gate=1.5), dict(w_format=0, w_accuracy=0, w_consistency=0)])
def test_settings_that_make_no_sense(bad):
    with pytest.raises(QPonderError, match=next(iter(bad))): RewardSettings(**bad)


def test_weights_sum_to_one():
    assert sum(RewardSettings(w_format=3, w_accuracy=2, w_consistency=7).weights) == pytest.approx(1)


def test_order_of_a_batch_only_orders_the_rewards():
    rng = random.Random(0)
    draw = zip(*(rng.choices(some, k=20) for some in (sorted(FAULTS), sorted(FAULTS), LEVELS)))
    rows = [(render(Trace(describe({f: 2}, w), level_centre(w))), rng.uniform(1, 5), json.dumps({g: 1}))
            for f, g, w in draw] + [('?', 3., 'null')]
    def paid(f, rows):
        texts, targets, faults = map(list, zip(*rows))
        return dict(zip(rows, f(prompts=[''] * len(rows), completions=texts, score=targets, faults=faults)))
    for f in trl_rewards()[0]: assert paid(f, rows) == paid(f, rng.sample(rows, len(rows)))


def test_trl_functions_have_names_and_take_what_the_trainer_sends():
    how = RewardSettings(w_format=1, w_accuracy=1, w_consistency=2)
    funcs, weights = trl_rewards(how)
    assert [f.__name__ for f in funcs] == ['format', 'accuracy', 'consistency'] and weights == [.25, .25, .5]
    text, logged = render(Trace(describe({'blur': 1}, 'fair'), 3)), {}
    batch = dict(prompts=[[{}]] * 2, completions=[[{'role': 'assistant', 'content': t}] for t in (text, 'no')],
                 completion_ids=[[1], [2]], score=[3., 3.], faults=['{"blur": 1}', None], path=['a', 'b'],
                 trainer_state=None, log_extra=None, log_metric=logged.__setitem__)
    assert [f(**batch) for f in funcs] == [[1, 0]] * 3
    assert len(logged) == 5 and all(0 <= v <= 1 for v in logged.values())
    assert all(re.fullmatch(r'(answers|consistency)/[a-z_]+', k) for k in logged)


def test_a_batch_without_faults_column_or_readable_answer():
    logged = {}
    for f in trl_rewards()[0]:
        assert f(prompts=[''], completions=['no'], score=[3.], log_metric=logged.__setitem__) == [0]
    assert 'answers/abs_error' not in logged and logged['answers/readable'] == 0


def test_columns_of_unequal_length_are_an_error():
    with pytest.raises(ValueError): trl_rewards()[0][0](prompts=[''] * 2, completions=['a', 'b'], score=[3.])


@pytest.mark.parametrize('cell', [
    '[1]', '3', '"blur"', '{"blur": 0}', '{"blur": 4}', '{"fog": 1}', '{blur: 1}', '{"blur": "2"}'])
def test_a_faults_cell_that_is_none(cell):
    with pytest.raises(QPonderError, match='faults column'): read_faults(cell)
