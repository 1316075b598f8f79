"The benchmark of rewards reads its runs rightly. It trains for an hour, so the training itself is not tested here."
import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

from qponder.metrics import srcc
from qponder.predict import Prediction
from qponder.store import write_records

FILE = Path(__file__).resolve().parents[1]/'benchmarks/rewards.py'
PEOPLE = [1.2, 2.1, 3.3, 4.8]


@pytest.fixture(scope='module')
def bench():
    spec = importlib.util.spec_from_file_location('rewards', FILE)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def finish(out: Path, name: str, said: list[float | None], photo: str = 'secret') -> None:
    "A finished run that said these scores."
    text = '<think>The photo is sharp.</think><answer>{}</answer>'
    write_records(out/name/'predictions.jsonl', [
        Prediction(name, f'{photo}/{i}.png', 'val', people, greedy=s, expected=s,
                   status='ok' if s else 'no_answer', text=text.format(s), reward=dict(agreement=.5))
        for i, (people, s) in enumerate(zip(PEOPLE, said))])
    (out/name/'manifest.json').write_text(json.dumps(dict(wall_seconds=1., inputs={})))
    (out/name/'log.jsonl').write_text(json.dumps(dict(step=1, reward=.5, reward_std=.1, loss=0.)) + '\n')


def test_collects_scores_without_photos(bench, tmp_path):
    finish(tmp_path, 'gaussian-vote-1', [1., 2., None, 4.])
    finish(tmp_path, 'cold', [2., 1., 3., 4.])
    (tmp_path/'gaussian-vote-2').mkdir()
    bench.collect(tmp_path)
    stored = pd.read_csv(tmp_path/'results/scores.csv')
    assert list(stored['people']) == PEOPLE and list(stored['cold greedy']) == [2., 1., 3., 4.]
    assert list(stored['gaussian-vote-1 greedy']) == [1., 2., 1., 4.], 'an unreadable answer counts as the worst'
    assert not any('-2 ' in c for c in stored), 'a run that is not finished was counted'
    runs = json.loads((tmp_path/'results/runs.json').read_text())['runs']
    assert runs['gaussian-vote-1']['readable'] == .75
    assert not any('secret' in f.read_text() for f in (tmp_path/'results').iterdir())
    assert list(pd.read_csv(tmp_path/'results/log.csv')['reward_std']) == [.1]


def test_other_photos_are_refused(bench, tmp_path):
    finish(tmp_path, 'cold', [2., 1., 3., 4.])
    finish(tmp_path, 'gaussian-vote-1', [2., 1., 3., 4.], photo='other')
    with pytest.raises(AssertionError, match='rated other photos'): bench.collect(tmp_path)


def test_contrast_is_the_difference_of_means(bench):
    said = {'a expected': [1., 2., 3., 4.], 'b expected': [2., 1., 3., 4.], 'cold expected': [4., 3., 2., 1.]}
    found = bench.contrast(srcc, 'expected', pd.DataFrame(dict(people=PEOPLE) | said), ['a', 'b'], ['cold'])
    assert found.value == pytest.approx((1 + .8) / 2 + 1)
    assert bench.contrast(srcc, 'expected', pd.DataFrame(dict(people=PEOPLE) | said), ['a'], ['a']).value == 0
