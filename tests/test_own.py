"A lesson in the student's own words."
from dataclasses import replace

import pytest

from qponder import own, sft
from qponder.ask import generate
from qponder.build import tiny_student
from qponder.filters import Record, load_records
from qponder.model import load_student
from qponder.own import own_record, own_words
from qponder.photo import open_image, photo_view, pristine
from qponder.scale import QPonderError
from qponder.sft import SFTSettings, cold_start
from qponder.store import write_records
from qponder.trace import Trace, render

SAID = (Trace('The photo is sharp. Overall the quality is excellent.', 4.6),
        Trace('The photo is blurred. Overall the quality is bad.', 1.4))
RECORDS = [Record(id=str(i), path=str(p), target=t.score, status='ok', raw=render(t))
           for i, (p, t) in enumerate(zip(pristine(), SAID))]
HEART = SFTSettings(epochs=150, learning_rate=.02, score_weight=1, claim_weight=0, score_only_every=0, eval_every=1000,
                    save_every=1000)


@pytest.fixture(scope='module')
def taught(tmp_path_factory):
    "A student that knows both lessons by heart, and the views that it will be asked about."
    views = [*RECORDS, *(replace(r, view=1) for r in RECORDS)]
    return cold_start(tiny_student(), views, tmp_path_factory.mktemp('heart'), HEART)


def said(student):
    return [a.text for a in generate(student, [photo_view(open_image(r.path), 1) for r in RECORDS])]


def test_words_stay_and_the_verdict_follows_people(taught, tmp_path):
    before = said(load_student(taught))
    other = [replace(r, target=s) for r, s in zip(RECORDS, (2.3, 2.3))]
    student = load_student(taught)
    cold_start(student, other, tmp_path, replace(HEART, words='own', learning_rate=.005, epochs=60))
    assert student.model.config.score_percentiles == sft.population(other)
    lessons = load_records(tmp_path/'own-0.jsonl')
    assert [r.raw.split('Overall')[0] for r in lessons] == [t.split('Overall')[0] for t in before]
    assert all(t.endswith('quality is poor.</think>\n<answer>2.3</answer>') for t in said(student))


def test_a_stopped_run_asks_about_what_is_left(taught, tmp_path, monkeypatch):
    whole = own_words(load_student(taught), RECORDS, tmp_path/'whole')
    with monkeypatch.context() as m:
        def power_cut(*_, **__): raise KeyboardInterrupt
        own.speak(load_student(taught), RECORDS[:1], tmp_path/'own-0.jsonl')
        m.setattr(own, 'generate', power_cut)
        with pytest.raises(KeyboardInterrupt): own_words(load_student(taught), RECORDS, tmp_path)
    asked = []
    monkeypatch.setattr(own, 'generate', lambda who, images, **_: asked.extend(images) or generate(who, images))
    assert own_words(load_student(taught), RECORDS, tmp_path) == whole and len(asked) == 1


def test_processes_share_the_questions(taught, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    for rank in '10':
        monkeypatch.setenv('RANK', rank)
        lessons = own_words(load_student(taught), RECORDS, tmp_path)
    assert [len(load_records(tmp_path/f'own-{i}.jsonl')) for i in (0, 1)] == [1, 1]
    for key in ('WORLD_SIZE', 'RANK'): monkeypatch.delenv(key)
    assert sorted(lessons, key=lambda r: r.id) == own_words(load_student(taught), RECORDS, tmp_path/'alone')


def test_a_share_of_the_photos_is_described_always_the_same(tmp_path, monkeypatch):
    as_taught = lambda _, records, file: write_records(file, [own_record(r, r.raw) for r in records])
    monkeypatch.setattr(own, 'speak', as_taught)
    many = [replace(RECORDS[0], id=str(i)) for i in range(200)]
    drawn = [[r.id for r in own_words(None, many, tmp_path/str(i), .35, seed)] for i, seed in enumerate((0, 0, 1))]
    assert 50 < len(drawn[0]) < 90 and drawn[0] == drawn[1] != drawn[2]


def test_a_student_in_parts_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true')
    with pytest.raises(QPonderError, match='sft_words = teacher'): own_words(None, RECORDS, tmp_path)


def test_a_beginner_is_sent_to_a_teacher(tmp_path):
    with pytest.raises(QPonderError, match='for 0 of 2 photos: teach it with sft_words = teacher'):
        own_words(tiny_student(), RECORDS, tmp_path)


@pytest.mark.parametrize('other', [dict(mix=.5), dict(objective='level'), dict(words='mine')])
def test_settings_that_do_not_go_together_are_refused(other):
    with pytest.raises(QPonderError, match='words'): SFTSettings(**dict(words='own') | other)
