"GRPO: the pre-flight stops what cannot learn; stopping and going on."
import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qponder import grpo as page
from qponder.adapt import StudentSettings
from qponder.build import tiny_student
from qponder.filters import Record
from qponder.grpo import GRPOSettings, consistency_reader, grpo, grpo_config, grpo_rows, knock_vllm, preflight
from qponder.model import load_student, save_student
from qponder.parts import Parts, Run
from qponder.photo import pristine
from qponder.readers import Reference
from qponder.reward import RewardSettings
from qponder.run import check_rewards_of
from qponder.scale import QPonderError
from qponder.settings import read_settings
from qponder.sft import SFTSettings, cold_start
from qponder.store import read_rows
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


def test_stopped_and_continued_is_as_if_never_stopped(taught, tmp_path, ctrl_c):
    whole, photos, how = student(taught), RECORDS * 2, replace(HOW, save_every=1)
    grpo(whole, photos, tmp_path/'whole', how)
    with ctrl_c(page.Alarm, 'on_log', 2): grpo(student(taught), photos, tmp_path/'parts', how)
    again = student(taught)
    grpo(again, photos, tmp_path/'parts', how)
    state = whole.model.state_dict()
    assert any(not torch.equal(v, state[k]) for k, v in taught.items())
    assert all(torch.equal(v, state[k]) for k, v in again.model.state_dict().items())
    rewards = [[r['reward'] for r in read_rows(tmp_path/p/'log.jsonl') if 'reward' in r] for p in ('whole', 'parts')]
    assert rewards[0] == rewards[1] and len(rewards[0]) == 4
    assert len(list((tmp_path/'whole').glob('completions/*'))) == 4
    for other in (dict(seed=1), dict(records=RECORDS), dict(rewards=RewardSettings(w_format=.3))):
        with pytest.raises(QPonderError, match='whole: the training that lies there began with'):
            grpo(**dict(student=student(taught), records=photos, out=tmp_path/'whole', settings=how) | other)


def test_learning_twice_from_the_same_rollouts_stopped_between_and_as_if_never_stopped(taught, tmp_path, ctrl_c):
    "Three rounds of two updates; a stop after the third update goes back to where its round began"
    whole, again, photos = student(taught), student(taught), RECORDS * 3
    how = replace(HOW, steps=6, save_every=1, iterations=2, learning_rate=.002, epsilon_high=.001)
    grpo(whole, photos, tmp_path/'whole', how)
    with ctrl_c(page.Alarm, 'on_log', 3): grpo(student(taught), photos, tmp_path/'parts', how)
    assert [p.name for p in (tmp_path/'parts').glob('checkpoint-*')] == ['checkpoint-2']
    grpo(again, photos, tmp_path/'parts', how)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    logs = [[r for r in read_rows(tmp_path/p/'log.jsonl') if 'loss' in r] for p in ('whole', 'parts')]
    for log in logs: assert [r['step'] for r in log if 'reward' in r] == [1, 3, 5] and len(log) == 6
    assert [r['loss'] for r in logs[0]] == [r['loss'] for r in logs[1]]
    held = [r['clip_ratio/high_mean'] for r in logs[0]]
    assert not any(held[::2]) and any(held[1::2]), 'words are held back when they are learned from again'


def test_nothing_to_practise_on():
    with pytest.raises(QPonderError, match='qponder distill'): grpo_rows([])


@pytest.mark.parametrize('wrong', [dict(group_size=1), dict(temperature=0), dict(steps=-1), dict(beta=-1)])
def test_impossible_settings(wrong):
    with pytest.raises(QPonderError, match=next(iter(wrong))): GRPOSettings(**wrong)


# a reward of one's own

def brevity(answers): return [min(1, 4 / len(a.reasoning.split())) for a in answers]
def sees(answers): return [(a.image.size[0] > 0) * (1 <= a.target <= 5) / 2 for a in answers]
def broken(answers): return [1.5] * len(answers)


OWN = RewardSettings(own=brevity, w_own=1)


@pytest.mark.parametrize('own, mean', [(brevity, .8), (sees, .5)])
def test_a_reward_of_ones_own_is_seen_before_and_paid_in_training(taught, tmp_path, own, mean):
    "The student says five words, so each readable answer earns 4/5"
    how = replace(HOW, steps=2, preflight_prompts=2)
    rewards = RewardSettings(w_format=0, w_accuracy=0, w_consistency=0, own=own, w_own=1)
    flight = preflight(student(taught), grpo_rows(RECORDS), how, rewards)
    assert set(flight.rewards) <= {0, mean} and mean in flight.rewards
    grpo(student(taught), RECORDS, tmp_path, replace(how, preflight_prompts=0), rewards)
    log = [r for r in read_rows(tmp_path/'log.jsonl') if 'reward' in r]
    assert len(log) == 2 and all(r['reward'] == pytest.approx(r[f'rewards/{own.__name__}/mean']) for r in log)
    assert all(0 < r['reward'] <= mean + 1e-6 for r in log)


def test_a_reward_of_ones_own_that_is_wrong_ends_in_the_preflight(taught, tmp_path):
    with pytest.raises(QPonderError, match='reward_own = broken: 1.5 is no mark'):
        grpo(student(taught), RECORDS, tmp_path, replace(HOW, preflight_prompts=2), replace(OWN, own=broken))
    assert not list(tmp_path.glob('checkpoint-*')) and not list(tmp_path.glob('log.jsonl'))


def test_another_reward_of_ones_own_does_not_go_on_from_where_one_was(taught, tmp_path):
    grpo(student(taught), RECORDS, tmp_path, replace(HOW, steps=2), OWN)
    grpo(student(taught), RECORDS, tmp_path, replace(HOW, steps=2), OWN)
    with pytest.raises(QPonderError, match='began with RewardSettings.own = brevity .*, now .* = sees '):
        grpo(student(taught), RECORDS, tmp_path, replace(HOW, steps=2), replace(OWN, own=sees))


# every reward trains

PRESETS = 'q-ponder', 'q-insight', 'visualquality-r1', 'refine-iqa', 'q-hawkeye', 'mr-iqa'
STAGES = {p: read_settings(p, kinds=None).stages for p in PRESETS}
REWARDS = {p: s['reward'] for p, s in STAGES.items()} | {
    k: RewardSettings(consistency=k) for k in ('care', 'text', 'judge')} | {
    'spread': RewardSettings(w_rank=1, rank='margin', rank_width=0, w_length=1, min_words=3)}


def generous(answer) -> str: return '{"fidelity": 4, "terminology": 4, "consistency": 4}'


@pytest.mark.parametrize('name', REWARDS)
def test_two_steps_with_every_reward(taught, tmp_path, name):
    own = STAGES.get(name, {'grpo': HOW, 'student': StudentSettings()})
    like = {k: getattr(own['grpo'], k) for k in ('loss_type', 'iterations', 'epsilon_high')}
    how = replace(HOW, steps=2, scale_rewards='batch', **like)
    rated = [replace(r, std=.4, name='two', damage=d) for r, d in zip(RECORDS, ('', 'jpeg 5'))]
    grpo(student(taught), rated, tmp_path, how, REWARDS[name], judge=generous, how=own['student'])
    log = [r for r in read_rows(tmp_path/'log.jsonl') if 'reward' in r]
    paid = {p for p, w in REWARDS[name].weights.items() if w} | {'format', 'accuracy', 'consistency'}
    assert len(log) == (1 if name == 'mr-iqa' else 2), 'MR-IQA learns four times from the same rollouts'
    for row in log:
        means = {k.split('/')[1]: v for k, v in row.items() if k.startswith('rewards/') and k.endswith('/mean')}
        assert set(means) == paid and all(0 <= v <= 1 or np.isnan(v) for v in means.values())
        assert 0 <= row['reward'] <= 1
    assert 'rank' not in paid or any(row['rank/compared'] == 1 for row in log), 'two photos, learned from in two passes'
    assert (tmp_path/'text_scorer.json').exists() == (name == 'text')


def test_a_slow_copy_goes_on_from_where_it_was(taught, tmp_path, monkeypatch, ctrl_c):
    how, rewards = replace(HOW, save_every=1), RewardSettings(consistency='care')
    monkeypatch.setattr(Reference.__init__, '__defaults__', (.5, 1))
    whole, photos = student(taught), RECORDS * 2
    grpo(whole, photos, tmp_path/'whole', how, rewards)
    with ctrl_c(page.Alarm, 'on_log', 2): grpo(student(taught), photos, tmp_path/'parts', how, rewards)
    grpo(student(taught), photos, tmp_path/'parts', how, rewards)
    copies = [load_file(tmp_path/p/'checkpoint-4'/'reference.safetensors') for p in ('whole', 'parts')]
    assert all(torch.equal(v, copies[1][k]) for k, v in copies[0].items())
    assert any(not torch.equal(v, taught[k]) for k, v in copies[0].items() if k in taught)
    assert any(not torch.equal(v, whole.model.state_dict()[k]) for k, v in copies[0].items() if k in taught)


def test_a_reward_that_lacks_something_stops_before_the_first_rollout(tmp_path, monkeypatch):
    def never(*args, **kwargs): raise AssertionError('asked a student')
    monkeypatch.setattr(page, 'preflight', never)
    for how, settings, words in (
            (RewardSettings(w_rank=1), replace(HOW, prompts_per_step=1), 'grpo_prompts_per_step'),
            (RewardSettings(w_rank=1, rank='margin', rank_width=0), HOW, 'std_col'),
            (RewardSettings(w_damage=1), HOW, 'distill_spoiled'), (RewardSettings(uncertainty=1), HOW, 'scale_rewards'),
            (RewardSettings(consistency='judge'), HOW, 'served_model')):
        with pytest.raises(QPonderError, match=words): grpo(tiny_student(), RECORDS, tmp_path, settings, how)
    assert [p.name for p in tmp_path.iterdir()] == ['begun.json']


def test_the_text_reader_needs_traces(tmp_path):
    with pytest.raises(QPonderError, match='kept traces'):
        consistency_reader(tiny_student(), RECORDS[:1], RewardSettings(consistency='text'), tmp_path)


def test_preflight_pays_what_training_pays(taught):
    "Photos are compared in the pre-flight, too, so the better one's answers earn by their order"
    how = RewardSettings(w_format=0, w_accuracy=0, w_consistency=0, w_rank=1)
    flight = preflight(student(taught), grpo_rows(RECORDS), GRPOSettings(group_size=4, max_completion_length=40), how)
    assert len(flight.rewards) == 8 and max(flight.rewards) > .9


@pytest.fixture
def health():
    "What a vLLM server says of itself, and where."
    class Health(BaseHTTPRequestHandler):
        status, models = 200, None
        def log_message(self, *args): pass

        def do_GET(self):
            told = {'/health': b''} | ({'/v1/models': self.models} if self.models is not None else {})
            self.send_response(self.status if self.path in told else 404)
            self.end_headers()
            self.wfile.write(told.get(self.path, b''))

    server = ThreadingHTTPServer(('127.0.0.1', 0), Health)
    Thread(target=server.serve_forever, daemon=True).start()
    yield Health, f'127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def far(url): return GRPOSettings(vllm='server', vllm_url=url)


def test_a_vllm_server_is_asked_how_it_is(health):
    Health, place = health
    knock_vllm(far(f'http://{place}'))
    Health.status = 500
    wrong = {f'http://{place}': '500', f'http://{place}/v1': '404', f'https://{place}': 'SSL',
             'http://127.0.0.1:1': 'refused', 'http://a b': "can't contain", 'http://127.0.0.1:port': 'port'}
    for url, why in wrong.items():
        said = f'grpo_vllm_url = {url}: no healthy vLLM server .*{why}.*trl vllm-serve'
        with pytest.raises(QPonderError, match=said):
            knock_vllm(far(url))
    knock_vllm(replace(far('http://127.0.0.1:1'), vllm='colocate'))


def test_a_vllm_server_with_another_student_is_refused(health):
    Health, place = health
    trained = 'Qwen/Qwen2.5-VL-7B-Instruct', 'runs/koniq/cold-start/model'
    ask = lambda: knock_vllm(far(f'http://{place}'), trained)
    def holds(name): Health.models = json.dumps({'object': 'list', 'data': [{'id': name, 'object': 'model'}]}).encode()
    for name in (trained[0], '/big/Qwen2.5-VL-7B-Instruct', '/there/runs/koniq/cold-start/model'):
        holds(name)
        ask()
    for name in ('Qwen/Qwen2.5-VL-72B-Instruct', 'runs/other/cold-start/model', 'model'):
        holds(name)
        with pytest.raises(QPonderError, match=f'the server holds {name}, but {trained[0]} is trained'): ask()
    knock_vllm(far(f'http://{place}'))
    for said in (b'', b'{', b'{}', b'{"data": []}', b'[1]', None):
        Health.models = said
        ask()


@pytest.mark.parametrize('url', ['localhost:8000', 'vllm:8000', 'ftp://localhost', ''])
@pytest.mark.parametrize('key, example', [('grpo_vllm_url', 'http://localhost:8000'),
                                          ('served_url', 'http://localhost:8000/v1')])
def test_an_address_has_a_form(key, example, url):
    with pytest.raises(QPonderError) as e: read_settings('nano', overrides=[f'{key}={url}'])
    name = key.partition('_')[2]
    assert str(e.value) == f'command line: {key} = {url}: {name} must be an address such as {example}'


def test_a_run_knocks_before_it_begins(health, tmp_path, monkeypatch):
    (Health, place), lines = health, ['grpo_vllm=server', 'grpo_vllm_url=http://127.0.0.1:1']
    parts = lambda common: Parts(dict(name=['one'], std=[None]), [], [], '')
    ask = lambda *more: check_rewards_of(Run(tmp_path, read_settings('nano', overrides=[*lines, *more]), parts))
    with pytest.raises(QPonderError, match='vLLM is not installed here'): ask()
    monkeypatch.setattr(page, 'find_spec', lambda name: True)
    with pytest.raises(QPonderError, match='no healthy vLLM server'): ask()
    ask(f'grpo_vllm_url=http://{place}')
    Health.models = b'{"data": [{"id": "Qwen/Qwen2.5-VL-7B-Instruct"}]}'
    with pytest.raises(QPonderError, match='holds Qwen/.*, but nano-base is trained'): ask(f'grpo_vllm_url=http://{place}')
    Health.models = b'{"data": [{"id": "nano-base"}]}'
    ask(f'grpo_vllm_url=http://{place}')
    monkeypatch.setenv('RANK', '1') # localhost is another machine there
    ask()
    monkeypatch.delenv('RANK')
    (tmp_path/'grpo').mkdir()
    (tmp_path/'grpo'/'manifest.json').touch()
    ask()


def test_trl_is_told_of_vllm(tmp_path, monkeypatch):
    monkeypatch.setattr(page, 'find_spec', lambda name: True)
    args = grpo_config(tmp_path, far('http://far:8000'), [1.])
    assert (args.use_vllm, args.vllm_mode, args.vllm_server_base_url) == (True, 'server', 'http://far:8000')
    args = grpo_config(tmp_path, GRPOSettings(vllm='colocate', vllm_memory=.4), [1.])
    assert (args.use_vllm, args.vllm_mode, args.vllm_gpu_memory_utilization) == (True, 'colocate', .4)
    assert args.vllm_max_model_length is None


def test_vllm_is_told_the_longest_row(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(page, 'vllm_arguments', lambda settings, longest: told.append(longest) or {})
    monkeypatch.setattr(page.GRPOTrainer, 'train', lambda self, **how: None)
    grpo(tiny_student(), RECORDS, tmp_path, HOW)
    assert told == [json.loads((tmp_path/'audit.json').read_text())['total'][-1]]


def test_the_reference_is_not_spread_over_the_gpus(taught, tmp_path, monkeypatch):
    "TRL would, where processes share a student by FSDP: it takes them for one."
    from trl.trainer import grpo_trainer
    asked, real = [], grpo_trainer.create_model_from_path
    monkeypatch.setattr(grpo_trainer, 'create_model_from_path', lambda *a, **how: asked.append(how) or real(*a, **how))
    begun = load_student(save_student(student(taught), tmp_path/'model'))
    grpo(begun, RECORDS, tmp_path/'grpo', replace(HOW, steps=1, beta=.01))
    assert [how['device_map'] for how in asked] == [None]
