"""Does the reasoning name known damage, and does the score follow its severity?

    python benchmarks/faults.py --model nano --photos FOLDER --out faults

Every photo is spoiled in nineteen ways and five severities and then rated. *Named*: the reasoning calls the fault that
the damage causes. *Ordered*: of two severities of the same damage to the same photo, the worse one has the lower
score. Prints a table; `--out FOLDER` keeps predictions.jsonl and manifest.json. Without `--photos` the six pristine
photos that ship with qponder are used. This is what nano-base and nano were taught, so look at other photos, too.
"""
import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from qponder.degrade import DEGRADATIONS, degrade
from qponder.photo import open_image, pristine
from qponder.rate import Rater, find_photos
from qponder.run import sha, student_sha, versions, write_json
from qponder.trace import claims


def rate_spoiled(rater: Rater, path: Path, side: int) -> list[dict]:
    "A row for each damage and severity of one photo."
    photo, asked = open_image(path).resize((side, side)), [(k, s) for k in DEGRADATIONS for s in range(1, 6)]
    rows = []
    for i in range(0, len(asked), 19):
        some = asked[i:i + 19]
        ratings = rater.rate_sights([rater.look(degrade(photo, k, s), f'{path.name} {k} {s}') for k, s in some])
        rows += [dict(photo=path.name, kind=k, severity=s, score=r.score, expected=r.expected, status=r.status,
                      named=DEGRADATIONS[k].fault in claims(r.reasoning).faults, reasoning=r.reasoning)
                 for (k, s), r in zip(some, ratings)]
    return rows


def ordered(rows: list[dict]) -> list[bool]:
    "For each two severities of a damage to a photo: does the worse one score lower? An unreadable answer does not."
    known = {(r['photo'], r['kind'], r['severity']): r['expected'] for r in rows}
    pairs = [((p, k, s), (p, k, t)) for p, k in {(r['photo'], r['kind']) for r in rows}
             for s, t in combinations(range(1, 6), 2)]
    return [None not in (known[a], known[b]) and known[a] > known[b] for a, b in pairs]


def shares(rows: list[dict]) -> list[dict]:
    "Shares by damage, and of all."
    found = []
    for kind in [*DEGRADATIONS, None]:
        mine = [r for r in rows if kind in (r['kind'], None)]
        by = [f"{np.mean([r['named'] for r in mine if r['severity'] == s]):.0%}" for s in range(1, 6)]
        named, order = np.mean([r['named'] for r in mine]), np.mean(ordered(mine))
        found.append({'damage': kind or 'all', 'named, by severity 1-5': ' '.join(by), 'named': f'{named:.0%}',
                      'ordered': f'{order:.0%}'})
    return found


def table(found: list[dict]) -> str:
    "Markdown."
    lines = [found[0], ['---', '---', '---:', '---:'], *(r.values() for r in found)]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--model', default='nano', help="a student that ships with qponder, or a checkpoint's folder")
    ask.add_argument('--photos', nargs='+', type=Path, help='pristine photos or folders')
    ask.add_argument('--side', type=int, default=336, help='photos are squeezed to a square of this side first')
    ask.add_argument('--out', type=Path, help='folder for predictions and manifest')
    args = ask.parse_args()
    photos, rater = find_photos(args.photos) if args.photos else pristine(), Rater(args.model)
    rows = [row for path in photos for row in rate_spoiled(rater, path, args.side)]
    found = shares(rows)
    print(f'{args.model}, {len(photos)} photos, {len(rows)} ratings, '
          f"{sum(r['status'] != 'ok' for r in rows)} without a score\n\n{table(found)}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'predictions.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
        write_json(args.out / 'manifest.json', dict(model=args.model, side=args.side, versions=versions(),
            weights=student_sha(args.model),
            table=found, photos={p.name: sha(p) for p in photos}, ordered=float(np.mean(ordered(rows))),
            named=float(np.mean([r['named'] for r in rows]))))


if __name__ == '__main__': main()
