"""How many rollouts a second GRPO makes and learns from: the stock path and qponder's, in one run.

    python benchmarks/grpo.py --steps 4 --group-size 8 --photos 8

Same checkpoint, photos, rewards and seed for all. Stock: `AutoModelForImageTextToText` and `GRPOTrainer` as they come.
Then one thing more at a time: the tower looks at each photo once (`remember`), each prompt is read once
(`share_prompts`), attention is unfused (`plain_attention`). Prints a table; `--out FILE` writes it as JSON lines too.
The first step warms up and is not counted. On the same rollouts the losses of all paths must agree to 1e-4.
"""
import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import GRPOTrainer

from qponder.ask import encode
from qponder.build import Student
from qponder.data import load_sample
from qponder.distill import distill
from qponder.fast import checkpoint
from qponder.grpo import GRPOSettings, grpo_config, grpo_rows
from qponder.manifest import versions
from qponder.photo import open_image
from qponder.rollouts import trl_rewards
from qponder.share import plain_attention, remember, share_prompts
from qponder.stage import student_sha
from qponder.teacher import MeasuredTeacher


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
    "Seconds of each step, and what the clock said after the first."
    def __init__(self, clock: Clock): self.clock, self.seconds, self.first = clock, [], None

    def on_step_begin(self, args, state, control, **kwargs): self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)
        self.first = self.first or dict(self.clock.spent)


STEPS = {'stock': lambda model: model, 'tower remembered': lambda model: remember(model, 4096),
         'prompts shared': share_prompts, 'unfused attention': plain_attention}


def build(name: str, path: str) -> torch.nn.Module:
    "The student's model with all changes up to `path`."
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(name), dtype=torch.float32)
    for change in list(STEPS.values())[:list(STEPS).index(path) + 1]: change(model)
    return model


def losses(name: str, records: list, settings: GRPOSettings) -> dict[str, float]:
    "The loss of every path on the same rollouts, in float32."
    stock = Student(build(name, 'stock'), AutoProcessor.from_pretrained(checkpoint(name)), name)
    rows = encode(stock, [open_image(r.path) for r in records[:2] for _ in range(settings.group_size)])
    prompt = rows['input_ids'].shape[1]
    rows['input_ids'] = stock.model.generate(**rows, do_sample=True, top_k=0, temperature=settings.temperature,
                                             max_new_tokens=settings.max_completion_length)
    rows['attention_mask'] = torch.ones_like(rows['input_ids'])
    labels = rows['input_ids'].index_fill(1, torch.arange(prompt), -100)
    labels[labels == stock.processor.tokenizer.pad_token_id] = -100
    with torch.no_grad(): return {p: build(name, p)(**rows, labels=labels).loss.item() for p in STEPS}


def measure(name: str, path: str, records: list, settings: GRPOSettings, seed: int) -> dict:
    "Run a few steps of GRPO and say where the time went."
    torch.manual_seed(seed)
    model = build(name, path)
    clock, (functions, weights) = Clock(), trl_rewards()
    watch = Watch(clock)
    model.generate = clock.timed('generate', model.generate)
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(model, [clock.timed('reward', f) for f in functions],
            args=grpo_config(Path(out), settings, weights, seed), train_dataset=grpo_rows(records),
            processing_class=AutoProcessor.from_pretrained(checkpoint(name)), callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds, steps, warm = sum(watch.seconds[1:]), settings.steps - 1, watch.first
    parts = {k: (clock.spent[k] - warm[k]) / steps for k in clock.spent}
    return dict(path=path, rollouts_per_second=settings.rollouts * steps / seconds, seconds_per_step=seconds / steps,
                **parts, update=seconds / steps - sum(parts.values()))


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--student', default='nano', help='a student that ships with qponder')
    ask.add_argument('--steps', type=int, default=4, help='updates, the first of which is not counted')
    ask.add_argument('--group-size', type=int, default=8, help='rollouts per photo')
    ask.add_argument('--photos', type=int, default=8, help='photos per update')
    ask.add_argument('--per-pass', type=int, default=64, help='rollouts in memory at once while learning')
    ask.add_argument('--seed', type=int, default=0)
    ask.add_argument('--out', type=Path, help='JSON lines to write')
    args = ask.parse_args()
    warnings.simplefilter('ignore')
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = load_sample('train').select(range(args.photos))
    with tempfile.TemporaryDirectory() as out: records = distill(rows, MeasuredTeacher(seed=args.seed), out)
    settings = GRPOSettings(steps=args.steps, group_size=args.group_size, prompts_per_step=args.photos,
                            rollouts_per_pass=args.per_pass, save_every=10 ** 6, preflight_prompts=0)
    results = [measure(args.student, path, records, settings, args.seed) for path in STEPS]
    stock, ours = results[0], results[-1]
    same = losses(args.student, records, settings)
    gap = max(same.values()) - min(same.values())
    print(f'{args.student}, {args.photos} photos x {args.group_size} rollouts, {torch.get_num_threads()} threads, '
          f'torch {torch.__version__}')
    print('| path | rollouts/s | s/step | generate | reward | update |\n|---|---:|---:|---:|---:|---:|')
    for r in results:
        cells = (r[k] for k in ('rollouts_per_second', 'seconds_per_step', 'generate', 'reward', 'update'))
        print(f'| {r["path"]} | ' + ' | '.join(f'{c:.2f}' for c in cells) + ' |')
    print(f'{ours["rollouts_per_second"] / stock["rollouts_per_second"]:.1f} times the stock path; '
          f'the losses of the same rollouts differ by {gap:.1e}')
    about = dict(student=args.student, weights=student_sha(args.student), group_size=args.group_size,
                 photos=args.photos, threads=torch.get_num_threads(), **versions())
    if args.out: args.out.write_text(''.join(json.dumps(r | {'loss': same[r['path']]} | about) + '\n' for r in results))
    if gap > 1e-4: raise SystemExit('the losses differ by more than 1e-4')


if __name__ == '__main__': main()
