"Properties of the measures, the shipped calibration, and what the calibrated measures name"
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from qponder.claims import ASPECTS, FAULTS
from qponder.data import load_sample
from qponder.degrade import DEGRADATIONS, SIDE, degrade, ladder, pixels
from qponder.faults import (EXPLAINS, PROOF, Calibration, Rule, aspect_degrees, calibrate, default_calibration,
                            degrees, features, measured_ladders)
from qponder.measure import (MEASURES, Measures, banding, blocking, cast, colourfulness, contrast, grain, highlights,
                             luma, measure, noise, pixelation, sharpness, specks, tiles, working)
from qponder.photo import open_image, pristine
from qponder.scale import QPonderError


@pytest.fixture(scope='module')
def photos():
    return [working(open_image(p))[0] for p in pristine()]


@pytest.fixture(scope='module')
def known(photos):
    return measured_ladders(photos)


@pytest.fixture(scope='module')
def real():
    return [measure(photo) for photo in load_sample('train')['image']]


def column(m, name): return m[..., MEASURES.index(name)]


# ---- the shipped calibration

def test_calibration_is_the_one_that_fits(real, known):
    "Fitted again from package data alone; the tolerance is for other versions of the image decoders"
    fitted, shipped = calibrate(real, known), default_calibration()
    assert list(shipped.rules) == list(FAULTS)
    for fault, rule in shipped.rules.items():
        assert (fitted.rules[fault].measure, fitted.rules[fault].sign) == (rule.measure, rule.sign) == PROOF[fault]
        assert np.allclose(fitted.rules[fault].thresholds, rule.thresholds, rtol=.02), fault
    assert np.allclose(list(fitted.spread.values()), [shipped.spread[n] for n in fitted.spread], rtol=.02)


def test_calibration_uses_the_training_split_only(real, known):
    "Other photos give other thresholds, so the test above is one that can fail"
    other = calibrate(real[:100], known)
    assert any(not np.allclose(other.rules[f].thresholds, r.thresholds, rtol=.02)
               for f, r in default_calibration().rules.items())


def test_thresholds_are_ordered():
    for fault, r in default_calibration().rules.items():
        assert (np.diff(r.thresholds) * r.sign > 0).all(), fault


def test_faults_are_neither_rare_nor_everywhere(real):
    found = [degrees(m) for m in real]
    for fault in ('blur', 'dark', 'bright', 'harsh', 'dull', 'vivid', 'cast'):
        assert .1 <= np.mean([fault in d for d in found]) <= .3, fault
    assert max(np.mean([f in d for d in found]) for f in FAULTS) <= .3
    assert np.mean([len(d) for d in found]) < 2


def test_out_of_order_is_refused(real, known):
    flat_ladders = {n: np.repeat(m[:, :1], 6, axis=1) for n, m in known.items()}
    with pytest.raises(QPonderError, match='thresholds of blur are out of order'): calibrate(real, flat_ladders)


@pytest.mark.parametrize('text', ['', '[]', '{"rules": {}}', '{"rules": {"blur": {}}, "spread": {}}', '{"spread": {}}'])
def test_broken_calibration_files(tmp_path, text):
    path = tmp_path / 'mine.json'
    path.write_text(text)
    with pytest.raises(QPonderError, match='mine.json is no calibration'): Calibration.load(path)


def test_calibration_round_trip(tmp_path):
    default_calibration().save(tmp_path / 'c.json')
    assert Calibration.load(tmp_path / 'c.json') == default_calibration()


# ---- the right measure moves the right way

@pytest.mark.parametrize('name', [n for n in sorted(DEGRADATIONS) if n != 'colour_shift'])
def test_own_measure_climbs(known, name):
    measure_name, sign = PROOF[DEGRADATIONS[name].fault]
    rungs = sign * column(known[name], measure_name)
    assert (np.diff(rungs.mean(0)) > 0).all(), rungs.mean(0)
    assert (rungs[:, 4] > rungs[:, 0]).all() and (rungs[:, 5] > rungs[:, 0]).all()


def test_cast_climbs_from_severity_2_on(known):
    "A mild shift can cancel a tint that the photo had"
    rungs = column(known['colour_shift'], 'cast')
    assert (np.diff(rungs.mean(0)[1:]) > 0).all()
    assert (rungs[:, 4] > rungs[:, 0]).all()


@pytest.mark.parametrize('name', sorted(DEGRADATIONS))
def test_right_fault_on_good_photos(known, name):
    fault = DEGRADATIONS[name].fault
    for severity, share in ((4, .8), (5, .8)):
        right = [fault in degrees(Measures(*m)) for m in known[name][:, severity]]
        assert np.mean(right) >= share, (severity, right)


@pytest.mark.parametrize('name', sorted(DEGRADATIONS))
def test_right_fault_on_unseen_photos(name):
    "The best-rated third of the test split, which the calibration has not seen, at severity 5"
    test = load_sample('test')
    best = np.argsort(test['mos'])[-30::3]
    found = [degrees(measure(degrade(test[i]['image'], name, 5, seed=i))) for i in map(int, best)]
    assert np.mean([DEGRADATIONS[name].fault in f for f in found]) >= .8


# ---- size, orientation, extremes

@pytest.mark.parametrize('size', [(1536, 1024), (3000, 2000)])
def test_larger_files_measure_alike(photos, size):
    for photo in (photos[0], degrade(photos[1], 'gaussian_blur', 4), degrade(photos[2], 'low_contrast', 3)):
        a, b = measure(photo), measure(photo.resize(size, Image.Resampling.BICUBIC))
        for name in set(MEASURES) - {'blocking', 'noise'}:
            assert abs(getattr(a, name) - getattr(b, name)) < .6 * default_calibration().spread[name], name


def test_working_size():
    assert working(Image.new('RGB', (SIDE, SIDE)))[1] == working(Image.new('RGB', (40, 16)))[1] == 1
    for size in ((4000, 3000), (768, 512), (337, 336), (336, 336), (100, 2000), (9000, 20)):
        w, h = working(Image.new('RGB', size))[0].size
        assert w * h <= 1.02 * SIDE**2 and min(w, h) >= 16
        if size[0] * size[1] <= SIDE**2: assert (w, h) == size
    with pytest.raises(QPonderError, match='too small'): measure(Image.new('RGB', (15, 400)))


def test_blocks_of_a_resized_file(photos):
    "The grid is followed through the working copy's own shrinking, down to a period of 3 pixels"
    large = open_image(pristine()[0])
    assert measure(degrade(large, 'jpeg', 5)).blocking > 2 * measure(large).blocking
    assert blocking(luma(pixels(photos[0])), period=2.9) == 0


def test_crop_moves_the_grid(photos):
    coded = degrade(photos[0], 'jpeg', 4)
    whole = blocking(luma(pixels(coded)))
    for left, top in ((1, 0), (3, 5), (7, 2)):
        cropped = blocking(luma(pixels(coded.crop((left, top, *coded.size)))))
        assert abs(cropped - whole) < .1 * whole


@pytest.mark.parametrize('turn', [ImageOps.mirror, ImageOps.flip, lambda p: p.rotate(90, expand=True)])
def test_turning_changes_little(photos, turn):
    for photo in photos[:2]:
        a, b = astuple(measure(photo)), astuple(measure(turn(photo)))
        assert (abs(np.subtract(a, b)) < .25 * np.array(list(default_calibration().spread.values()))).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(16, 60), st.integers(16, 60), st.integers(0, 255), st.integers(0, 255), st.booleans())
def test_finite_and_bounded(width, height, low, high, even):
    x = np.random.default_rng(0).integers(min(low, high), max(low, high) + 1, (height, width, 3))
    m = measure(Image.fromarray((x * 0 + low if even else x).astype(np.uint8)))
    assert np.isfinite(astuple(m)).all() and np.isfinite(features(m)).all()
    for name in ('sharpness', 'banding', 'brightness', 'highlights'): assert 0 <= getattr(m, name) <= 1 + 1e-6
    assert 0 <= m.contrast <= .5 + 1e-6 and min(m.noise, m.blocking, m.colourfulness, m.cast) >= 0


# ---- single measures against known values

@pytest.mark.parametrize('sigma', [1, 4, 16])
def test_grain_finds_known_noise_on_a_slope(sigma):
    y = np.linspace(60, 180, 240)[None] + sigma * np.random.default_rng(1).standard_normal((240, 240))
    assert .8 * sigma < grain(y) < sigma


def test_grain_is_not_looked_for_in_black_and_white():
    "Where nothing is above or below, noise is cut off"
    y = np.repeat([0., 128., 255.], [60, 160, 60])[None].repeat(240, 0)
    y[:, 60:220] += 4 * np.random.default_rng(1).standard_normal((240, 160))
    assert .8 * 4 < grain(y) < 4


def test_edges_are_no_grain():
    y = np.full((128, 128), 60.)
    y[:, 64:] = 180
    assert grain(y) == 0 and specks(y) == 0 and noise(y) == 0


def test_specks_count_both_signs():
    y = np.full((42, 42), 100.)
    y[10, 10], y[20, 20], y[30, 30] = 200, 0, 120
    assert np.isclose(specks(y), np.sqrt(2 * 100**2 / 40**2))


@pytest.mark.parametrize('side', [2, 4, 8])
def test_pixelation_reads_the_side(side):
    y = np.random.default_rng(0).uniform(0, 255, (160 // side, 160 // side)).repeat(side, 0).repeat(side, 1)
    assert abs(pixelation(y) - np.log2(side)) < .15


def test_blocking_reads_the_step():
    "Six levels where blocks meet, none across rows; the steps beside a high one count as 3 below their neighbours"
    y = 100 + 6. * (np.arange(96) // 8 % 2)[None].repeat(96, 0)
    assert np.isclose(blocking(y), (6 + 2 * 3 / 7) / 2, atol=.1)


def test_blocks_too_small_to_be_seen_are_none():
    assert blocking(100 + 6. * (np.arange(96) % 2)[None].repeat(96, 0), 2.9) == 0


def test_banding_wants_clean_steps():
    slope = np.linspace(50, 200, 300)[None].repeat(64, 0)
    stairs = np.round(slope / 15) * 15
    assert banding(stairs) > .9 and banding(slope) == 0
    assert banding(stairs + np.random.default_rng(0).normal(0, 2, stairs.shape)) < .05


@pytest.mark.parametrize('height, share', [(2, 0), (3, 1), (60, 1)])
def test_banding_begins_at_three_levels(height, share):
    assert banding(np.repeat([100., 100 + height], 12)[None].repeat(16, 0)) == share


def test_banding_by_hand():
    "A clean step of 60, which counts 40, between flat runs; then 19 changes of 5 that lie in no flat run"
    row = np.r_[np.zeros(10), np.full(10, 60.), np.tile([65., 60.], 9), np.full(10, 65.)]
    assert np.isclose(banding(row[None].repeat(16, 0)), 40 / (40 + 19 * 5))


def test_highlights_lie_above_247():
    assert highlights(np.array([[100., 247.], [247.5, 255.]])) == .5


def test_sharpness_is_blind_to_brightness_and_contrast(photos):
    y = luma(pixels(photos[0]))
    assert np.isclose(sharpness(y), sharpness(.3 * y + 80), atol=1e-3)


def test_tone_and_colour_by_hand():
    half = np.zeros((8, 8, 3), np.float32)
    half[:, 4:] = 255
    assert np.isclose(contrast(luma(half)), .5) and colourfulness(half) == 0
    red_blue = np.zeros((8, 8, 3), np.float32)
    red_blue[:, :4, 0], red_blue[:, 4:, 2] = 100, 100      # rg: 100, 0; yb: 50, -100
    assert np.isclose(colourfulness(red_blue), np.hypot(50, 75) + .3 * np.hypot(50, 25))


def test_cast_is_the_shift_on_grey(photos):
    grey = np.repeat(luma(pixels(photos[0]))[..., None], 3, 2)
    assert cast(grey) == 0
    assert np.isclose(cast((grey * .5 + 60) + np.float32([12, 0, 0])), np.hypot(12, 6), atol=.1)


def test_tiles_drop_the_rest():
    assert tiles(np.ones((9, 17, 3)), 4).shape == (2, 4, 3)


# ---- rules

def at(fault, degree):
    "Measures in which nothing but `fault` is wrong"
    rules = default_calibration().rules
    fine = {m: None for m in MEASURES}
    for f, r in rules.items():
        inside = r.thresholds[0] - .1 * r.sign * abs(r.thresholds[0])
        fine[r.measure] = inside if fine[r.measure] is None else (fine[r.measure] + inside) / 2
    r = rules[fault]
    edges = (*r.thresholds, r.thresholds[2] + r.sign * abs(r.thresholds[2]))
    return replace(Measures(**fine), **{r.measure: (edges[degree - 1] + edges[degree]) / 2})


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('degree', [1, 2, 3])
def test_each_fault_alone(fault, degree):
    assert degrees(at(fault, degree)) == {fault: degree}


def test_explained_faults_stay_silent():
    for cause, effects in EXPLAINS.items():
        for effect in effects:
            name = PROOF[effect][0]
            both = replace(at(cause, 2), **{name: getattr(at(effect, 2), name)})
            assert degrees(both) == {cause: 2}
            worse = replace(at(cause, 2), **{name: getattr(at(effect, 3), name)})
            assert degrees(worse) == {cause: 2, effect: 3}


def test_own_calibration_is_used():
    strict = Calibration({f: Rule(m, s, tuple(s * t for t in (1e6, 2e6, 3e6))) for f, (m, s) in PROOF.items() if s > 0}
                         | {f: Rule(m, s, (-1., -2., -3.)) for f, (m, s) in PROOF.items() if s < 0}, {})
    assert degrees(at('blur', 3), strict) == {}


@given(st.dictionaries(st.sampled_from(sorted(FAULTS)), st.integers(1, 3)))
def test_aspects_take_the_worst(faults):
    aspects = aspect_degrees(faults)
    assert tuple(aspects) == ASPECTS
    for aspect, degree in aspects.items():
        assert degree == max([d for f, d in faults.items() if FAULTS[f].aspect == aspect], default=0)


def test_the_ladder_starts_at_the_photo(photos, known):
    assert np.allclose(known['jpeg'][0, 0], astuple(measure(photos[0])))
    assert np.allclose(known['jpeg'][2, 3], astuple(measure(ladder(photos[2], 'jpeg', seed=2)[2])))
