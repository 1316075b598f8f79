"Properties of the degradations that would bore a reader of the page"
from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import structural_similarity

from qponder.claims import FAULTS
from qponder.degrade import DEGRADATIONS, Degradation, degradation, degrade, ladder, picture, pixels, unit
from qponder.photo import open_image, pristine
from qponder.scale import QPonderError
from qponder.spoil import counterfactual, ordered_pairs, severity_degree

NAMES = sorted(DEGRADATIONS)
severities, names = st.integers(1, 5), st.sampled_from(NAMES)


def random_photo(width, height, seed=0):
    "A smooth random scene: noise, enlarged"
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope='module')
def kodak():
    return [open_image(p) for p in pristine()]


def test_contract():
    assert len(NAMES) == 19
    assert {d.fault for d in DEGRADATIONS.values()} == set(FAULTS)
    for name, d in DEGRADATIONS.items():
        assert d.name == name == d.fn.__name__
        assert len(d.strengths) == 5
        steps = np.diff(d.strengths)
        assert (steps > 0).all() or (steps < 0).all(), name


@settings(max_examples=60, deadline=None)
@given(names, severities, st.integers(16, 90), st.integers(16, 90), st.integers(0, 2**32 - 1))
def test_size_mode_and_purity(name, severity, width, height, seed):
    photo = random_photo(width, height)
    before = photo.tobytes()
    spoilt = degrade(photo, name, severity, seed)
    assert (spoilt.mode, spoilt.size) == ('RGB', photo.size)
    assert photo.tobytes() == before
    assert degrade(photo, name, severity, seed).tobytes() == spoilt.tobytes()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('colour', ['black', 'white', 'red', (127, 127, 127)])
def test_even_photos_stay_photos(name, colour):
    spoilt = degrade(Image.new('RGB', (48, 32), colour), name, 5)
    assert (spoilt.mode, spoilt.size) == ('RGB', (48, 32))


@pytest.mark.parametrize('name', ['gaussian_blur', 'defocus_blur', 'motion_blur', 'downsample', 'pixelate'])
def test_averaging_leaves_an_even_photo_alone(name):
    even = Image.new('RGB', (64, 48), (180, 90, 30))
    assert abs(pixels(degrade(even, name, 5)) - pixels(even)).max() <= 1


@pytest.mark.parametrize('name', NAMES)
def test_does_not_touch_global_chance(name):
    np.random.seed(1)
    expected = np.random.RandomState(1).random()
    degrade(random_photo(32, 32), name, 3)
    assert np.random.random() == expected


@pytest.mark.parametrize('name', NAMES)
def test_seed_matters_only_where_chance_does(name):
    photo = random_photo(64, 64)
    differ = degrade(photo, name, 4, seed=1).tobytes() != degrade(photo, name, 4, seed=2).tobytes()
    assert differ == (name in {'motion_blur', 'white_noise', 'speckle_noise', 'impulse_noise', 'colour_shift'})


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [(384, 256), (768, 512)])
def test_ladder_falls_in_ssim(kodak, name, size):
    if size == (768, 512) and name == 'jpeg2000': pytest.skip('slow coder; covered by the smaller size')
    for i, photo in enumerate(kodak[:1] if size == (768, 512) else kodak):
        photo = photo.resize(size, Image.Resampling.LANCZOS)
        rungs = [pixels(r) for r in ladder(photo, name, seed=i)]
        like = [structural_similarity(pixels(photo), r, channel_axis=2, data_range=255) for r in rungs]
        assert all(a > b for a, b in pairwise([1, *like])), (i, like)


@pytest.mark.parametrize('name', ['gaussian_blur', 'defocus_blur', 'motion_blur', 'downsample', 'pixelate'])
def test_lengths_follow_the_size_of_the_photo(kodak, name):
    "Spoil large and shrink, or shrink and spoil: nearly the same picture"
    large = kodak[0]
    small = large.resize((384, 256), Image.Resampling.LANCZOS)
    assert unit(large) == 2 * unit(small)
    a = pixels(degrade(large, name, 4).resize(small.size, Image.Resampling.LANCZOS))
    b, c = pixels(degrade(small, name, 4)), pixels(small)
    assert abs(a - b).mean() < .35 * abs(b - c).mean()


def test_picture_rounds_and_clips():
    x = np.array([[[-5., 0.4, 0.6], [254.4, 255.6, 300.]]])
    assert pixels(picture(x)).tolist() == [[[0, 0, 1], [254, 255, 255]]]


@pytest.mark.parametrize('seed', range(6))
def test_a_point_becomes_a_line(seed):
    "An even line of this length has a variance of length² / 12; across, a triangle of one pixel to each side has 1 / 6"
    dot = np.zeros((336, 336, 3)); dot[160:163, 160:163] = 255
    length = DEGRADATIONS['motion_blur'].strengths[2]
    light = pixels(degrade(picture(dot), 'motion_blur', 3, seed))[..., 0]
    where = np.array(np.nonzero(light))
    across, along = np.linalg.eigvalsh(np.cov(where, aweights=light[light > 0]) - np.eye(2) * 2 / 3) # 3 pixels: 2 / 3
    assert abs(light.sum() / (9 * 255) - 1) < .05
    assert abs(along / (length ** 2 / 12) - 1) < .1 and abs(across - 1 / 6) < .1


@pytest.mark.parametrize('name, severity, left', [
    ('quantise', 4, [0, 64, 128, 191, 255]), ('quantise', 5, [0, 128, 255]), ('banding', 5, [0, 85, 170, 255])])
def test_steps_are_even_from_black_to_white(name, severity, left):
    grey = np.tile(np.arange(256.)[None, :, None], (16, 1, 3))
    assert np.unique(pixels(degrade(picture(grey), name, severity))).tolist() == left


def test_shift_keeps_brightness():
    grey = Image.new('RGB', (16, 16), (128, 128, 128))
    for seed in range(8):
        r, g, b = pixels(degrade(grey, 'colour_shift', 3, seed))[0, 0]
        assert abs(.299 * r + .587 * g + .114 * b - 128) < 1


def test_colour_is_shifted_in_every_direction():
    grey = Image.new('RGB', (4, 4), (128, 128, 128))
    seen = [pixels(degrade(grey, 'colour_shift', 5, seed))[0, 0] for seed in range(24)]
    assert len({(r > 128, b > 128) for r, _, b in seen}) == 4


def test_impulses_hit_the_stated_share():
    grey = Image.new('RGB', (400, 400), (128, 128, 128))
    for share, rung in zip(DEGRADATIONS['impulse_noise'].strengths, ladder(grey, 'impulse_noise')):
        hit = pixels(rung)[..., 0] != 128
        assert abs(hit.mean() - share) < .25 * share


def test_other_modes_become_rgb():
    assert degrade(Image.new('L', (20, 20)), 'jpeg', 0).mode == 'RGB'
    assert degrade(Image.new('RGBA', (20, 20)), 'banding', 2).mode == 'RGB'


@pytest.mark.parametrize('severity', [-1, 6, 2.5, None])
def test_wrong_severity(severity):
    with pytest.raises(QPonderError, match='severity'): degrade(random_photo(20, 20), 'jpeg', severity)


def test_wrong_names():
    with pytest.raises(QPonderError, match='no degradation'): degrade(random_photo(20, 20), 'blurr', 1)
    with pytest.raises(QPonderError, match='the faults are'): degradation('ugly', 1, 2, 3, 4, 5)
    assert 'ugly' not in DEGRADATIONS


@pytest.mark.parametrize('gap,count', [(1, 15), (2, 10), (3, 6), (5, 1)])
def test_pairs(gap, count):
    photo = degrade(random_photo(336, 336), 'white_noise', 3)
    pairs = list(ordered_pairs(photo, 'gaussian_blur', gap))
    assert len(pairs) == count and min(p.gap for p in pairs) == gap
    detail = lambda image: abs(np.diff(pixels(image), axis=1)).mean()
    assert all(detail(p.better) > detail(p.worse) for p in pairs)


@given(names, severities)
@settings(max_examples=20, deadline=None)
def test_counterfactual_is_symmetric(name, severity):
    photo = random_photo(24, 24)
    do, undo = (counterfactual(photo, name, severity, undo=u) for u in (False, True))
    assert do.before.tobytes() == undo.after.tobytes() and do.after.tobytes() == undo.before.tobytes()
    assert do.appears and not undo.appears
    assert do.fault == undo.fault == DEGRADATIONS[name].fault
    assert do.degree == severity_degree(severity) in (1, 2, 3)


def test_degradation_is_frozen():
    assert isinstance(DEGRADATIONS['jpeg'], Degradation)
    assert astuple(DEGRADATIONS['jpeg'])[:2] == ('jpeg', 'blocking')
