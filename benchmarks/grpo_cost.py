"""How the cost of GRPO grows with the group, the photos' resolution and the model, stock and as qponder runs it.

    python benchmarks/grpo_cost.py --out grpo-cost.jsonl

One thing is changed at a time, from a nano of 224 pixels, width 256, depth 4, with eight rollouts a photo. The students
are untrained, so that every answer is exactly as long as the limit and the rows can be compared. Seconds are per update
of eight photos; the first update warms up and is not counted. `--out FILE` writes JSON lines, with versions, threads
and the hash of the tower.
"""
import argparse
import json
import os
import tempfile
import warnings
from pathlib import Path

import torch
from grpo import measure
from safetensors.torch import load_file
from transformers.utils import logging

from qponder.build import ImagePolicy, NanoSettings, build_nano
from qponder.data import load_sample
from qponder.distill import distill
from qponder.grpo import GRPOSettings
from qponder.manifest import versions
from qponder.model import save_student
from qponder.parts import sha
from qponder.photo import ASSETS
from qponder.teacher import MeasuredTeacher

TOWER = ASSETS / 'nano-base' / 'tower.safetensors'
PLAIN = dict(group_size=8, pixels=224, width=256, depth=4)
CHANGES = [{}, *({k: v} for k, v in (('group_size', 4), ('group_size', 16), ('pixels', 168), ('pixels', 280),
                                      ('width', 512), ('depth', 8)))]
HEAD = 'rollouts', 'pixels', 'width', 'depth', 'trained weights', 'stock, s', 'qponder, s', 'times'


def untrained(folder: Path, texts: list[str], pixels: int, width: int, depth: int) -> int:
    "Save a student of this shape; how many weights are trained."
    tower = {k.removeprefix('model.vision_tower.'): v for k, v in load_file(TOWER).items()}
    shape = NanoSettings(width=width, depth=depth, heads=width // 64)
    student = build_nano(tower, texts, shape, ImagePolicy(size=pixels))
    student.model.generation_config.eos_token_id = None
    save_student(student, folder)
    return sum(p.numel() for p in student.model.parameters() if p.requires_grad)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--steps', type=int, default=3, help='updates, the first of which is not counted')
    ask.add_argument('--tokens', type=int, default=64, help='length of every answer')
    ask.add_argument('--out', type=Path, help='JSON lines to write')
    args = ask.parse_args()
    warnings.simplefilter('ignore')
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    about = versions() | dict(cpus=os.cpu_count(), threads=torch.get_num_threads(), tower=sha(TOWER))
    print('| ' + ' | '.join(HEAD) + ' |\n' + '|---:' * len(HEAD) + '|')
    with tempfile.TemporaryDirectory() as home:
        records = distill(load_sample('train').select(range(8)), MeasuredTeacher(), home)
        for i, change in enumerate(CHANGES):
            shape, folder = PLAIN | change, Path(home) / str(i)
            how = GRPOSettings(steps=args.steps, group_size=shape['group_size'], prompts_per_step=8,
                max_completion_length=args.tokens, save_every=10 ** 6, preflight_prompts=0)
            size = untrained(folder, [r.raw for r in records], *(shape[k] for k in ('pixels', 'width', 'depth')))
            stock, ours = (measure(folder, path, records, how, 0) for path in ('stock', 'unfused attention'))
            a, b = (r['seconds_per_step'] for r in (stock, ours))
            cells = *shape.values(), f'{size / 1e6:.1f} M', f'{a:.1f}', f'{b:.1f}', f'{a / b:.1f}'
            print('| ' + ' | '.join(map(str, cells)) + ' |', flush=True)
            rows = [shape | dict(weights=size, tokens=args.tokens) | r | about for r in (stock, ours)]
            if args.out:
                with args.out.open('a') as f: f.writelines(json.dumps(r) + '\n' for r in rows)


if __name__ == '__main__': main()
