"Estimates: what grows with what, what does not fit, and what the command line says."
import json
import re
from dataclasses import fields, replace

import pytest

from qponder.adapt import limit_pixels
from qponder.audit import promised
from qponder.cli import PLAN, main
from qponder.cost import GPUS, Plan, held, learning, rollout_bytes, tower_bytes
from qponder.estimate import MARKS, estimate, span
from qponder.fast import checkpoint
from qponder.model import save_student
from qponder.scale import QPonderError
from qponder.settings import read_settings
from qponder.size import find_size, photo_tokens
from qponder.speed import compute_seconds, forward_flops, vllm_seconds
from qponder.tiny import tiny_vlm

PAPER = read_settings('qwen2.5-vl-7b', overrides=['served_price_in=1', 'served_price_out=2'])
NANO = read_settings('nano')
BASE = Plan(7046, 512, 384, gpus=8, sharded=True)


@pytest.fixture(scope='module')
def seven(): return find_size('Qwen/Qwen2.5-VL-7B-Instruct')


def total(plan, settings=PAPER): return estimate(settings, plan).memory


def test_published_sizes():
    found = [find_size(f'Qwen/Qwen2.5-VL-{n}-Instruct').total for n in ('3B', '7B', '32B', '72B')]
    assert found == [3_754_622_976, 8_292_166_656, 33_452_718_336, 73_410_777_344]


# as config.json of Qwen2.5-VL-7B-Instruct has it: the language model's keys stand beside `vision_config`
AS_SHIPPED = dict(architectures=['Qwen2_5_VLForConditionalGeneration'], model_type='qwen2_5_vl', torch_dtype='bfloat16',
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064, tie_word_embeddings=False, max_window_layers=28, sliding_window=32768, use_sliding_window=False,
    rope_theta=1e6, rope_scaling=dict(type='mrope', mrope_section=[16, 24, 24]), image_token_id=151655,
    vision_config=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584,
                       patch_size=14, spatial_merge_size=2, fullatt_block_indexes=[7, 15, 23, 31]))


def folder_of(home, **files):
    home.mkdir()
    for name, content in files.items(): (home/f'{name}.json').write_text(json.dumps(content))
    return str(home)


def test_a_folder_as_qwen_ships_it(tmp_path, seven):
    takes = dict(min_pixels=3136, max_pixels=12845056, patch_size=14, merge_size=2)
    ours, other = dict(image_processor=takes), dict(processor_class='X')
    for name, more in dict(a=dict(preprocessor_config=takes), b=dict(processor_config=ours), c={},
                           d=dict(processor_config=other, preprocessor_config=takes)).items():
        found = find_size(folder_of(tmp_path/name, config=AS_SHIPPED, **more))
        assert replace(found, least=0, most=0) == seven and found.most == (0 if name == 'c' else 12845056)


def test_the_side_of_a_photo_stands_in_either_file(tmp_path):
    nano, takes = json.loads((checkpoint('nano')/'config.json').read_text()), dict(size=dict(width=140, height=140))
    for file, said in dict(preprocessor_config=takes, processor_config=dict(image_processor=takes)).items():
        found = find_size(folder_of(tmp_path/file, config=nano, **{file: said}))
        assert found == replace(find_size('nano'), side=140)


def test_a_folder_that_is_no_student(tmp_path):
    with pytest.raises(QPonderError, match='there is no config.json'): find_size(folder_of(tmp_path/'a'))
    home = folder_of(tmp_path/'b')
    (tmp_path/'b'/'config.json').write_text('{')
    with pytest.raises(QPonderError, match='cannot be read'): find_size(home)


def test_an_adapter_of_rank_one_is_what_peft_makes(seven):
    from peft import get_peft_model

    from qponder.adapt import StudentSettings, adapter_config
    from qponder.size import QWEN, hollow
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


def grpo(*lines, **plan):
    return estimate(read_settings('qwen2.5-vl-7b', overrides=lines), Plan(7046, 512, 384, **plan)).parts[-1]


def test_processes_that_each_hold_the_student_keep_gradients_twice(seven):
    assert grpo(gpus=8).memory['buckets'] == pytest.approx(4 * learning(seven) / 1e9)
    for plan in {}, dict(gpus=8, sharded=True): assert 'buckets' not in grpo(**plan).memory


def test_four_bits_leave_embedding_and_head_in_bfloat16(seven):
    tied, n = find_size('Qwen/Qwen2.5-VL-3B-Instruct'), 152_064 * 3584
    weights = lambda size: held(size, Plan(1, lora=8, bits=4))['weights'] - 4 * learning(size, 8)
    assert weights(seven) == pytest.approx(.516 * (seven.total - 2 * n) + 4 * n)
    assert weights(tied) == pytest.approx(.516 * (tied.total - 151_936 * 2048) + 2 * 151_936 * 2048)


def test_the_longest_answer_decides_about_memory_and_the_mean_about_hours():
    short, long = grpo('grpo_max_completion_length=400'), grpo('grpo_max_completion_length=1600')
    assert short.hours == long.hours and short.memory['total'] < long.memory['total']
    few, many = (priced(f'distill_max_words={n}') for n in (400, 900))
    assert few.parts[1].hours == many.parts[1].hours
    assert few.parts[1].memory['total'] < many.parts[1].memory['total'] and many.said.longest == 900 * 1.35 + 12


def test_a_colocated_vllm_is_beside_what_learns_and_nothing_is_written_by_transformers():
    off, here = grpo('grpo_vllm=off'), grpo('grpo_vllm=colocate', 'grpo_vllm_memory=.25')
    assert here.memory['vllm'] == .25 * 80 and 'cache' in off.memory and not {'cache'} & {*here.memory}
    rest = {k: v for k, v in here.memory.items() if k not in ('vllm', 'total')}
    assert sum(rest.values()) + 20 == pytest.approx(here.memory['total']) and 'vLLM' in here.note
    assert here.rows == off.rows and grpo('grpo_vllm=colocate', 'grpo_vllm_memory=.5').hours < off.hours


def test_with_vllm_rollouts_are_read_once_more(seven):
    "By hand: KL, the old policy, and an update; prompts are read, and 128 answers of 282 tokens written, all at once."
    plan, said, rounds = Plan(7046, 512, 384), estimate(PAPER, Plan(7046, 512, 384)).said, 4400
    assert (said.prompt, said.answer) == (340, 282)
    once = compute_seconds(128 * forward_flops(seven, 252, 622, 282), plan)
    room = int((.5 * 80e9 - 2 * seven.total) // (4 * 28 * 512 * (340 + 282)))
    reads = compute_seconds(128 * forward_flops(seven, 252, 340, 1), plan)
    writes = reads + vllm_seconds(seven, plan, 128, room, 340, 282)
    assert grpo('grpo_vllm=colocate', 'grpo_vllm_memory=.5').hours == pytest.approx(
        rounds * ((4 + 2) * once + writes) / 3600)


def test_a_server_needs_gpus_of_its_own_and_they_are_paid():
    off, there = grpo(), grpo('grpo_vllm=server', hourly=3.)
    assert 'vllm' not in there.memory and there.price == pytest.approx(there.hours * 2 * 3)
    assert 'at least 1 x a100' in there.note and 'cache' in off.memory
    large = grpo('grpo_vllm=server', 'student=Qwen/Qwen2.5-VL-32B-Instruct', gpu='4090')
    assert 'at least 4 x 4090' in large.note and large.price == pytest.approx(large.hours * 5 * 2)


def test_a_vllm_that_cannot_hold_the_student():
    with pytest.raises(QPonderError, match='grpo_vllm_memory = 0.3.*set grpo_vllm = server'):
        grpo('grpo_vllm=colocate', gpu='4090')


def test_traffic_by_hand(seven):
    "A100s: rings over links of 300 GB/s in a machine and 200 GB/s between machines, of which 70% are got."
    gathered, n = 2 * seven.total, learning(seven)
    assert grpo().traffic == 0
    assert grpo(gpus=8).traffic == pytest.approx(4400 * 2 * 7 / 8 * 4 * n / 210e9 / 3600)
    turns, times = 2, 4400 * 7 / 8 / 210e9 / 3600
    part = grpo(gpus=8, sharded=True)
    assert part.traffic == pytest.approx(times * (turns * (2 * gathered + 2 * n) + (turns + 1) * gathered))
    assert span(times * 282 * gathered) in part.note and 'FSDP2' in part.note
    assert grpo(gpus=16, sharded=True).traffic == pytest.approx(
        4400 * 15 / 16 / 140e9 / 3600 * (2 * gathered + 2 * n + 2 * gathered))


def test_rollouts_hold_all_their_photos(seven):
    "By hand: 37 x 27 tokens of four patches; of each patch 2 x 3 x 14 x 14 pixels, and 38 bytes for each of 1280."
    pixels, looks = 128 * 999 * 4 * 1176 * 4, 128 * 999 * 4 * 38 * 1280
    assert tower_bytes(seven, 128 * 999) == (pixels, looks)
    parts = rollout_bytes(seven, Plan(1, gpus=8, sharded=True), 128, 1087, 1024, 999)
    assert sum(parts.values()) >= pixels + looks + 2 * seven.total


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


def test_rollouts_that_are_learned_from_again_are_written_once():
    once, again = (estimate(read_settings('qwen2.5-vl-7b', overrides=[f'grpo_iterations={n}']), BASE).parts[2]
                   for n in (1, 4))
    assert again.rows == once.rows / 4 and again.written == pytest.approx(once.written / 4)
    assert once.hours / 4 < again.hours < once.hours and again.memory == once.memory


def priced(*lines, student='qwen2.5-vl-7b'):
    return estimate(read_settings(student, overrides=['served_price_in=1', 'served_price_out=2', *lines]), BASE)


def test_longer_answers_are_asked_for_and_paid():
    words = lambda *more: priced(*more).parts[0].written / 7046
    short = priced('distill_ask_words=', 'distill_min_words=20')
    assert words() == round(200 * 1.35) + 12 and short.parts[0].written / 7046 == round(40 * 1.35) + 12
    assert words('distill_max_words=900') == words() and words('distill_ask_words=300,400') > words()
    for a, b in zip(short.parts, priced().parts): assert a.rows == b.rows and a.price <= b.price
    chinese = priced('distill_ask_words=', 'distill_min_words=20', 'distill_language=zh')
    assert chinese.said.answer == round(55 * 1.35) + 12


def test_a_judging_reward_is_paid_for_every_rollout():
    plain, judged = priced(), priced('reward_consistency=judge')
    g, part = PAPER.stages['grpo'], judged.parts[-1]
    assert judged.parts[:-1] == plain.parts and part.name == 'judge' and part.rows == g.steps * g.rollouts
    assert part.written == part.rows * MARKS and part.read > part.rows * judged.said.teacher_photo
    assert judged.price == pytest.approx(plain.price + (part.read + 2 * part.written) / 1e6) and part.hours == 0
    assert priced('reward_consistency=judge', 'reward_w_consistency=0') == plain
    assert priced('reward_consistency=judge', 'grpo_steps=0').parts[-1].name == 'sft'
    assert priced('reward_consistency=judge', 'served_max_tokens=8').parts[-1].written == part.rows * 8


def test_a_judge_of_traces_is_paid_like_the_teacher():
    plain, judged = priced(), priced('distill_judge=served')
    a, b = plain.parts[0], judged.parts[0]
    assert (a.rows, b.rows) == (7046, 2 * 7046) and b.written == a.written + 7046 * MARKS and b.price > a.price
    alone = priced('distill_judge=served', 'teacher=measured').parts[0]
    assert alone.rows == 7046 and alone.price == pytest.approx(b.price - a.price)


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


@pytest.mark.parametrize('kind', ['llava', 'qwen2.5-vl', 'qwen3-vl'])
def test_photos_take_what_a_saved_processor_says(kind, tmp_path):
    student = tiny_vlm(kind)
    if kind != 'llava': limit_pixels(student.processor, most=60_000)
    size = find_size(str(save_student(student, tmp_path/'s')))
    assert photo_tokens(size, 1024, 768) == promised(student.processor, (1024, 768))
    assert size.total == sum(p.numel() for p in student.model.parameters())


@pytest.mark.parametrize('kind', ['smolvlm', 'gemma3'])
def test_kinds_that_are_not_known_are_named(kind, tmp_path):
    folder = save_student(tiny_vlm(kind), tmp_path/'s')
    with pytest.raises(QPonderError, match='how many tokens its photos take is not known here'): find_size(str(folder))


def test_small_runs_take_seconds_and_not_nothing(capsys):
    assert main(['estimate', '--preset', 'nano', '--photos', '178']) == 0
    out = capsys.readouterr().out
    assert re.search(r'together [1-9]\d* (s|min),', out) and '0.0 h' not in out
    assert [span(h) for h in (1e-9, .02, 1.5, 2, 30)] == ['under 1 s', '72 s', '90 min', '2.0 h', '30.0 h']


@pytest.mark.parametrize('plan, copies', [({}, 1), (dict(lora=16, bits=4), 1), (dict(sharded=True, gpus=8), 1),
                                          (dict(sharded=True, gpus=8, lora=16), 2)])
def test_what_is_saved_lies_in_main_memory(seven, plan, copies):
    "A whole student in float32; two, where an adapter is merged into one that lay in parts."
    settings = read_settings('qwen2.5-vl-7b', overrides=['data=sample'])
    made = estimate(settings, Plan(7046, **plan))
    assert made.ending() == pytest.approx(copies * 4 * made.size.total / 1e9)
    assert f'at the end: {made.ending():.1f} GB of main memory' in str(made)


@pytest.mark.parametrize('command', ['estimate', 'pairs'])
def test_what_runs_no_stage_makes_none_anew(command, capsys):
    with pytest.raises(SystemExit): main([command, '--fresh'])
    assert '--fresh' in capsys.readouterr().err
    with pytest.raises(SystemExit): main(['run', '--fresh', '--help'])
    assert '--fresh' in capsys.readouterr().out
