"The store survives interruption, asks nothing twice and invents nothing"
import errno
from dataclasses import replace
from itertools import combinations, product
from random import Random

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageColumn
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import qponder.distill as module
from qponder.distill import (FILTERS, SUBJECTS, DistillSettings, MeasuredTeacher, Record, Request, combine, distill,
                             judge, keep_table, load_records, main_fault, tone, write_reasoning)
from qponder.scale import LEVELS, QPonderError, level, level_centre
from qponder.trace import ASPECTS, FAULTS, FINE, Trace, claims, parse, render, strip_numbers, well_formed

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
    assert 30 <= len(text.split()) <= 50 and strip_numbers(text) == text


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
    records = distill(rows, teacher, tmp_path, DistillSettings(max_words=5))
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


def test_spoilt_store_and_unwritable_folder(rows, whole, tmp_path, monkeypatch):
    lines = whole[1].splitlines(keepends=True)
    (tmp_path/'traces.jsonl').write_bytes(lines[0] + b'{"spoilt\n' + lines[1])
    with pytest.raises(QPonderError, match='traces.jsonl, line 2: not a record'): distill(rows, Counting(), tmp_path)
    (tmp_path/'file').write_text('')
    with pytest.raises(QPonderError, match='cannot be written'): distill(rows, Counting(), tmp_path/'file')
    full = tmp_path/'full'
    distill(rows[:2], Counting(), full)

    def no_room(*args, **kw): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(module, 'open', no_room, raising=False)
    with pytest.raises(QPonderError, match='No space left on device'): distill(rows, Counting(), full)
    monkeypatch.undo()
    assert len(load_records(full/'traces.jsonl')) == 2


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
])
def test_each_filter_drops_its_kind(text, said, verdict):
    assert judge(Record(score=3.0, raw=render(Trace(text, said))), DistillSettings()).verdict == verdict


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None)), st.text())
def test_any_text_survives_the_store(tmp_path, raw, path):
    records = [Record(path=path, raw=raw + '\u2028 \x85 \udc80'), Record(raw='next')]
    module._write(tmp_path/'x.jsonl', records, 'w')
    assert load_records(tmp_path/'x.jsonl') == records


def test_filters_never_raise_and_order_is_stable():
    for raw in ('', '3', '<answer>3</answer>', '<think></think><answer>9</answer>'):
        record = Record(score=3.0, raw=raw)
        assert judge(record, DistillSettings()).verdict == 'grammar'
        assert all(f(record) in (True, False) for f in FILTERS.values())
    assert list(FILTERS) == ['grammar', 'gap', 'length', 'numbers', 'aspects', 'agreement', 'repeats']


def test_label_is_a_choice():
    text = write_reasoning({}, 3.3)
    record = Record(score=3.0, raw=render(Trace(text, 3.3)))
    assert judge(record, DistillSettings()).target == 3.0
    assert judge(record, DistillSettings(label='teacher')).target == 3.3
    assert judge(record, DistillSettings()).gap == 0.3
