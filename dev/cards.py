"The model cards of the students that ship, with the figures that the benchmarks stored for `nbs/tutorials/nano`."
import json

from dev.readme import ROOT, settle
from qponder.evaluate import Interval

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


def row(
    kind: str,  # 'figures' or 'gains'
    photos: str,  # a key of `SETS`
) -> dict:
    "The first row about these photos, with reasons: nano's, or its gain over nano-ci."
    return next(r for r in stored('accuracy')[kind] if (r['photos'], r['mode']) == (photos, 'reason'))


def results(
    model: str,  # as it is called in the figures
) -> str:  # a Markdown table
    "What the model reached on each set of photos."
    head = '| photos | answers | SRCC, expected score | SRCC, as written | PLCC, expected score | unreadable |'
    said = lambda r: ' | '.join(str(Interval(**r[k])) for k in KINDS)
    rows = [f"| {SETS[r['photos']]} | {MODES[r['mode']]} | {said(r)} | {r['failed']} |"
            for r in stored('accuracy')['figures'] if r['model'] == model]
    return '\n'.join([head, '|---|---|---|---|---|---:|', *rows])


def gains() -> str:  # Markdown
    "What GRPO added on the clean test, as it reasons."
    named = {'SRCC as written': 'SRCC greedy', 'SRCC of the expected score': 'SRCC expected',
             'agreement of the words with score and photo': 'agreement',
             'consistency as GRPO rewards it': 'consistency'}
    return '\n'.join(f'- {what}: {Interval(**row("gains", "clean")[key])}' for what, key in named.items())


def faults() -> str:  # a sentence
    "Does it name what was done to a photo?"
    found = stored('faults')
    spoiled = len(found['photos']) * (len(found['table']) - 1)  # its last row is about all kinds
    return (f"{len(found['photos'])} pristine photos, spoiled in nineteen ways and five severities: the reasons name "
            f"the damage in {found['named']:.1%} of {5 * spoiled:,}\nratings; of two severities the worse scores "
            f"lower in {found['ordered']:.1%} of {10 * spoiled:,} pairs.")


def card(
    model: str,  # nano or nano-ci
) -> str:  # Markdown
    "The whole card."
    text = (ROOT/'dev/card.md').read_text(encoding='utf-8')
    found = dict(model=model, note=NOTE, about=ABOUT[model], results=results(model), gains=gains(), faults=faults(),
                 different=str(row('figures', 'official')['different reasonings']))
    for name, value in found.items(): text = text.replace('{' + name + '}', value)
    return text


if __name__ == '__main__':
    for model in ABOUT: settle(ASSETS/model/'README.md', card(model), 'dev/cards.py')
