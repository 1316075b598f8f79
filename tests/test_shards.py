"Shards on a local Ray: the results of the plain path, whoever dies on the way."
import json
import os
import signal
import subprocess
import tarfile
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qponder import shards as module
from qponder.cli import main
from qponder.filters import load_records
from qponder.photo import open_image, pristine
from qponder.rate import Rating
from qponder.scale import QPonderError
from qponder.served import ServedTeacher
from qponder.settings import read_settings
from qponder.sft import sft_rows
from qponder.shards import (DEATHS, DistillJob, RateJob, ShardError, Worker, find_shards, shard_rows, work_plainly,
                            work_spread, write_ratings)
from qponder.teacher import write_reasoning
from qponder.trace import Trace, render

LAST = 17 # row of a shard; those before it are photos, it is none


def small(path, size):
    open_image(path).resize((size, size), Image.Resampling.BILINEAR).save(f := BytesIO(), 'PNG')
    return f.getvalue()


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    "Two parquet files and a tar; no two photos are alike."
    home = tmp_path_factory.mktemp('shards')
    for n in range(3):
        photos = [small(pristine()[i % 3], 64 + LAST * n + i) for i in range(LAST)] + [b'none']
        rows = dict(path=[f'{n}-{i}.png' for i in range(LAST + 1)], score=[1.5 + i / 10 for i in range(LAST + 1)])
        if n < 2: pq.write_table(pa.table(rows | dict(image=photos)), home/f's{n}.parquet')
        else:
            known = {p.replace('png', 'json'): json.dumps(dict(score=s)).encode() for p, s in zip(*rows.values())}
            tar_of(home/f's{n}.tar', **dict(zip(rows['path'], photos)), **known)
    return find_shards([home])


class Expert(BaseHTTPRequestHandler):
    "A teacher who counts its questions; every third score makes it chat."
    asked = []
    def log_message(self, *args): pass

    def do_POST(self):
        photo, text = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['messages'][0]['content']
        self.asked.append(photo['image_url']['url'])
        score = float(text['text'].split('photo ')[1].split(' on')[0])
        chats = round(score * 10) % 3 == 0
        said = 'What a lovely photo!' if chats else render(Trace(write_reasoning({}, score), score))
        choice = {'index': 0, 'finish_reason': 'stop', 'message': {'role': 'assistant', 'content': said}}
        body = json.dumps({'id': '1', 'object': 'chat.completion', 'created': 0, 'model': 'M', 'choices': [choice],
                           'usage': {'prompt_tokens': 90_000, 'completion_tokens': 10_000}}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def expert():
    "The settings of a served teacher, who is asked one question at a time by each of two workers."
    pytest.importorskip('openai', reason='a served teacher needs the extra served')
    Expert.asked.clear()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Expert)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/v1'
    yield 'teacher=served', 'served_model=M', f'served_url={url}', 'served_at_once=2', 'distill_views=1'
    server.shutdown()
    server.server_close()


@pytest.fixture(params=['rate', 'distill'])
def jobs(request, expert):
    "A job, another one, and the difference between them."
    if request.param == 'rate':
        return RateJob(reasons=False), RateJob(), 'reasons = False, now reasons = True'
    return asked(*expert), asked(), 'teacher = served, now teacher = measured'


@pytest.fixture(scope='module')
def cluster():
    ray = pytest.importorskip('ray', reason='Ray is not installed: pip install "qponder[scale]"')
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def results(out):
    "All that is left, but for the notes of starts and spending; traces are stored in the order of their answers."
    files = [p for p in sorted(out.rglob('*')) if p.is_file() and p.name != 'started.json']
    read = {p: p.read_bytes() for p in files if out/'spent' not in p.parents}
    return {p.relative_to(out).as_posix(): sorted(b.splitlines()) if p.name == 'traces.jsonl' else b
            for p, b in read.items()}


def mortal(base, mark, only='', deaths=1):
    "A job whose workers die at the end of a shard, and leave a mark each."
    @dataclass(frozen=True)
    class Mortal:
        base: object
        mark: str
        def describe(self): return self.base.describe()

        def start(self, *how):
            do = self.base.start(*how)
            def rows_until_death(rows, folder):
                for n, row in enumerate(rows):
                    died = sum(name.startswith(folder.name) for name in os.listdir(self.mark))
                    if n == LAST and died < deaths and only in folder.name:
                        open(f'{self.mark}/{folder.name}-{died}', 'w').close()
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield row
            return lambda rows, folder: do(rows_until_death(rows, folder), folder)
    mark.mkdir()
    return Mortal(base, str(mark))


def tar_of(path, **files):
    with tarfile.open(path, 'w') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return path


@pytest.mark.parametrize('name', ['a.png', './a.png', 'v1.0/a.png', 'a.left.png', 'a/b.c/d.e.JPG'])
def test_a_photo_of_a_tar_is_a_row_whatever_it_is_called(tmp_path, name):
    json = name.rpartition('.')[0] + '.json'
    for files in ({name: b'1', json: b'{"score": 2}'}, {json: b'{"score": 2}', name: b'1'},
                  {name: b'1', 'other.png': b'2', json: b'{"score": 2}'}):
        assert next(shard_rows(tar_of(tmp_path/'x.tar', **files))) == dict(path=name, image=b'1', score=2)


def test_two_photos_of_one_name_are_two_rows_and_share_what_is_known(tmp_path):
    files = {'a.json': b'{"score": 2, "name": "koniq"}', 'a.left.png': b'1', 'a.right.png': b'2',
             'a.right.json': b'{"score": 3}'}
    left, right = shard_rows(tar_of(tmp_path/'x.tar', **files))
    assert left == dict(path='a.left.png', image=b'1', score=2, name='koniq')
    assert right == dict(path='a.right.png', image=b'2', score=3, name='koniq')


def test_what_tar_writes_of_a_folder(tmp_path):
    (tmp_path/'in').mkdir()
    for n in 'ab': (tmp_path/'in'/f'{n}.png').write_bytes(b'1')
    subprocess.run(['tar', 'cf', tmp_path/'x.tar', '-C', tmp_path/'in', '.'], check=True)
    assert sorted(r['path'] for r in shard_rows(tmp_path/'x.tar')) == ['./a.png', './b.png']


@pytest.mark.parametrize('damaged', [b'{', b'[1]', b'\xff'])
def test_damaged_json_is_named(tmp_path, damaged):
    shard = tar_of(tmp_path/'x.tar', **{'a.png': b'1', 'a.json': damaged})
    with pytest.raises(ShardError, match=r'x\.tar: .*a\.json'): list(shard_rows(shard))


def test_an_empty_photo_is_unreadable_even_where_a_file_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a.png').write_bytes(small(pristine()[0], 64))
    said = []
    work_plainly([tar_of(tmp_path/'x.tar', **{'a.png': b''})], RateJob(reasons=False), tmp_path/'out', said.append)
    assert said == ["x.tar: {'unreadable': 1}"]


def parquet(file, /, **columns):
    pq.write_table(pa.table(columns), file)
    return file


def test_a_parquet_file_as_datasets_writes_it(tmp_path):
    "Bytes and path are in `image`, and the path is often empty: the photo is called after its row."
    photo = pristine()[0].read_bytes()
    images = [dict(bytes=photo, path=None), dict(bytes=photo, path='in.webp'), dict(bytes=None, path='away.webp')]
    one = parquet(tmp_path/'one.parquet', image=images)
    assert [(r['path'], r['image'] and len(r['image'])) for r in shard_rows(one)] == [
        ('one-row-1', len(photo)), ('in.webp', len(photo)), (str(tmp_path/'away.webp'), None)]
    two = parquet(tmp_path/'two.parquet', path=[None, 'b.webp'], image=images[:2], score=[3., 4.])
    assert [r['path'] for r in shard_rows(two)] == ['two-row-1', 'b.webp']
    said = []
    assert work_plainly([two], RateJob(reasons=False), tmp_path/'rated', said.append) == 1
    assert work_plainly([two], asked('distill_views=1'), tmp_path/'taught', said.append) == 1
    assert said[0] == "two.parquet: {'ok': 2}" and said[1].startswith('two.parquet: {')
    assert {r.path.rpartition('-')[2] for r in load_records(tmp_path/'taught'/'two'/'traces.jsonl')} <= {'1', 'b.webp'}


@pytest.mark.parametrize('columns, words', [
    (dict(path=['a.png', None]), 'row 2 has neither the bytes of a photo nor a path'),
    (dict(image=[dict(bytes=None, path=None)]), 'row 1 has neither the bytes of a photo nor a path'),
    (dict(path=['a.png'], image=['b.png']), 'row 1: `image` is no bytes'),
    (dict(score=[3.]), "it has no column 'path' and no 'image'"),
])
def test_a_row_without_a_photo_is_one_error(tmp_path, columns, words):
    shard = parquet(tmp_path/'bad.parquet', **columns)
    with pytest.raises(QPonderError, match=f'1 failed: .*bad.parquet.*{words}'):
        work_plainly([shard], RateJob(reasons=False), tmp_path/'out')


def test_two_writers_of_one_folder_make_every_line_once(tmp_path, monkeypatch):
    "The second one waits for the first, and finds that nothing is left; a torn line is made again."
    made = []
    def slowly(rater, rows, reasons):
        for r in rows:
            time.sleep(.02)
            made.append(r['path'])
            yield Rating(path=r['path'])
    monkeypatch.setattr(module, 'rate_rows', slowly)
    rows, counts = [dict(path=str(n), image=None) for n in range(20)], []
    (tmp_path/'ratings.jsonl').write_text(Rating(path='0').to_json() + '\n' + Rating(path='1').to_json()[:30])
    both = [Thread(target=lambda: counts.append(write_ratings(None, iter(rows), tmp_path))) for _ in range(2)]
    for t in both: t.start()
    for t in both: t.join()
    assert counts == [{'ok': 20}] * 2 and made == [r['path'] for r in rows[1:]]
    kept = (tmp_path/'ratings.jsonl').read_text().splitlines()
    assert [json.loads(line)['path'] for line in kept] == [r['path'] for r in rows]


def test_a_shard_that_cannot_be_done_is_named_and_holds_up_no_other(shards, tmp_path):
    bad = [tar_of(tmp_path/'none.tar', **{'notes.txt': b'1'}), tmp_path/'torn.tar']
    bad[1].write_bytes(b'torn')
    job, said = RateJob(reasons=False), []
    with pytest.raises(QPonderError, match=r'1 shards done, 2 failed: .*none\.tar: there is no photo.*torn\.tar') as e:
        work_plainly([*bad, shards[0]], job, tmp_path/'out', said.append)
    assert not isinstance(e.value, ShardError) and said[:2] == ['none.tar: failed', 'torn.tar: failed']
    assert {p.parent.name for p in tmp_path.rglob('manifest.json')} == {'s0'}


def asked(*lines): return DistillJob(read_settings('nano', overrides=lines))


@pytest.fixture
def rated(tmp_path):
    "A shard of two photos with a score, and a file that is none."
    files = {f'{p.stem}.webp': p.read_bytes() for p in pristine()[:2]} | {'no.png': b'none'}
    known = {name.replace(name.split('.')[-1], 'json'): b'{"score": 4.0, "name": "koniq"}' for name in files}
    return tar_of(tmp_path/'rated.tar', **files, **known)


def test_the_teacher_is_the_one_that_the_settings_name():
    assert asked('served_model=M').experts()[0].name.startswith('measured')
    assert asked('teacher=served', 'served_model=M').experts()[0].name.startswith('M ')
    for line in ('teacher=served', 'distill_judge=served'):
        with pytest.raises(QPonderError, match='served_model'): asked(line)
    told = [asked(*lines, 'served_model=M').describe() for lines in ((), ['teacher=served'], ['distill_judge=served'])]
    assert len({str(t) for t in told}) == 3 and told[1]['teacher'] == 'served' and told[1]['served_model'] == 'M'


def test_a_served_teacher_without_a_name_is_one_line(rated, tmp_path, capsys):
    args = ['shards', 'distill', str(rated), '--out', str(tmp_path/'out'), '--set', 'teacher=served']
    assert main(args) == 2 and not (tmp_path/'out').exists()
    err = capsys.readouterr().err
    assert 'served_model' in err and err.count('\n') == 1


def test_limits_are_those_of_all_workers_together(tmp_path):
    limits = 'teacher=served', 'served_model=M', 'served_price_in=1', 'distill_judge=served'
    job = asked(*limits, 'served_spend=12', 'served_per_minute=60', 'served_at_once=4')
    for n, at_once in ((1, 4), (2, 2), (8, 1)):
        for who in job.experts(n):
            assert (who.settings.spend, who.settings.per_minute, who.at_once) == (12 / n, 60 / n, at_once)
    assert [who.settings.spend for who in job.experts(8, together=True)] == [12, 12]
    told = []
    class Listens(RateJob):
        def start(self, *how): told.append(how)
    assert Worker(Listens(), str(tmp_path), workers=7).do is None
    assert told == [(7, None)]


def test_a_judge_is_asked_and_decides(rated, tmp_path, monkeypatch):
    job = asked('served_model=M', 'distill_judge=served', 'distill_views=1')
    marks = '{"fidelity": %s, "terminology": 4, "consistency": 4}'
    for n, verdict in ((5, 'kept'), (1, 'faithful')):
        monkeypatch.setattr(ServedTeacher, '__call__', lambda self, request, n=n: marks % n)
        said = []
        work_plainly([rated], job, tmp_path/verdict, said.append)
        assert said == [f"rated.tar: {{'{verdict}': 2, 'unreadable': 1}}"]


def test_kept_traces_can_be_learned(rated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work_plainly([rated], asked('distill_views=2', 'distill_spoiled=1'), 'out')
    kept = load_records('out/rated/kept.jsonl')
    assert {r.name for r in kept} == {'koniq'} and {r.view for r in kept} == {0, 1} and any(r.damage for r in kept)
    for row, record in zip(sft_rows(kept, every=0), kept):
        whole = next(p for p in pristine()[:2] if record.path.endswith(f'-{p.name}'))
        if not record.view and not record.damage: assert row['images'][0].tobytes() == open_image(whole).tobytes()
    photos = list((tmp_path/'out'/'rated'/'photos').iterdir())
    assert sorted(p.read_bytes() for p in photos) == sorted(p.read_bytes() for p in pristine()[:2])


def test_a_photo_without_a_score_is_named_before_anybody_is_asked(tmp_path):
    photo = pristine()[0].read_bytes()
    wrong = [tar_of(tmp_path/'none.tar', **{'a.webp': photo}),
             tar_of(tmp_path/'far.tar', **{'a.webp': photo, 'a.json': b'{"score": 87}'})]
    with pytest.raises(QPonderError, match='2 failed: a.webp has no `score`.*its `score` is 87; write a number from 1'):
        work_plainly(wrong, asked(), tmp_path/'out')


@pytest.mark.parametrize('jobs', [pytest.param('rate', marks=pytest.mark.slow), 'distill'], indirect=True)
def test_two_workers_leave_what_none_leaves_and_death_loses_nothing(shards, cluster, jobs, tmp_path):
    (job, other, changed), out, said = jobs, tmp_path/'out', []
    assert work_plainly(shards, job, out) == 3
    plain, questions = results(out), sorted(Expert.asked)
    assert len(set(questions)) == len(questions) == (0 if isinstance(job, RateJob) else 3 * LAST)
    out.rename(tmp_path/'plain')
    Expert.asked.clear()
    assert work_spread(shards[:1], job, out, 2, say=said.append) == 1
    assert work_spread(shards, mortal(job, tmp_path/'died'), out, 2, say=said.append) == 2
    assert sorted(p.name for p in (tmp_path/'died').iterdir()) == ['s1-0', 's2-0'] and len(said) == 3
    assert results(out) == plain and sorted(Expert.asked) == questions
    assert work_spread(shards, job, out, 2) == 0
    with pytest.raises(QPonderError, match=changed): work_spread(shards, other, out, 2)


def test_what_is_left_of_a_distillation_is_what_was_kept(shards, expert, tmp_path):
    work_plainly(shards[2:], asked(*expert), tmp_path)
    kept = {r.path for r in load_records(tmp_path/'s2'/'kept.jsonl')}
    assert 0 < len(kept) < LAST and {str(p) for p in (tmp_path/'s2'/'photos').iterdir()} == kept


def test_a_worker_that_is_started_again_goes_on_with_what_it_has_spent(shards, cluster, expert, tmp_path):
    costs = 'served_price_in=10', 'served_price_out=10', 'served_spend=20' # an answer costs 1
    job = asked(*expert, 'served_at_once=1', *costs)
    with pytest.raises(QPonderError, match='20.00 is spent, and served_spend is 20'):
        work_spread(shards[:2], mortal(job, tmp_path/'died'), tmp_path/'out', 1)
    assert len(list((tmp_path/'died').iterdir())) == 1 and len(Expert.asked) == 20
    account, = (tmp_path/'out'/'spent').rglob('*.json')
    assert json.loads(account.read_text()) == dict(sent=20 * 90_000, received=20 * 10_000)


@pytest.mark.slow
def test_a_worker_with_a_dear_shard_spends_what_the_others_leave(shards, cluster, expert, tmp_path):
    "The one has a question of seventeen, the other all of them; half of the money is not enough for that."
    few = parquet(tmp_path/'few.parquet', path=['1.png'], image=[small(pristine()[0], 60)], score=[1.5])
    costs = 'served_price_in=10', 'served_price_out=10', 'served_at_once=1' # an answer costs 1
    job = asked(*expert, *costs, 'served_spend=18')
    assert work_spread([few, shards[0]], job, tmp_path/'out', 2) == 2 and len(Expert.asked) == 18
    spent = [json.loads(p.read_text())['received'] for p in (tmp_path/'out'/'spent').rglob('*.json')]
    assert sorted(spent) in ([10_000, 170_000], [180_000])
    with pytest.raises(QPonderError, match='is spent, and served_spend is 20'):
        work_spread(shards[:2], asked(*expert, *costs, 'served_spend=20'), tmp_path/'again', 2)
    assert 18 + 20 <= len(Expert.asked) <= 18 + 21 # a question that was under way


@pytest.mark.parametrize('jobs', ['rate', pytest.param('distill', marks=pytest.mark.slow)], indirect=True)
def test_a_shard_that_kills_its_workers_is_named_and_the_others_are_done(shards, cluster, jobs, tmp_path):
    (job, *_), said = jobs, []
    empty = tar_of(tmp_path/'empty.tar', **{'notes.txt': b'1'})
    deadly = mortal(job, tmp_path/'died', 's1', 99)
    with pytest.raises(QPonderError, match=f'2 shards done, 2 failed.*{DEATHS} workers died') as e:
        work_spread([*shards, empty], deadly, tmp_path/'spread', 2, say=said.append)
    assert all(name in str(e.value) for name in ('s1.parquet', 'empty.tar: there is no photo'))
    assert len(list((tmp_path/'died').iterdir())) == DEATHS and len(said) == 4
    assert {p.parent.name for p in tmp_path.rglob('manifest.json')} == {'s0', 's2'}
    assert work_spread(shards, job, tmp_path/'spread', 2) == 1
    assert len(set(Expert.asked)) == len(Expert.asked)
