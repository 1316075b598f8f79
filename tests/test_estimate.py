"Estimates: what grows with what, what does not fit, and what the command line says."
from dataclasses import fields, replace

import pytest

from qponder.cli import PLAN, main
from qponder.estimate import GPUS, Plan, estimate, find_size, held, learning, photo_tokens
from qponder.run import read_settings
from qponder.scale import QPonderError

PAPER = read_settings('qwen2.5-vl-7b', overrides=['served_price_in=1', 'served_price_out=2'])
NANO = read_settings('nano')
BASE = Plan(7046, 512, 384, gpus=8, sharded=True)


@pytest.fixture(scope='module')
def seven(): return find_size('Qwen/Qwen2.5-VL-7B-Instruct')


def total(plan, settings=PAPER): return estimate(settings, plan).memory


def test_published_sizes():
    found = [find_size(f'Qwen/Qwen2.5-VL-{n}-Instruct').total for n in ('3B', '7B', '32B', '72B')]
    assert found == [3_754_622_976, 8_292_166_656, 33_452_718_336, 73_410_777_344]


def test_an_adapter_of_rank_one_is_what_peft_makes(seven):
    from peft import get_peft_model

    from qponder.adapt import StudentSettings, adapter_config
    from qponder.estimate import QWEN, hollow
    model = hollow(QWEN['7B'])
    made = get_peft_model(model, adapter_config(model, StudentSettings(lora_rank=1)))
    assert made.num_parameters(only_trainable=True) == seven.lora == learning(seven, 1)


@pytest.mark.parametrize('more, less', [
    (dict(sharded=False), {}), ({}, dict(gpus=16)), (dict(tower='trained'), {}), (dict(width=1024, height=768), {}),
    (dict(sharded=False, gpus=1), dict(sharded=False, gpus=1, lora=16, bits=16)),
    (dict(sharded=False, gpus=1, lora=16, bits=16), dict(sharded=False, gpus=1, lora=16, bits=4)),
])
def test_what_takes_more_memory(more, less): assert total(replace(BASE, **more)) > total(replace(BASE, **less))


def test_parts_add_up_and_shards_share(seven):
    alone, spread = estimate(PAPER, replace(BASE, sharded=False)), estimate(PAPER, BASE)
    for part in alone.parts[1:]:
        assert sum(v for k, v in part.memory.items() if k != 'total') == pytest.approx(part.memory['total'])
    for k in held(seven, BASE): assert spread.parts[1].memory[k] == pytest.approx(alone.parts[1].memory[k] / 8)


def test_small_photos_are_fewer_tokens(seven):
    assert photo_tokens(seven, 1024, 768, (0, 200_704)) < photo_tokens(seven, 1024, 768)
    small = read_settings('qwen2.5-vl-7b', overrides=['student_max_pixels=200704'])
    assert total(replace(BASE, width=1024, height=768), small) < total(replace(BASE, width=1024, height=768))


def test_a_second_student_is_held_for_the_kl_term():
    without = read_settings('qwen2.5-vl-7b', overrides=['grpo_beta=0'])
    assert 'reference' in estimate(PAPER, BASE).parts[2].memory
    assert 'reference' not in estimate(without, BASE).parts[2].memory


def test_twice_the_epochs_twice_the_work_and_the_teacher_is_paid_once():
    once, twice = (estimate(read_settings('qwen2.5-vl-7b', overrides=[f'sft_epochs={n}', 'served_price_in=1']), BASE)
                   for n in (1, 2))
    assert twice.parts[1].hours == pytest.approx(2 * once.parts[1].hours)
    assert twice.parts[0] == once.parts[0] and once.parts[0].rows == 7046 and once.parts[0].price > 0
    assert once.parts[0].price == pytest.approx(once.parts[0].read / 1e6)


def test_a_measured_teacher_is_free(): assert estimate(NANO, Plan(178)).parts[0].price == 0


def test_nano_sees_the_same_square_of_any_photo():
    size = find_size('nano')
    assert photo_tokens(size, 30, 40) == photo_tokens(size, 6000, 4000) == (252 // 14) ** 2


def test_an_update_that_gpus_cannot_share():
    with pytest.raises(QPonderError, match='sft_batch_size'): estimate(PAPER, replace(BASE, gpus=7))


@pytest.mark.parametrize('wrong', [dict(gpu='tpu'), dict(bits=8), dict(bits=4, lora=0), dict(photos=0), dict(used=0)])
def test_impossible_plans(wrong):
    with pytest.raises(QPonderError, match=next(iter(wrong))): Plan(**dict(photos=1) | wrong)


def test_options_are_those_of_a_plan():
    assert [k.replace('-', '_') for k in PLAN] == [f.name for f in fields(Plan) if f.name not in ('lora', 'tower')]


def test_an_adapter_comes_from_the_settings(capsys):
    args = ['estimate', '--preset', 'qwen2.5-vl-7b', '--photos', '9', '--set', 'student_lora_rank=16']
    assert main([*args, '--set', 'student_quantise=4bit']) == 0
    assert 'lora = 16, tower = frozen, bits = 4' in capsys.readouterr().out
    assert main([*args, '--bits', '16']) == 0 and 'bits = 16' in capsys.readouterr().out


def test_the_command_says_what_it_assumes(capsys):
    args = ['estimate', '--preset', 'qwen2.5-vl-7b', '--photos', '7046', '--gpus', '8']
    assert main(args) == 1 and 'does NOT fit into 80 GB' in capsys.readouterr().out
    assert main([*args, '--sharded', '--hourly', '3']) == 0
    out = capsys.readouterr().out
    assert out.startswith('estimates, not measurements') and 'hourly = 3.0' in out
    assert all(f'{f.name} = ' in out for f in fields(Plan))


@pytest.mark.parametrize('args, words', [
    ([], '--photos 7000'), (['--photos', 'many'], 'photos = many'),
    (['--photos', '9', '--gpu', 'tpu'], ', '.join(GPUS))])
def test_mistakes(capsys, args, words):
    assert main(['estimate', '--preset', 'qwen2.5-vl-7b', *args]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1
