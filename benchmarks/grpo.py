"""How many rollouts a second GRPO makes and learns from: the stock path, and qponder's shared one, in one run.

    python benchmarks/grpo.py --steps 4 --group-size 8 --photos 8

Same checkpoint, photos, rewards and seed for both. Stock: `AutoModelForImageTextToText` and `GRPOTrainer` as they come.
Shared: the tower looks at each photo once (`remember`), each prompt is read once (`share_prompts`), unfused attention
(`plain_attention`). Prints a table; `--out FILE` writes it as JSON too. The first step warms up and is not counted, but
its losses are compared: they must agree to 1e-4.
"""
import argparse
import json
import platform
import tempfile
import time
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import GRPOTrainer

from qponder.data import ASSETS, sample
from qponder.distill import MeasuredTeacher, distill
from qponder.grpo import GRPOSettings, grpo_config, grpo_rows
from qponder.model import plain_attention, remember, share_prompts
from qponder.reward import trl_rewards


class Clock:
    "Adds up the seconds spent in functions."
    def __init__(self): self.spent = {}

    def timed(self, name, fn):
        def run(*args, **kwargs):
            start = time.perf_counter()
            try: return fn(*args, **kwargs)
            finally: self.spent[name] = self.spent.get(name, 0) + time.perf_counter() - start
        run.__name__ = getattr(fn, '__name__', name)
        return run


class Watch(TrainerCallback):
    "Seconds of each step, and its loss."
    def __init__(self): self.seconds, self.losses = [], []

    def on_step_begin(self, args, state, control, **kwargs): self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs): self.seconds.append(time.perf_counter() - self.start)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if 'reward' in (logs or {}): self.losses.append(float(logs['loss']))


def measure(name: str, records: list, settings: GRPOSettings, shared: bool, seed: int) -> dict:
    "Run a few steps of GRPO and say where the time went."
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(ASSETS / name, dtype=torch.float32)
    if shared: plain_attention(share_prompts(remember(model, len(records))))
    clock, watch, (functions, weights) = Clock(), Watch(), trl_rewards()
    model.generate = clock.timed('generate', model.generate)
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(model, [clock.timed('reward', f) for f in functions],
            args=grpo_config(Path(out), settings, weights, seed), train_dataset=grpo_rows(records),
            processing_class=AutoProcessor.from_pretrained(ASSETS / name), callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        warm = {}
        watch.on_step_end = lambda *a, _end=watch.on_step_end, **k: (_end(*a, **k), warm or warm.update(clock.spent))
        trainer.train()
    seconds, steps = sum(watch.seconds[1:]), settings.steps - 1
    parts = {k: (clock.spent[k] - warm[k]) / steps for k in clock.spent}
    rollouts = settings.group_size * settings.prompts_per_step
    return dict(path='shared' if shared else 'stock', rollouts_per_second=rollouts * steps / seconds,
                seconds_per_step=seconds / steps, **parts, update=seconds / steps - sum(parts.values()),
                first_loss=watch.losses[0])


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--student', default='nano', help='a student that ships with qponder')
    ask.add_argument('--steps', type=int, default=4, help='updates, the first of which is not counted')
    ask.add_argument('--group-size', type=int, default=8, help='rollouts per photo')
    ask.add_argument('--photos', type=int, default=8, help='photos per update')
    ask.add_argument('--per-pass', type=int, default=64, help='rollouts in memory at once while learning')
    ask.add_argument('--seed', type=int, default=0)
    ask.add_argument('--out', type=Path, help='JSON file to write')
    args = ask.parse_args()
    warnings.simplefilter('ignore')
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = sample().select(range(args.photos))
    with tempfile.TemporaryDirectory() as out: records = distill(rows, MeasuredTeacher(seed=args.seed), out)
    settings = GRPOSettings(steps=args.steps, group_size=args.group_size, prompts_per_step=args.photos,
                            rollouts_per_pass=args.per_pass, save_every=10 ** 6, preflight_prompts=0)
    results = [measure(args.student, records, settings, shared, args.seed) for shared in (False, True)]
    stock, shared = results
    gap = abs(stock['first_loss'] - shared['first_loss'])
    print(f'{args.student}, {args.photos} photos x {args.group_size} rollouts, {torch.get_num_threads()} threads, '
          f'torch {torch.__version__}')
    print('| path | rollouts/s | s/step | generate | reward | update |\n|---|---:|---:|---:|---:|---:|')
    for r in results:
        cells = (r[k] for k in ('rollouts_per_second', 'seconds_per_step', 'generate', 'reward', 'update'))
        print(f'| {r["path"]} | ' + ' | '.join(f'{c:.2f}' for c in cells) + ' |')
    print(f'speed-up {shared["rollouts_per_second"] / stock["rollouts_per_second"]:.2f}, '
          f'first losses differ by {gap:.1e}')
    if args.out:
        machine = dict(processor=platform.machine(), threads=torch.get_num_threads(), torch=torch.__version__)
        asked = {k: v for k, v in vars(args).items() if k != 'out'}
        args.out.write_text(json.dumps(dict(asked=asked, machine=machine, results=results), indent=1) + '\n')
    if gap > 1e-4: raise SystemExit('the losses differ by more than 1e-4')


if __name__ == '__main__': main()
