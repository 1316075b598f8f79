"A served teacher before a real server, `transformers serve` with nano, and a proxy that spoils every second question."
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace as NS
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from PIL import Image

import qponder.served as module
from qponder.distill import Unanswered, distill, keep_table
from qponder.filters import DistillSettings, apply_filters, load_records
from qponder.pairs import distill_pairs
from qponder.photo import ASSETS, pristine
from qponder.scale import QPonderError
from qponder.served import ServedSettings, ServedTeacher, served_examiner
from qponder.teacher import MeasuredTeacher, Request as Question

pytest.importorskip('uvicorn', reason='transformers serve needs transformers[serving]')
MODEL = str(ASSETS/'nano')
MOODS = 429, 'ok', 500, 'blind', 'cut', 'ok', 'half', 'double', 'slow', 'ok'
PHOTOS = {'blind': 0, 'double': 2}

PROSE = {'id': '1', 'object': 'chat.completion', 'created': 0, 'model': MODEL, 'choices': [
    {'index': 0, 'finish_reason': 'stop', 'message': {'role': 'assistant', 'content': 'What a lovely photo!'}}]}

THOUGHT = {'index': 0, 'finish_reason': 'length', 'message': {'role': 'assistant', 'content': ''}}


def with_photos(times: int, asked: bytes) -> bytes:
    "A question whose photo is left out, or is there twice."
    question = json.loads(asked)
    told = question['messages'][0]['content']
    told[:] = [part for part in told for _ in range(times if part['type'] == 'image_url' else 1)]
    return json.dumps(question).encode()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "The address of `transformers serve`, once it answers."
    port, log = free_port(), tmp_path_factory.mktemp('serve')/'log.txt'
    program = Path(sys.executable).with_name('transformers')
    command = [program, 'serve', MODEL, '--host', '127.0.0.1', '--port', str(port)]
    with log.open('w') as out:
        run = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {'HF_HUB_OFFLINE': '1'})
    url, end = f'http://127.0.0.1:{port}', time.monotonic() + 180
    while True:
        try: urlopen(f'{url}/health', timeout=5); break
        except URLError:
            if run.poll() is not None or time.monotonic() > end: pytest.fail(log.read_text())
            time.sleep(.5)
    yield url
    run.terminate()
    run.wait(20)


class Proxy(BaseHTTPRequestHandler):
    "Hands questions on, and spoils some; the class keeps count."
    turn, lock, whole, spoilt, behind, moods, asked = 0, threading.Lock(), Counter(), Counter(), '', MOODS, []
    times, pause = [], {'Retry-After': '1'}

    def log_message(self, *args): pass

    def reply(self, status: int, body: bytes, **headers: str):
        self.send_response(status)
        for k, v in {'Content-Type': 'application/json', 'Content-Length': str(len(body)), **headers}.items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = self.rfile.read(int(self.headers['Content-Length']))
        with self.lock:
            mood = Proxy.moods[Proxy.turn % len(Proxy.moods)]
            Proxy.turn += 1
            Proxy.asked.append(json.loads(asked))
            Proxy.times.append(time.time())
            if mood != 'ok': self.spoilt[mood] += 1
        if mood == 'prose': return self.reply(200, json.dumps(PROSE).encode())
        if mood == 'mute': return self.reply(200, json.dumps(PROSE | dict(choices=[])).encode())
        if mood == 'long': return self.reply(200, json.dumps(PROSE | dict(choices=[THOUGHT])).encode())
        if mood == 'cut': return self.connection.close()
        if isinstance(mood, int): return self.reply(mood, b'{"error": {"message": "not now"}}', **Proxy.pause)
        if mood == 'slow': return time.sleep(21)
        sent = with_photos(PHOTOS.get(mood, 1), asked)
        question = Request(self.behind + self.path, sent, {'Content-Type': 'application/json'})
        body = urlopen(question, timeout=120).read()
        if mood == 'half': return self.reply(200, body[:len(body)//2])
        with self.lock: self.whole[json.loads(asked)['messages'][0]['content'][0]['image_url']['url']] += 1
        self.reply(200, body)


@pytest.fixture
def proxy(server):
    Proxy.turn, Proxy.behind, Proxy.moods, Proxy.pause = 0, server, MOODS, {'Retry-After': '1'}
    for seen in (Proxy.whole, Proxy.spoilt, Proxy.asked, Proxy.times): seen.clear()
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), Proxy)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{httpd.server_port}/v1'
    httpd.shutdown()
    httpd.server_close()


def teacher(url: str, **how) -> ServedTeacher:
    usual = dict(url=url, model=MODEL, at_once=2, max_tokens=96, timeout=20, retries=20)
    return ServedTeacher(ServedSettings(**usual | how))


SMALL = Question(Image.new('RGB', (8, 8)), 'a.png', 3.)


def gaps() -> list[float]: return [later - t for t, later in zip(Proxy.times, Proxy.times[1:])]


def test_a_server_gets_the_pause_that_it_asks_for(proxy):
    Proxy.moods, Proxy.pause, served = [429, 'prose'], {'Retry-After': '2'}, teacher(proxy)
    served(SMALL)
    assert len(gaps()) == 1 and 2 <= gaps()[0] < 4
    Proxy.times.clear()
    Proxy.pause = {'Retry-After': formatdate(until := int(time.time()) + 3, usegmt=True)}
    served(SMALL)
    assert len(gaps()) == 1 and until <= Proxy.times[1] < until + 2


def test_a_pause_of_minutes_is_kept_too(proxy, monkeypatch):
    slept = []
    monkeypatch.setattr(module, 'time', NS(time=time.time, monotonic=time.monotonic, sleep=slept.append))
    Proxy.moods, Proxy.pause = [429, 'prose'], {'Retry-After': '180'}
    assert 'lovely' in teacher(proxy)(SMALL) and [s for s in slept if s] == [180] and len(Proxy.times) == 2


def test_a_rate_is_kept_by_those_who_ask_again(proxy):
    Proxy.moods, Proxy.pause = [500, 429, 'mute', 'prose'], {'Retry-After-Ms': '1'}
    begin = time.monotonic()
    teacher(proxy, per_minute=120)(SMALL)
    assert len(Proxy.times) == 4 and time.monotonic() - begin >= 1.5


def test_all_trouble_shares_one_number_of_tries(proxy):
    Proxy.moods, Proxy.pause = [500, 'mute', 429, 'mute'], {'Retry-After-Ms': '1'}
    with pytest.raises(Unanswered, match='no text in the answer, asked 4 times'): teacher(proxy, retries=3)(SMALL)
    assert len(Proxy.times) == 4
    Proxy.moods, Proxy.pause = [400, 429], {'Retry-After': '86400'}
    for status in (400, 429):
        with pytest.raises(Unanswered, match=f'{status}: .*not now'): teacher(proxy)(SMALL)
    assert len(Proxy.times) == 6


def test_silence_is_answered_with_another_seed(proxy):
    Proxy.moods, Proxy.pause = ['mute', 500, 'mute', 'prose'], {'Retry-After-Ms': '1'}
    for _ in range(2): assert 'lovely' in teacher(proxy)(SMALL)
    assert [q['seed'] for q in Proxy.asked] == [0, 1, 1, 2] * 2


def test_an_answer_of_thoughts_alone_is_not_bought_again(proxy):
    Proxy.moods = ['long']
    with pytest.raises(Unanswered, match='no text within 96 tokens: raise served_max_tokens'): teacher(proxy)(SMALL)
    assert len(Proxy.asked) == 1


def test_a_limit_that_cannot_be_kept_ends_the_run_and_loses_nothing(proxy, tmp_path):
    Proxy.moods = ['prose']
    rows = [dict(path=str(p), score=3.) for p in pristine()[:4]]
    with pytest.raises(QPonderError, match='reports no usage, so served_spend cannot be kept: set it to 0'):
        distill(rows, teacher(proxy, at_once=1, price_in=1, spend=.01), tmp_path)
    assert len(load_records(tmp_path/'traces.jsonl')) == len(Proxy.asked) == 1
    assert all(r.raw for r in distill(rows, teacher(proxy), tmp_path)) and len(Proxy.asked) == 4


def test_a_slow_first_answer_does_not_make_a_dead_address(proxy, tmp_path):
    Proxy.moods = ['slow', 'prose']
    rows = [dict(path=str(p), score=3.) for p in pristine()[:2]]
    records = distill(rows, teacher(proxy, at_once=1, retries=0, timeout=1.5), tmp_path)
    assert [r.verdict for r in records] == ['unanswered', 'grammar']
    assert 'no answer in 1.5 s: raise served_timeout' in records[0].note


def test_an_address_that_swallows_everything_is_a_dead_one():
    with socket.socket() as full:
        full.bind(('127.0.0.1', 0))
        full.listen(0)
        guests = [socket.socket() for _ in range(4)]
        for guest in guests: guest.setblocking(False); guest.connect_ex(full.getsockname())
        url = f'http://127.0.0.1:{full.getsockname()[1]}/v1'
        with pytest.raises(QPonderError, match='cannot be reached.*served_url'):
            teacher(url, retries=0, timeout=.5)(SMALL)
        for guest in guests: guest.close()


def test_pauses_grow_where_a_server_names_none(proxy):
    Proxy.moods, Proxy.pause = [503, 503, 'prose'], {'Retry-After': '0'}
    teacher(proxy)(SMALL)
    assert .75 <= gaps()[0] < 1.5 <= gaps()[1] < 3


def test_nothing_is_lost_and_nothing_asked_twice(proxy, tmp_path):
    rows = [dict(path=str(p), score=score) for p in pristine() for score in (2., 4.)]
    served = teacher(proxy)
    records = distill(rows, served, tmp_path)
    assert [r.note for r in records] == [''] * 12 and all(r.raw for r in records)
    assert set(Proxy.whole.values()) == {2} and len(Proxy.whole) == 6
    assert served.answered == sum(Proxy.whole.values()) == 12
    assert all(Proxy.spoilt[m] for m in MOODS if m != 'ok')
    assert keep_table(records)['dropped'].sum() + sum(r.verdict == 'kept' for r in records) == 12
    again = teacher(proxy)
    assert distill(rows, again, tmp_path) == records and again.asked == 0
    otherwise = distill(rows, again, tmp_path, DistillSettings(tone=False))
    assert [r.raw for r in otherwise] == [r.raw for r in records] and again.asked == 0


def test_a_question_that_loses_or_doubles_its_photo_is_answered_and_judged_like_others(proxy, tmp_path):
    Proxy.moods, served, sent = ['ok', 'blind', 'double'], teacher(proxy, at_once=1, timeout=120), []
    rows = [dict(path=str(p), score=3.) for p in pristine()[:3]]
    for i in range(3):
        before = served.tokens_in
        records = distill(rows[:i + 1], served, tmp_path)
        sent.append(served.tokens_in - before)
    whole, blind, double = sent
    assert 0 < whole - blind == double - whole
    assert set(Proxy.whole.values()) == {1} and len(Proxy.whole) == len(records) == served.answered == served.asked == 3
    assert all(r.raw and not r.note and r == apply_filters(r, DistillSettings()) for r in records)
    assert keep_table(records)['dropped'].sum() + sum(r.verdict == 'kept' for r in records) == 3
    again = teacher(proxy)
    assert distill(rows, again, tmp_path) == records and again.asked == 0


def test_a_killed_run_goes_on(proxy, tmp_path):
    rows = [dict(path=str(p), score=3.) for p in pristine()]

    class Stopped(ServedTeacher):
        def __call__(self, request):
            if self.answered == 3: raise KeyboardInterrupt
            return super().__call__(request)

    with pytest.raises(KeyboardInterrupt): distill(rows, Stopped(teacher(proxy, at_once=1).settings), tmp_path)
    rest = teacher(proxy)
    assert len(distill(rows, rest, tmp_path)) == 6 and rest.answered == 3
    assert set(Proxy.whole.values()) == {1}


def test_a_dead_address_is_one_message(tmp_path):
    url = f'http://127.0.0.1:{free_port()}/v1'
    with pytest.raises(QPonderError, match='cannot be reached.*served_url'):
        distill([dict(path=str(pristine()[0]), score=3.)], teacher(url, retries=0), tmp_path)
    assert not (tmp_path/'kept.jsonl').exists()


def test_the_key_is_used_and_written_nowhere(proxy, tmp_path, monkeypatch):
    monkeypatch.setenv('SOME_KEY', 'sk-secret')
    served = teacher(proxy, key_env='SOME_KEY')
    distill([dict(path=str(pristine()[0]), score=3.)], served, tmp_path)
    assert served.client.api_key == 'sk-secret'
    assert not any('sk-secret' in p.read_text(encoding='utf-8') for p in tmp_path.rglob('*') if p.is_file())
    assert 'sk-secret' not in f'{served.settings}{served.name}'


def test_a_server_that_only_talks_ends_the_run_early(proxy, tmp_path):
    Proxy.moods = ['prose']
    rows = [dict(path=str(p), score=1 + i / 2) for p in pristine() for i in range(8)]
    with pytest.raises(QPonderError, match="none of its first 20 .*'What a lovely photo!'.*served_max_tokens"):
        distill(rows, teacher(proxy), tmp_path)
    assert 20 <= len(load_records(tmp_path/'traces.jsonl')) == Proxy.turn <= 26


def test_other_prompts_reach_the_server(proxy, tmp_path):
    Proxy.moods = ['ok']
    rows = [dict(path=str(pristine()[0]), score=3.), dict(path=str(pristine()[1]), score=2.)]
    untold = DistillSettings(tell=False, language='zh', spoiled=1)
    records = distill(rows[:1], teacher(proxy, max_tokens=8, timeout=120), tmp_path, untold)
    assert [r.prompt for r in records] == ['expert-zh-untold', 'expert-known-zh-untold'] and all(r.raw for r in records)
    texts = [q['messages'][0]['content'][-1]['text'] for q in Proxy.asked]
    assert sum('人为劣化' in t for t in texts) == 1 and not any('3.0' in t for t in texts)
    Proxy.asked.clear()
    pairs = distill_pairs([tuple(rows)], teacher(proxy, max_tokens=8, timeout=120), tmp_path)
    assert [r.verdict for r in pairs] == ['grammar'] * 2 and all(r.raw for r in pairs)
    photos = [[part['image_url']['url'] for part in q['messages'][0]['content'][:2]] for q in Proxy.asked]
    assert photos[0] == photos[1][::-1] and photos[0][0] != photos[0][1]


def test_a_judge_behind_the_server(proxy, tmp_path):
    Proxy.moods = ['ok', 'half', 'ok', 429]
    rows, judged = [dict(path=str(p), score=3.) for p in pristine()[:3]], DistillSettings(judge='served')
    examiner = served_examiner(teacher(proxy, max_tokens=8, timeout=120).settings)
    records = distill(rows, MeasuredTeacher(), tmp_path, judged, examiner)
    assert {r.verdict for r in records} == {'marked'} and all(r.marks for r in records)
    assert {q['temperature'] for q in Proxy.asked} == {0} and examiner.answered == 3
    assert distill(rows, MeasuredTeacher(), tmp_path, judged, examiner) == records and examiner.answered == 3
