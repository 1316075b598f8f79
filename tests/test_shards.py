"Shards on a local Ray: the results of the plain path, whoever dies on the way."
import os
import signal
import subprocess
import tarfile
from dataclasses import dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qponder.cli import main
from qponder.distill import load_records
from qponder.photo import open_image, pristine
from qponder.run import read_settings
from qponder.scale import QPonderError
from qponder.served import ServedTeacher
from qponder.sft import sft_rows
from qponder.shards import (DEATHS, DistillJob, RateJob, ShardError, Worker, find_shards, shard_rows, work_plainly,
                            work_spread)


def small(path, size):
    open_image(path).resize((size, size), Image.Resampling.BILINEAR).save(f := BytesIO(), 'PNG')
    return f.getvalue()


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    home = tmp_path_factory.mktemp('shards')
    for n in range(3):
        photos = [small(p, 64 + 8 * n) for p in pristine()[:3]] + [b'none']
        pq.write_table(pa.table(dict(path=[f'{n}-{i}.png' for i in range(4)], image=photos)), home/f's{n}.parquet')
    return find_shards([home])


@pytest.fixture(scope='module')
def cluster():
    ray = pytest.importorskip('ray', reason='Ray is not installed: pip install "qponder[scale]"')
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def results(out): return {p.relative_to(out).as_posix(): p.read_text() for p in sorted(out.rglob('ratings.jsonl'))}


def mortal(base, mark, only='', deaths=1):
    "A job whose workers die in the middle of a shard, and leave a mark each."
    @dataclass(frozen=True)
    class Mortal:
        base: object
        mark: str
        def describe(self): return self.base.describe()

        def start(self, workers=1):
            do = self.base.start(workers)
            def rows_until_death(rows, folder):
                for n, row in enumerate(rows):
                    left = os.listdir(self.mark)
                    if n == 3 and len(left) < deaths and only in folder.name:
                        open(f'{self.mark}/{len(left)}', 'w').close()
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
    told = []
    class Listens(RateJob):
        def start(self, workers=1): told.append(workers)
    Worker(Listens(), str(tmp_path), 'run', 7)
    assert told == [7]


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


def test_two_workers_have_the_results_of_none_and_death_loses_nothing(shards, cluster, tmp_path):
    job, said = RateJob(reasons=False), []
    assert work_plainly(shards, job, tmp_path/'plain') == 3
    assert work_spread(shards[:1], job, tmp_path/'spread', 2, say=said.append) == 1
    assert work_spread(shards, mortal(job, tmp_path/'died'), tmp_path/'spread', 2, say=said.append) == 2
    assert len(list((tmp_path/'died').iterdir())) == 1 and len(said) == 3
    assert results(tmp_path/'spread') == results(tmp_path/'plain') and len(results(tmp_path/'plain')) == 3
    assert work_spread(shards, job, tmp_path/'spread', 2) == 0
    with pytest.raises(QPonderError, match='reasons = False, now reasons = True'):
        work_spread(shards, RateJob(), tmp_path/'spread', 2)


def test_a_shard_that_kills_its_workers_is_named_and_the_others_are_done(shards, cluster, tmp_path):
    job, said = RateJob(reasons=False), []
    empty = tar_of(tmp_path/'empty.tar', **{'notes.txt': b'1'})
    deadly = mortal(job, tmp_path/'died', 's1', 99)
    with pytest.raises(QPonderError, match=f'2 shards done, 2 failed.*{DEATHS} workers died') as e:
        work_spread([*shards, empty], deadly, tmp_path/'spread', 2, say=said.append)
    assert all(name in str(e.value) for name in ('s1.parquet', 'empty.tar: there is no photo'))
    assert len(list((tmp_path/'died').iterdir())) == DEATHS and len(said) == 4
    assert {p.parent.name for p in tmp_path.rglob('manifest.json')} == {'s0', 's2'}
    assert work_spread(shards, job, tmp_path/'spread', 2) == 1
