"The store survives interruption, asks nothing twice and invents nothing"
import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from itertools import combinations, product
from random import Random

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageColumn
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import qponder.distill as module
from qponder import store
from qponder.claims import ASPECTS, FAULTS, FINE, claims
from qponder.distill import Unanswered, distill, keep_table
from qponder.filters import (FILTERS, FORBIDDEN, DistillSettings, Record, apply_filters, forbidden_kind, load_records,
                             repeated)
from qponder.marks import Marks, judge_prompt, read_marks
from qponder.questions import open_row
from qponder.scale import LEVELS, QPonderError, level, level_centre
from qponder.teacher import SUBJECTS, MeasuredTeacher, Request, combine, main_fault, tone, write_reasoning
from qponder.trace import Trace, parse, render, strip_numbers, well_formed

graded = [(name, degree) for name in FAULTS for degree in (1, 2, 3)]
one_per_aspect = st.fixed_dictionaries({a: st.none() | st.sampled_from([g for g in graded if FAULTS[g[0]].aspect == a])
                                        for a in ASPECTS}).map(lambda d: dict(g for g in d.values() if g))
any_faults = st.dictionaries(st.sampled_from(list(FAULTS)), st.integers(1, 3))
scores = st.floats(1, 5).map(lambda s: round(s, 1))


def check_meaning(faults, score, text):
    read = claims(text)
    assert read.faults == faults and read.level == level(score)
    assert read.degrees == {a: max([d for f, d in faults.items() if FAULTS[f].aspect == a], default=0) for a in ASPECTS}
    assert read.main in (None, main_fault(faults)) and (read.main or max(faults.values(), default=0) < 2)


@settings(max_examples=400)
@given(one_per_aspect, scores, st.integers(0, 1000))
def test_reasoning_is_read_as_it_was_meant(faults, score, seed):
    text = write_reasoning(faults, score, rng=Random(seed))
    check_meaning(faults, score, text)
    assert claims(render(Trace(text, score))) == claims(text)
    assert 30 <= len(text.split()) <= 50 and strip_numbers(text) == text and not forbidden_kind(text)


def test_every_pair_of_faults_at_every_level():
    pairs = [p for p in combinations(graded, 2) if FAULTS[p[0][0]].aspect != FAULTS[p[1][0]].aspect]
    for i, (pair, word) in enumerate(product([(), *((g,) for g in graded), *pairs], LEVELS)):
        check_meaning(dict(pair), level_centre(word), write_reasoning(dict(pair), level_centre(word), rng=Random(i)))


@given(one_per_aspect, st.integers(0, 1000))
def test_without_a_score_there_is_no_verdict(faults, seed):
    read = claims(write_reasoning(faults, None, rng=Random(seed)))
    assert read.level is None and read.faults == faults
    assert (read.main is None) == (not faults)


def test_vocabulary_is_modest_and_wording_varies():
    cases = product(graded, LEVELS, range(20))
    texts = {write_reasoning(dict([g]), level_centre(w), rng=Random(s)) for g, w, s in cases}
    assert len({w.strip('.,').lower() for t in texts for w in t.split()}) < 120
    assert len(texts) > 2000
    assert set(SUBJECTS) == set(FINE) == set(ASPECTS)


@given(any_faults, st.none() | st.floats(1, 5))
def test_toning_softens_and_never_invents(faults, score):
    toned = tone(faults, score)
    assert set(toned) == set(faults) and all(1 <= toned[f] <= faults[f] for f in faults)
    if score is None or score <= 3.4: assert toned == faults


@given(st.sampled_from([{}, *({f: d} for f, d in graded)]), any_faults)
def test_known_faults_win_and_aspects_are_unique(known, measured):
    both = combine(known, measured)
    assert known.items() <= both.items() and set(both) <= set(known) | set(measured)
    spoiled = [FAULTS[f].aspect for f in both]
    assert len(set(spoiled)) == len(spoiled) and set(spoiled) == {FAULTS[f].aspect for f in (*known, *measured)}


def picture(i, size=64):
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8))


@given(scores, st.integers(0, 5))
def test_measured_teacher(score, i):
    request = Request(picture(i), 'x.png', score, faults={'noise': 3, 'blur': 1})
    text = MeasuredTeacher()(request)
    assert text == MeasuredTeacher()(replace(request, path='elsewhere/y.png'))
    assert well_formed(text) and parse(text).score == score
    assert claims(parse(text).reasoning).faults == {'noise': 3, 'blur': 1}


def test_measured_teacher_seed_and_known_damage():
    request = Request(picture(0), score=2.0, distortion='gaussian_blur', severity=5)
    assert claims(MeasuredTeacher()(request)).faults['blur'] == 3
    assert len({MeasuredTeacher(seed=s)(request) for s in range(10)}) > 5
    assert parse(MeasuredTeacher()(replace(request, score=None))).reasoning


class Counting:
    "A teacher that counts, and breaks off when told to"
    name = 'counting'

    def __init__(self, stop=None): self.asked, self.stop = [], stop

    def __call__(self, request):
        if self.stop is not None and len(self.asked) >= self.stop: raise KeyboardInterrupt
        self.asked.append(request.path)
        return render(Trace(write_reasoning(request.faults, request.score), request.score))


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    folder, out = tmp_path_factory.mktemp('photos'), []
    for i in range(5):
        picture(i).save(folder/f'{i}.png')
        out.append({'path': str(folder/f'{i}.png'), 'score': 1.25 + .8 * i, 'std': .5, 'name': 'made'})
    return out


@pytest.fixture(scope='module')
def whole(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    return distill(rows, Counting(), out), (out/'traces.jsonl').read_bytes(), (out/'kept.jsonl').read_bytes()


def test_everything_is_stored(rows, whole, tmp_path):
    records, traces, kept = whole
    assert [r.verdict for r in records] == ['kept'] * 5 and traces == kept and traces.count(b'\n') == 5
    (tmp_path/'traces.jsonl').write_bytes(traces)
    assert load_records(tmp_path/'traces.jsonl') == records
    for row, r in zip(rows, records):
        assert (r.path, r.score, r.std, r.name) == (row['path'], row['score'], row['std'], row['name'])
        assert r.raw and r.teacher == 'counting' and len(r.prompt_hash) == 12 and r.status == 'ok'
        assert r.target == round(row['score'], 1) and r.trace == Trace(r.reasoning, r.target)
        assert claims(r.reasoning).level == level(r.target)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_resumes_after_a_cut_anywhere(rows, whole, tmp_path, data):
    records, traces, kept = whole
    cut = data.draw(st.integers(0, len(traces)))
    (tmp_path/'traces.jsonl').write_bytes(traces[:cut])
    teacher = Counting()
    assert distill(rows, teacher, tmp_path) == records
    assert len(teacher.asked) == 5 - traces[:cut].count(b'\n')
    assert (tmp_path/'traces.jsonl').read_bytes() == traces and (tmp_path/'kept.jsonl').read_bytes() == kept


def test_stopped_run_goes_on(rows, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt): distill(rows, Counting(stop=3), tmp_path)
    teacher = Counting()
    assert distill(rows, teacher, tmp_path) == whole[0]
    assert teacher.asked == [r['path'] for r in rows[3:]]


def test_nothing_is_asked_twice_but_new_questions_are(rows, tmp_path):
    distill(rows, Counting(), tmp_path)
    cases = (rows, {}, 0), (rows + rows, {}, 0), ([dict(rows[0], score=4.9)], {}, 1), (rows[3:], {'tone': False}, 2)
    for more, settings_, asked in cases:
        teacher = Counting()
        assert len(distill(more, teacher, tmp_path, DistillSettings(**settings_))) == len(more)
        assert len(teacher.asked) == asked
    teacher = Counting()
    teacher.seed = 1
    distill(rows, teacher, tmp_path)
    assert len(teacher.asked) == 5


def test_new_filters_judge_stored_answers(rows, tmp_path):
    distill(rows, Counting(), tmp_path)
    teacher = Counting()
    records = distill(rows, teacher, tmp_path, DistillSettings(min_words=0, max_words=5))
    assert not teacher.asked and {r.verdict for r in records} == {'length'} and {r.target for r in records} == {None}
    assert load_records(tmp_path/'traces.jsonl') == records and load_records(tmp_path/'kept.jsonl') == []
    assert {r.verdict for r in distill(rows, teacher, tmp_path)} == {'kept'}


def test_bad_photos_are_reported_rows(rows, tmp_path):
    torn = tmp_path/'torn.png'
    torn.write_bytes(open(rows[0]['path'], 'rb').read()[:300])
    bad = [rows[0], {'path': str(torn), 'score': 3.0}, {'path': str(tmp_path/'gone.png'), 'score': 3.0}, rows[1]]
    for _ in range(2):
        records = distill(bad, Counting(), tmp_path/'out')
        assert [r.verdict for r in records] == ['kept', 'unreadable', 'unreadable', 'kept']
        assert 'torn.png' in records[1].note and 'gone.png' in records[2].note
        assert records[1].raw == '' and records[1].target is None
        assert len(load_records(tmp_path/'out'/'traces.jsonl')) == 4
    assert keep_table(records).loc['unreadable', 'dropped'] == 2
    picture(9).save(torn)
    assert distill(bad, Counting(), tmp_path/'out')[1].verdict == 'kept'


def test_dataset_with_a_bad_photo(rows, tmp_path):
    torn = tmp_path/'torn.png'
    torn.write_bytes(b'not a photo')
    paths = [rows[0]['path'], str(torn), rows[1]['path']]
    data = Dataset.from_dict({'image': paths, 'path': paths, 'score': [2.0, 3.0, 4.0]})
    data = data.cast_column('image', ImageColumn())
    assert [r.verdict for r in distill(data, Counting(), tmp_path/'out')] == ['kept', 'unreadable', 'kept']


def test_photo_in_memory_wins_over_its_path(rows, tmp_path):
    one, two = (distill([dict(rows[0], **more)], Counting(), tmp_path)[0] for more in ({}, {'image': picture(7)}))
    assert one.path == two.path and one.image_sha != two.image_sha


def turned(image):
    exif = Image.Exif()
    exif[0x112] = 6
    image.info['exif'] = exif.tobytes()
    return image


grey16 = Image.fromarray(np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16))
glass = picture(3)
glass.putalpha(Image.linear_gradient('L').resize((64, 64)))


@pytest.mark.parametrize('image', [grey16, glass, turned(picture(3).crop((0, 0, 64, 30)))])
def test_a_picture_in_memory_is_seen_as_it_is_in_a_file(tmp_path, image):
    image.save(tmp_path/'x.png', exif=image.info.get('exif', b''))
    row = dict(path=str(tmp_path/'x.png'))
    filed, kept = open_row(row), open_row(row | dict(image=image))
    assert kept.mode == 'RGB' and np.array_equal(filed, kept) and np.ptp(np.asarray(kept)) > 200
    stored = open_row(row | dict(image=dict(bytes=(tmp_path/'x.png').read_bytes())))
    assert np.array_equal(filed, stored)


def test_a_picture_in_memory_that_cannot_be_judged_is_a_row(rows, tmp_path):
    data = open(rows[0]['path'], 'rb').read()
    bad = [picture(0, 8), Image.open(BytesIO(data[:len(data) // 2])), dict(bytes=b'nothing')]
    records = distill([dict(path=f'{i}.png', image=x, score=3.) for i, x in enumerate(bad)], Counting(), tmp_path)
    assert [r.verdict for r in records] == ['unreadable'] * 3
    assert all(r.note.startswith(f'{i}.png') for i, r in enumerate(records)), [r.note for r in records]
    for image in (data, np.asarray(picture(0)), rows[0]['path']):
        with pytest.raises(QPonderError, match='0.png: image is a .*; give a PIL image'):
            distill([dict(path='0.png', image=image, score=3.)], Counting(), tmp_path)


def test_a_teacher_that_is_none_is_refused_before_it_is_asked(rows, tmp_path):
    named, mute = Counting(), Counting()
    named.prompt, mute.name = 'You are an expert.', None
    for who, why in ((named, 'counting: its prompt is a str'), (mute, 'give this Counting one')):
        with pytest.raises(QPonderError, match=why): distill(rows, who, tmp_path)
        with pytest.raises(QPonderError, match=why): distill(rows, Counting(), tmp_path/'x', judged, who)
        assert not who.asked
    assert not (tmp_path/'traces.jsonl').exists()


def test_a_teacher_without_a_prompt_is_sent_the_text(rows, tmp_path):
    reader = Reader()
    reader.prompt = None
    distill(rows[:1], reader, tmp_path)
    assert 'People rated' in reader.asked[0].text


def test_an_answer_that_is_no_text_ends_a_run_and_costs_no_other_answer(rows, tmp_path):
    class Broken(Counting):
        def __call__(self, request): return super().__call__(request) if len(self.asked) < 2 else None
    with pytest.raises(QPonderError, match='counting gave a NoneType'): distill(rows, Broken(), tmp_path)
    assert len(load_records(tmp_path/'traces.jsonl')) == 2
    with pytest.raises(QPonderError, match='judge gave a dict'):
        distill(rows, Counting(), tmp_path, judged, Mapped())
    assert [bool(r.raw) for r in load_records(tmp_path/'traces.jsonl')] == [True] * 2


class Mapped:
    "An examiner that gives its marks in another form"
    name = 'judge'

    def __call__(self, request): return dict(fidelity=5)


def test_spoilt_store_and_unwritable_folder(rows, whole, tmp_path, monkeypatch):
    lines = whole[1].splitlines(keepends=True)
    (tmp_path/'traces.jsonl').write_bytes(lines[0] + b'{"spoilt\n' + lines[1])
    with pytest.raises(QPonderError, match='traces.jsonl, line 2: no Record'): distill(rows, Counting(), tmp_path)
    (tmp_path/'file').write_text('')
    with pytest.raises(QPonderError, match='cannot be written'): distill(rows, Counting(), tmp_path/'file')
    full = tmp_path/'full'
    distill(rows[:2], Counting(), full)

    def no_room(*args, **kw): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(store, 'open', no_room, raising=False)
    with pytest.raises(QPonderError, match='No space left on device'): distill(rows, Counting(), full)
    monkeypatch.undo()
    assert len(load_records(full/'traces.jsonl')) == 2


def test_an_answer_is_on_the_disk_before_the_next_is_asked_for(rows, tmp_path, monkeypatch):
    real, safe = os.fsync, []

    def seen(number):
        real(number)
        safe.append(os.fstat(number).st_size)
    monkeypatch.setattr(os, 'fsync', seen)
    distill(rows, Counting(), tmp_path)
    ends = np.cumsum([len(line) for line in (tmp_path/'traces.jsonl').read_bytes().splitlines(keepends=True)])
    assert safe == [*ends, (tmp_path/'kept.jsonl').stat().st_size]


def test_an_answer_of_another_process_is_not_lost_when_a_file_is_made_anew(tmp_path):
    file, said = tmp_path/'traces.jsonl', lambda i, **how: Record(i, raw=f'paid {i}', **dict(verdict='kept') | how)
    ours, theirs = module.Answers(file), module.Answers(file)
    for r in (said('a'), said('b'), Record('c', verdict='unanswered')): ours.add(r)
    theirs.add(said('c'))
    ours.add(said('a', verdict='gap'))
    marked = module.Answers(file)
    marked.add(said('b', marks='paid for'))
    ours.close()
    assert {r.id: (r.raw, r.verdict, r.marks) for r in load_records(file)} == {
        'a': ('paid a', 'gap', ''), 'b': ('paid b', 'kept', 'paid for'), 'c': ('paid c', 'kept', '')}
    assert module.Answers(file).get('c').raw == 'paid c' and not [*tmp_path.glob('*.tmp')]


@pytest.mark.skipif(store.fcntl is None, reason='no locks here')
def test_several_who_write_one_file_lose_no_line(tmp_path):
    "The lock belongs to an open file, so threads stand for processes here"
    file, ids = tmp_path/'traces.jsonl', [f'{who}{i}' for i in range(15) for who in 'abc']
    def write(id):
        answers = module.Answers(file)
        record = answers.add(Record(id, raw=id * 10_000, verdict='kept'))
        answers.add(replace(record, verdict='gap'))
        answers.close()
    with ThreadPoolExecutor(3) as pool: list(pool.map(write, ids))
    assert sorted((r.id, r.verdict, r.raw) for r in load_records(file)) == sorted((i, 'gap', i * 10_000) for i in ids)


fine, noisy = write_reasoning({}, 3.0), write_reasoning({'noise': 2}, 3.0, rng=Random(3))


@pytest.mark.parametrize('text, said, verdict', [
    (fine, 3.0, 'kept'),
    (fine, 4.2, 'gap'),
    ('Soft.', 3.0, 'length'),
    (f'{fine} {noisy}' + ' more' * 20, 3.0, 'length'),
    (fine + ' So 3.0.', 3.0, 'numbers'),
    (fine.split('. ', 1)[1] + ' It is a photo of a dog on a beach in the evening.', 3.0, 'aspects'),
    (write_reasoning({}, 4.4), 3.0, 'agreement'),
    (fine + ' the sea and the sky and the sea and the sky and the sea and the sky.', 3.0, 'repeats'),
    (fine + ' This explains the rating.', 3.0, 'forbidden'),
    (fine + ' I cannot judge more.', 3.0, 'forbidden'),
])
def test_each_filter_drops_its_kind(text, said, verdict):
    assert apply_filters(Record(score=3.0, raw=render(Trace(text, said))), DistillSettings()).verdict == verdict


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None)), st.text())
def test_any_text_survives_the_store(tmp_path, raw, path):
    records = [Record(path=path, raw=raw + '\u2028 \x85 \udc80'), Record(raw='next')]
    module.write_records(tmp_path/'x.jsonl', records, 'w')
    assert load_records(tmp_path/'x.jsonl') == records


def test_filters_never_raise_and_order_is_stable():
    for raw in ('', '3', '<answer>3</answer>', '<think></think><answer>9</answer>'):
        record = Record(score=3.0, raw=raw)
        assert apply_filters(record, DistillSettings()).verdict == 'grammar'
        assert all(f(record) in (True, False) for f in FILTERS.values())
    assert list(FILTERS) == ['grammar', 'gap', 'length', 'numbers', 'forbidden', 'aspects', 'agreement', 'repeats',
                             'marked', 'faithful']


def test_label_is_a_choice():
    text = write_reasoning({}, 3.3)
    record = Record(score=3.0, raw=render(Trace(text, 3.3)))
    human, teacher = apply_filters(record, DistillSettings()), apply_filters(record, DistillSettings(label='teacher'))
    assert (human.target, human.label, teacher.target, teacher.label) == (3.0, 'human', 3.3, 'teacher')
    assert human.gap == 0.3


chinese = ('人物面部清晰，背景有轻微的噪点，没有明显的压缩痕迹，曝光正常，对比度略显不足，色彩自然。'
           '主要问题是背景的噪点。总体质量一般。')


@pytest.mark.parametrize('text, verdict', [
    (chinese, 'kept'),
    ('清晰，一般。', 'length'),
    (chinese + '满分5分。', 'numbers'),
    (chinese + '只值三分。', 'numbers'),
    (chinese.replace('色彩自然。', '。'), 'aspects'),
    (chinese.replace('一般', '良好'), 'agreement'),
    (chinese + '噪点' * 9 + '。', 'repeats'),
])
def test_filters_read_chinese(text, verdict):
    record = Record(score=3.0, raw=render(Trace(text, 3.0)))
    assert apply_filters(record, DistillSettings(language='zh')).verdict == verdict


def test_what_is_forbidden_is_named_and_the_rest_is_not():
    said = {'prompt': ('As instructed, sharp.', '按照要求描述'),
            'score': ('the low Rating', 'MOS', '评分较低', '值三点五分'),
            'raters': ('Raters mind it.', 'people thought it dull', '人们认为模糊'),
            'damage': ('blurred on purpose', '人为劣化'),
            'markup': ('**noise**', 'a\n- b', '<b>', '| a |'), 'refusal': ("I can't see it", 'As an AI', '抱歉')}
    assert set(said) == set(FORBIDDEN)
    for kind, texts in said.items(): assert [forbidden_kind(t) for t in texts] == [kind] * len(texts)
    harmless = 'Stars over a stage.', 'a well-lit, high-contrast scene', 'Given the dim light, noisy'
    for text in (*harmless, '三分之一的画面过暗', '以人为主体'): assert not forbidden_kind(text), text


def test_repetition_in_chinese():
    assert repeated(chinese) <= .1 < repeated('画面非常模糊，' * 4)


class Named(MeasuredTeacher): name = 'measured-b5391f'


def test_finished_distillations_are_not_asked_again(tmp_path):
    rows = [dict(path='a.png', image=picture(0), score=3.26)]
    records = distill(rows, Named(), tmp_path, DistillSettings(spoiled=1.5))
    assert [(r.id, r.damage) for r in records] == [('0d69f64fe3ddc9c8', ''), ('ab5c1dba2452dd76', 'brighten 1')]
    assert {(r.prompt, r.prompt_hash) for r in records} == {('expert', '7e8acaaf71ce')}
    new = 'prompt', 'label', 'examiner', 'marks'
    old = [{k: v for k, v in json.loads(line).items() if k not in new} for line in open(tmp_path/'traces.jsonl')]
    (tmp_path/'traces.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in old))

    class Silent(Named):
        def __call__(self, request): raise AssertionError('asked again')
    assert [r.raw for r in distill(rows, Silent(), tmp_path, DistillSettings(spoiled=1.5))] == [r.raw for r in records]


class Reader(Counting):
    "A teacher that keeps the questions it is asked, and has an opinion of its own."
    name = 'reader'

    def __call__(self, request):
        self.asked.append(request)
        return render(Trace(write_reasoning(request.faults, 3.0), 3.0))


def test_told_and_untold(rows, tmp_path):
    scores = [1.2, 2.0, 2.9, 3.7, 4.5]
    for tell in (True, False):
        reader = Reader()
        records = distill(rows, reader, tmp_path, DistillSettings(tell=tell))
        assert [q.score for q in reader.asked] == (scores if tell else [None] * 5)
        assert all((f'photo {score} on' in q.text) == tell for q, score in zip(reader.asked, scores))
        assert [r.verdict for r in records] == ['gap', 'gap', 'kept', 'gap', 'gap'] and records[2].target == 2.9
        assert {r.prompt for r in records} == {'expert' if tell else 'expert-untold'}
    assert len(load_records(tmp_path/'traces.jsonl')) == 10
    unrated = [{k: v for k, v in rows[0].items() if k != 'score'}]
    with pytest.raises(QPonderError, match='0.png: .*tells the score.*distill_tell = no and distill_label = teacher'):
        distill(unrated, Reader(), tmp_path)


def test_a_photo_that_nobody_rated_teaches_the_score_of_the_teacher(rows, tmp_path):
    unrated, reader = [{k: v for k, v in row.items() if k != 'score'} for row in rows], Reader()
    with pytest.raises(QPonderError, match='0.png: nobody rated it.*distill_label = teacher'):
        distill(unrated, reader, tmp_path, DistillSettings(tell=False))
    assert not reader.asked
    records = distill(unrated, reader, tmp_path, DistillSettings(tell=False, label='teacher'))
    assert {(r.verdict, r.score, r.gap, r.target) for r in records} == {('kept', None, None, 3.0)}
    assert apply_filters(replace(records[0], raw='fine'), DistillSettings(label='teacher')).verdict == 'grammar'


class Deaf(Counting):
    "Is asked in words, and never told of faults."
    name, told_faults = 'deaf', False


def test_who_is_not_told_of_faults_is_not_asked_again_in_another_tone(rows, tmp_path):
    photos, plain = [dict(rows[0], score=4.8), rows[1]], DistillSettings(tone=False)
    deaf, first, other = Deaf(), tmp_path/'first', tmp_path/'other'
    toned = distill(photos, deaf, first)
    again = distill(photos, deaf, first, plain), distill(photos, deaf, other, plain, before=[first/'traces.jsonl'])
    assert len(deaf.asked) == 2 and again[0] == again[1]
    assert [r.raw for r in again[0]] == [r.raw for r in toned] and {r.verdict for r in again[0]} == {'kept'}
    assert max(toned[0].faults.values()) == 1 < max(again[0][0].faults.values())
    assert [r.faults for r in again[0]] == [r.faults for r in distill(photos, Counting(), tmp_path/'told', plain)]
    assert distill(photos, deaf, first) == toned and len(load_records(first/'traces.jsonl')) == 4


def test_known_damage_is_told_to_those_who_read(rows, tmp_path):
    reader = Reader()
    records = distill(rows[:1], reader, tmp_path, DistillSettings(spoiled=2))
    assert 'People rated' in reader.asked[0].text and len(records) == 3
    assert all('damaged on purpose' in q.text and 'People rated' not in q.text for q in reader.asked[1:])
    assert [r.prompt for r in records] == ['expert', 'expert-known', 'expert-known']


def test_another_prompt_is_another_question(rows, tmp_path):
    every = [DistillSettings(tell=t, language=g) for t in (True, False) for g in ('en', 'zh')]
    ids = [r.id for s in every for r in distill(rows[:1], Reader(), tmp_path, s)]
    assert len(set(ids)) == 4
    for s in every[1:]:
        with pytest.raises(QPonderError, match='(distill_tell = yes|distill_language = en).*teacher = served'):
            distill(rows, MeasuredTeacher(), tmp_path/'measured', s)


class Talker(Counting):
    "Answers in prose, until it is told better."
    name, better = 'talker', 10**6

    def __call__(self, request):
        self.asked.append(request.path)
        good = render(Trace(write_reasoning(request.faults, request.score), request.score))
        return good if len(self.asked) >= self.better else f'A lovely photo, number {len(self.asked)}!'


def test_longer_reasons_are_other_questions(tmp_path):
    "Whoever asks for more asks anew, and finds the short answers again when going back."
    rows, talker = [dict(path=f'{i}.png', image=picture(i, 20), score=3.0) for i in range(3)], Talker()
    talker.better = 0
    counts = []
    for words in (None, (30, 60), None, (30, 60)):
        records = distill(rows, talker, tmp_path, DistillSettings(ask_words=words))
        counts.append((len(talker.asked), len({r.prompt_hash for r in records})))
    assert counts == [(3, 1), (6, 1), (6, 1), (6, 1)]


def test_answers_that_all_fall_through_one_filter_end_a_run_early(tmp_path):
    rows, terse = [dict(path=f'{i}.png', image=picture(i, 20), score=3.0) for i in range(60)], Talker()
    terse.better = 0
    with pytest.raises(QPonderError, match=r'none of its first 20 answers is kept \(20 length\).*Loosen these filters'):
        distill(rows, terse, tmp_path, DistillSettings(min_words=500, max_words=900))
    assert len(load_records(tmp_path/'traces.jsonl')) == 20


@pytest.mark.parametrize('at_once', [1, 4])
def test_prose_ends_a_run_early_and_is_kept(tmp_path, at_once):
    rows = [dict(path=f'{i}.png', image=picture(i, 20), score=3.0) for i in range(60)]
    talker = Talker()
    talker.at_once = at_once
    with pytest.raises(QPonderError, match=r"talker: none of its first 20 .*'A lovely photo.*distill_trial = 0"):
        distill(rows, talker, tmp_path)
    assert 20 <= len(talker.asked) <= 20 + 3 * at_once
    stored = load_records(tmp_path/'traces.jsonl')
    assert len(stored) == len(talker.asked) and {r.verdict for r in stored} == {'grammar'}
    later = Talker()
    assert len(distill(rows, later, tmp_path, DistillSettings(trial=0))) == 60
    assert len(later.asked) == 60 - len(stored)


def test_one_good_answer_ends_the_trial(tmp_path):
    rows = [dict(path=f'{i}.png', image=picture(i, 20), score=3.0) for i in range(30)]
    talker = Talker()
    talker.better = 20
    assert sum(r.verdict == 'kept' for r in distill(rows, talker, tmp_path)) == 11


class Examiner:
    "Gives marks by the list, and counts."
    def __init__(self, *marks, name='judge'): self.marks, self.name, self.asked = marks, name, []

    def __call__(self, request):
        self.asked.append(request)
        mark = self.marks[(len(self.asked) - 1) % len(self.marks)]
        if isinstance(mark, Exception): raise mark
        return mark if isinstance(mark, str) else json.dumps(dict(fidelity=mark, terminology=5, consistency=4))


judged = DistillSettings(judge='served')


def test_marks_decide_and_are_asked_for_once(rows, tmp_path):
    examiner = Examiner(5, 2, 3, 'Five!', '{"fidelity": 9, "terminology": 5, "consistency": 5}')
    records = distill(rows, Counting(), tmp_path, judged, examiner)
    assert [r.verdict for r in records] == ['kept', 'faithful', 'kept', 'marked', 'marked']
    table = keep_table(records)['dropped']
    assert (table['marked'], table['faithful']) == (2, 1)
    assert [read_marks(r.marks) for r in records[:2]] == [Marks(5, 5, 4), Marks(2, 5, 4)]
    assert all(r.reasoning in q.text for q, r in zip(examiner.asked, records))
    assert 'photo 1.2 on' in examiner.asked[0].text
    again = Examiner(0)
    assert distill(rows, Counting(), tmp_path, judged, again) == records and not again.asked
    gentle = replace(judged, min_fidelity=2)
    assert [r.verdict for r in distill(rows, Counting(), tmp_path, gentle, again)][:3] == ['kept'] * 3
    assert not again.asked
    other = Examiner(5, name='another')
    assert [r.verdict for r in distill(rows, Counting(), tmp_path, judged, other)] == ['kept'] * 5
    assert len(load_records(tmp_path/'traces.jsonl')) == 5
    assert {r.verdict for r in distill(rows, Counting(), tmp_path)} == {'kept'}


def test_only_what_the_other_filters_keep_is_marked(rows, tmp_path):
    examiner = Examiner(5)
    records = distill(rows, Counting(), tmp_path, replace(judged, min_words=0, max_words=5), examiner)
    assert {r.verdict for r in records} == {'length'} and not examiner.asked


def test_a_judge_in_trouble_costs_no_answer(rows, tmp_path):
    teacher, examiner = Counting(), Examiner(5, Unanswered('busy'), 5, QPonderError('the key is refused'))
    with pytest.raises(QPonderError, match='the key is refused'): distill(rows, teacher, tmp_path, judged, examiner)
    assert len(teacher.asked) == 4
    again, better = Counting(), Examiner(5)
    records = distill(rows, again, tmp_path, judged, better)
    assert (len(again.asked), len(better.asked)) == (1, 3) and [r.note for r in records] == [''] * 5
    assert [r.verdict for r in records] == ['kept'] * 5 and load_records(tmp_path/'traces.jsonl') == records


def test_a_judge_who_only_talks_ends_the_run(rows, tmp_path):
    with pytest.raises(QPonderError, match="the judge: none of its first 3 .*'Fine!'"):
        distill(rows, Counting(), tmp_path, replace(judged, trial=3), Examiner('Fine!'))
    with pytest.raises(QPonderError, match='needs an examiner'): distill(rows, Counting(), tmp_path, judged)


@given(st.text() | st.integers(-3, 9).map(lambda i: f'{{"fidelity": {i}, "terminology": {i}, "consistency": {i}}}'))
def test_marks_are_read_or_not_but_never_invented(text):
    read = read_marks(text)
    assert read is None or json.loads(text) == vars(read) and all(0 <= m <= 5 for m in vars(read).values())
    assert read_marks(judge_prompt(Trace(text.replace('<', ''), 3.0)).text) is None
