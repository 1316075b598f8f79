"Rating: one photo, many photos, bad photos, and answers that hold no score."
import errno
import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from qponder.ask import generate
from qponder.build import tiny_student
from qponder.data import load_sample
from qponder.metrics import srcc
from qponder.model import load_student, save_student
from qponder.parts import sha
from qponder.photo import ImageError, open_image, pristine
from qponder.rate import Rater, Rating, compare, find_photos, rate_many, sample_scores
from qponder.scale import QPonderError
from qponder.see import wider
from qponder.tiny import tiny_vlm

STORED = Path(__file__).resolve().parents[1]/'nbs/tutorials/nano'


@pytest.fixture(scope='module')
def rater(): return Rater('nano')


@pytest.fixture(scope='module')
def babbler(tmp_path_factory):
    "A rater that never gives a score."
    return Rater(save_student(tiny_student(), tmp_path_factory.mktemp('tiny')/'s'))


def test_a_rating_is_complete_and_repeatable(rater):
    first, again = (rater.rate(pristine()[0]) for _ in range(2))
    assert first == again and first.status == 'ok' and 1 <= first.score <= 5 and 1 <= first.expected <= 5
    row = json.loads(first.to_json())
    assert row['scale'].startswith('1-5') and row['model'] == 'nano' and row['policy'] == '252x252'


def test_nano_is_as_good_as_its_card_says(rater):
    "The card's figure follows from the stored answers, and a tenth of the photos are still answered like that."
    answers = pd.read_csv(STORED/'answers.csv').query('photos == "LIVE-C"')
    figures = json.loads((STORED/'accuracy.json').read_text(encoding='utf-8'))['figures']
    card, = (r['SRCC expected']['value'] for r in figures if [r[k] for k in ('model', 'photos', 'mode')] ==
             ['nano', 'LIVE-C', 'score'])
    assert srcc(answers['nano score expected'], answers['people']) == pytest.approx(card, abs=.001)
    paths = {sha(Path(p)): p for p in load_sample().select_columns(['path'])['path']}
    some = answers[::10]
    found = [r.expected for r in rate_many(rater, [paths[photo] for photo in some['photo']], reasons=False)]
    assert found == pytest.approx(some['nano score expected'].tolist(), abs=.05) and len(found) == 30


def test_smaller_photos_are_rated_as_the_stock_classes_rate_them():
    small, student = Rater('nano', size=224), wider(load_student('nano'), 224)
    stock = generate(student, [open_image(p) for p in pristine()[:2]], 'score')
    assert [small.rate(p, reasons=False).expected for p in pristine()[:2]] == pytest.approx(
        [a.expected for a in stock], abs=.02)
    assert small.rate(pristine()[0]).policy == '224x224' and small.least == 4 * 224


def test_pictures_in_memory_are_held_to_what_files_are(rater):
    for wrong in (Image.new('RGB', (4, 4)), Image.new('F', (40, 40)), None, [[0]]):
        with pytest.raises(ImageError): rater.rate(wrong)
    with pytest.raises(QPonderError, match='an empty name'): find_photos([''])


def test_a_strip_that_a_student_refuses_is_a_row_and_hidden_files_are_no_photos(tmp_path):
    for name, size in (('strip.png', (16, 3300)), ('fine.png', (60, 60)), ('._fine.png', (60, 60))):
        Image.new('RGB', size, 'gray').save(tmp_path/name)
    (tmp_path/'folder.png').mkdir()
    model = save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'model')
    fine, strip = rate_many(Rater(model), find_photos([tmp_path]), reasons=False)
    assert strip.status == 'unreadable' and '16x3300' in strip.error and fine.status != 'unreadable'


@pytest.mark.parametrize('size, said', [(225, 'multiple of 14'), (28, 'from 56 to 518')])
def test_sizes_that_do_not_fit_are_refused(size, said):
    with pytest.raises(QPonderError, match=said): Rater('nano', size=size)


def test_only_nano_looks_at_other_sizes(tmp_path):
    folder = tmp_path/'qwen'
    folder.mkdir()
    (folder/'config.json').write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(QPonderError, match='only nano, on a CPU'): Rater(folder, size=224)


def test_memory_and_file_agree(rater):
    file, memory = rater.rate(pristine()[1]), rater.rate(open_image(pristine()[1]))
    assert (file.score, file.reasoning) == (memory.score, memory.reasoning)


def test_no_score_is_made_up(babbler):
    rating = babbler.rate(pristine()[0])
    assert rating.score is rating.expected is rating.level is None and rating.status in ('truncated', 'no_answer')
    assert 'no score' in str(rating) and 'no score' in rating._repr_html_()
    with pytest.raises(QPonderError, match='cannot be compared'): compare(babbler, *pristine()[:2])
    assert sample_scores(babbler, open_image(pristine()[0]), 2) == (None, None, 0)


def test_one_bad_photo_is_an_error_and_among_many_a_row(rater, tmp_path):
    bad = tmp_path/'bad.jpg'
    bad.write_bytes(pristine()[0].read_bytes()[:500])
    with pytest.raises(ImageError, match='bad.jpg'): rater.rate(bad)
    rows = list(rate_many(rater, [bad, pristine()[0], tmp_path/'none.png', bad], batch_size=2))
    assert [r.status for r in rows] == ['unreadable', 'ok', 'unreadable', 'unreadable']
    assert 'none.png' in rows[2].error and rows[0].score is None


def test_what_is_no_path_among_many_is_rated_or_a_row(rater):
    photo = open_image(pristine()[0])
    rows = list(rate_many(rater, [None, photo, float('nan')], reasons=False))
    assert [(r.status, r.path) for r in rows] == [('unreadable', ''), ('ok', ''), ('unreadable', '')]
    assert rows[1].expected == rater.rate(photo, reasons=False).expected and 'NoneType: give a path' in rows[0].error


@pytest.mark.parametrize('size', ['224', 225, 224.5])
def test_a_size_that_is_none(size):
    with pytest.raises(QPonderError, match='multiple of 14 pixels'): Rater(size=size)


def test_order_of_a_pair_does_not_matter(rater):
    one, two = pristine()[0], pristine()[3]
    swap = {'first': 'second', 'second': 'first', 'tie': 'tie'}
    assert compare(rater, one, two)[0] == swap[compare(rater, two, one)[0]]


def test_folder_without_photos(tmp_path):
    (tmp_path/'notes.txt').write_text('none')
    with pytest.raises(QPonderError, match='no photo'): find_photos([tmp_path])


@pytest.fixture
def closed(monkeypatch):
    "Folders called closed refuse to be looked into, whoever asks."
    def guarded(do):
        def ask(path='.', *args, **kwargs):
            if not isinstance(path, int) and 'closed' in Path(os.fsdecode(path)).parts[:-1 if do is os.stat else None]:
                raise PermissionError(errno.EACCES, 'Permission denied', str(path))
            return do(path, *args, **kwargs)
        return ask
    for name in ('stat', 'scandir'): monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    monkeypatch.setattr('builtins.open', guarded(open))


def test_what_cannot_be_opened_is_a_row_wherever_it_is_met(rater, tmp_path, closed):
    for name in ('plain.jpg', 'closed/inner.jpg'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        Path.symlink_to(tmp_path/name, pristine()[0])
    (tmp_path/'heart.heic').write_bytes(b'\0\0\0\x18ftypheic')
    (tmp_path/'dead.png').symlink_to('nowhere.png')
    (tmp_path/'linked').symlink_to(tmp_path)
    named = [tmp_path/'closed'/'inner.jpg', tmp_path/'closed', 'a' * 300 + '.jpg']
    rows = [*rate_many(rater, find_photos([*named, tmp_path]), reasons=False)]
    found = {Path(r.path).name if i > 2 else i: r.error or r.status for i, r in enumerate(rows)}
    refused = 'Permission denied; give the path of a photo that may be read'
    assert [found[i].rpartition(': ')[2] for i in range(3)] == [refused, refused, refused.replace(
        'Permission denied', 'File name too long')]
    assert [*found][3:] == ['closed', 'dead.png', 'heart.heic', 'plain.jpg'] and found['plain.jpg'] == 'ok'
    assert found['closed'].endswith(refused) and 'no such file' in found['dead.png']
    assert 'is not an image in a known format; save it as JPEG or PNG' in found['heart.heic']


def test_html_escapes_what_a_model_wrote():
    rating = Rating(reasoning='<script>')
    assert '<script>' not in rating._repr_html_()


def test_whatever_holds_a_photo_is_rated_alike(rater):
    photo = pristine()[2]
    picture = open_image(photo)
    given = photo, str(photo), photo.read_bytes(), BytesIO(photo.read_bytes()), picture, np.asarray(picture)
    assert len({rater.rate(g, reasons=False).expected for g in given}) == 1
    with photo.open('rb') as file: assert rater.rate(file).score == rater.rate(Image.open(photo)).score


@pytest.mark.parametrize('wrong', [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8), [[0]], None, 7,
                                   np.zeros((40, 40, 3)), np.zeros((3, 40, 40), np.uint8)])
def test_what_is_ambiguous_is_refused_and_the_message_names_what_is_taken(rater, wrong):
    with pytest.raises(ImageError, match='give a path, bytes, an open binary file, a PIL picture, or an array'):
        rater.rate(wrong)


def test_pictures_that_cannot_be_read_are_image_errors(rater, tmp_path):
    torn, whole = tmp_path/'torn.jpg', tmp_path/'whole.jpg'
    open_image(pristine()[0]).save(whole)
    torn.write_bytes(whole.read_bytes()[:20_000])
    with Image.open(whole) as gone: pass
    shut = Image.open(whole)
    shut.close()
    for wrong in (Image.open(torn), gone, shut):
        with pytest.raises(ImageError, match=r'\.jpg: cannot be decoded'): rater.rate(wrong)
    for wrong in (torn.read_bytes(), b'', BytesIO(b'no photo'), torn.open(encoding='latin1')):
        with pytest.raises(ImageError, match='image in memory: '): rater.rate(wrong)


def test_a_picture_of_32_bits_is_refused_rather_than_black(rater):
    grey = np.asarray(open_image(pristine()[0]).convert('L')).astype(np.int32)
    with pytest.raises(ImageError, match='32-bit pixels, which have no agreed white'): rater.rate(Image.fromarray(grey))


def test_a_single_place_is_not_taken_apart(rater, tmp_path):
    open_image(pristine()[0]).save(tmp_path/'a.jpg')
    for place in (str(tmp_path), tmp_path, tmp_path/'a.jpg'): assert find_photos(place) == [tmp_path/'a.jpg']
    for place in (tmp_path/'a.jpg', str(tmp_path/'a.jpg')):
        assert [r.status for r in rate_many(rater, place, reasons=False)] == ['ok']
    assert [r.status for r in rate_many(rater, iter([tmp_path/'a.jpg', 'gone.jpg']), False)] == ['ok', 'unreadable']


def test_samples_are_drawn_at_the_size_that_was_asked_for():
    small = Rater('nano', size=126)
    drawn = sample_scores(small, pristine()[0], 2)
    assert small.student.policy['size'] == {'height': 126, 'width': 126}
    assert drawn == sample_scores(small, open_image(pristine()[0]), 2)
