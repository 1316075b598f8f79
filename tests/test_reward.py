"The reward is bounded, repeatable and hard to cheat"
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace as NS

import numpy as np
import pytest
from PIL import Image
from hypothesis import given, strategies as st

from qponder import readers
from qponder.claims import ASPECTS, FAULTS, FINE, Claims, claims
from qponder.consistency import (Answer, all_right, aspect_agreement, care, consistency, damage_reward, gated,
                                 level_agreement, overlap)
from qponder.degrade import DEGRADATIONS
from qponder.guards import certainty, length_guard, repeats_guard
from qponder.kernels import accuracy_reward, format_reward, kernel
from qponder.rank import alone_share, rank_rewards
from qponder.readers import judge_messages, read_by_judge, verdict
from qponder.reward import PARTS, RewardParts, RewardSettings, check_needs, reward
from qponder.rollouts import add_up, read_faults, trl_rewards
from qponder.scale import LEVELS, QPonderError, level, level_centre
from qponder.served import ServedSettings, ServedTeacher
from qponder.spoil import severity_degree
from qponder.tiny import tiny_vlm
from qponder.trace import Trace, render

KINDS = 'gaussian', 'exponential', 'linear', 'threshold', 'within', 'adaptive', 'coarse'
scores = st.integers(10, 50).map(lambda i: i / 10)
widths = st.floats(.05, 4)
pieces = ['<think>', '</think>', '<answer>', '</answer>', '3.4', '7', 'nan', 'The photo is blurred.',
          'Overall the quality is poor.', 'noise', ' ', '\n']
soup = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=15).map(''.join)
settings = st.builds(RewardSettings, kernel=st.sampled_from(KINDS), width=widths, w_format=st.floats(0, 2),
                     w_accuracy=st.floats(.01, 2), w_consistency=st.floats(0, 2), aspect_share=st.floats(0, 1),
                     gate=st.floats(.05, 1))
guarded = st.builds(RewardSettings, w_length=st.floats(0, 2), w_repeats=st.floats(0, 2), min_words=st.integers(0, 9),
                    max_words=st.integers(9, 99))


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


@given(soup, scores, guarded)
def test_guards_are_bounded_whatever_was_written(text, target, how):
    parts = reward(text, target, {}, how)
    assert all(0 <= v <= 1 for v in (parts.total, parts.length, parts.repeats))


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


def test_weights_whose_sum_is_rounded_up_pay_no_more_than_1():
    how = RewardSettings(w_format=0, w_accuracy=0, w_consistency=.1, w_length=.5, w_repeats=.7, min_words=9)
    assert sum(how.weights.values()) > 1
    fine = ', '.join(FINE[a][0] for a in ASPECTS)
    assert reward(render(Trace(f'It is {fine}. Overall the quality is fair.', 3.)), 3, {}, how).total == 1


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


@given(st.sampled_from(sorted(DEGRADATIONS)), st.integers(1, 5), st.sets(st.sampled_from(sorted(FAULTS))), known)
def test_damage_is_paid_less_for_every_fault_that_is_made_up(kind, severity, named, measured):
    fault, damage = DEGRADATIONS[kind].fault, f'{kind} {severity}'
    said = Claims(faults={f: severity_degree(severity) for f in {fault, *named}})
    assert damage_reward(said, damage) == 1 / len(said.faults)
    assert damage_reward(said, damage, measured) == 1 / (1 + len(named - {fault, *measured}))
    assert damage_reward(Claims(faults={f: 2 for f in named - {fault}}), damage, measured) == 0


def test_naming_every_fault_pays_a_twelfth_of_the_damage():
    for kind in DEGRADATIONS:
        said = claims(' '.join(f'The photo is {f.words[1]}.' for f in FAULTS.values()))
        assert damage_reward(said, f'{kind} 3') == 1 / 12 and damage_reward(said, f'{kind} 1') == .25 / 12
        honest = claims(f'The photo is {FAULTS[DEGRADATIONS[kind].fault].words[1]}.')
        assert damage_reward(honest, f'{kind} 3') == 1


def test_a_score_in_the_reasoning_is_not_paid():
    thought = '<think>Perhaps <answer>4.0</answer>'
    for text in (f'{thought}, but I have not', f'{thought}, no.</think>', f'{thought}</think> So it is.'):
        for finished in (True, False): assert reward(text, 4., {}, finished=finished) == RewardParts()
    assert reward(thought, 4., {}, finished=False) == RewardParts()


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
    parts = reward('<answer>3.0</answer>', 3, {}, RewardSettings(w_length=1, w_repeats=1, w_damage=1), damage='jpeg 3')
    assert (parts.length, parts.repeats, parts.damage, parts.total) == (0, 0, 0, pytest.approx(.6 / 4))


def test_a_target_on_another_scale_is_an_error():
    for target in (0, 62.5, float('nan')):
        with pytest.raises(QPonderError, match='Scale.to_score'): accuracy_reward(3, target)


@pytest.mark.parametrize('bad', [
    dict(kernel='l2'), dict(width=0), dict(w_format=-.1), dict(w_accuracy=float('nan')), dict(w_consistency=101),
    dict(aspect_share=1.1), dict(gate=0), dict(gate=1.5), dict(w_format=0, w_accuracy=0, w_consistency=0),
    dict(consistency='oracle'), dict(rank='elo'), dict(w_rank=-1), dict(rank_width=-1), dict(w_length=float('nan')),
    dict(rank_width=4.1), dict(min_words=81), dict(max_words=0), dict(w_repeats=101), dict(uncertainty=-.1),
    dict(uncertainty=101)])
def test_settings_that_make_no_sense(bad):
    with pytest.raises(QPonderError, match=next(iter(bad))): RewardSettings(**bad)


def test_the_ends_of_every_range_make_sense():
    RewardSettings(aspect_share=0, rank_width=0, min_words=0, max_words=1, w_format=0, uncertainty=0)
    RewardSettings(aspect_share=1, rank_width=4, gate=1, w_format=100, uncertainty=100)


def test_weights_sum_to_one():
    weights = RewardSettings(w_format=3, w_accuracy=2, w_consistency=7, w_rank=1, w_length=.5).weights
    assert sum(weights.values()) == pytest.approx(1) and tuple(weights) == PARTS


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


def test_a_faults_cell_that_is_no_text():
    with pytest.raises(QPonderError, match='must be a JSON object'): read_faults({'blur': 2})


def test_an_unknown_mode_is_not_taken_for_bare_scores():
    columns = dict(prompts=[''], completions=['<answer>3.0</answer>'], score=[3.])
    for function in trl_rewards()[0]:
        with pytest.raises(QPonderError, match="mode 'reasons' is unknown"): function(**columns, mode=['reasons'])


# rewards that compare photos

batches = st.lists(st.tuples(scores | st.none(), st.integers(0, 3), st.sampled_from('xy')), min_size=1, max_size=12)


def columns(batch) -> list[list]:
    "Scores, targets, photos, datasets, spreads; a photo is known by number and dataset, and has one target"
    said, photo, name = map(list, zip(*batch))
    photos = list(zip(photo, name))
    return [said, [1 + p for p in photo], photos, name, [.5 + p / 10 for p in photo]]


@given(batches, st.sampled_from(['fidelity', 'margin']), st.sampled_from([0., .3, 1.]))
def test_rank_is_bounded_and_says_none_without_company(batch, kind, width):
    said, _, photos, names, _ = given = columns(batch)
    paid = rank_rewards(*given, kind, width)
    readable = {(p, n) for s, p, n in zip(said, photos, names) if s is not None}
    for s, p, n, r in zip(said, photos, names, paid):
        company = any(q != p and m == n for q, m in readable)
        assert (r is None) == (not company)
        assert r is None or 0 <= r <= 1 and (s is not None or r == 0)


@given(batches, st.sampled_from(['fidelity', 'margin']), st.randoms())
def test_rank_does_not_depend_on_the_order_of_the_batch(batch, kind, rng):
    turn = rng.sample(range(len(batch)), len(batch))
    paid, turned = rank_rewards(*columns(batch), kind), rank_rewards(*columns([batch[i] for i in turn]), kind)
    for r, i in zip(turned, turn): assert r == pytest.approx(paid[i], abs=1e-9)


@given(batches, st.sampled_from(['fidelity', 'margin']))
def test_other_datasets_do_not_matter(batch, kind):
    "Answers about photos of y may say what they like: nothing changes for x"
    other = [(s if n == 'x' else 3., p, n) for s, p, n in batch]
    one, two = (rank_rewards(*columns(b), kind) for b in (batch, other))
    assert [r for r, b in zip(one, batch) if b[2] == 'x'] == [r for r, b in zip(two, batch) if b[2] == 'x']


@given(st.lists(scores, min_size=2, max_size=9, unique=True), scores)
def test_a_better_photo_earns_more_the_higher_it_is_put(said, other):
    "Its own answers give the spread, so it is one group; the other photo is worse, and all of one mind"
    said = sorted(said)
    paid = rank_rewards([*said, other], [4] * len(said) + [2], [0] * len(said) + [1], ['x'] * (len(said) + 1),
                        [None] * (len(said) + 1))[:-1]
    assert all(a <= b + 1e-12 for a, b in zip(paid, paid[1:]))


@given(st.lists(scores, min_size=2, max_size=9), st.floats(.2, 2))
def test_margin_falls_with_the_error_of_the_margin(said, width):
    n = len(said)
    paid = rank_rewards([*said, 2.], [4] * n + [2], [0] * n + [1], ['x'] * (n + 1), [None] * (n + 1), 'margin', width)
    by_error = sorted(zip([abs(s - 4) for s in said], paid))
    assert all(b[1] <= a[1] + 1e-9 for a, b in zip(by_error, by_error[1:]))


def test_margin_without_spread_is_an_error():
    with pytest.raises(QPonderError, match='std_col'):
        rank_rewards([3, 4], [3, 4], 'ab', 'xx', [.5, None], 'margin', 0)


@given(st.lists(st.sampled_from('wxyz'), min_size=1, max_size=30), st.integers(1, 40))
def test_share_without_company_is_the_share(names, photos):
    share = alone_share(names, photos)
    assert -1e-12 <= share <= 1 + 1e-12 and alone_share(names, 1) == 1
    assert share >= alone_share(names, photos + 1) - 1e-12
    if photos >= len(names): assert share == pytest.approx(sum(names.count(n) == 1 for n in names) / len(names))


def test_share_without_company_is_what_happens():
    rng, names = random.Random(0), ['x'] * 6 + ['y'] * 3 + ['z']
    drawn = [rng.sample(names, 3) for _ in range(20_000)]
    seen = np.mean([d.count(n) == 1 for d in drawn for n in d])
    assert alone_share(names, 3) == pytest.approx(seen, abs=.01)


# gates, guards, doubt

unit = st.floats(0, 1)
marked = st.tuples(unit | st.just(float('nan')), unit, st.integers(0, 2))


@given(st.lists(marked, min_size=1, max_size=12), st.randoms())
def test_care_pays_accurate_answers_their_accuracy_and_nobody_else(rows, rng):
    paid = care(*zip(*rows))
    for p in {r[2] for r in rows}:
        mean = np.mean([a for _, a, q in rows if q == p])
        assert all(v in (0, a) and (not v or a > .1 and a >= mean - 1e-12)
                   for v, (_, a, q) in zip(paid, rows) if q == p)
    turn = rng.sample(range(len(rows)), len(rows))
    assert care(*zip(*(rows[i] for i in turn))) == pytest.approx([paid[i] for i in turn])


@given(unit, unit, st.sampled_from([0., 1.]))
def test_all_right_is_all_or_nothing(agreement, accuracy, form):
    assert all_right(agreement, accuracy, form) == (agreement if accuracy == form == 1 else 0)


@given(st.integers(0, 500), st.integers(0, 50), st.integers(50, 100))
def test_length_is_full_between_its_bounds(n, low, high):
    mark = length_guard(n, low, high)
    assert 0 <= mark <= 1 and (mark == 1) == (low <= n <= high)


@given(st.lists(st.sampled_from('abcdefgh'), max_size=30))
def test_saying_it_again_never_pays(words):
    assert 0 < repeats_guard(' '.join(words)) <= 1
    assert repeats_guard(' '.join(words * 3)) <= repeats_guard(' '.join(words))


@given(batches, st.floats(0, 5))
def test_doubt_is_shared_by_a_photo_and_never_adds(batch, strength):
    said, _, photos, _, _ = columns(batch)
    factors = certainty(said, photos, strength)
    assert all(np.exp(-strength) - 1e-12 <= f <= 1 for f in factors)
    assert len({(p, f) for p, f in zip(photos, factors)}) == len(set(photos))


# all together

FULL = RewardSettings(w_rank=1, w_damage=1, w_length=1, w_repeats=1, uncertainty=.5, consistency='care')


def sure(answers) -> list[float]:
    "A reader whose mark depends on the answer alone"
    return [len(a.reasoning) % 7 / 7 for a in answers]


def rows(n: int, seed: int = 0) -> list[dict]:
    "Answers to photos of two datasets, some unreadable, some without reasons"
    rng = random.Random(seed)
    kinds = [dict(path=f'{i}.png', name='xy'[i % 2], score=1 + i / 2, std=.5, faults='{}', prompts='',
                  damage=rng.choice(['', 'jpeg 3'])) for i in range(6)]
    answers = [render(Trace(describe({rng.choice(sorted(FAULTS)): 2}, rng.choice(LEVELS)), rng.randint(10, 50) / 10))
               for _ in range(n)]
    return [rng.choice(kinds) | dict(completions=rng.choice([a, a, a, '?']),
                                     mode=rng.choice(['reason', 'reason', 'score'])) for a in answers]


def columned(some: list[dict]) -> dict[str, list]: return {k: [r[k] for r in some] for k in some[0]}


@pytest.mark.parametrize('how', [FULL, RewardSettings(w_rank=1, rank='margin', rank_width=0), RewardSettings(),
                                 RewardSettings(consistency='judge'), RewardSettings(consistency='difference')])
def test_every_part_is_bounded_repeatable_and_free_of_order(how):
    some, rng = rows(40), random.Random(1)
    functions, weights = trl_rewards(how, sure)
    assert sum(weights) == pytest.approx(1) and {f.__name__ for f in functions} >= {'format', 'accuracy', 'consistency'}
    turn = rng.sample(range(40), 40)
    for f in functions:
        paid, turned = f(**columned(some)), f(**columned([some[i] for i in turn]))
        assert all(v is None or 0 <= v <= 1 for v in paid) and paid == f(**columned(some))
        assert turned == [pytest.approx(paid[i]) if paid[i] is not None else None for i in turn]
        assert all(not v for v, r in zip(paid, some) if r['completions'] == '?')
        if f.__name__ in ('consistency', 'length', 'repeats'):
            assert [v is None for v in paid] == [r['mode'] == 'score' for r in some]
    assert all(0 <= t <= 1 for t in add_up(functions, weights, **columned(some)))


def paid_apart(monkeypatch, function, some, world):
    "What processes pay to their parts of some rows; each is sent what the others hold."
    size, sent, paid = len(some) // world, [], []
    parts = [columned(some[i:i + size]) for i in range(0, len(some), size)]
    monkeypatch.setattr('qponder.rollouts.of_all', lambda rows: (sent.append(rows) or rows, slice(0, len(rows))))
    for part in parts: function(**part)
    for i, part in enumerate(parts):
        mine = slice(i * size, (i + 1) * size)
        monkeypatch.setattr('qponder.rollouts.of_all', lambda rows, mine=mine: (sum(sent, []), mine))
        paid += function(**part)
    return paid


@pytest.mark.parametrize('world', [2, 8, 40])
@pytest.mark.parametrize('how', [replace(FULL, consistency=c) for c in ('vote', 'care', 'difference', 'judge')] +
                         [RewardSettings(w_rank=1, rank='margin', rank_width=0)])
def test_split_rollouts_are_paid_as_the_whole(how, world, monkeypatch):
    some, unsure = rows(40), lambda answers: [None if a.score < 2 else a.score / 5 for a in answers]
    for f in trl_rewards(how, unsure)[0]:
        together = f(**columned(some))
        assert paid_apart(monkeypatch, f, some, world) == together
        if f.__name__ == 'rank': assert [v for r in some for v in f(**columned([r]), whole=True)] == [None] * 40
        monkeypatch.undo()


def test_a_whole_batch_is_paid_without_asking_others(monkeypatch):
    monkeypatch.setattr('qponder.rollouts.of_all', lambda rows: pytest.fail('asked'))
    functions, weights = trl_rewards(FULL, sure)
    assert len(add_up(functions, weights, whole=True, **columned(rows(8)))) == 8


@given(st.lists(numbers, min_size=1, max_size=4), st.randoms())
def test_readers_never_see_a_number(numbers, rng):
    words, seen = describe({'blur': 2}, 'poor').split(' '), []
    for n in numbers: words.insert(rng.randrange(len(words) + 1), n)
    functions, _ = trl_rewards(RewardSettings(consistency='text'), lambda answers: seen.extend(answers) or [1.])
    functions[2](prompts=[''], completions=[render(Trace(' '.join(words), 2.3))], score=[2.3])
    assert seen[0].reasoning == describe({'blur': 2}, 'poor') and seen[0].score == 2.3


def test_a_reader_that_forgets_an_answer_is_an_error():
    functions, _ = trl_rewards(RewardSettings(consistency='judge'), lambda answers: [])
    with pytest.raises(ValueError): functions[2](prompts=[''], completions=[render(Trace('Good.', 3))], score=[3.])


@pytest.mark.parametrize('target, asked', [(3.46, '3.46'), (2.97, '2.97'), (3.4, '3.4'), (3., '3.0')])
def test_the_difference_asks_for_the_first_decimal_as_it_is_taught(target, asked, monkeypatch):
    "Of 3.46 the 4: not the 5 of 3.5, which no trace says, and not the last digit"
    seen, student = [], tiny_vlm('qwen2.5-vl')
    def chances(_, images, openings, answers, mode):
        seen.extend(answers)
        return [np.log([.9, .8, .7 if mode == 'reason' else .2, .1][:len(a)]) for a in answers]
    monkeypatch.setattr(readers, 'log_chances', chances)
    assert readers.read_by_difference(student)([Answer('Good.', 3., target)]) == [pytest.approx(.5)]
    assert seen == [asked] * 2


@pytest.mark.parametrize('kind', ['care', 'difference', 'text', 'judge'])
def test_a_reader_that_is_missing_is_one_clear_error(kind):
    with pytest.raises(QPonderError, match=f'{kind} needs a reader'): trl_rewards(RewardSettings(consistency=kind))
    assert len(trl_rewards(RewardSettings(consistency=kind, w_consistency=0))[0]) == 3


def test_what_is_needed_is_there():
    fine = dict(names=['x'] * 8, stds=[.5] * 8, spoiled=True, photos=4, scaling='none')
    check_needs(FULL, **fine)
    check_needs(RewardSettings(), ['x'], [None], False, 1, 'group')
    for how, other, words in (
            (FULL, dict(photos=1), 'with 1 photos.*raise grpo_prompts_per_step'),
            (FULL, dict(names=list('stuvwxyz')), 'alone'),
            (RewardSettings(w_rank=1, rank='margin', rank_width=0), dict(stds=[None] * 8), 'rank_width = 0.*std_col'),
            (FULL, dict(spoiled=False), 'w_damage.*distill_spoiled'),
            (FULL, dict(scaling='group'), 'uncertainty.*batch')):
        with pytest.raises(QPonderError, match=words): check_needs(how, **fine | other)


# a judge behind an address

def test_a_served_judge_is_asked_without_numbers_and_again_after_silence():
    replies, asked = [None, '{"fidelity": 5, "terminology": 4, "consistency": 3}'], []

    def create(**question):
        asked.append(question)
        return NS(choices=[NS(message=NS(content=replies[len(asked) - 1]))])
    teacher = ServedTeacher(ServedSettings(model='big', temperature=0, retries=1), messages=judge_messages)
    teacher.client = NS(chat=NS(completions=NS(create=create)))
    answer = Answer('The photo is sharp, 4.7 of 5.', 4.6, 4.5, image=Image.new('RGB', (8, 8)))
    assert read_by_judge(teacher)([answer]) == [.8]
    text = asked[1]['messages'][0]['content'][1]['text']
    assert 'The photo is sharp' in text and '4.7' not in text and 'scored this photo 4.6 on' in text
    assert asked[0]['temperature'] == 0 and len(asked) == 2


def test_a_judge_that_is_silent_gives_no_mark():
    teacher = ServedTeacher(ServedSettings(model='big', retries=0), messages=judge_messages)
    teacher.client = NS(chat=NS(completions=NS(create=lambda **question: NS(choices=[]))))
    marks = read_by_judge(teacher)([Answer('Sharp.', 4., 4., image=Image.new('RGB', (8, 8)))] * 3)
    assert marks == [None] * 3


@pytest.mark.parametrize('text', ['', 'fine', '{"fidelity": 5}', '{"fidelity": 6, "terminology": 5, "consistency": 5}'])
def test_a_verdict_that_cannot_be_read_is_none(text): assert verdict(text) is None


@given(*[st.integers(0, 5)] * 3)
def test_a_verdict_is_bounded_and_never_falls_with_a_grade(a, b, c):
    said = lambda *g: verdict(json.dumps(dict(zip(('fidelity', 'terminology', 'consistency'), g))))
    assert 0 <= said(a, b, c) <= 1 and said(a, b, c) <= said(min(5, a + 1), b, c)
