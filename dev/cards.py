"The model cards of the students that ship, with the figures that the benchmarks stored for `nbs/tutorials/nano`."
import json

import pandas as pd

from dev.readme import ROOT, settle
from qponder.metrics import Interval

STORED, ASSETS = ROOT/'nbs/tutorials/nano', ROOT/'qponder/assets'
NOTE = '<!-- Written by `make write` from dev/card.md and the figures in nbs/tutorials/nano. -->'
SETS = {'official': 'BIQ2021 test (2,000)', 'clean': 'its photos without a near duplicate in training (1,793)',
        'LIVE-C': 'LIVE-C sample (300), none of whose scores was trained on'}
MODES = {'reason': 'with reasons', 'score': 'bare score'}
KINDS = 'SRCC expected', 'SRCC greedy', 'PLCC expected'
ABOUT = {
    'nano': 'Q-Ponder in small: a vision-language model that reasons about what harms a photo and scores it from 1 to '
            '5.\nIt runs on any laptop, offline.',
    'nano-ci': 'Q-Ponder-CI in small: nano as it was after the cold start, before GRPO. It ships to be compared with.'}

FAULTS = {'faults': 'The six Kodak photos that ship, which taught nano-base and helped to choose nano',
          'faults-new': 'Seven photos that ship with scikit-image and scikit-learn, used for neither training nor '
                        'choice'}
WORST = {'nano-ci': 'Its worst photos were not looked at; *nano* has such a list.', 'nano': '''\
Its thirty worst photos of the BIQ2021 test, by points:

- In fourteen it is too strict. What is meant looks like a fault: confetti, fish, ink, paint and a leaf that are
  nothing but strong colour (*oversaturation*, *colour cast*), letters on bricks (*banding*), a white shop front
  (*overexposure*); or a photo is dark or blurred, and people found it good.
- In sixteen it is too kind. These are snapshots of a phone: meals, people, rooms, a hand. Whatever people held
  against them (in the full file, in composition, in what is shown) nano does not see.

By difference of ranks, where six of the thirty are the same, nineteen are too kind: most of them everyday snapshots,
four good photos which it takes for the very best.'''}


def stored(
    name: str,  # of a file without its suffix
) -> dict:
    "What a benchmark wrote."
    return json.loads((STORED/f'{name}.json').read_text(encoding='utf-8'))


def row(
    kind: str,  # 'figures' or 'gains'
    **known: str,  # such as photos='clean'
) -> dict:
    "The first row of these, with reasons."
    return next(r for r in stored('accuracy')[kind] if (known | {'mode': 'reason'}).items() <= r.items())


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
             'the reward for consistency, lower where the score is inaccurate': 'consistency',
             'how much better the words agree with their own photo than with others': 'grounding'}
    return '\n'.join(f'- {what}: {Interval(**row("gains", photos="clean")[key])}' for what, key in named.items())


def faults(
    name: str,  # of what `benchmarks/faults.py` stored
    photos: str,  # which
) -> str:  # Markdown
    "Does it name what was done to a photo?"
    found, share = stored(name), lambda key: str(Interval(**found[key]))
    spoiled = 5 * len(found['photos']) * (len(found['table']) - 1)  # its last row is about all kinds
    return (f"{photos}, degraded in nineteen ways and five severities ({spoiled:,} ratings):\n\n"
            f"- the reasons name the damage: {share('named')}, as the main problem: {share('main')}\n"
            f"- of two severities the worse scores lower: {share('ordered')}\n"
            f"- something else is named, too: {found['also_others']:.2f}; of the photos as they are, "
            f"{found['unspoiled_called_faulty']:.2f} are said to have a fault")


def highest(
    model: str,  # as it is called in the figures
) -> str:  # a score
    "The best that is expected of any test photo."
    return f"{pd.read_csv(STORED/'answers.csv')[f'{model} reason expected'].max():.2f}"


def card(
    model: str,  # nano or nano-ci
) -> str:  # Markdown
    "The whole card."
    text = (ROOT/'dev/card.md').read_text(encoding='utf-8')
    different = row('figures', photos='official', model=model)['different reasonings']
    found = dict(model=model, note=NOTE, about=ABOUT[model], results=results(model), gains=gains(), worst=WORST[model],
                 faults='\n\n'.join(faults(f'{model}-{name}', photos) for name, photos in FAULTS.items()),
                 highest=highest(model), different=f'{different:,}')
    for name, value in found.items(): text = text.replace('{' + name + '}', value)
    return text


if __name__ == '__main__':
    for model in ABOUT: settle(ASSETS/model/'README.md', card(model), 'dev/cards.py')
