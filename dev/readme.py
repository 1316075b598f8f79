"README.md is `nbs/index.ipynb` as Markdown: its cells, and the outputs stored with them."
import re
import sys
from pathlib import Path

from fastcore.nbio import NbCell, read_nb

ROOT = Path(__file__).resolve().parents[1]
INDEX, README = ROOT/'nbs/index.ipynb', ROOT/'README.md'
NOTE = '<!-- Written from nbs/index.ipynb by `make write`: edit the notebook. -->'
LINK = re.compile(r'(\]\(|\bsrc="|\bhref=")(?![a-z]+:|[#/])')


def body(
    cell: NbCell,
) -> str:  # its source without the directives on top
    "Drop the lines that only nbdev and Quarto read."
    return re.sub(r'\A(\s*#\|.*\n?)+', '', cell.source).strip()


def output(
    out: dict,  # a stored output of a code cell
) -> str:  # Markdown, or plain text as an indented block
    "Show an output in the best form that a README can hold; a picture without a text is an error."
    data = out.get('data') or {'text/plain': out.get('text', '')}
    if 'text/markdown' in data: return data['text/markdown'].strip()
    if 'text/plain' in data and not any(kind.startswith('image/') for kind in data):
        return re.sub(r'^(?=.)', '    ', data['text/plain'].rstrip(), flags=re.M)
    raise ValueError('index.ipynb stores a picture, which a README cannot hold: link a file from a Markdown cell')


def blocks(
    cell: NbCell,
) -> list[str]:  # the Markdown blocks it becomes, none when it is hidden
    "Turn one cell into Markdown."
    options = cell.directives
    if cell.cell_type == 'raw' or 'hide' in options or options.get('include') == 'false': return []
    if cell.cell_type == 'markdown': return [LINK.sub(r'\1nbs/', body(cell))]
    code = [] if options.get('echo') == 'false' or not body(cell) else [f'```python\n{body(cell)}\n```']
    return code + [output(o) for o in cell.outputs if options.get('output') != 'false']


def readme(
    index: Path = INDEX,  # a notebook
) -> str:  # Markdown
    "Write the whole README, its links leading into `nbs/`."
    title, *rest = [b for cell in read_nb(index).cells for b in blocks(cell)]
    head, _, below = title.partition('\n')
    return '\n\n'.join([head, NOTE, *filter(None, [below.strip()]), *rest]) + '\n'


def settle(
    path: Path,  # a generated file
    text: str,  # what should stand in it
    source: str,  # what it is made from
) -> None:
    "Write a generated file, or, with `--check`, exit unless it stands there already."
    if '--check' not in sys.argv: path.write_text(text, encoding='utf-8')
    elif not path.exists() or path.read_text(encoding='utf-8') != text:
        sys.exit(f'{path.relative_to(ROOT)} is not what {source} gives: run `make write`')


if __name__ == '__main__': settle(README, readme(), 'nbs/index.ipynb')
