"Shards on a local Ray: the results of the plain path, whoever dies on the way."
import os
import signal
from dataclasses import dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qponder.photo import open_image, pristine
from qponder.scale import QPonderError
from qponder.shards import RateJob, find_shards, work_plainly, work_spread

ray = pytest.importorskip('ray', reason='Ray is not installed: pip install "qponder[scale]"')


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
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def results(out): return {p.relative_to(out).as_posix(): p.read_text() for p in sorted(out.rglob('ratings.jsonl'))}


def mortal(base, mark):
    "A job whose first worker dies in the middle of a shard."
    @dataclass(frozen=True)
    class Mortal:
        base: object
        mark: str
        def describe(self): return self.base.describe()

        def start(self):
            do = self.base.start()
            def rows_until_death(rows):
                for n, row in enumerate(rows):
                    if n == 3 and not os.path.exists(self.mark):
                        open(self.mark, 'w').close()
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield row
            return lambda rows, folder: do(rows_until_death(rows), folder)
    return Mortal(base, str(mark))


def test_two_workers_have_the_results_of_none_and_death_loses_nothing(shards, cluster, tmp_path):
    job, said = RateJob(reasons=False), []
    assert work_plainly(shards, job, tmp_path/'plain') == 3
    assert work_spread(shards[:1], job, tmp_path/'spread', 2, say=said.append) == 1
    assert work_spread(shards, mortal(job, tmp_path/'died'), tmp_path/'spread', 2, say=said.append) == 2
    assert (tmp_path/'died').exists() and len(said) == 3
    assert results(tmp_path/'spread') == results(tmp_path/'plain') and len(results(tmp_path/'plain')) == 3
    assert work_spread(shards, job, tmp_path/'spread', 2) == 0
    with pytest.raises(QPonderError, match='reasons = False, now reasons = True'):
        work_spread(shards, RateJob(), tmp_path/'spread', 2)
