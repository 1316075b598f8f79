"GRPO: the pre-flight stops what cannot learn; stopping and going on."
from dataclasses import replace

import pytest
import torch

from qponder import grpo as page
from qponder.distill import Record
from qponder.grpo import GRPOSettings, grpo, grpo_rows, preflight
from qponder.model import tiny_student
from qponder.photo import pristine
from qponder.scale import QPonderError
from qponder.sft import SFTSettings, cold_start, read_log
from qponder.trace import Trace, render

SAID = (Trace('Overall the quality is excellent.', 4.6), Trace('Overall the quality is bad.', 1.4))
RECORDS = [Record(path=str(p), target=t.score, status='ok', raw=render(t)) for p, t in zip(pristine(), SAID)]
HOW = GRPOSettings(steps=4, group_size=4, prompts_per_step=2, rollouts_per_pass=4, max_completion_length=40,
                   save_every=2, eval_every=100, preflight_prompts=0)


@pytest.fixture(scope='module')
def taught(tmp_path_factory):
    "A miniature that has learned to answer."
    tiny = tiny_student()
    cold_start(tiny, RECORDS, tmp_path_factory.mktemp('sft'),
               SFTSettings(epochs=150, learning_rate=.02, score_weight=1, claim_weight=0, score_only_every=0,
                           save_every=1000))
    return {k: v.clone() for k, v in tiny.model.state_dict().items()}


def student(state):
    tiny = tiny_student()
    tiny.model.load_state_dict(state)
    return tiny


def test_a_student_that_cannot_answer_is_stopped(tmp_path):
    with pytest.raises(QPonderError, match='grpo_max_completion_length|cold start'):
        grpo(tiny_student(), RECORDS, tmp_path, GRPOSettings(max_completion_length=16, group_size=4))
    assert not list(tmp_path.glob('checkpoint-*'))


def test_preflight_counts_real_rollouts(taught):
    flight = preflight(student(taught), grpo_rows(RECORDS), GRPOSettings(group_size=4, max_completion_length=40))
    assert len(flight.rewards) == 8 and flight.parsed > .5 and all(0 <= r <= 1 for r in flight.rewards)


def test_stopped_and_continued_is_as_if_never_stopped(taught, tmp_path, monkeypatch):
    whole, photos, how = student(taught), RECORDS * 2, replace(HOW, save_every=1)
    grpo(whole, photos, tmp_path/'whole', how)
    real = page.Alarm.on_log
    def pulled(self, args, state, control, **kwargs):
        if state.global_step == 2: raise KeyboardInterrupt
        real(self, args, state, control, **kwargs)
    monkeypatch.setattr(page.Alarm, 'on_log', pulled)
    with pytest.raises(KeyboardInterrupt): grpo(student(taught), photos, tmp_path/'parts', how)
    monkeypatch.setattr(page.Alarm, 'on_log', real)
    again = student(taught)
    grpo(again, photos, tmp_path/'parts', how)
    state = whole.model.state_dict()
    assert any(not torch.equal(v, state[k]) for k, v in taught.items())
    assert all(torch.equal(v, state[k]) for k, v in again.model.state_dict().items())
    rewards = [[r['reward'] for r in read_log(tmp_path/p/'log.jsonl') if 'reward' in r] for p in ('whole', 'parts')]
    assert rewards[0] == rewards[1] and len(rewards[0]) == 4
    assert len(list((tmp_path/'whole').glob('completions/*'))) == 4


def test_nothing_to_practise_on():
    with pytest.raises(QPonderError, match='qponder distill'): grpo_rows([])


@pytest.mark.parametrize('wrong', [dict(group_size=1), dict(temperature=0), dict(steps=0), dict(beta=-1)])
def test_impossible_settings(wrong):
    with pytest.raises(QPonderError, match=next(iter(wrong))): GRPOSettings(**wrong)
