"""How long a rating takes, cold and warm, how many photos a second a folder gives, and how much memory that needs.

    python benchmarks/rate.py --photos 96

Every row is measured in a process of its own: cold is a fresh interpreter from its start to its end, one photo of
12 megapixels rated; warm is the median of five further photos in one process; a folder holds JPEGs of 512x512 made
from the sample, or of 12 megapixels made from Kodak's, and its first 16 warm up. No photo comes twice, for the stock
path remembers what it has seen. Prints a table; `--out FILE` writes it as JSON lines, with versions and threads.
"""
import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

from PIL import Image

from qponder import __version__
from qponder.fast import checkpoint, is_nano
from qponder.photo import ASSETS, open_image, photo_view, pristine

KEEP = 'from qponder.fast import keep_memory\nkeep_memory()\n' # as `qponder rate` does
COLD = KEEP + 'from qponder.rate import Rater; print(Rater(model).rate(photo, reasons=reasons))'
WARM = KEEP + '''
from statistics import median
from qponder.rate import Rater
rater, times = Rater(model), []
for photo in photos:
    start = time.perf_counter()
    rater.rate(photo, reasons=reasons)
    times.append(time.perf_counter() - start)
said['seconds'] = median(times[1:])
'''
FOLDER = KEEP + '''
from qponder.rate import Rater, rate_many, find_photos
rater, photos = Rater(model, size=size), find_photos([folder])
list(rate_many(rater, photos[:16], reasons))
start = time.perf_counter()
rated = list(rate_many(rater, photos[16:], reasons))
said['per_second'] = len(rated) / (time.perf_counter() - start)
assert all(r.score for r in rated)
'''
BRISQUE = '''
import numpy as np
from brisque import BRISQUE
from qponder.photo import open_image
from qponder.rate import find_photos
stock, photos = BRISQUE(url=False), find_photos([folder])
stock.score(np.array(open_image(photos[0])))
start = time.perf_counter()
for p in photos: stock.score(np.array(open_image(p)))
said['per_second'] = len(photos) / (time.perf_counter() - start)
'''
BEFORE = 'import json, time\nsaid = {}\n'
AFTER = '''
import resource, sys
scale = 2 ** 20 if sys.platform == 'darwin' else 2 ** 10
said['peak_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
if 'torch' in sys.modules: said['threads'] = sys.modules['torch'].get_num_threads()
print(json.dumps(said))
'''


def large_photos(folder: Path, views: int = 4) -> list[Path]:
    "The Kodak photos, and crops of them, enlarged to 12 megapixels, as JPEGs; the first six are no crops."
    folder.mkdir()
    paths = []
    for view in range(views):
        for p in pristine():
            paths.append(folder / f'{view}-{p.stem}.jpg')
            photo_view(open_image(p), view).resize((4000, 3000), Image.Resampling.LANCZOS).save(paths[-1], quality=92)
    return paths


def small_photos(folder: Path, n: int) -> Path:
    "Sample photos as JPEGs of 512x512, no two alike."
    folder.mkdir()
    found = sorted((ASSETS / 'livec_sample').rglob('*.webp'))
    for p in found[:n]: open_image(p).resize((512, 512)).save(folder / f'{p.stem}.jpg', quality=95)
    return folder


def child(code: str, **values) -> dict:
    "What a fresh interpreter says of itself after some code, and how long it lived."
    given = ''.join(f'{k} = {v!r}\n' for k, v in values.items())
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', BEFORE + given + code + AFTER], capture_output=True, text=True)
    if done.returncode: sys.exit(f'{code}failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1]) | {'lived': time.perf_counter() - start}


def cold(model: str, photo: Path, reasons: bool, repeats: int) -> dict:
    "One photo from nothing: the median of a few processes."
    runs = [child(COLD, model=model, photo=str(photo), reasons=reasons) for _ in range(repeats)]
    return runs[-1] | {'seconds': median(r['lived'] for r in runs)}


def measure(model: str, home: Path, photos: int, repeats: int) -> list[dict]:
    "Every row of the table."
    large, folder, rows = large_photos(home / 'large'), small_photos(home / 'small', photos), []
    for reasons in (True, False):
        said = 'with reasons' if reasons else 'score only'
        given = dict(model=model, reasons=reasons)
        rows += [dict(what=f'cold, {said}', **cold(model, large[0], reasons, repeats)),
                 dict(what=f'warm, {said}', **child(WARM, photos=[str(p) for p in large[:6]], **given)),
                 dict(what=f'folder, {said}', **child(FOLDER, folder=str(folder), size=0, **given)),
                 dict(what=f'folder of 12 megapixels, {said}',
                      **child(FOLDER, folder=str(large[0].parent), size=0, **given))]
    if is_nano(checkpoint(model)):
        rows.append(dict(what='folder, score only, 224 pixels',
                         **child(FOLDER, folder=str(folder), size=224, model=model, reasons=False)))
    found = importlib.util.find_spec('brisque')
    return rows + [dict(what='folder, BRISQUE', **child(BRISQUE, folder=str(folder)) if found else {})]


def cell(row: dict, key: str, digits: int) -> str: return f'{row[key]:.{digits}f}' if key in row else ''


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--model', default='nano', help='a student that ships with qponder, or its folder')
    ask.add_argument('--photos', type=int, default=96, help='photos in the folder, 17 to 300')
    ask.add_argument('--repeats', type=int, default=3, help='cold starts, whose median counts')
    ask.add_argument('--out', type=Path, help='JSON lines to write')
    args = ask.parse_args()
    with tempfile.TemporaryDirectory() as home: rows = measure(args.model, Path(home), args.photos, args.repeats)
    about = {'qponder': __version__} | {p: version(p) for p in ('torch', 'pillow', 'numpy')} | {'cpus': os.cpu_count()}
    print(f'{args.model}, {rows[0]["threads"]} threads, ' + ', '.join(f'{k} {v}' for k, v in about.items()))
    print('| | seconds | photos/s | peak MiB |\n|---|---:|---:|---:|')
    for r in rows:
        note = '' if len(r) > 1 else ' (not installed)'
        print(f'| {r["what"]}{note} | ' + ' | '.join(cell(r, k, d) for k, d in (
            ('seconds', 2), ('per_second', 1), ('peak_mb', 0))) + ' |')
    if args.out: args.out.write_text(''.join(json.dumps(r | about) + '\n' for r in rows))


if __name__ == '__main__': main()
