"nano in plain PyTorch: the stock model's answers, every checkpoint layout, and nothing imported that is not needed."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from qponder import fast
from qponder.ask import generate
from qponder.build import Student, tiny_student
from qponder.cli import main
from qponder.decode import answer
from qponder.fast import checkpoint, is_nano, load_nano
from qponder.model import load_student, release, save_student
from qponder.photo import ASSETS, open_image, pristine
from qponder.rate import Rater
from qponder.scale import QPonderError
from qponder.stage import student_sha

HEAVY = 'transformers', 'datasets', 'pandas', 'scipy', 'torchvision', 'matplotlib', 'torch._dynamo'


@pytest.fixture(scope='module')
def photos(): return [open_image(p) for p in pristine()]


@pytest.fixture(scope='module')
def stock():
    "nano in the stock classes, all in float32."
    model = AutoModelForImageTextToText.from_pretrained(checkpoint('nano'), dtype=torch.float32).eval()
    return Student(model, load_student('nano').processor, 'stock')


@pytest.fixture
def folder(tmp_path):
    "A miniature checkpoint, to be spoiled."
    return save_student(tiny_student(), tmp_path/'s')


def change(file, **keys):
    "Edit a JSON file; 'a__b' is b within a."
    top = json.loads(file.read_text())
    for key, value in keys.items():
        *above, last = key.split('__')
        inside = top
        for name in above: inside = inside[name]
        inside[last] = value
    file.write_text(json.dumps(top))


def test_rating_a_photo_imports_nothing_heavy():
    code = (f'import sys; from qponder.rate import Rater; r = Rater("nano").rate({str(pristine()[0])!r}); '
            f'assert r.score; print(*[m for m in {HEAVY} if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_command_imports_nothing_heavy():
    code = (f'import sys; from qponder.cli import main; code = main(["rate", {str(pristine()[0])!r}, "--score-only"]); '
            f'print(); print(code, *[m for m in {HEAVY} if m in sys.modules])')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == '0'


@pytest.mark.parametrize('mode', ['reason', 'score'])
def test_answers_are_the_stock_models(stock, photos, mode):
    ours, theirs = answer(load_nano('nano', bf16=False), photos, mode), generate(stock, photos, mode)
    assert [a.text for a in ours] == [a.text for a in theirs] and all(a.finished for a in ours)
    assert max(abs(a.expected - b.expected) for a, b in zip(ours, theirs)) < 1e-3


@pytest.mark.parametrize('mode', ['reason', 'score'])
def test_company_and_order_change_nothing(photos, mode):
    nano = load_nano('nano')
    alone, together = [answer(nano, [p], mode)[0] for p in photos], answer(nano, photos[::-1], mode, 4)[::-1]
    assert max(abs(a.expected - b.expected) for a, b in zip(alone, together)) < .02


def test_a_rounded_tower_stays_near(photos):
    full, half = (answer(load_nano('nano', bf16), photos) for bf16 in (False, True))
    assert max(abs(a.expected - b.expected) for a, b in zip(full, half)) < .05


def test_every_layout_of_a_checkpoint(tmp_path, photos):
    tiny = tiny_student()
    want = generate(tiny, photos[:2])
    for folder in save_student(tiny, tmp_path/'saved'), release(tiny, tmp_path/'released'):
        assert len(answer(load_nano(folder, bf16=False), photos[:2])) == 2
    assert [a.text for a in answer(load_nano(tmp_path/'saved', bf16=False), photos[:2])] == [a.text for a in want]


def test_other_patches(tmp_path, photos):
    tiny = tiny_student()
    tiny.model.config.vision_config.update(dict(patch_size=9, image_size=63))
    model = LlavaForConditionalGeneration(tiny.model.config).eval()
    model.generation_config = tiny.model.generation_config
    tiny.processor.patch_size = 9
    other = Student(model, tiny.processor, 'other')
    folder = save_student(other, tmp_path/'s')
    assert [a.text for a in answer(load_nano(folder, bf16=False), photos)] == [a.text for a in generate(other, photos)]


def test_a_head_of_its_own(tmp_path, photos):
    tiny = tiny_student()
    for config in (tiny.model.config, tiny.model.config.text_config): config.tie_word_embeddings = False
    tiny.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(tiny.model.lm_head.weight))
    folder = save_student(tiny, tmp_path/'s')
    assert [a.text for a in answer(load_nano(folder, bf16=False), photos)] == [a.text for a in generate(tiny, photos)]


@pytest.mark.parametrize('file, keys', [
    ('config', dict(model_type='llava_next')), ('config', dict(vision_config__model_type='siglip')),
    ('config', dict(text_config__num_key_value_heads=1)), ('config', dict(vision_feature_layer=-2)),
    ('config', dict(text_config__rope_parameters={'rope_type': 'yarn'})),
    ('processor_config', dict(image_processor__do_center_crop=True)),
    ('processor_config', dict(image_processor__size={'shortest_edge': 56}))])
def test_what_is_no_nano_is_refused(folder, file, keys):
    change(folder/f'{file}.json', **keys)
    assert not is_nano(folder)
    with pytest.raises(QPonderError, match='no nano'): load_nano(folder)


def test_another_image_policy_is_refused(folder):
    change(folder/'processor_config.json', image_processor__size={'height': 70, 'width': 70})
    for load in load_nano, Rater:
        with pytest.raises(QPonderError, match='image_policy.json.*trained with'): load(folder)


@pytest.mark.parametrize('spoil', [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:99])])
def test_weights_that_are_not_there(folder, spoil):
    spoil(folder/'model.safetensors')
    for load in load_nano, Rater:
        with pytest.raises(QPonderError, match='no student could be loaded'): load(folder)


def test_a_checkpoint_without_its_config(folder):
    (folder/'config.json').unlink()
    with pytest.raises(QPonderError, match='no nano'): load_nano(folder)
    shutil.rmtree(folder)
    with pytest.raises(QPonderError, match='nano-base'): load_nano(folder)


def test_only_a_nano_on_the_cpu_goes_this_way(folder):
    assert Rater(folder).nano and 'student' not in vars(Rater(folder))
    change(folder/'config.json', text_config__use_sliding_window=True)
    assert Rater(folder).nano is None


def test_a_folder_is_not_replaced_by_a_student_that_ships(tmp_path, monkeypatch):
    "Design: the bare word ships, in every working folder; whoever means a folder of that name says so"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint('nano-base'), 'nano')
    other = student_sha('nano-base')
    for mine in ('./nano', Path('nano'), Path('nano').resolve(), str(Path('nano').resolve()), 'nano/'):
        assert checkpoint(mine).resolve() == tmp_path/'nano'
    assert student_sha('./nano') == other != student_sha('nano')
    assert checkpoint('nano').parent == ASSETS and Rater().nano.parts == load_nano('nano').parts
    mine = Rater(Path('nano')) # on the stock classes, too
    assert mine.nano.parts == load_nano('nano-base').parts != Rater().nano.parts
    assert 'score_percentiles' not in vars(mine.student.model.config)


def test_a_file_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'photo.jpg').touch()
    with pytest.raises(QPonderError, match='no such folder'): checkpoint('mine/photo.jpg')
    assert checkpoint('mine/other') == Path('mine/other')


@pytest.mark.parametrize('name', ['kodak', 'livec_sample', Path('nano'), './nano'])
def test_other_folders_of_the_package_are_no_students(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QPonderError, match='no such folder'): checkpoint(name)


def test_loading_gives_the_allocator_no_advice(monkeypatch):
    "It is the whole process's: a service would never get back what another of its parts let go"
    def never(*_): raise AssertionError('asked the C library')
    monkeypatch.setattr(fast.ctypes, 'CDLL', never)
    assert load_nano('nano') and load_student('nano-base')
    with pytest.raises(AssertionError, match='C library'): main(['rate', str(pristine()[0])])
