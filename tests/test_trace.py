"Properties of the grammar: nothing is lost on the way out and back, and nothing is invented"
import re
import unicodedata

import pytest
from hypothesis import given, strategies as st

from qponder.chinese import GLOSSARY, chinese, gloss, is_chinese, units
from qponder.claims import ASPECTS, FAULTS, FINE, claims
from qponder.expert import EXPERT, OUTLINES, damage_words, expert_prompt, fill, words_asked
from qponder.scale import HIGH, LEVELS, LOW, level, level_bounds
from qponder.trace import (CHOICES, REASON, SCORE_ONLY, Parsed, Preference, Status, Trace, parse, parse_preference,
                           prompt_hash, render, render_preference, show_score, strip_numbers, student_prompt,
                           well_formed)

TAG = re.compile(r'<\s*/?\s*(think|answer)\s*>', re.IGNORECASE)
scores = st.integers(100, 500).map(lambda i: i / 100)
spaces = st.text(' \n\t\r', max_size=4)
pieces = ['<think>', '</think>', '<answer>', '</answer>', '<THINK >', '</ answer>', '<', '>', '```', '{"rating": 3}',
          '3.4', '7', '-2', 'nan', '\uff11', '½', 'noise', 'not', 'sharp', 'good', 'overall', 'main', ',', '.', '\n',
          ' ', '\x00', '’', '没有', '噪点', '模糊', '，', '总体质量', '很差', '三', 'first']
soup = st.lists(st.sampled_from(pieces) | st.text(max_size=6), max_size=25).map(''.join)
plain = st.text(max_size=200).filter(lambda t: not TAG.search(t))
phrases = [(n, d, f.words[d-1]) for n, f in FAULTS.items() for d in (1, 2, 3)]
phrases += [(a, 0, p) for a in FINE for p in FINE[a]]


every_prompt = [expert_prompt(kind, language, told) for kind, told in OUTLINES for language in ('en', 'zh')]


def aspect(name): return FAULTS[name].aspect if name in FAULTS else name


@given(plain, scores)
def test_round_trip(reasoning, score):
    trace = Trace(reasoning, score)
    assert parse(render(trace)).trace == trace
    assert parse(render(trace)) == Parsed(Status.ok, score, trace.reasoning or None)
    assert well_formed(render(trace), mode='reason' if trace.reasoning else 'score')


@given(scores)
def test_scores_are_written_without_loss(score):
    assert float(show_score(score)) == score and re.fullmatch(r'[1-5]\.\d\d?', show_score(score))


@given(plain.filter(str.strip), scores, *[spaces] * 7)
def test_every_permitted_layout(reasoning, score, a, b, c, d, e, f, g):
    for number in {show_score(score), f'{score:.2f}', f'{score:g}'}:
        text = f'{a}<think>{b}{reasoning}{c}</think>{d}<answer>{e}{number}{f}</answer>{g}'
        read = parse(text)
        assert (read.status, read.score, read.reasoning) == (Status.ok, score, reasoning.strip())
        assert well_formed(text) and not well_formed(text, mode='score')
        assert well_formed(f'{d}<answer>{e}{number}{f}</answer>{g}', mode='score')


@given(soup, st.booleans())
def test_parse_never_raises_and_never_guesses(text, finished):
    read = parse(text, finished)
    assert (read.score is None) == (read.status is not Status.ok)
    assert read.score is None or LOW <= read.score <= HIGH
    assert read.status is not Status.truncated or not finished
    if read.status is Status.ok: assert read.trace.score == round(read.score, 2)
    for mode in ('reason', 'score'): assert not well_formed(text, mode) or read.status is Status.ok


@given(st.text())
def test_text_without_answer_has_no_score(text):
    if not TAG.search(text): assert parse(text).status is Status.no_answer and not well_formed(text)


@given(plain.filter(lambda t: not re.search('[0-9]', t)))
def test_prose_in_the_answer_is_not_a_number(text):
    assert parse(f'<answer>{text}</answer>').status is Status.not_a_number


company = plain.filter(lambda t: t.strip('0123456789. \n\t\r').strip() and not re.search('[`{]', t))


@given(scores, company)
def test_number_with_company_is_not_a_number(score, text):
    assert parse(f'<answer>{show_score(score)} {text}</answer>').status is Status.not_a_number
    assert parse(f'<answer>{text} {show_score(score)}</answer>').status is not Status.ok


@given(scores, scores, st.sampled_from([' ', ' or ', '-', '/', ', ', '</answer><answer>', '</answer> so <answer>']))
def test_several_numbers_are_not_a_number(one, two, between):
    assert parse(f'<answer>{one}{between}{two}</answer>').status is Status.not_a_number


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not LOW <= round(x, 3) <= HIGH))
def test_numbers_outside_the_scale(x):
    assert parse(f'<answer>{x:.3f}</answer>').status is Status.out_of_range
    assert parse('<answer>' + '9' * 5000 + '</answer>').status is Status.out_of_range


@given(plain, scores, st.integers(0, 300))
def test_cut_text_is_truncated_or_complete(reasoning, score, cut):
    whole = render(Trace(reasoning, score))
    read = parse(whole[:cut], finished=False)
    assert read.status is (Status.ok if cut >= len(whole) else Status.truncated)
    assert read.score == (score if cut >= len(whole) else None)


thoughts = plain.map(lambda t: f'<think>{t}')


@given(thoughts, plain.filter(str.strip), scores, st.booleans())
def test_a_score_in_the_reasoning_is_a_thought(before, after, score, finished):
    thought = f'{before}<answer>{show_score(score)}</answer>{after}'
    none = Status.no_answer if finished else Status.truncated
    for text in (thought, f'{thought}</think>', f'{thought}</think>.', thought.removeprefix('<think>') + '</ THINK>',
                 f'<think>a</think>{thought}'):
        assert parse(text, finished).status is none and not well_formed(text), text
    assert parse(f'{thought}</think><answer>3</answer>', finished).score is None


@given(thoughts, scores, spaces)
def test_reasoning_that_is_never_closed_is_forgiven_at_the_end_of_a_finished_text(before, score, space):
    text = f'{before}<answer>{show_score(score)}</answer>{space}'
    assert parse(text).score == score and parse(text).reasoning is None and not well_formed(text)
    assert parse(text, finished=False).status is Status.truncated


def test_accepted_and_refused_answers():
    fenced = '```json\n{"rating": 3.4}\n```', '```\n3.4\n```'
    keyed = '{"rating": 3.4}', '{ "score" : "3.4" }', '{"Answer":3}'
    for body in ('3', '3.4', '+3.4', *keyed, *fenced):
        assert parse(f'<answer>{body}</answer>').status is Status.ok, body
    several = '3.4.5', '3.4/5', '3.4 good', '**3.4**', '{"score": 3, "rating": 2}', '[3]'
    other = '{"severity": 4}', '{"confidence": 4}', '{"rating": "2}', '{"rating": 2"}', '{"": 3}', '{score: 3}'
    for body in ('', '3.', '.4', '3,4', '3e0', 'inf', 'three', '٣', *several, *other):
        assert parse(f'<answer>{body}</answer>').status is Status.not_a_number, body


def test_prompts_that_are_parroted_earn_nothing():
    for prompt in (REASON, SCORE_ONLY, EXPERT, *every_prompt):
        assert parse(prompt.text).status is not Status.ok and not well_formed(prompt.text)
    assert len(REASON.text.split()) <= 60
    assert student_prompt('score') is SCORE_ONLY


def test_layout_shown_in_the_prompt_is_well_formed():
    for mode in ('reason', 'score'):
        shown = student_prompt(mode).text.split('\n', 1)[1].replace('<answer>score', '<answer>3.4')
        assert well_formed(shown, mode)
    assert well_formed(fill(EXPERT, 3.4).text.split('repeat the rating.\n')[1])


@given(st.text() | soup)
def test_strip_numbers(text):
    once = strip_numbers(text)
    assert not any(unicodedata.category(c)[0] == 'N' for c in once)
    assert strip_numbers(once) == once


@pytest.mark.parametrize('said', [
    'Twenty', 'ninety', 'half', 'halves', 'threes', 'SIXES', 'tens', 'hundreds', 'fifteen', 'nineteen', '4_5', '_3_'])
def test_number_words_are_numbers(said):
    assert strip_numbers(f'It is {said}.').replace('_', '') == 'It is .'
    assert strip_numbers(f'sharp_{said}_edges').replace('_', ' ').split() == ['sharp', 'edges']


@given(st.text() | soup)
def test_numbers_never_change_claims(text):
    assert claims(text) == claims(strip_numbers(text))


@given(st.text() | soup)
def test_claims_are_always_well_typed(text):
    c = claims(text)
    assert c.level in (None, *LEVELS) and c.main in (None, *FAULTS)
    assert set(c.degrees) <= set(ASPECTS) and set(c.degrees.values()) <= {0, 1, 2, 3}
    assert all(n in FAULTS and d in (1, 2, 3) and c.degrees[FAULTS[n].aspect] >= d for n, d in c.faults.items())


chosen = st.lists(st.sampled_from(phrases), min_size=1, max_size=6, unique_by=lambda p: aspect(p[0]))
frames = st.sampled_from(['The photo is {}.', 'Edges are {}.', 'It looks {}.'])


@given(chosen, frames, st.sampled_from([', ', ' and ', ', but ', '. It is ']))
def test_phrases_keep_their_meaning_in_any_sentence(chosen, frame, link):
    c = claims(frame.format(link.join(words for _, _, words in chosen)))
    assert c.degrees == {aspect(n): d for n, d, _ in chosen}
    assert c.faults == {n: d for n, d, _ in chosen if d}


def test_everyday_sentences():
    read = claims("There isn't any noise and no banding. It's a bit out of focus, colors are washed out; "
                  "overall a fair, never excellent, picture.")
    assert read.degrees == dict(noise=0, compression=0, sharpness=1, contrast=2) and read.level == 'fair'
    assert claims('Noise is the main problem.').main == 'noise'
    assert claims('There is no main problem, nothing is badly wrong.').main is None
    assert claims('It is far too dark.').faults == {'dark': 3}
    assert claims('Noise is hardly visible.').degrees == {'noise': 0}


@pytest.mark.parametrize('text, word', [
    ('Overall a poor exposure.', None), ('Overall the contrast is good.', None), ('Overall the exposure: poor.', None),
    ('The overall quality is far from good.', None), ('Overall the quality is not at all good.', None),
    ('Overall, a good picture with poor contrast.', 'good'), ('Overall quality: good.', 'good'),
    ('The quality of the exposure is poor, overall the quality is good.', 'good'),
    ('Overall the quality is fair. Overall a poor exposure.', 'fair'),
    ('Overall the quality is fair. Overall it is not good.', None), ('Overall no better than fair.', 'fair'),
    ('Overall the quality is poor or fair.', None), ('With good contrast the overall quality is good.', 'good')])
def test_the_verdict_is_about_the_whole(text, word): assert claims(text).level == word


@given(st.floats(LOW, HIGH))
def test_level_and_its_bounds_agree(score):
    low, high = level_bounds(level(score))
    assert low <= score <= high


@given(plain, st.sampled_from(CHOICES), spaces)
def test_preferences_round_trip(reasoning, choice, space):
    said = Preference(reasoning, choice)
    assert parse_preference(render_preference(said)) == said
    shouted = render_preference(said).replace(f'<answer>{choice}', f'{space}<ANSWER>{space}{choice.upper()}{space}')
    assert parse_preference(shouted) == said and parse(render_preference(said)).score is None


@given(soup)
def test_no_preference_is_invented(text):
    said = parse_preference(text)
    assert said is None or said.choice in CHOICES and f'{said.choice}' in text.lower()
    assert parse_preference(text + '<answer>second') is None


def test_every_prompt_is_its_own_and_says_what_counts():
    assert len({prompt_hash(p) for p in every_prompt}) == len({p.name for p in every_prompt}) == 12
    assert prompt_hash(EXPERT) == '7e8acaaf71ce' and EXPERT == expert_prompt('single', 'en', True)
    for prompt in every_prompt:
        pair, zh = '-pair' in prompt.name, '-zh' in prompt.name
        assert is_chinese(prompt.text) == zh
        assert all((chinese(w) if zh else w) in prompt.text for w in LEVELS if not pair)
        assert ('{score}' in prompt.text, '{choice}' in prompt.text) == \
            (not pair and 'untold' not in prompt.name, pair and 'untold' not in prompt.name), prompt.name
        assert ('{damage}' in prompt.text) == ('-known' in prompt.name)


def test_how_much_is_asked_for_is_all_that_changes():
    "Stored answers bear the hashes of the short prompts."
    short = ['7e8acaaf71ce', 'c3e30dba9d32', '63151b2d9611', 'ea965bdaf16d', 'd466af603e4a', 'c9d68f8d34a4',
             '157c1d4f3cba', 'bd3f018cf073', 'af812d9fdf22', 'adb0d4891a97', '53caed40c3b3', '096c35f9e884']
    assert [prompt_hash(p) for p in every_prompt] == short
    asked = [(kind, language, told) for kind, told in OUTLINES for language in ('en', 'zh')]
    for prompt, question in zip(every_prompt, asked):
        least, most = words_asked(*question[:2])
        for words in ((150, 250), (least, most)):
            longer = expert_prompt(*question, words)
            assert str(words[0]) in longer.text and str(words[1]) in longer.text and longer.name == prompt.name
            assert (longer == prompt) == (words == (least, most))
            back = longer.text.replace(str(words[0]), str(least), 1).replace(str(words[1]), str(most), 1)
            assert back == prompt.text


def test_filled_prompts_show_the_layout():
    for prompt in every_prompt:
        shown = '<think>' + fill(prompt, 3.4, damage='noise', choice='equal').text.split('<think>')[1]
        told = 'untold' not in prompt.name
        if '-pair' in prompt.name: assert (parse_preference(shown) is not None) == told
        else: assert well_formed(shown) == told


@given(soup)
def test_what_is_filled_in_is_not_filled_again(text):
    prompt = fill(expert_prompt('known'), 3.4, damage=text + '{score}')
    assert text + '{score}' in prompt.text and '{damage}' not in prompt.text.replace(text, '')


@given(st.sampled_from(list(FAULTS)), st.sampled_from([1, 2, 3]), st.sampled_from(LEVELS))
def test_chinese_is_read_as_it_is_written(fault, degree, word):
    seen, main = damage_words(fault, degree, 'zh'), chinese(FAULTS[fault].noun)
    read = claims(f'画面存在{seen}。主要问题是{main}。总体质量{chinese(word)}。')
    assert (read.faults, read.main, read.level) == ({fault: degree}, fault, word)


def test_every_chinese_phrase_means_what_its_row_says():
    for english, some in GLOSSARY.items():
        for zh in some.split(): assert claims(f'画面{zh}。') == claims(f'It is {english}.'), zh
    assert {f.noun for f in FAULTS.values()} <= set(GLOSSARY) and set(LEVELS) <= set(GLOSSARY)


def test_chinese_denials_lists_and_degrees():
    cases = {
        '没有噪点、色偏或压缩痕迹': dict(noise=0, cast=0, blocking=0), '没有噪点，模糊明显': dict(noise=0, blur=2),
        '噪点很少，但曝光严重不足': dict(noise=0, dark=3),
        '背景噪点严重': dict(noise=3), '几乎没有可见的色带': dict(banding=0),
        '不模糊': dict(blur=0), '有些偏色而且过曝': dict(cast=1, bright=2),
        '反差自然，色差轻微': {}, '人与自然的照片': {},
    }
    for text, want in cases.items():
        read = claims(text)
        assert read.faults == {f: d for f, d in want.items() if d}, text
        assert read.degrees == {FAULTS[f].aspect: d for f, d in want.items()}, text


@given(st.text() | soup)
def test_glossing_leaves_other_languages_alone(text):
    assert not is_chinese(gloss(text)) and (is_chinese(text) or gloss(text) == text)
    if not re.search('[，。、；：！？（）]', text): assert ''.join(units(text)) == ''.join(text.split())


@pytest.mark.parametrize('text, degrees', [
    ('There is minimal noise, even in the darker areas.', dict(noise=0)),
    ('Very little noise is visible. Compression artifacts are not noticeable.', dict(noise=0, compression=0)),
    ('A little noise shows in the sky, with a few compression artifacts.', dict(noise=1, compression=1)),
    ('Severe compression artifacts around the edges.', dict(compression=3)),
    ('The image is free from noise and artifacts.', dict(noise=0, compression=0)),
    ('Sharpness is fine. Noise is a slight fault in the sky. Compression: fine.',
     dict(sharpness=0, noise=1, compression=0)),
    ('Exposure is balanced, contrast is good and the colors are vibrant.', dict(exposure=0, contrast=0, colour=0)),
    ('The image lacks sharpness and the lighting is poor.', dict(sharpness=2, exposure=2)),
    ('Contrast is not a problem, but exposure is a severe fault.', dict(contrast=0, exposure=3)),
    ('The scene is a bit dark. Fine detail in the trees is lost.', dict(exposure=1, sharpness=2)),
    ('The details of the house and the focus of the story.', {}),
    ('Noise: none. Compression: none.', dict(noise=0, compression=0)),
    ('The photo does not show any significant amount of noise.', dict(noise=0)),
    ('It is without any noticeable amount of compression. Without any visible amount of noise.',
     dict(noise=0, compression=0)),
    ('There are no visible or distracting signs of compression artifacts.', dict(compression=0)),
    ('No visible noise, blur or significant banding.', dict(noise=0, sharpness=0, compression=0)),
    ('There is noise, but it is negligible. There are artifacts, but they are not visible.',
     dict(noise=0, compression=0)),
    ('There is noise, but it is not negligible. The blur is not absent.', dict(noise=2, sharpness=2)),
    ('There is noise and it is not sharp, it is too dark.', dict(noise=2, sharpness=2, exposure=2)),
    ('Not only noisy but also too dark, and not just slightly dull.', dict(noise=2, exposure=2, colour=1)),
    ('Far from sharp, anything but clean.', dict(sharpness=2, noise=2)),
    ('It is less sharp than the rest, but far from noisy.', dict(sharpness=2, noise=0)),
    ('It is no more than slightly soft, and far too dark.', dict(sharpness=1, exposure=3)),
    ('清晰度基本正常，噪点轻微，压缩痕迹不明显，曝光略有不足，对比度存在明显缺陷，色彩正常。',
     dict(sharpness=0, noise=1, compression=0, exposure=1, contrast=2, colour=0)),
])
def test_judgements_of_a_large_teacher_are_read(text, degrees): assert claims(text).degrees == degrees
