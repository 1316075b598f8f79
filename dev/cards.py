"The model cards of the students that ship, with the figures that the benchmarks stored for `nbs/tutorials/nano`."
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORED, ASSETS = ROOT/'nbs/tutorials/nano', ROOT/'qponder/assets'
NOTE = '<!-- Written by `make write` from dev/card.md and the figures in nbs/tutorials/nano. -->'
SETS = {'official': 'BIQ2021 test (2,000)', 'clean': 'its photos without a near double in training (1,793)',
        'LIVE-C': 'LIVE-C sample (300), nothing trained or chosen there'}
MODES = {'reason': 'with reasons', 'score': 'bare score'}
KINDS = 'SRCC expected', 'SRCC greedy', 'PLCC expected'
ABOUT = {
    'nano': 'Q-Ponder in small: a vision-language model that reasons about what harms a photo and scores it from 1 to '
            '5.\nIt runs on any laptop, offline.',
    'nano-ci': 'Q-Ponder-CI in small: nano as it was after the cold start, before GRPO. It ships to be compared with.'}


def stored(
    name: str,  # of a file without its suffix
) -> dict:
    "What a benchmark wrote."
    return json.loads((STORED/f'{name}.json').read_text(encoding='utf-8'))


def number(
    found: dict,  # an interval: value, low, high
    sign: str = '',  # '+' for a difference
) -> str:
    "A figure and its interval."
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def results(
    model: str,  # as it is called in the figures
) -> str:  # a Markdown table
    "What the model reached on each set of photos."
    head = '| photos | answers | SRCC, expected score | SRCC, as written | PLCC, expected score | unreadable |'
    rows = [f"| {SETS[r['photos']]} | {MODES[r['mode']]} | {' | '.join(number(r[k]) for k in KINDS)} | {r['failed']} |"
            for r in stored('accuracy')['figures'] if r['model'] == model]
    return '\n'.join([head, '|---|---|---|---|---|---:|', *rows])


def gains() -> str:  # Markdown
    "What GRPO added on the clean test, as it reasons."
    row, = (r for r in stored('accuracy')['gains'] if (r['photos'], r['mode']) == ('clean', 'reason'))
    named = {'SRCC as written': 'SRCC greedy', 'SRCC of the expected score': 'SRCC expected',
             'agreement of the words with score and photo': 'agreement',
             'consistency as GRPO rewards it': 'consistency'}
    return '\n'.join(f'- {what}: {number(row[key], "+")}' for what, key in named.items())


def faults() -> str:  # a sentence
    "Does it name what was done to a photo?"
    found = stored('faults')
    return (f"Six pristine photos, spoiled in nineteen ways and five severities: the reasons name the damage in "
            f"{found['named']:.1%} of 570\nratings, and of two severities the worse one has the lower score in "
            f"{found['ordered']:.1%} of 1,140 pairs.")


def different() -> str:  # a count
    "How many reasonings nano has for 2,000 photos."
    return next(str(r['different reasonings']) for r in stored('accuracy')['figures'])


def card(
    model: str,  # nano or nano-ci
) -> str:  # Markdown
    "The whole card."
    text = (ROOT/'dev/card.md').read_text(encoding='utf-8')
    found = dict(model=model, note=NOTE, about=ABOUT[model], results=results(model), gains=gains(), faults=faults(),
                 different=different())
    for name, value in found.items(): text = text.replace('{' + name + '}', value)
    return text


if __name__ == '__main__':
    for model in ABOUT:
        path, new = ASSETS/model/'README.md', card(model)
        if '--check' not in sys.argv: path.write_text(new, encoding='utf-8')
        elif not path.exists() or path.read_text(encoding='utf-8') != new:
            sys.exit(f'{path.relative_to(ROOT)} is not what dev/cards.py gives: run `make write`')
