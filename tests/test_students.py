"Every architecture that TRL trains goes the whole way; adapters are kept; a training goes on as if never stopped."
import gc
import json
import subprocess
import weakref
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from datasets import Dataset
from launch import ENV, ROOT, fsdp, zero3
from safetensors.torch import load_file
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from qponder import adapt, sft, watch
from qponder import grpo as page
from qponder.adapt import StudentSettings, adapter_config, check_saved, load_trainee, score_chances
from qponder.ask import encode, expect_spelt, generate, lengthen, score_place, score_spelling
from qponder.audit import audit, photo_size
from qponder.cli import main
from qponder.data import load_sample
from qponder.decode import SCORES
from qponder.filters import Record
from qponder.grpo import GRPOSettings, grpo
from qponder.model import load_student, save_student
from qponder.parts import Run
from qponder.photo import open_image, pristine
from qponder.predict import read_predictions
from qponder.rate import Rater
from qponder.reward import RewardSettings
from qponder.run import check_stage
from qponder.scale import QPonderError
from qponder.settings import read_settings
from qponder.sft import SFTSettings, cold_start, newest_checkpoint, sft_rows
from qponder.tiny import KINDS, tiny_vlm
from qponder.trace import Trace, render

ALL = ['llava', *KINDS]
SAID = (Trace('Overall the quality is excellent.', 4.6), Trace('Overall the quality is bad.', 1.4))
RECORDS = [Record(path=str(p), target=t.score, status='ok', raw=render(t)) for p, t in zip(pristine(), SAID)]
SFT = SFTSettings(epochs=4, batch_size=1, score_only_every=0, eval_every=100, save_every=4, learning_rate=.01)
GRPO = GRPOSettings(steps=4, group_size=4, prompts_per_step=2, rollouts_per_pass=4, max_completion_length=8,
                    save_every=2, eval_every=100, preflight_prompts=0, temperature=1.5, learning_rate=.001)
SMALL = StudentSettings(lora_rank=4)
TINY = """
[tiny]
inherits = qwen2.5-vl-7b
data = my.csv
split_col = split
val_share = 0.15
student = first/model
student_lora_rank = 4
teacher = measured
distill_ask_words =
distill_min_words = 20
served_url = http://127.0.0.1:9/v1
served_retries = 0
sft_epochs = 2
sft_learning_rate = 3e-4
sft_accumulate = 1
grpo_steps = 2
grpo_warmup = 0
grpo_group_size = 4
grpo_prompts_per_step = 4
grpo_learning_rate = 1e-4
grpo_max_completion_length = 48
"""

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning')


@pytest.fixture(autouse=True)
def one_thread():
    "Sums in one order: equal means equal to the last bit."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# the whole way

@pytest.mark.parametrize('kind', ALL)
def test_sft_grpo_and_rating(kind, tmp_path):
    student = tiny_vlm(kind)
    ci = cold_start(student, RECORDS, tmp_path/'sft', replace(SFT, epochs=60, batch_size=2, learning_rate=.02,
                                                               score_weight=0, claim_weight=0, save_every=1000))
    trained = grpo(load_student(ci), RECORDS, tmp_path/'grpo', replace(GRPO, steps=1, max_completion_length=32))
    rating = Rater(trained).rate(pristine()[0])
    assert rating.status == 'ok' and 1 <= rating.score <= 5 and rating.reasoning.startswith('Overall')
    alone = generate(load_student(trained), images := [open_image(p) for p in pristine()[:2]], batch_size=1)
    assert alone[0].expected == pytest.approx(rating.expected, abs=.01) and all(1 <= a.expected <= 5 for a in alone)
    together = generate(load_student(trained), images[::-1])
    assert [a.expected for a in together[::-1]] == pytest.approx([a.expected for a in alone], abs=1e-4)
    half = generate(load_student(trained, dtype=torch.bfloat16), images)
    assert [a.expected for a in half] == pytest.approx([a.expected for a in alone], abs=.2)
    assert all(json.loads((tmp_path/stage/'audit.json').read_text())['rows'] == 2 for stage in ('sft', 'grpo'))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "A folder with rated photos, the paper's preset in small, and a miniature that can answer."
    monkeypatch.chdir(tmp_path)
    rows = load_sample().select_columns(['path', 'score', 'split']).to_list()
    some = [r for part, n in (('train', 8), ('test', 4)) for r in [r for r in rows if r['split'] == part][:n]]
    lines = [f'{r["path"]},{r["score"]},{r["split"]}' for r in some]
    (tmp_path/'my.csv').write_text('\n'.join(['image,mos,split', *lines]))
    (tmp_path/'settings.ini').write_text((files('qponder')/'settings.ini').read_text() + TINY)
    learned = replace(SFT, epochs=60, batch_size=2, learning_rate=.02, score_weight=0, claim_weight=0, save_every=1000)
    cold_start(tiny_vlm('qwen2.5-vl'), RECORDS, tmp_path/'first', learned)
    return tmp_path


def test_what_a_checkpoint_of_the_hub_says_neither_cuts_answers_nor_forbids_words(mine):
    "Qwen2.5-VL's sets no limit, where transformers takes 20 tokens, and punishes words that come twice."
    student, images = load_student(mine/'first'/'model'), [open_image(p) for p in pristine()[:2]]
    said = generate(student, images)
    assert all(a.finished for a in said) and max(len(student.processor.tokenizer(a.text).input_ids) for a in said) > 20
    student.model.generation_config.update(max_new_tokens=None, do_sample=True, temperature=1e-6,
                                           repetition_penalty=1.05)
    assert generate(load_student(save_student(student, mine/'hub')), images) == said


def test_care_reads_with_a_slow_copy_of_the_adapter(mine):
    rewards = RewardSettings(consistency='care', w_consistency=1, w_accuracy=1)
    student = load_trainee(mine/'first'/'model', SMALL)
    stops = replace(GRPO, steps=2, max_completion_length=48, temperature=.5)
    grpo(student, RECORDS, mine/'grpo', stops, rewards, how=SMALL)
    copy = load_file(newest_checkpoint(mine/'grpo')/'reference.safetensors')
    assert copy and all('lora' in name for name in copy)
    log = [json.loads(line) for line in (mine/'grpo'/'log.jsonl').read_text().splitlines()]
    assert any(r.get('rewards/consistency/mean', 0) > 0 for r in log)


@pytest.mark.slow
def test_the_papers_preset_with_an_adapter_from_photos_to_the_table(mine):
    assert main(['run', '--preset', 'tiny']) == 0
    run = mine/'runs'/'tiny'
    for stage in ('cold-start', 'grpo'):
        gaps = json.loads((run/stage/'check.json').read_text())['scores']
        assert gaps['adapter'] == pytest.approx(gaps['model'], abs=1e-3) and gaps['adapter'] != gaps['base']
    said = [p for p in read_predictions(run/'evaluate'/'predictions.jsonl') if p.model in ('base', 'Q-Ponder')]
    assert len(said) == 10 and sum(p.ok for p in said) >= 5 and all(p.expected is not None for p in said if p.ok)
    assert main(['run', '--preset', 'tiny']) == 0 and (run/'report.html').is_file()


def test_a_run_without_a_cold_start_begins_grpo_with_the_student(mine):
    lines = ('sft_epochs=0', 'student_lora_rank=0', 'sft_batch_size=3')
    assert main(['run', '--preset', 'tiny', *(x for line in lines for x in ('--set', line))]) == 0
    run, weights = mine/'runs'/'tiny', lambda folder: load_file(folder/'model.safetensors')
    first, passed, trained = map(weights, (mine/'first'/'model', run/'cold-start'/'model', run/'grpo'/'model'))
    assert all(torch.equal(first[k], passed[k]) for k in first) and first.keys() == passed.keys()
    assert not all(torch.equal(passed[k], trained[k]) for k in passed)
    said = {p.model for p in read_predictions(run/'evaluate'/'predictions.jsonl')}
    assert {'base', 'Q-Ponder'} <= said and 'Q-Ponder-CI' not in said
    assert 'This run has no cold start (sft_epochs = 0).' in (run/'report.html').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('layout, rank', [(zero3, 0), (zero3, 4), (fsdp, 0), (fsdp, 4)])
def test_in_parts_over_two_processes_and_stopped_twice_as_if_never_stopped(mine, layout, rank):
    "On CPUs, for which accelerate has neither layout, so the script helps."
    keys = dict(student_lora_rank=rank, sft_epochs=5, sft_save_every=4, sft_eval_every=100, grpo_steps=4,
                grpo_save_every=2, grpo_eval_every=100)
    command = [*layout(mine), str(ROOT/'tests'/'halting.py'), 'run', '--preset', 'tiny',
               *(w for k, v in keys.items() for w in ('--set', f'{k}={v}'))]
    def launch(name, stop=''):
        done = subprocess.run([*command, '--name', name], env=ENV | {'STOP_AT': stop}, capture_output=True, text=True)
        assert (done.returncode == 0) == (not stop), done.stderr[-3000:]
        return done.stdout
    launch('whole')
    launch('halting', '5'), launch('halting', '3')
    assert 'grpo: goes on' in launch('halting')
    for stage in ('cold-start', 'grpo'):
        one, two = (load_file(mine/'runs'/n/stage/'model'/'model.safetensors') for n in ('whole', 'halting'))
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
        scores = json.loads((mine/'runs'/'whole'/stage/'check.json').read_text())['scores']
        assert scores['model'] != scores['base'] and ('adapter' in scores) == bool(rank)
    assert (mine/'runs'/'halting'/'report.html').is_file()


@pytest.mark.parametrize('wrong, words', [
    (['student=nowhere'], 'nowhere: no such student'), (['reward_kernel=cubic'], 'one of gaussian'),
    (['reward_w_accuracy=0', 'reward_w_format=0', 'reward_w_consistency=0'], 'all 0: give one a weight'),
    (['reward_w_rank=1', 'reward_rank=margin', 'reward_rank_width=0'], 'reward_rank_width = 0 takes the spread'),
    (['reward_consistency=judge', 'served_model=big'], 'cannot be reached'),
    (['teacher=served', 'served_model=big'], 'cannot be reached'),
    (['distill_min_words=60'], 'set distill_min_words = 20'),
    (['distill_max_words=20'], 'none is kept (7 length'),
])
def test_mistakes_end_before_the_first_training(wrong, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = load_sample('train').select(range(12)).select_columns(['path', 'score']).to_list()
    (tmp_path/'my.csv').write_text('image,mos\n' + ''.join(f'{r["path"]},{r["score"]}\n' for r in rows))
    ini = (files('qponder')/'settings.ini').read_text() + TINY.replace('split_col = split', 'split_col =')
    (tmp_path/'settings.ini').write_text(ini)
    save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'first'/'model')
    assert main(['run', '--preset', 'tiny', *(x for w in wrong for x in ('--set', w))]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.glob('runs/*/cold-start'))


# what is counted

@pytest.mark.parametrize('kind', ALL)
def test_the_audit_counts_what_the_trainer_gets(kind, tmp_path):
    student = tiny_vlm(kind)
    shapes = ((768, 512), (90, 300), (40, 40))
    for i, shape in enumerate(shapes): open_image(pristine()[i]).resize(shape).save(tmp_path/f'{i}.png')
    records = [replace(RECORDS[i % 2], path=str(tmp_path/f'{i}.png')) for i in range(3)]
    rows = sft_rows(records, 1)
    found = audit(student, rows)
    collate = DataCollatorForVisionLanguageModeling(processor=student.processor, max_length=None)
    batches = [collate([row]) for row in rows]
    images = [int((b['input_ids'] == student.model.config.image_token_id).sum()) for b in batches]
    lengths = [b['attention_mask'].sum().item() for b in batches]
    assert found.rows == 6 and found.sizes == 3 and found.image[0] >= min(images) > 0
    assert abs(found.total[2] - max(lengths)) <= 2 and abs(found.total[0] - min(lengths)) <= 2
    whole = student.model(**{k: v for k, v in batches[0].items() if k != 'labels'}).logits
    assert whole.shape[1] == batches[0]['input_ids'].shape[1]


def test_nothing_is_cut_off(tmp_path):
    assert sft.sft_config(tmp_path, SFT).max_length is None
    with pytest.raises(ValueError, match='do not match'):
        student = tiny_vlm('qwen2.5-vl')
        collate = DataCollatorForVisionLanguageModeling(processor=student.processor, max_length=10)
        student.model(**{k: v for k, v in collate([sft_rows(RECORDS, 0)[0]]).items() if k != 'labels'})


def test_a_context_that_is_too_short_stops_before_training(tmp_path):
    student = tiny_vlm('qwen2.5-vl')
    student.model.config.text_config.max_position_embeddings = 100
    with pytest.raises(QPonderError, match=f'{pristine()[0].name}.*student_max_pixels|{pristine()[1].name}'):
        cold_start(student, RECORDS, tmp_path, SFT)
    assert not list(tmp_path.glob('checkpoints/*'))


def test_an_audit_reads_headers_only(tmp_path, monkeypatch):
    "A thousand rows about two hundred files take no more than three decoded photos."
    paths = [str(tmp_path/f'{i}.png') for i in range(200)]
    for i, path in enumerate(paths): open_image(pristine()[0]).resize((40 + i, 60)).save(path)
    opened, real = [], open_image
    monkeypatch.setattr('qponder.audit.open_image', lambda path: opened.append(path) or real(path))
    rows = Dataset.from_list([dict(path=p, prompt=sft.asked(RECORDS[0])['prompt']) for p in paths * 5])
    found = audit(tiny_vlm('qwen2.5-vl'), rows, room=10)
    assert found.rows == 1000 and found.sizes == 200 and len(opened) <= 3


def test_a_turned_photo_is_measured_upright(tmp_path):
    from PIL import Image
    for turn in range(1, 9):
        note = Image.Exif()
        note[0x0112] = turn
        Image.new('RGB', (60, 40)).save(tmp_path/f'{turn}.jpg', exif=note)
        assert photo_size(tmp_path/f'{turn}.jpg') == open_image(tmp_path/f'{turn}.jpg').size


# adapters

@pytest.fixture
def wordy(monkeypatch):
    "GRPO with a reward that a babbler can earn; gives the photos that were shown."
    shown = []
    def length(completions, path, **kwargs):
        "The longer, the better."
        shown.append(path)
        return [len(c[0]['content']) / 100 for c in completions]
    monkeypatch.setattr(page, 'trl_rewards', lambda settings, reader=None: ([length], [1.]))
    return shown


@pytest.mark.parametrize('kind', ALL)
def test_an_adapter_survives_saving(kind, tmp_path):
    base = save_student(tiny_vlm(kind), tmp_path/'base')
    student = load_trainee(base, SMALL)
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    cold_start(student, RECORDS, tmp_path/'sft', SFT, how=SMALL)
    gaps = check_saved(tmp_path/'sft', base, SMALL)
    assert gaps['adapter from base'] > 1e-3 and gaps['model from adapter'] < 1e-4
    after = load_student(tmp_path/'sft'/'model').model.state_dict()
    moved = {k for k, v in before.items() if k in after and not torch.allclose(v, after[k].to(v.dtype), atol=1e-6)}
    towers = adapt.tower_weights(tiny_vlm(kind).model)
    assert moved and not moved & set(towers)


def test_an_adapter_goes_through_grpo_and_is_checked(tmp_path, wordy):
    ci = save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'cold-start'/'model')
    grpo(load_trainee(ci, SMALL), RECORDS, tmp_path/'grpo', replace(GRPO, steps=2, warmup=0, beta=.01), how=SMALL)
    check_stage(Run(tmp_path, read_settings('nano', None, ['student_lora_rank=4'])), 'grpo', ci)
    assert len(json.loads((tmp_path/'grpo'/'check.json').read_text())['scores']['adapter']) == 8


@pytest.mark.parametrize('rank', [0, 4])
def test_rollouts_are_written_in_the_precision_in_which_they_are_learned(tmp_path, monkeypatch, rank):
    "Also under an adapter, where accelerate reaches the learning alone."
    monkeypatch.setattr(page, 'fast_bf16', lambda: True)
    how, seen = replace(SMALL, lora_rank=rank), set()
    student = load_trainee(save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'begun'), how)
    student.model.model.language_model.layers[0].mlp.register_forward_hook(
        lambda part, x, out: seen.add((torch.is_grad_enabled(), out.dtype)))
    grpo(student, RECORDS, tmp_path/'grpo', replace(GRPO, steps=1), how=how)
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}


@pytest.mark.parametrize('rank', ['0', '1'])
def test_every_process_lets_go_of_a_trained_student(tmp_path, monkeypatch, rank):
    "Also those that have nothing to check: the next training wants the room."
    class Held: pass
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setattr('qponder.fast.is_nano', lambda folder: True)
    gc.disable()
    try:
        held = Held()
        held.itself, seen = held, weakref.ref(held)
        del held
        check_stage(Run(tmp_path, read_settings('nano')), 'cold-start', 'nano-base')
        assert seen() is None
    finally: gc.enable()


def test_a_training_that_changes_nothing_is_no_training(tmp_path, wordy):
    ci = save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'cold-start'/'model')
    for how, says in ((SMALL, 'adapter/'), (StudentSettings(), 'model/')):
        out = tmp_path/says/'grpo'
        grpo(load_trainee(ci, how), RECORDS, out, replace(GRPO, steps=1, learning_rate=0), how=how)
        run = Run(out.parent, read_settings('nano', None, [f'student_lora_rank={how.lora_rank}']))
        with pytest.raises(QPonderError, match=f'{says} rates eight photos exactly'): check_stage(run, 'grpo', ci)


def changed(stage, base):
    "Whether a training has changed any weight."
    old, new = (load_student(folder).model.state_dict() for folder in (base, stage/'model'))
    return any(not torch.equal(v, new[k]) for k, v in old.items())


def test_weights_of_another_base_are_noticed(tmp_path):
    base = save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'base')
    cold_start(load_trainee(base, SMALL), RECORDS, tmp_path/'sft', SFT, how=SMALL)
    save_student(tiny_vlm('qwen2.5-vl', seed=1), tmp_path/'sft'/'model')
    with pytest.raises(QPonderError, match='points apart'): check_saved(tmp_path/'sft', base, SMALL)


@pytest.mark.parametrize('kind', ['qwen2.5-vl', 'llava'])
def test_a_trained_tower_moves(kind, tmp_path):
    student = tiny_vlm(kind)
    before = {k: v.detach().clone() for k, v in adapt.tower_weights(student.model).items()}
    cold_start(student, RECORDS, tmp_path, SFT, how=StudentSettings(tower='trained'))
    after = load_student(tmp_path/'model').model.state_dict()
    assert any(not torch.equal(v, after[k]) for k, v in before.items())


def test_chances_by_hand():
    "Digit after digit, without a batch: the chance of 3.7 among the 41."
    student, photo = tiny_vlm('smolvlm'), open_image(pristine()[0])
    words, inputs = student.processor.tokenizer, encode(student, [photo], 'score')
    marks = []
    for score in SCORES:
        ids = torch.tensor([words(f'<answer>{score}')['input_ids']])
        rows = torch.cat([inputs['input_ids'], ids], 1)
        more = {k: v for k, v in inputs.items() if k not in ('input_ids', 'attention_mask')}
        with torch.no_grad(): logits = student.model(input_ids=rows, **more).logits[0, -ids.shape[1] - 1:-1]
        marks.append(logits.log_softmax(-1)[torch.arange(ids.shape[1]), ids[0]].sum())
    assert torch.allclose(torch.stack(marks).softmax(0), score_chances(student, photo), atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_expected_scores_by_hand(kind):
    "After a reasoning of its own: every path read from its beginning, without a cache."
    student, photo = tiny_vlm(kind), open_image(pristine()[0])
    words, inputs = student.processor.tokenizer, encode(student, [photo])
    answer = torch.tensor(words('<think>Edges are soft.</think>\n<answer>3.4</answer>')['input_ids'] +
                          [words.eos_token_id])
    spelt, at = score_spelling(words)[1], score_place(student, answer.tolist())
    rows = torch.cat([answer[:at].expand(41, -1), spelt], 1)
    marks = []
    for row, path in zip(rows, spelt):
        with torch.no_grad(): logits = student.model(**lengthen(inputs, row[None])).logits[0, -4:-1]
        marks.append(logits.log_softmax(-1)[torch.arange(3), path].sum())
    mean = float(torch.stack(marks).softmax(0) @ torch.tensor(SCORES))
    assert expect_spelt(student, photo, answer) == pytest.approx(mean, abs=1e-4)


# coarse weights below an adapter

def test_four_bits_need_an_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(adapt, 'find_spec', lambda name: None)
    base = save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'base')
    with pytest.raises(QPonderError, match=r'qponder\[quantised\]'):
        load_trainee(base, replace(SMALL, quantise='4bit'))


@pytest.fixture
def learned(monkeypatch):
    "The precisions of what a cold start trains."
    seen, train = set(), sft.TraceTrainer.train
    def note(self, **how):
        seen.update(w.dtype for w in self.model.parameters() if w.requires_grad)
        return train(self, **how)
    monkeypatch.setattr(sft.TraceTrainer, 'train', note)
    return seen


@pytest.mark.skipif(not find_spec('bitsandbytes'), reason='needs the extra quantised')
def test_an_adapter_over_four_bits_survives_saving(tmp_path, learned):
    base, how = save_student(tiny_vlm('qwen2.5-vl', width=64), tmp_path/'base'), replace(SMALL, quantise='4bit')
    student = load_trainee(base, how)
    assert type(student.model.model.language_model.layers[0].mlp.up_proj).__name__ == 'Linear4bit'
    cold_start(student, RECORDS, tmp_path/'sft', SFT, how=how)
    assert learned == {torch.float32}
    gaps = check_saved(tmp_path/'sft', base, how)
    assert gaps['adapter from base'] > 10 * gaps['model from adapter']
    assert 'quantization_config' not in json.loads((tmp_path/'sft'/'model'/'config.json').read_text())


@pytest.mark.parametrize('kind', ALL)
def test_an_adapter_over_sixteen_bits_survives_both_trainings(kind, tmp_path, learned):
    how = replace(SMALL, quantise='16bit')
    base = save_student(tiny_vlm(kind), tmp_path/'base')
    student = load_trainee(base, how)
    assert {w.dtype for w in student.model.parameters()} == {torch.bfloat16}
    ci = cold_start(student, RECORDS, tmp_path/'sft', SFT, how=how)
    assert learned == {torch.float32}
    gaps = check_saved(tmp_path/'sft', base, how)
    assert gaps['adapter from base'] > 1e-3 and gaps['model from adapter'] < 1e-4
    trained = grpo(load_trainee(ci, how), RECORDS, tmp_path/'grpo', replace(GRPO, steps=1, warmup=0), how=how)
    for folder in (ci, trained):
        assert {w.dtype for w in load_file(folder/'model.safetensors').values()} == {torch.float32}
        assert json.loads((folder/'config.json').read_text())['dtype'] == 'float32'


# settings

@pytest.mark.parametrize('line, says', [
    (['student_quantise=4bit'], 'student_lora_rank'), (['student_quantise=16bit'], 'student_lora_rank'),
    (['student_quantise=8bit'], 'none, 16bit, 4bit'),
    (['student_tower=thawed'], 'frozen, trained'), (['student_lora_rank=-1'], 'student_lora_rank = -1'),
    (['student_min_pixels=9', 'student_max_pixels=4'], 'more than max_pixels'),
    (['student_lora_rank=4', 'see_epochs=1'], 'do not go together')])
def test_impossible_settings(line, says):
    with pytest.raises(QPonderError, match=says): read_settings('nano', None, line)


def test_pixel_limits_are_part_of_the_policy(tmp_path):
    base = save_student(tiny_vlm('qwen2.5-vl'), tmp_path/'base')
    out = cold_start(load_trainee(base, replace(SMALL, max_pixels=5000)), RECORDS, tmp_path/'sft', SFT)
    assert load_student(out).policy['size']['longest_edge'] == 5000
    with pytest.raises(QPonderError, match='by itself'): load_trainee('nano-base', replace(SMALL, max_pixels=5000))


# stopped, and gone on

def stopped(call, callback, method, at, monkeypatch):
    "Pull the plug after the step `at`."
    real = getattr(callback, method)
    def pulled(self, args, state, control, **kwargs):
        if state.global_step > at: raise KeyboardInterrupt
        return real(self, args, state, control, **kwargs)
    monkeypatch.setattr(callback, method, pulled)
    with pytest.raises(KeyboardInterrupt): call()
    monkeypatch.setattr(callback, method, real)


def flat(value, name=''):
    "Everything that a checkpoint's file holds, by its place."
    if isinstance(value, dict): return {k: v for key, v in value.items() for k, v in flat(v, f'{name}/{key}').items()}
    if isinstance(value, (list, tuple)): return flat(dict(enumerate(value)), name)
    return {name: value}


def alike(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def same_checkpoints(one, two):
    "Parameters, optimiser, schedule, sampler position and random states are equal to the last bit."
    from safetensors.torch import load_file
    weights = [sorted(p.name for p in c.glob('*.safetensors')) for c in (one, two)]
    assert weights[0] == weights[1] != []
    for name in weights[0]: assert all(torch.equal(v, load_file(two/name)[k]) for k, v in load_file(one/name).items())
    for name in ('optimizer.pt', 'scheduler.pt', 'rng_state.pth'):
        a, b = (flat(torch.load(c/name, weights_only=False)) for c in (one, two))
        assert a.keys() == b.keys() and (differ := [k for k in a if not alike(a[k], b[k])]) == [], (name, differ)
    a, b = (json.loads((c/'trainer_state.json').read_text()) for c in (one, two))
    assert (a['global_step'], a['epoch']) == (b['global_step'], b['epoch'])


@pytest.mark.parametrize('kind, how', [('llava', StudentSettings()), ('qwen2.5-vl', SMALL)])
def test_sft_goes_on_as_if_never_stopped(kind, how, tmp_path, monkeypatch):
    "Four photos, a row at a time, three steps, a stop in the middle of the first pass, three more."
    photos = [replace(RECORDS[i % 2], path=str(p)) for i, p in enumerate(pristine()[:4])]
    settings = replace(SFT, epochs=1.5, save_every=3)
    train = lambda name: cold_start(tiny_vlm(kind), photos, tmp_path/name, settings, how=how)
    train('whole')
    stopped(lambda: train('parts'), watch.Validate, 'on_step_end', 3, monkeypatch)
    assert newest_checkpoint(tmp_path/'parts'/'checkpoints').name == 'checkpoint-3'
    train('parts')
    same_checkpoints(*(tmp_path/name/'checkpoints'/'checkpoint-6' for name in ('whole', 'parts')))
    one, two = (load_student(tmp_path/name/'model').model.state_dict() for name in ('whole', 'parts'))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


@pytest.mark.parametrize('kind, how', [('llava', StudentSettings()), ('qwen2.5-vl', SMALL)])
def test_grpo_goes_on_as_if_never_stopped(kind, how, tmp_path, monkeypatch, wordy):
    "Six photos, two an update: two updates, a stop, two more, of which the second belongs to the second pass."
    photos = [replace(RECORDS[i % 2], path=str(p)) for i, p in enumerate(pristine())]
    train = lambda name: grpo(tiny_vlm(kind), photos, tmp_path/name, GRPO, how=how)
    train('whole')
    whole, wordy[:] = list(wordy), []
    stopped(lambda: train('parts'), page.Alarm, 'on_log', 2, monkeypatch)
    del wordy[2:]
    train('parts')
    assert wordy == whole and len(whole) == 4
    same_checkpoints(*(tmp_path/name/'checkpoint-4' for name in ('whole', 'parts')))
    assert changed(tmp_path/'whole', save_student(tiny_vlm(kind), tmp_path/'begun'))


@pytest.mark.slow
def test_grpo_goes_on_in_any_pass(tmp_path, monkeypatch, wordy):
    "Four photos, two an update: a stop in the middle of a pass, at its end, and two passes later."
    photos = [replace(RECORDS[i % 2], path=str(p)) for i, p in enumerate(pristine()[:4])]
    train = lambda name: grpo(tiny_vlm('llava'), photos, tmp_path/name, replace(GRPO, steps=8, save_every=1))
    train('whole')
    for at in (1, 2, 6):
        stopped(lambda at=at: train(f'parts{at}'), page.Alarm, 'on_log', at, monkeypatch)
        train(f'parts{at}')
        same_checkpoints(*(tmp_path/name/'checkpoint-8' for name in ('whole', f'parts{at}')))


def test_adapters_leave_the_head_and_a_frozen_tower_alone():
    for kind in ALL:
        model = tiny_vlm(kind).model
        named = adapter_config(model, SMALL).target_modules
        seeing = {n.removesuffix('.weight') for n in adapt.tower_weights(model)}
        assert named and 'lm_head' not in named and not set(named) & seeing
