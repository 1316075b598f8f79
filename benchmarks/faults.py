"""Does the reasoning name known damage, and does the score follow its severity?

    python benchmarks/faults.py --model nano --photos FOLDER --out faults

Every photo is rated as it is, and spoiled in nineteen ways and five severities. *Named*: the reasoning calls the
fault that the damage causes; *as the main one*: it calls it the main problem. *Ordered*: of two severities of the
same damage to the same photo, the worse one has the lower score. What else is named, and what is named in a photo
that nobody spoiled, stands below the table. Intervals are 95 %, by bootstrap over photos. `--out FOLDER` keeps
predictions.jsonl and manifest.json. Without `--photos` the six Kodak photos that ship with qponder are used:
nano-base was taught with them, and nano was chosen with them, so look at other photos, too.
"""
import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from qponder.claims import claims
from qponder.degrade import DEGRADATIONS, degrade
from qponder.manifest import versions, write_json
from qponder.metrics import Interval, bootstrap
from qponder.parts import sha
from qponder.photo import open_image, pristine
from qponder.rate import Rater, find_photos
from qponder.stage import student_sha

UNSPOILED = 'none', 0


def rate_spoiled(rater: Rater, path: Path, side: int) -> list[dict]:
    "A row for the photo itself, and one for each damage and severity."
    photo = open_image(path).resize((side, side))
    asked = [UNSPOILED, *((k, s) for k in DEGRADATIONS for s in range(1, 6))]
    rows = []
    for i in range(0, len(asked), 16):
        some = asked[i:i + 16]
        ratings = rater.rate_sights([rater.look(degrade(photo, k, s) if s else photo, f'{path.name} {k} {s}')
                                     for k, s in some])
        rows += [dict(photo=path.name, kind=k, severity=s, score=r.score, expected=r.expected, status=r.status,
                      reasoning=r.reasoning) | found(r.reasoning, k) for (k, s), r in zip(some, ratings)]
    return rows


def found(reasoning: str, kind: str) -> dict:
    "Whether the inflicted fault is named, as the main one, and how many others are."
    said, fault = claims(reasoning), DEGRADATIONS[kind].fault if kind in DEGRADATIONS else None
    return dict(named=fault in said.faults, main=fault is not None and said.main == fault,
                others=len(said.faults.keys() - {fault}))


def ordered(rows: list[dict]) -> list[bool]:
    "For each two severities of a damage to a photo: does the worse one score lower? An unreadable answer does not."
    known = {(r['photo'], r['kind'], r['severity']): r['expected'] for r in rows}
    pairs = [((p, k, s), (p, k, t)) for p, k in {(r['photo'], r['kind']) for r in rows}
             for s, t in combinations(range(1, 6), 2)]
    return [None not in (known[a], known[b]) and known[a] > known[b] for a, b in pairs]


def mean(rows: list[dict], key: str) -> float: return float(np.mean([r[key] for r in rows]))


def shares(rows: list[dict]) -> list[dict]:
    "Shares by damage, and of all."
    out = []
    for kind in [*DEGRADATIONS, None]:
        mine = [r for r in rows if kind in (r['kind'], None)]
        by = [f"{mean([r for r in mine if r['severity'] == s], 'named'):.0%}" for s in range(1, 6)]
        out.append({'damage': kind or 'all', 'named, by severity 1-5': ' '.join(by),
                    'named': f"{mean(mine, 'named'):.0%}", 'as the main one': f"{mean(mine, 'main'):.0%}",
                    'ordered': f'{np.mean(ordered(mine)):.0%}'})
    return out


def by_photo(rows: list[dict], share) -> Interval:
    "A share of all rows, its interval by bootstrap over photos."
    each = np.array([share([r for r in rows if r['photo'] == p]) for p in sorted({r['photo'] for r in rows})])
    return bootstrap(lambda x, _: x.mean(-1), each, each)


def summary(rows: list[dict]) -> dict[str, Interval | float]:
    "The shares of all damage, and what was named besides."
    spoiled, plain = ([r for r in rows if bool(r['severity']) == bad] for bad in (True, False))
    return dict(named=by_photo(spoiled, lambda x: mean(x, 'named')), main=by_photo(spoiled, lambda x: mean(x, 'main')),
                ordered=by_photo(spoiled, lambda x: np.mean(ordered(x))),
                also_others=float(np.mean([r['others'] > 0 for r in spoiled])),
                unspoiled_called_faulty=float(np.mean([r['others'] > 0 for r in plain])))


def table(found: list[dict]) -> str:
    "Markdown."
    lines = [found[0], ['---', '---', '---:', '---:', '---:'], *(r.values() for r in found)]
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
    damage, known = shares([r for r in rows if r['severity']]), summary(rows)
    print(f'{args.model}, {len(photos)} photos, {len(rows)} ratings, '
          f"{sum(r['status'] != 'ok' for r in rows)} without a score\n\n{table(damage)}\n")
    for name, share in known.items(): print(f'{name}: {share if isinstance(share, Interval) else format(share, ".3f")}')
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'predictions.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
        write_json(args.out / 'manifest.json', dict(model=args.model, weights=student_sha(args.model),
            side=args.side, versions=versions(), table=damage, photos={p.name: sha(p) for p in photos},
            **{k: vars(v) if isinstance(v, Interval) else v for k, v in known.items()}))


if __name__ == '__main__': main()
