"Cold start: what the loss falls on, and stopping and going on."
import shutil
from dataclasses import replace
from functools import cached_property, partial
from types import SimpleNamespace as NS

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainingArguments
from trl import SFTTrainer

from qponder import losses, sft, watch
from qponder.adapt import StudentSettings
from qponder.build import tiny_student
from qponder.decode import Generation
from qponder.filters import Record
from qponder.grpo import GRPOSettings, grpo_config
from qponder.parts import sha
from qponder.photo import pristine
from qponder.processes import place
from qponder.scale import QPonderError
from qponder.see import SeeSettings, see_config, wider
from qponder.sft import SFTSettings, cold_start, sft_config
from qponder.store import read_rows
from qponder.tiny import tiny_vlm
from qponder.trace import Trace, render

SAID = (Trace('Overall the quality is excellent.', 4.6), Trace('Overall the quality is bad.', 1.4))
RECORDS = [Record(path=str(p), target=t.score, status='ok', raw=render(t)) for p, t in zip(pristine(), SAID)]
VAL = Dataset.from_list([dict(path=r.path, score=r.target) for r in RECORDS])
HOW = SFTSettings(epochs=6, batch_size=2, score_only_every=0, eval_every=3, save_every=2)


@pytest.fixture(scope='module')
def qwen(): return tiny_vlm('qwen2.5-vl')


def weights(student): return {k: v.clone() for k, v in student.model.state_dict().items()}


def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


def test_only_the_answer_is_learned(tmp_path, monkeypatch):
    seen, real = [], losses.trace_loss
    monkeypatch.setattr(sft, 'trace_loss', lambda out, labels, **kw: seen.append(labels) or real(out, labels, **kw))
    tiny = tiny_student()
    cold_start(tiny, RECORDS[:1], tmp_path, SFTSettings(epochs=1, score_only_every=0))
    words = tiny.processor.tokenizer
    assert words.decode(seen[0][0][seen[0][0] != -100]).replace('<|im_end|>', '').strip() == RECORDS[0].raw


def test_a_step_runs_the_model_once(tmp_path):
    tiny, calls = tiny_student(), []
    tiny.model.register_forward_hook(lambda *_: calls.append(1))
    cold_start(tiny, RECORDS, tmp_path, HOW)
    assert len(calls) == 6


@pytest.mark.filterwarnings('ignore:`compute_loss_func` is deprecated')
def test_the_first_loss_is_that_of_trls_own_argument(tmp_path):
    cold_start(tiny_student(), RECORDS, tmp_path/'ours', HOW)
    tiny = tiny_student()
    loss = partial(losses.trace_loss, **sft.loss_terms(tiny.processor.tokenizer, RECORDS, HOW))
    stock = SFTTrainer(tiny.model, args=sft.sft_config(tmp_path, HOW), train_dataset=sft.sft_rows(RECORDS, 0),
                       processing_class=tiny.processor, compute_loss_func=loss)
    stock.train()
    theirs = [r['loss'] for r in stock.state.log_history if 'loss' in r]
    assert [r['loss'] for r in read_rows(tmp_path/'ours'/'log.jsonl') if 'loss' in r] == pytest.approx(theirs, rel=1e-5)


def test_accumulated_batches_weigh_as_one(tmp_path):
    one, two = tiny_student(), tiny_student()
    cold_start(one, RECORDS, tmp_path/'one', HOW)
    cold_start(two, RECORDS, tmp_path/'two', replace(HOW, batch_size=1, accumulate=2))
    losses = [[r['loss'] for r in read_rows(tmp_path/n/'log.jsonl') if 'loss' in r] for n in ('one', 'two')]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_bare_scores_are_taught_as_well(tmp_path):
    rows = sft.sft_rows(RECORDS, every=2)
    assert [r['completion'][0]['content'][0]['text'] for r in rows][2] == render(Trace('', 4.6))


def test_a_spoiled_copy_teaches_its_words_and_neither_score_nor_end():
    words, broken = tiny_student().processor.tokenizer, [replace(r, damage='jpeg 5') for r in RECORDS]
    how = replace(HOW, spoiled_scores=False, rank_weight=1)
    row = sft.sft_rows(broken[:1], 0, spoiled_scores=False)[0]['completion'][0]['content'][0]['text']
    assert row == '<think>Overall the quality is excellent.</think>\n'
    labels = torch.tensor([[-100, *words(row, add_special_tokens=False)['input_ids'], words.eos_token_id]])
    logits = torch.randn(*labels.shape, len(words), requires_grad=True, generator=torch.Generator().manual_seed(0))
    loss = losses.trace_loss(NS(logits=logits), labels, **sft.loss_terms(words, RECORDS, how))
    plain = losses.trace_loss(NS(logits=logits[:, :-1]), labels[:, :-1], **sft.loss_terms(words, RECORDS, how))
    assert loss.item() == pytest.approx(plain.item()) and not torch.autograd.grad(loss, logits)[0][0, -2].any()
    taught = losses.trace_loss(NS(logits=logits), labels, **sft.loss_terms(words, RECORDS, HOW))
    assert torch.autograd.grad(taught, logits)[0][0, -2].any()


def test_open_scores_need_a_token_for_each_score(qwen):
    with pytest.raises(QPonderError, match='sft_spoiled_scores = no is for students'):
        sft.loss_terms(qwen.processor.tokenizer, RECORDS, replace(HOW, spoiled_scores=False))


def test_the_tower_stays_frozen_and_the_rest_learns(tmp_path):
    tiny, before = tiny_student(), weights(tiny_student())
    cold_start(tiny, RECORDS, tmp_path, HOW)
    moved = {k for k, v in tiny.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and not any('vision_tower' in k for k in moved)
    assert any('multi_modal_projector' in k for k in moved)


@pytest.mark.parametrize('parted', [False, True])
def test_processes_divide_the_validation_photos(monkeypatch, parted):
    "Each asks about its own, and all come to what one process finds; where a student is held in parts, too."
    said = {'a': ('<answer>2.0</answer>', 2.2), 'b': ('nothing', None), 'c': ('<answer>4.0</answer>', None),
            'd': ('<answer>1.0</answer>', 1.4), 'e': ('<answer>5.0</answer>', 3.)}
    val, asked, sent = Dataset.from_dict({'path': [*said], 'score': [2., 3, 4, 1, 5]}), [], {}
    monkeypatch.setattr(watch, 'open_image', lambda path: path)
    monkeypatch.setattr(watch, 'generate', lambda _, images, batch_size: [
        asked.append(p) or Generation(said[p][0], True, said[p][1]) for p in images])
    alone = watch.validation(None, val)
    assert alone['val_parse_rate'] == .8 and 0 < alone['val_srcc'] < 1
    monkeypatch.setenv('WORLD_SIZE', '2')
    if parted: monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true')
    def gather(rows):
        sent[place().rank] = rows[0]
        return [sent.get(0, rows[0]), sent.get(1, [])]
    monkeypatch.setattr('accelerate.utils.gather_object', gather)
    for rank, photos in (('0', 'ace'), ('1', 'bda')):
        monkeypatch.setenv('RANK', rank)
        asked.clear()
        found = watch.validation(None, val)
        assert asked == [*photos]
    assert found == pytest.approx(alone)


def test_stopped_and_continued_is_as_if_never_stopped(tmp_path, ctrl_c):
    whole = tiny_student()
    cold_start(whole, RECORDS, tmp_path/'whole', HOW, VAL)
    with ctrl_c(watch.Validate, 'on_step_end', 5): cold_start(tiny_student(), RECORDS, tmp_path/'parts', HOW, VAL)
    again = tiny_student(seed=1)
    cold_start(again, RECORDS, tmp_path/'parts', HOW, VAL)
    assert same(weights(whole), weights(again))
    logs = [read_rows(tmp_path/p/'log.jsonl') for p in ('whole', 'parts')]
    steps = [[r['step'] for r in log if 'val_parse_rate' in r] for log in logs]
    assert steps[0] == steps[1] == [3, 6]


@pytest.mark.parametrize('wrong', [dict(epochs=-1), dict(learning_rate=-1), dict(batch_size=0), dict(score_sigma=0)])
def test_impossible_settings(wrong):
    with pytest.raises(QPonderError, match=next(iter(wrong))): SFTSettings(**wrong)


def other(name, **changed): return pytest.param(changed, id=name)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp('finished')
    cold_start(tiny_student(), RECORDS, out, HOW)
    return out


@pytest.mark.parametrize('changed', [other('records', records=RECORDS[:1]), other('seed', seed=1),
    other('settings', settings=replace(HOW, learning_rate=.1)), other('how', how=StudentSettings(tower='train')),
    other('size', student=wider(tiny_student(), 70)), other('name', student=replace(tiny_student(), name='other'))])
def test_a_folder_with_another_training_is_refused_and_left_alone(finished, changed):
    "It used to train nothing and hand back the old student"
    before, given = sha(finished), dict(student=tiny_student(), records=RECORDS, out=finished, settings=HOW)
    with pytest.raises(QPonderError, match=f'{finished.name}: the training that lies there began with .* now '):
        cold_start(**given | changed)
    assert sha(finished) == before


def test_a_training_from_before_begun_json_goes_on(finished, tmp_path):
    shutil.copytree(finished, tmp_path/'old')
    (tmp_path/'old'/'begun.json').unlink()
    cold_start(tiny_student(seed=1), RECORDS, tmp_path/'old', HOW)
    was, now = (load_file(f/'model'/'model.safetensors') for f in (finished, tmp_path/'old'))
    assert same(was, now)


def test_a_process_that_sees_eight_gpus_trains_on_one(tmp_path, monkeypatch):
    "Without a launcher transformers would copy the student to all of them; TRL refuses that, after the distillation."
    real = TrainingArguments.__dict__['_setup_devices'].func
    def with_eight(self):
        place, self._n_gpu = real(self), 8
        return place
    eight = cached_property(with_eight)
    eight.__set_name__(TrainingArguments, '_setup_devices')
    monkeypatch.setattr(TrainingArguments, '_setup_devices', eight)
    assert TrainingArguments(str(tmp_path)).n_gpu == 8
    made = sft_config(tmp_path, HOW), grpo_config(tmp_path, GRPOSettings(), [1.]), see_config(tmp_path, SeeSettings())
    assert [args.n_gpu for args in made] == [1, 1, 1]
    cold_start(tiny_student(), RECORDS, tmp_path, replace(HOW, epochs=1))
