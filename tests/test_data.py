"Photos and scores that are wrong in every way we know of: each is refused, or reported, by name and with a remedy."
import io
import os
import warnings
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qponder.data import (CARDS, DatasetCard, at_size, cut_validation, difference_hash, load_sample, make_rows,
                          near_duplicates, same_size, which_changed)
from qponder.photo import ASSETS, DataError, ImageError, open_image, pristine, to_rgb
from qponder.scale import QPonderError
from qponder.tables import check_csv, keep_together, load_csv, load_data

RED, BLUE = (200, 30, 30), (30, 30, 200)
FORMATS = 'JPEG', 'PNG', 'GIF', 'TIFF', 'WEBP', 'BMP', 'PPM', 'JPEG2000'


def picture(seed=0, size=(48, 32)):
    "A photo of its own kind for each seed: a coarse random pattern, made large."
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)


def saved(path, image=None, **options):
    (image or picture()).save(path, **options)
    return path


def halves(size=(40, 20)):
    "Red on the left, blue on the right."
    image = Image.new('RGB', size, RED)
    image.paste(BLUE, (size[0]//2, 0, *size))
    return image


def near(colour, other): return np.abs(np.subtract(colour, other)).max() <= 12


def refused(what, *words):
    "The message of the error that `what` raises, which must be ours and hold all the words."
    with pytest.raises(DataError) as e: what()
    assert not [w for w in words if w not in str(e.value)], str(e.value)
    return str(e.value)


@pytest.fixture
def table(tmp_path):
    "Write a CSV file from its lines; photos a.png … d.png stand beside it."
    for i, name in enumerate('abcd'): saved(tmp_path/f'{name}.png', picture(i))

    def write(*lines, name='mine.csv'):
        (tmp_path/name).write_text('\n'.join(lines))
        return tmp_path/name
    return write


# photos that are refused

def test_missing_file(tmp_path):
    refused(lambda: open_image(tmp_path/'gone.jpg'), 'gone.jpg: no such file', 'correct the path')


@pytest.mark.parametrize('address', ['https://a.org/b.jpg', Path('https://a.org/b.jpg')])
def test_an_address_is_no_file(address):
    refused(lambda: open_image(address), 'no such file; addresses are not fetched, download it first')


def test_folder(tmp_path):
    refused(lambda: open_image(tmp_path), tmp_path.name, 'give the path of a photo')


@pytest.mark.parametrize('name, why', [('a' * 300, 'File name too long'), ('file.png/b.png', 'Not a directory'),
                                       ('loop.png', 'Too many levels of symbolic links')])
def test_what_the_system_refuses_is_not_called_damaged(tmp_path, name, why):
    (tmp_path/'file.png').touch()
    (tmp_path/'loop.png').symlink_to('loop.png')
    refused(lambda: open_image(tmp_path/name), f'{why}; give the path of a photo that may be read')


@pytest.mark.parametrize('key', ['image_col', 'score_col'])
def test_a_column_without_a_name(tmp_path, key):
    refused(lambda: load_csv(tmp_path/'own.csv', **{key: ''}), f'{key} is empty: name a column')


@pytest.mark.parametrize('keep', [.3, .6, .9])
def test_truncated_jpeg(tmp_path, keep):
    whole = saved(tmp_path/'whole.jpg', picture(size=(200, 150))).read_bytes()
    (tmp_path/'cut.jpg').write_bytes(whole[:int(keep*len(whole))])
    refused(lambda: open_image(tmp_path/'cut.jpg'), 'cut.jpg', 'damaged, fetch it again or remove it')


@pytest.mark.parametrize('data', [b'', b'not a photo', b'<svg xmlns="http://www.w3.org/2000/svg"/>'])
def test_no_image(tmp_path, data):
    (tmp_path/'text.jpg').write_bytes(data)
    refused(lambda: open_image(tmp_path/'text.jpg'), 'text.jpg', 'known format', 'JPEG or PNG')


@pytest.mark.parametrize('size, fine', [((1, 1), False), ((15, 400), False), ((16, 16), True)])
def test_tiny(tmp_path, size, fine):
    path = saved(tmp_path/'dot.png', Image.new('RGB', size))
    if fine: assert open_image(path).size == size
    else: refused(lambda: open_image(path), 'dot.png', f'{size[0]}x{size[1]} pixels', 'at least 16')


@pytest.mark.parametrize('name', ['film.gif', 'film.png', 'film.webp', 'pages.tiff'])
def test_animated(tmp_path, name):
    path = saved(tmp_path/name, picture(0), save_all=True, append_images=[picture(1)])
    refused(lambda: open_image(path), name, 'animated', 'save the one to be judged')


def test_huge(tmp_path, monkeypatch):
    path = saved(tmp_path/'huge.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    refused(lambda: open_image(path), 'huge.png', 'too large', 'make it smaller')


@pytest.mark.parametrize('pixels', [np.full((20, 20), .5, np.float32), np.full((20, 20), 70_000, np.int32)])
def test_no_agreed_white(tmp_path, pixels):
    path = saved(tmp_path/'deep.tiff', Image.fromarray(pixels))
    refused(lambda: open_image(path), 'deep.tiff', '32-bit', 'save it with 8 or 16 bits')


def test_in_memory():
    refused(lambda: open_image(io.BytesIO(b'junk')), 'image in memory')
    data = io.BytesIO()
    picture().save(data, 'PNG')
    assert open_image(data).size == (48, 32)


@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
       st.floats(0, 1))
def test_damage_is_an_image_error_or_an_image(kind, changes, keep):
    "Whatever the bytes, either RGB comes back or one of our errors."
    data = io.BytesIO()
    picture().save(data, kind)
    damaged = bytearray(data.getvalue())
    for place, byte in changes: damaged[place % len(damaged)] = byte
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: assert open_image(io.BytesIO(damaged[:round(keep*len(damaged))])).mode == 'RGB'
        except ImageError as e: assert 'image in memory' in str(e)


# photos that look as a viewer would show them

def test_cmyk(tmp_path):
    image = open_image(saved(tmp_path/'ink.jpg', halves().convert('CMYK'), quality=95))
    assert image.mode == 'RGB' and near(image.getpixel((5, 10)), RED) and near(image.getpixel((35, 10)), BLUE)


@pytest.mark.parametrize('value, eight', [(0, 0), (200, 0), (0x8080, 0x80), (0xffff, 255)])
def test_sixteen_bits(tmp_path, value, eight):
    "A dark photo stays dark: its brightest pixel says nothing about the range."
    path = saved(tmp_path/'deep.png', Image.fromarray(np.full((20, 20), value, np.uint16)))
    assert Image.open(path).mode.startswith('I') and open_image(path).getpixel((0, 0)) == (eight,)*3


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_alpha_lies_on_white(tmp_path, mode):
    clear = Image.new(mode, (20, 20), 0)
    clear.paste(Image.new(mode, (10, 20), 'black'), (0, 0))
    image = open_image(saved(tmp_path/'clear.png', clear))
    assert image.mode == 'RGB' and [image.getpixel((x, 0)) for x in (0, 19)] == [(0, 0, 0), (255, 255, 255)]


def test_transparent_palette(tmp_path):
    path = saved(tmp_path/'palette.gif', Image.new('P', (20, 20), 0), transparency=0)
    assert open_image(path).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'YCbCr', 'HSV'])
def test_other_modes(mode):
    assert to_rgb(halves().convert(mode)).mode == 'RGB'


@pytest.mark.parametrize('turn, left, size', [(1, RED, (40, 20)), (2, BLUE, (40, 20)), (3, BLUE, (40, 20)),
                                              (6, RED, (20, 40)), (8, BLUE, (20, 40))])
def test_exif_upright(tmp_path, turn, left, size):
    exif = Image.Exif()
    exif[0x0112] = turn
    image = open_image(saved(tmp_path/'turned.jpg', halves(), exif=exif, quality=95))
    assert image.size == size and near(image.getpixel((2, 2)), left)


def test_phone_jpeg_with_a_preview(tmp_path):
    "Many phones keep a second picture in the JPEG; the first one is the photo."
    saved(tmp_path/'phone.jpg', halves(), format='MPO', save_all=True, append_images=[picture(1)], quality=95)
    assert Image.open(tmp_path/'phone.jpg').n_frames == 2
    assert near(open_image(tmp_path/'phone.jpg').getpixel((5, 5)), RED)


# CSV files that are refused

def test_missing_csv(tmp_path):
    refused(lambda: load_csv(tmp_path/'gone.csv'), 'gone.csv', 'No such file', 'give the path of a CSV file')


def test_csv_that_is_a_folder(tmp_path):
    refused(lambda: check_csv(tmp_path), tmp_path.name, 'give the path of a CSV file')


@pytest.mark.parametrize('content, words', [
    (b'', 'first line must name the columns'), (b'image,mos\n', 'add a line for each photo'),
    (b'image,mos\n\n\n', 'add a line for each photo'), (b'\xff\xfe\x00\x81', 'save it as UTF-8'),
    (b'\nimage,mos\na.png,3\n', 'first line must name the columns'),
    ('image,mos\ncafé.png,3'.encode('latin-1'), 'save it as UTF-8'), ('image,mos'.encode('utf-16'), 'save it as UTF-8'),
    (b'image;mos;sd\na.png;20,5;1\n', 'separated by semicolons; save it with commas'),
    (b'image\tmos\na.png\t3\n', 'separated by tabs; save it with commas'),
    (b'image,mos,sd\na.png,3,1,\nb.png,4,1,\n', 'poor.csv, line 2: has 4 fields and the heading 3; put quotes'),
    (b'image,mos\na.png,3\n\nb.png,4,5,6\n', 'poor.csv, line 4: has 4 fields and the heading 2; put quotes'),
    (b'image,mos,mos\na.png,3,4\n', "several columns are called 'mos'"),
    (b'image,mos\na.png,"3\nb.png,4\n', 'poor.csv, line 2: unexpected end of data; put quotes')])
def test_csv_without_rows_or_form(tmp_path, content, words):
    (tmp_path/'poor.csv').write_bytes(content)
    refused(lambda: load_csv(tmp_path/'poor.csv'), 'poor.csv', words)


@pytest.mark.parametrize('form, column, option', [
    ({}, "'image'", '--image-col'), (dict(image_col='photo'), "'mos'", '--score-col'),
    (dict(image_col='photo', score_col='rating', std_col='sd'), "'sd'", '--std-col'),
    (dict(image_col='photo', score_col='rating', split_col='part'), "'part'", '--split-col')])
def test_wrong_column(table, form, column, option):
    refused(lambda: check_csv(table('photo,rating', 'a.png,3'), **form), 'mine.csv', column, 'photo, rating', option)


def test_scale_upside_down(table):
    with pytest.raises(QPonderError, match='low.*below.*high'): check_csv(table('image,mos', 'a.png,3'), low=5, high=1)


# rows that are reported

@pytest.mark.parametrize('score, words', [
    ('7', 'score 7 is'), ('0.99', 'score 0.99 is'), ('inf', 'score inf is'), ('', 'score is missing'),
    ('nan', 'score is missing'), ('good', "score 'good' is no number"), ('"3,5"', "score '3,5' is no number")])
def test_score_outside_its_range(table, score, words):
    csv = table('image,mos', 'a.png,3', f'b.png,{score}', 'c.png,2', 'd.png,4')
    problem, = check_csv(csv).problems
    assert (problem.row, problem.kind, problem.file.endswith('b.png')) == (3, 'score', True)
    refused(lambda: load_csv(csv), 'mine.csv, line 3', f'b.png: {words}', 'from 1 to 5', 'skip_bad')


def test_score_outside_the_declared_range(table):
    csv = table('image,mos', 'a.png,70', 'b.png,101', 'c.png,0')
    assert [p.row for p in check_csv(csv, low=0, high=100).problems] == [3]
    refused(lambda: load_csv(csv, low=0, high=100), 'line 3', 'score 101 is not from 0 to 100', '--low and --high')


@pytest.mark.parametrize('spread, shown', [('-1', '-1'), ('4.5', '4.5'), ('wide', "'wide'")])
def test_spread_outside_its_range(table, spread, shown):
    csv = table('image,mos,sd', 'a.png,3,1', f'b.png,3,{spread}', 'c.png,3,', 'd.png,3,NA')
    assert [(p.row, p.kind) for p in check_csv(csv, std_col='sd').problems] == [(3, 'spread')]
    refused(lambda: load_csv(csv, std_col='sd'), 'line 3', f'b.png: spread {shown} is', 'from 0 to 4', 'leave it empty')


def test_unreadable_photos_are_rows(table, tmp_path):
    (tmp_path/'cut.jpg').write_bytes(saved(tmp_path/'whole.jpg').read_bytes()[:-60])
    csv = table('image,mos', 'a.png,3', 'gone.png,4', 'cut.jpg,2', ',2', 'b.png,4')
    report = check_csv(csv)
    assert [(p.row, p.kind) for p in report.problems] == [(n, 'unreadable') for n in (3, 4, 5)]
    words = '5 rows, 3 problems', 'gone.png: no such file', 'cut.jpg', 'damaged', 'line 5, unreadable: no photo'
    assert all(word in str(report) for word in words)
    assert '| 3 | unreadable |' in report._repr_markdown_()
    refused(lambda: load_csv(csv), 'line 3', 'gone.png', '3 of 5 rows', 'qponder check')
    assert [p[-5:] for p in load_csv(csv, skip_bad=True)['path']] == ['a.png', 'b.png']


def test_backslashes(table):
    problem, *_ = check_csv(table('image,mos', r'photos\a.png,3')).problems
    assert 'no such file' in problem.what and problem.what.endswith('write / in place of \\')


def test_nothing_left(table):
    refused(lambda: load_csv(table('image,mos', 'gone.png,3'), skip_bad=True), 'mine.csv', 'none of its 1 rows')


def test_lines_are_counted_as_an_editor_does(table):
    csv = table('image,mos,note', 'a.png,3', '', '', 'b.png,9', '', 'c.png,2,"two', 'lines"', 'd.png,8', 'a.png,4')
    assert [p.row for p in check_csv(csv).problems] == [5, 9, 10]
    assert load_csv(csv, skip_bad=True)['mos'] == [3, 2, 4]


def test_texts_stay_texts(table, tmp_path):
    "A file that is called 007 is not the file 7, and a part that is called 1 is no number."
    for i in range(3): saved(tmp_path/f'00{i}', picture(i), format='PNG')
    rows = load_csv(table('image,mos,reference,part', '000,3,1,0', '001,3,2,0', '002,3,2,1'), split_col='part')
    assert [p[-3:] for p in rows['path']] == ['000', '001', '002'] and rows['reference'] == ['1', '2', '2']
    assert rows['split'] == ['0', '0', '1']


# doubles

def test_duplicated_rows(table):
    csv = table('image,mos', 'a.png,3', 'b.png,4', 'a.png,2', 'a.png,3', 'c.png,3')
    differs, same = check_csv(csv).problems
    assert [(p.row, p.kind) for p in (differs, same)] == [(4, 'duplicate'), (5, 'duplicate')]
    assert all('the same file as a.png (no split, line 2)' in p.what and 'keep one' in p.what for p in (differs, same))
    assert 'their scores differ, 2 and 3' in differs.what and 'scores' not in same.what
    rows = load_csv(csv)
    assert rows['reference'][0] == rows['reference'][2] and rows['reference'][1] is None


def test_exact_and_near_doubles_across_the_split(table, tmp_path):
    (tmp_path/'copy.png').write_bytes((tmp_path/'a.png').read_bytes())
    saved(tmp_path/'small.jpg', picture(1).resize((36, 24)))
    csv = table('image,mos,part', 'a.png,3,train', 'b.png,4,train', 'copy.png,3,test', 'small.jpg,4,test', 'c.png,3,')
    none, exact, close = sorted(check_csv(csv, split_col='part').problems, key=lambda p: p.kind != 'parts')
    assert (none.row, none.kind) == (6, 'parts') and '1 of 5 rows have no part' in none.what
    assert (exact.row, close.row) == (4, 5) and 'copy.png (test, line 4) is the same file as a.png' in exact.what
    assert 'small.jpg (test, line 5) is nearly b.png (train, line 3); keep one of them' in close.what
    with pytest.warns(UserWarning, match='2 doubles across the split.*qponder check'):
        assert len(load_csv(csv, split_col='part')) == 5


@pytest.mark.parametrize('high, told', [(100, True), (2, False)])
def test_scores_of_another_scale_are_reported_and_loaded(table, high, told):
    csv = table('image,mos', *(f'{name}.png,{i / 10}' for i, name in enumerate('abcabcabcab')))
    found = [p for p in check_csv(csv, low=0, high=high).problems if p.kind == 'scale']
    assert bool(found) == told
    with pytest.warns(UserWarning, match='from 0 to 1, on a scale from 0 to 100') if told else nullcontext():
        assert len(load_csv(csv, low=0, high=high)) == 11


def test_doubles_within_a_part_are_no_leak(table):
    csv = table('image,mos,part', 'a.png,3,train', 'a.png,3,train', 'b.png,4,test', 'c.png,4,train')
    assert check_csv(csv, split_col='part').problems == ()


def test_a_file_with_two_scores_is_reported_even_within_a_part(table, tmp_path):
    saved(tmp_path/'small.jpg', picture(0).resize((36, 24)))
    csv = table('image,mos,part', 'a.png,3,train', 'a.png,4,train', 'b.png,4,test', 'small.jpg,5,train',
                'c.png,4,train')
    found, = check_csv(csv, split_col='part').problems
    assert found.row == 3 and 'the same file as a.png (train, line 2), but their scores differ, 4 and 3' in found.what


# parts

@pytest.mark.parametrize('parts, found', [
    (['training', 'testing', 'training'], [(2, "2 of 3 rows have the part 'training'"), (3, "the part 'testing'")]),
    (['0', '1', '0'], [(2, "the part '0'"), (3, "the part '1'")]), (['train', 'train', 'test '], [(4, "'test '")]),
    (['train', '', 'test'], [(3, 'have no part')]), (['train', 'train', 'train'], [(2, 'no row belongs to test')]),
    (['train', 'test', 'test'], [(2, 'too few photos (or references) for 2 parts: 1')]), (['', '', ''], []),
    (['train', 'val', 'test'], [])])
def test_parts_that_a_run_would_refuse(table, parts, found):
    csv = table('image,mos,part', *(f'{name}.png,3,{part}' for name, part in zip('abc', parts)))
    problems = check_csv(csv, split_col='part').problems
    assert [(p.row, p.kind) for p in problems] == [(row, 'parts') for row, _ in found]
    assert all(words in p.what for p, (_, words) in zip(problems, found))
    assert len(load_csv(csv, split_col='part')) == 3


@pytest.mark.parametrize('n', [1, 2])
def test_too_few_photos_for_a_run(table, n):
    problem, = check_csv(table('image,mos', *(f'{name}.png,3' for name in 'ab'[:n]))).problems
    assert (problem.kind, problem.what) == ('parts', f'too few photos (or references) for 3 parts: {n}; add some')


@pytest.mark.parametrize('change', [
    lambda i: i.resize((200, 133)), lambda i: i.resize((1100, 700)), lambda i: i.crop((8, 6, 760, 506)),
    lambda i: i.point(lambda v: int(v*.8)), lambda i: i.convert('L').convert('RGB')])
def test_near_doubles_of_real_photos(change):
    photos = {p.name: open_image(p) for p in pristine()}
    hashes = {k: difference_hash(v) for k, v in photos.items()}
    assert near_duplicates(hashes) == []
    for name, photo in photos.items():
        assert near_duplicates(hashes | {'changed': difference_hash(change(photo))}) == [(name, 'changed')]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda p: p[0] < p[1]), max_size=12))
def test_families_of_doubles_stay_together(pairs):
    "Whoever is linked, over however many others, has the same reference; nobody else has one."
    names = keep_together(pd.DataFrame(dict(path=[f'p{i}' for i in range(12)], reference=None)), pairs)['reference']
    assert all(names[a] == names[b] for a, b in pairs)
    linked = {i for p in pairs for i in p}
    assert {i for i in range(12) if isinstance(names[i], str)} == linked


# a CSV that is right

def test_columns(table):
    csv = table('photo,rating,sd,part,reference,severity,who', 'a.png,75,10,train,r1,3,me', 'b.png,50,,test,,,me')
    rows = load_csv(csv, image_col='photo', score_col='rating', low=0, high=100, std_col='sd', split_col='part')
    assert rows['score'] == [4, 3] and rows['mos'] == [75, 50]
    assert rows['std'] == [.4, None] and rows['split'] == ['train', 'test']
    assert rows['reference'] == ['r1', None] and rows['severity'] == [3, None] and rows['distortion'] == [None, None]
    assert rows['name'] == ['mine', 'mine'] and rows[0]['image'].size == (48, 32)


def test_lower_is_better(table):
    csv = table('image,mos,sd', 'a.png,0,.1', 'b.png,.25,.2', 'c.png,1,0')
    rows = load_csv(csv, low=0, high=1, higher_is_better=False, std_col='sd')
    assert rows['score'] == [5, 4, 1] and rows['mos'] == [0, .25, 1]
    np.testing.assert_allclose(rows['std'], [.4, .8, 0])


def test_absolute_paths(table, tmp_path):
    assert len(load_data(table('image,mos', f'{tmp_path/"a.png"},3'))) == 1


def test_make_rows_checks_the_scale():
    with pytest.raises(QPonderError, match='score 6.0 is outside 1 to 5'):
        make_rows(pd.DataFrame(dict(path=['a.png'], mos=[6.])), DatasetCard('set', 1, 5))


# the cut

def rows_of(scores, references=None):
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(len(scores))], mos=scores))
    return make_rows(table.assign(reference=references), DatasetCard('set', 1, 5))


@given(st.lists(st.floats(1, 5), min_size=2, max_size=60), st.floats(.02, .98), st.integers(0, 5))
def test_cut_is_a_partition_of_the_size_asked_for(scores, share, seed):
    rows = rows_of(scores)
    train, val = cut_validation(rows, share, seed)
    assert sorted([*train['path'], *val['path']]) == sorted(rows['path'])
    assert len(val) == min(max(1, round(share*len(scores))), len(scores) - 1)
    assert cut_validation(rows, share, seed)[1]['path'] == val['path']


@pytest.mark.parametrize('share', [.1, .15, .3, .5])
def test_cut_has_its_share_of_every_score(share):
    "Of the worst k photos, the cut holds its share, to within two photos."
    scores = np.random.default_rng(0).uniform(1, 5, 200)
    _, val = cut_validation(rows_of(scores), share)
    for edge in np.linspace(1.2, 5, 20):
        assert abs((np.array(val['score']) <= edge).sum() - share*(scores <= edge).sum()) <= 2


def test_cut_depends_on_the_seed():
    train = load_sample('train')
    assert cut_validation(train, seed=0)[1]['path'] != cut_validation(train, seed=1)[1]['path']


def test_cut_keeps_references_together():
    references = [f'r{i//5}' if i < 50 else None for i in range(80)]
    train, val = cut_validation(rows_of(np.linspace(1, 5, 80), references), .3)
    assert not {*train['reference']} & {*val['reference']} - {None}
    assert None in val['reference'] and {*val['reference']} - {None}


@pytest.mark.parametrize('share', [0, 1, -.1, 1.5, float('nan')])
def test_cut_refuses_a_share(share):
    refused(lambda: cut_validation(rows_of([1, 2, 3]), share), 'share', 'between 0 and 1')


@pytest.mark.parametrize('references', [['r'], ['r', 'r']])
def test_cut_refuses_a_single_photo(references):
    refused(lambda: cut_validation(rows_of([3.]*len(references), references)), 'cannot be cut', 'add photos')


# what ships

def test_sample_needs_no_network(monkeypatch):
    import socket
    monkeypatch.setattr(socket, 'socket', lambda *a, **k: pytest.fail('a socket was opened'))
    rows = load_data('sample')
    assert len(rows) == 300 and all(1 <= s <= 5 for s in rows['score']) and rows[0]['image'].size == (336, 336)


def test_sample_parts():
    train, test = (load_sample(s) for s in ('train', 'test'))
    assert (len(train), len(test)) == (210, 90) and not {*train['path']} & {*test['path']}
    assert {*train['split']} == {'train'} and {*test['split']} == {'test'}
    refused(lambda: load_sample('dev'), "'dev'", "'train' or 'test'")


def test_sample_keeps_the_raters_units():
    rows, card = load_sample(), CARDS['livec']
    assert {*rows['name']} == {'livec'} and (card.low, card.high) == (0, 100) and max(rows['mos']) > 5
    np.testing.assert_allclose(card.scale.from_score(np.array(rows['score'])), rows['mos'])
    table = pd.read_csv(ASSETS/'livec_sample/livec_sample.csv')
    np.testing.assert_allclose(np.array(rows['std'])*25, table['mos_std'])


def test_sample_carries_its_notice():
    notice = (ASSETS/'livec_sample/LICENSE.txt').read_text(encoding='utf-8')
    assert 'COPYRIGHT NOTICE STARTS' in notice and 'COPYRIGHT NOTICE ENDS' in notice
    assert 'Ghadiyaram' in CARDS['livec'].citation and 'notice and citation' in CARDS['livec'].licence


def test_every_photo_that_ships_can_be_opened():
    for path in [*load_sample()['path'], *pristine()]: assert open_image(path).mode == 'RGB'
    assert [open_image(p).size for p in pristine()] == [(768, 512)]*6


def test_cards_name_themselves():
    assert all(k == c.name and c.scale.to_score(c.high if c.higher_is_better else c.low) == 5 for k, c in CARDS.items())
    assert not CARDS['csiq'].higher_is_better and CARDS['kadid'].higher_is_better


# one size

def test_a_copy_is_called_after_what_is_in_the_photo(tmp_path):
    "Another time, another folder: the same copy. Other pixels, another side or another name: another one."
    (tmp_path/'cloned').mkdir()
    old, new = saved(tmp_path/'a.png'), saved(tmp_path/'cloned'/'a.png')
    first = at_size(old, 20, tmp_path/'copies')
    os.utime(old, (1, 1))
    assert at_size(old, 20, tmp_path/'copies') == at_size(new, 20, tmp_path/'copies') == first
    saved(old, picture(1))
    others = at_size(old, 20, tmp_path/'copies'), at_size(new, 24, tmp_path/'copies'), at_size(
        saved(tmp_path/'b.png'), 20, tmp_path/'copies')
    assert len({first, *others}) == 4
    assert open_image(others[0]).tobytes() != open_image(first).tobytes() == open_image(others[2]).tobytes()


def test_copies_of_an_earlier_version_are_used(tmp_path):
    "Predictions are stored under their names."
    photo, copies = saved(tmp_path/'a.png'), tmp_path/'copies'
    copies.mkdir()
    mark = sha256(f'{photo} 20 {os.stat(photo).st_mtime_ns}'.encode()).hexdigest()[:12]
    earlier = saved(copies/f'{mark}-a.png', picture(0, (20, 20)))
    assert at_size(photo, 20, copies) == str(earlier) and [*copies.iterdir()] == [earlier]


def test_one_file_in_two_folders_stays_two_photos(tmp_path):
    (tmp_path/'twin').mkdir()
    paths = [saved(tmp_path/'a.png'), saved(tmp_path/'twin'/'a.png'), saved(tmp_path/'b.png', picture(1))]
    rows = make_rows(pd.DataFrame(dict(path=paths, mos=[1., 2., 3.])), DatasetCard('mine', 1, 5))
    found = same_size(rows, 20, tmp_path/'copies')
    assert len(set(found['path'])) == 3 and found['path'] == same_size(rows, 20, tmp_path/'copies')['path']
    assert [im.size for im in found['image']] == [(20, 20)] * 3


def lines(home, **photos): return [f'{known}\t{home}/{name}.png' for name, known in photos.items()]


@pytest.mark.parametrize('after, said', [
    (lines('x', a='train 3.0 11', b='train 4.0 22', c='test 2.0 34'), 'c.png has another file'),
    (lines('x', a='train 3.0 0.5 11', b='test 4.0 22', c='test 2.0 33'),
     'a.png has another score or part, like 1 more'),
    (lines('x', b='train 4.0 22'), 'a.png is gone, like 1 more'),
    (lines('moved', a='train 3.0 11', b='train 4.0 23', c='test 2.0 33', d='test 2.0 44'),
     'b.png has another file; d.png is new'),
])
def test_the_photo_that_changed_is_named(after, said):
    assert which_changed(lines('x', a='train 3.0 11', b='train 4.0 22', c='test 2.0 33'), after) == said


def test_photos_of_one_name_in_two_folders_are_told_apart():
    before = ['train 3.0 11\tx/good/1.png', 'train 1.0 22\tx/bad/1.png']
    assert which_changed(before, ['train 3.0 11\tx/good/1.png', 'train 1.0 23\tx/bad/1.png']) == (
        f'{os.path.join("bad", "1.png")} has another file')
