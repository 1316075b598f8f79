"""How well do scores agree with people, on photos that were kept for this, and what did GRPO add?

    python benchmarks/accuracy.py --data biq2021.csv --out accuracy

*official*: the test part of BIQ2021. *clean*: without the 207 of its photos that have a near double among the
training photos; `biq2021-doubles.txt` has the hashes of their files. *LIVE-C*: the 300 photos that ship with qponder.
Every model answers twice, with reasons and with the bare score; nano@224 is nano that looks at squares of 224 pixels.
An answer that cannot be read counts as the worst that could be said. *grounding*: how far the words agree with what
is measured in the photo, beyond their agreement with other photos. Intervals are 95 %, by bootstrap. The first two
models are compared, photo by photo.

The CSV has columns file, mos and split. The photos of github.com/nisarahmedrana/BIQ2021 that are in its list of test
photos are `test`, as they were published, and the others are `train`; ours were resized to 336 x 336 by Lanczos and
stored as WebP of quality 80. `--out FOLDER` keeps predictions as they come, so that a stopped benchmark goes on, and
writes manifest.json, every figure; answers.csv, all scores with a hash for each photo, which is not ours to show; and
worst.csv, the first model's thirty worst photos, by ranks and by points.
"""
import argparse
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.stats import rankdata

from qponder.data import load_sample
from qponder.evaluate import swapped
from qponder.manifest import versions, write_json
from qponder.metrics import Interval, bootstrap, paired_bootstrap, plcc, srcc
from qponder.parts import Run, sha
from qponder.predict import Prediction, predict, values
from qponder.rate import Rater
from qponder.settings import read_settings
from qponder.stage import student_sha
from qponder.trace import parse


MODELS = ['nano', 'nano-ci', 'nano-base', 'nano@224']
DOUBLES = set(Path(__file__).with_name('biq2021-doubles.txt').read_text().split())


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

    @cached_property
    def aspects(self) -> tuple[np.ndarray, np.ndarray]:
        "Agreement of each answer's words with its own photo, and with others; 0 where nothing could be read."
        marks, read = np.zeros((2, len(self.said))), np.array([p.ok for p in self.said])
        marks[:, read] = swapped([p for p in self.said if p.ok])
        return tuple(marks)


def average(x: np.ndarray, _: np.ndarray) -> np.ndarray: return x.mean(-1)


def test_photos(data: Path, preset: str, home: Path) -> tuple[Dataset, np.ndarray]:
    "The test part as the preset shows it, and the hash of each photo's file."
    warnings.filterwarnings('ignore', message='.*doubles across the split')
    settings = read_settings(preset, overrides=[f'data={data}'])
    test, table = Run(home, settings).parts.test, pd.read_csv(data)
    own = table[table[settings.common.split_col] == 'test']
    assert len(own) == len(test), 'rows were left out, the two lists no longer match'
    return test, np.array([sha(data.parent / f) for f in own[settings.common.image_col]])


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
    own, other = a.aspects
    marks = dict(agreement=a.part('agreement'), aspects=own) | {'with other photos': other, 'grounding': own - other}
    return row | {k: bootstrap(average, v, a.truth) for k, v in marks.items()} | {'different reasonings': different}


def gain(one: Answers, other: Answers) -> dict[str, object]:
    "How much better the first model is than the second."
    row = dict(models=f'{one.model} - {other.model}', photos=one.photos, mode=one.mode)
    for which in ('expected', 'greedy'):
        row[f'SRCC {which}'] = paired_bootstrap(srcc, one.scores(which), other.scores(which), one.truth)
    if one.mode == 'score': return row
    for part in ('agreement', 'consistency'):
        row[part] = paired_bootstrap(average, one.part(part), other.part(part), one.truth)
    seen = [own - others for own, others in (one.aspects, other.aspects)]
    return row | {'grounding': paired_bootstrap(average, *seen, one.truth)}


def all_answers(found: list[list[Answers]], ids: dict[str, np.ndarray]) -> pd.DataFrame:
    "Every score, a row for each photo of the official test and of LIVE-C."
    parts = []
    for photos, photo in ids.items():
        mine = [a for one in found for a in one if a.photos == photos]
        columns = dict(photo=photo, photos=photos, clean=[p not in DOUBLES for p in photo], people=mine[0].truth)
        for a in mine:
            columns |= {f'{a.model} {a.mode} {which}': a.scores(which) for which in ('expected', 'greedy')}
            if a.mode == 'score': continue
            paid = {k: a.part(k) for k in ('agreement', 'consistency')} | {'grounding': np.subtract(*a.aspects)}
            columns |= {f'{a.model} {k}': v for k, v in paid.items()}
        parts.append(pd.DataFrame(columns).round(3))
    return pd.concat(parts)


def worst(a: Answers, photo: np.ndarray, n: int = 30) -> pd.DataFrame:
    "Where a model is farthest from people, by ranks and by points."
    said, texts = a.scores('expected'), [parse(p.text, p.finished).reasoning for p in a.said]
    rows = pd.DataFrame(dict(photo=photo, people=a.truth, expected=said, greedy=a.scores('greedy'), reasoning=texts))
    off = dict(ranks=rankdata(said) - rankdata(a.truth), points=said - a.truth)
    lists = [rows.assign(by=by, off=gap).iloc[np.argsort(-abs(gap))[:n]] for by, gap in off.items()]
    return pd.concat(lists).round(3)


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
    ask.add_argument('--data', required=True, type=Path, help='the CSV of BIQ2021: file, mos, split')
    ask.add_argument('--preset', default='nano-biq2021', help='says how the CSV is read and how large photos are')
    ask.add_argument('--models', nargs='+', default=MODELS, help='students or their folders, @ and pixels')
    ask.add_argument('--out', type=Path, default=Path('accuracy'), help='folder for predictions and manifest')
    args = ask.parse_args()
    test, photo = test_photos(args.data, args.preset, args.out)
    found = [answers(m, test, ~np.isin(photo, [*DOUBLES]), args.out) for m in args.models]
    rows = [figures(a) for one in found for a in one]
    gains = [gain(a, b) for a, b in zip(*found[:2])] if len(found) > 1 else []
    print(table(rows) + ('\n\n' + table(gains) if gains else ''))
    ids = {'official': photo, 'LIVE-C': np.array([sha(Path(p)) for p in load_sample()['path']])}
    all_answers(found, ids).to_csv(args.out / 'answers.csv', index=False)
    worst(found[0][0], photo).to_csv(args.out / 'worst.csv', index=False)
    write_json(args.out / 'manifest.json', dict(figures=[*map(plain, rows)], gains=[*map(plain, gains)],
        versions=versions(), models={m: student_sha(m.partition('@')[0]) for m in args.models},
        data=sha(args.data)))


if __name__ == '__main__': main()
