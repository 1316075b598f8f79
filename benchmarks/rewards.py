"""Does it matter how the score's accuracy is paid, and whether consistency is paid too? A small GRPO for each reward.

    python benchmarks/rewards.py --data biq2021.csv --out rewards

Every run starts from the cold start that ships (`nano-ci`); a seed draws its photos from a thousand training photos of
BIQ2021, the same for all rewards. All are judged, with reasons, on the same validation photos of the preset, which
nobody was trained on. The test part is not touched. What is finished is not run again, and a stopped run goes on, so
give the same command again; all rewards of one seed come before the next seed. `--spare` judges on the other validation
photos instead: to choose settings, such as the learning rate, with photos that no table shows.

Prints means over the seeds. `--out FOLDER` keeps for each run its log, predictions, model (100 MB) and manifest, and in
FOLDER/results what the page `nbs/experiments/rewards.ipynb` reads: scores.csv (no photos), log.csv and runs.json.
"""
import argparse
import json
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qponder.manifest import write_json
from qponder.metrics import Interval, Metric, bootstrap, plcc, srcc
from qponder.parts import Parts, Run, hash_parts, list_parts, load_parts
from qponder.predict import Prediction, predict, read_predictions, values
from qponder.rate import Rater
from qponder.run import STAGES, traces
from qponder.settings import Common, read_settings
from qponder.share import tensor_hash
from qponder.stage import Stage, run_stage
from qponder.store import read_rows
from qponder.trace import parse

PRESET, COLD = 'nano-biq2021-start', 'nano-ci'
KERNELS = dict(threshold=.35, gaussian=.3, exponential=.3, adaptive=.5)  # width in points on 1-5
CONSISTENCY = 'none', 'vote', 'text', 'difference', 'care'  # who reads; a judge needs a server
PAY = .4  # for agreement, beside .5 for accuracy and .1 for layout
LOGGED = ('reward', 'reward_std', 'frac_reward_zero_std', 'answers/abs_error', 'answers/readable',
          'consistency/agreement', 'entropy')


class SharedTower(torch.nn.Module):
    "A frozen tower that looks at each photo once, whichever student asks."
    def __init__(self, tower: torch.nn.Module):
        super().__init__()
        self.tower, self.memo = tower, {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        keys = [tensor_hash(p) for p in pixels]
        new = {k: i for i, k in enumerate(keys) if k not in self.memo}
        if new: self.memo |= zip(new, self.tower(pixels[[*new.values()]]).bfloat16())
        return torch.stack([self.memo[k] for k in keys]).float()


def choose(common: Common, pool: int, photos: int, spare: bool) -> Parts:
    "Photos to practise on and to judge by, drawn once for all runs; no test photos."
    warnings.filterwarnings('ignore', message='.*doubles across the split')
    parts = load_parts(common)
    draw = lambda rows: rows.select(np.random.default_rng(0).permutation(len(rows)))
    train, val = draw(parts.train).select(range(pool)), draw(parts.val)
    val = val.select(range(photos, len(val)) if spare else range(photos))
    return Parts(train, val, val, hash_parts(list_parts(train=train, val=val)))


def rate(run: Run, folder: Path, model: str | Path, name: str, tower: list) -> None:
    "A student's predictions for the validation photos; `tower` holds the shared one after the first call."
    rater = Rater(model)
    tower[:] = tower or [SharedTower(rater.nano.net.vision_tower)]
    rater.nano.net.vision_tower = tower[0]
    predict(None, run.parts.val, folder / 'predictions.jsonl', name, 'val', run.settings.stages['reward'],
            ask=lambda _, images: rater.ask(images), distilled=run.settings.stages['distill'])


def train(run: Run, name: str, tower: list) -> None:
    "One run: GRPO, then predictions."
    from qponder.adapt import load_trainee
    from qponder.grpo import grpo
    stages, folder = run.settings.stages, run.folder / name
    grpo(load_trainee(COLD, stages['student']), traces(run), folder, stages['grpo'], stages['reward'],
         seed=run.settings.common.seed, how=stages['student'])
    rate(run, folder, folder / 'model', name, tower)


def grid(args: argparse.Namespace) -> None:
    "Run what is not finished."
    common = [f'data={args.data}', f'student={COLD}', 'distill_spoiled=0', f'grpo_steps={args.updates}',
              f'grpo_learning_rate={args.learning_rate}', f'grpo_group_size={args.group_size}',
              f'grpo_prompts_per_step={args.prompts}', 'grpo_preflight_prompts=0', 'grpo_save_every=10',
              'grpo_warmup=0']
    first, tower = Run(args.out, read_settings(PRESET, overrides=common), partial(choose, pool=args.pool,
                       photos=args.photos, spare=args.spare)), []
    run_stage(STAGES[0], first)
    run_stage(Stage('cold', lambda run: rate(run, run.folder / 'cold', COLD, 'cold', tower), ('student',)), first)
    for seed, kernel, paid in product(args.seeds, args.kernels, args.consistency):
        own = [f'seed={seed}', f'reward_kernel={kernel}', f'reward_width={KERNELS[kernel]}',
               *(['reward_w_consistency=0'] if paid == 'none' else
                 [f'reward_w_consistency={PAY}', f'reward_consistency={paid}'])]
        name, settings = f'{kernel}-{paid}-{seed}', read_settings(PRESET, overrides=common + own)
        run = Run(args.out, settings, lambda _: first.parts)
        uses = 'student', 'student_', 'grpo_', 'reward_'
        run_stage(Stage(name, lambda run, name=name: train(run, name, tower), uses, ('distill/kept.jsonl',)), run)


def finished(out: Path) -> dict[str, list[Prediction]]:
    "Predictions of all finished runs, the cold start first."
    names = sorted(p.parent.name for p in out.glob('*/manifest.json') if (p.parent / 'predictions.jsonl').is_file())
    return {n: read_predictions(out / n / 'predictions.jsonl') for n in sorted(names, key=lambda n: n != 'cold')}


def collect(out: Path) -> pd.DataFrame:
    "Write what the page reads; the scores of all runs, a row per photo, without the photos."
    (out / 'results').mkdir(exist_ok=True)
    said, logs, runs = finished(out), [], {}
    columns = dict(people=[p.score for p in said['cold']])
    for name, answers in said.items():
        assert [p.path for p in answers] == [p.path for p in said['cold']], f'{name}: rated other photos'
        for which in ('expected', 'greedy'): columns[f'{name} {which}'] = values(answers, which, worst=True)
        columns[f'{name} agreement'] = [p.reward['agreement'] for p in answers]
        note = json.loads((out / name / 'manifest.json').read_text())
        runs[name] = dict(readable=float(np.mean([p.ok for p in answers])), seconds=note['wall_seconds'],
            reasonings=len({parse(p.text, p.finished).reasoning for p in answers}), versions=note.get('versions'),
            inputs=note['inputs'])
        if name != 'cold':
            rows = [r for r in read_rows(out / name / 'log.jsonl') if 'reward' in r]
            logs += [dict(run=name, step=r['step']) | {k: round(r[k], 4) for k in LOGGED if k in r} for r in rows]
    scores = pd.DataFrame(columns)
    scores.round(3).sort_values([*scores]).to_csv(out / 'results/scores.csv', index=False)
    pd.DataFrame(logs).to_csv(out / 'results/log.csv', index=False)
    write_json(out / 'results/runs.json', dict(photos=len(scores), runs=runs))
    return scores


def average(x: np.ndarray, _: np.ndarray) -> np.ndarray: return x.mean(-1)


def contrast(metric: Metric, which: str, scores: pd.DataFrame, one: list[str], other: list[str]) -> Interval:
    "How much higher a metric is for some runs than for others, on average; the interval is over photos."
    said = scores[[f'{run} {which}' for run in [*one, *other]]].to_numpy()
    def difference(x, people):
        each = metric(np.moveaxis(x, -1, 0), people)
        return each[:len(one)].mean(0) - each[len(one):].mean(0)
    return bootstrap(difference, said, scores['people'])


COLUMNS = {'SRCC expected': (srcc, 'expected'), 'PLCC expected': (plcc, 'expected'), 'SRCC greedy': (srcc, 'greedy'),
           'agreement': (average, 'agreement')}


def figures(scores: pd.DataFrame) -> pd.DataFrame:
    "A row for the cold start, and for each reward one with what its runs gained over it, on average."
    runs = list(dict.fromkeys(c.rpartition(' ')[0] for c in scores if c != 'people'))
    rows = {'cold start': {c: bootstrap(m, scores[f'cold {w}'], scores['people']) for c, (m, w) in COLUMNS.items()}}
    for cell in dict.fromkeys(r.rpartition('-')[0] for r in runs[1:]):
        mine = [r for r in runs if r.rpartition('-')[0] == cell]
        gained = {c: contrast(m, w, scores, mine, ['cold']) for c, (m, w) in COLUMNS.items()}
        rows[f'{cell}, {len(mine)} runs, gained'] = gained
    return pd.DataFrame.from_dict(rows, 'index')


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--data', required=True, help='the CSV of BIQ2021: file, mos, split')
    ask.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3], help='of photos and sampling')
    ask.add_argument('--kernels', nargs='+', default=[*KERNELS][:3], choices=KERNELS, help='what accuracy is paid by')
    ask.add_argument('--consistency', nargs='+', default=[*CONSISTENCY], choices=CONSISTENCY, help='who reads')
    ask.add_argument('--updates', type=int, default=12, help='of GRPO, to each run')
    ask.add_argument('--prompts', type=int, default=8, help='photos per update')
    ask.add_argument('--group-size', type=int, default=4, help='rollouts per photo')
    ask.add_argument('--learning-rate', type=float, default=2e-4, help='peak')
    ask.add_argument('--pool', type=int, default=1000, help='training photos that the runs draw from')
    ask.add_argument('--photos', type=int, default=400, help='validation photos to judge by')
    ask.add_argument('--spare', action='store_true', help='judge by the other validation photos')
    ask.add_argument('--out', type=Path, default=Path('rewards'), help='folder for runs and results')
    args = ask.parse_args()
    grid(args)
    print(figures(collect(args.out)).to_string())


if __name__ == '__main__': main()
