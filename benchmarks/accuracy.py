"""How well do scores agree with people, on photos that were kept for this, and what did GRPO add?

    python benchmarks/accuracy.py --data biq2021.csv --out accuracy

*official*: the test part of BIQ2021. *clean*: without those of its photos that have a near double among the training
photos (CSV column `near_duplicate_in_train`). *LIVE-C*: the 300 photos that ship with qponder. Every model answers
twice, with reasons and with the bare score; nano@224 is nano that looks at squares of 224 pixels. An answer that cannot
be read counts as the worst that could be said. Intervals are 95 %, by bootstrap. The first two models are compared,
photo by photo. `--out FOLDER` keeps predictions as they come, so that a stopped benchmark goes on, a manifest with
every figure, and clean.csv, the first model's scores without the photos.
"""
import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from qponder.data import load_sample
from qponder.evaluate import Interval, Prediction, bootstrap, paired_bootstrap, plcc, predict, srcc, values
from qponder.fast import checkpoint
from qponder.rate import Rater
from qponder.run import Run, read_settings, sha, versions, write_json
from qponder.trace import parse


MODELS = ['nano', 'nano-ci', 'nano-base', 'nano@224']


@dataclass
class Answers:
    "What one model said about one set of photos."
    model: str # as on the command line
    photos: str # official, clean or LIVE-C
    mode: str # reason or score
    said: list[Prediction] # one per photo

    @property
    def truth(self) -> np.ndarray: return np.array([p.score for p in self.said])
    def scores(self, which: str) -> np.ndarray: return values(self.said, which, worst=True)
    def part(self, name: str) -> np.ndarray: return np.array([p.reward[name] for p in self.said])


def average(x: np.ndarray, _: np.ndarray) -> np.ndarray: return x.mean(-1)


def test_photos(data: str, preset: str, home: Path) -> tuple[Dataset, np.ndarray]:
    "The test part as the preset shows it, and which of its photos have no double in training."
    warnings.filterwarnings('ignore', message='.*doubles across the split')
    settings = read_settings(preset, overrides=[f'data={data}'])
    test, table = Run(home, settings).parts.test, pd.read_csv(data)
    own = table[table[settings.common.split_col] == 'test']
    assert len(own) == len(test), 'rows were left out, the two lists no longer match'
    return test, ~own['near_duplicate_in_train'].to_numpy(bool)


def answers(model: str, test: Dataset, clean: np.ndarray, out: Path) -> list[Answers]:
    "What a model says about all photos, in both ways."
    name, _, size = model.partition('@')
    found, rater = [], Rater(name, size=int(size or 0))
    for mode in ('reason', 'score'):
        ask = lambda _, images, mode=mode: rater.ask(images, mode)
        name, file = f'{model} {mode}', out / 'predictions.jsonl'
        official = predict(None, test, file, name, 'test', ask=ask)
        sets = dict(official=official, clean=[p for p, c in zip(official, clean) if c])
        sets['LIVE-C'] = predict(None, load_sample(), file, name, 'LIVE-C', ask=ask)
        found += [Answers(model, photos, mode, said) for photos, said in sets.items()]
    return found


def figures(a: Answers) -> dict[str, object]:
    "A row of the table."
    row = dict(model=a.model, photos=a.photos, mode=a.mode, n=len(a.said), failed=sum(not p.ok for p in a.said))
    for which in ('expected', 'greedy'): row[f'SRCC {which}'] = bootstrap(srcc, a.scores(which), a.truth)
    row['PLCC expected'] = bootstrap(plcc, a.scores('expected'), a.truth)
    if a.mode == 'score': return row
    different = len({parse(p.text, p.finished).reasoning for p in a.said})
    return row | {'agreement': bootstrap(average, a.part('agreement'), a.truth), 'different reasonings': different}


def gain(one: Answers, other: Answers) -> dict[str, object]:
    "How much better the first model is than the second."
    row = dict(models=f'{one.model} - {other.model}', photos=one.photos, mode=one.mode)
    for which in ('expected', 'greedy'):
        row[f'SRCC {which}'] = paired_bootstrap(srcc, one.scores(which), other.scores(which), one.truth)
    if one.mode == 'score': return row
    for part in ('agreement', 'consistency'):
        row[part] = paired_bootstrap(average, one.part(part), other.part(part), one.truth)
    return row


def scores_alone(reason: Answers, bare: Answers) -> pd.DataFrame:
    "People's scores and a model's, without the photos, which are not ours to show."
    said = dict(people=reason.truth, expected=reason.scores('expected'), greedy=reason.scores('greedy'),
                bare=bare.scores('expected'))
    return pd.DataFrame(said).round(3).sort_values([*said])


def table(rows: list[dict]) -> str:
    "Markdown."
    keys = list(dict.fromkeys(k for r in rows for k in r))
    lines = [keys, ['---'] * len(keys), *[[str(r.get(k, '')) for k in keys] for r in rows]]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def plain(row: dict) -> dict:
    "The same for JSON."
    return {k: vars(v) if isinstance(v, Interval) else v for k, v in row.items()}


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--data', required=True, help='the CSV of BIQ2021: file, mos, split, near_duplicate_in_train')
    ask.add_argument('--preset', default='nano-biq2021', help='says how the CSV is read and how large photos are')
    ask.add_argument('--models', nargs='+', default=MODELS, help='students or their folders, @ and pixels')
    ask.add_argument('--out', type=Path, default=Path('accuracy'), help='folder for predictions and manifest')
    args = ask.parse_args()
    test, clean = test_photos(args.data, args.preset, args.out)
    found = [answers(m, test, clean, args.out) for m in args.models]
    rows = [figures(a) for one in found for a in one]
    gains = [gain(a, b) for a, b in zip(*found[:2])] if len(found) > 1 else []
    print(table(rows) + ('\n\n' + table(gains) if gains else ''))
    first = {(a.photos, a.mode): a for a in found[0]}
    scores_alone(first['clean', 'reason'], first['clean', 'score']).to_csv(args.out / 'clean.csv', index=False)
    write_json(args.out / 'manifest.json', dict(figures=[*map(plain, rows)], gains=[*map(plain, gains)],
        versions=versions(), models={m: sha(checkpoint(m.partition('@')[0])) for m in args.models},
        data=sha(Path(args.data))))


if __name__ == '__main__': main()
