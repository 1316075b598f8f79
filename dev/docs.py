"""The documentation site, from the `_quarto.yml` that Quarto reads, made by smalldocs: pure Python, no Quarto needed.

nbdev resolves links and writes the API tables into `_proc`, the pages get a few small changes, smalldocs renders them
to `_docs`. Whatever it warns about is an error, and so is a link that leads nowhere.
"""
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

from fastcore.nbio import read_nb, write_nb

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r'(?<![\w-])\d+[a-z]*_(?=[\w-]+\.ipynb)')
SOURCE_LINK = re.compile(r'^\[source\]\(/blob/.*\n', re.M)


def adapt(
    page: Path,  # a notebook in `_proc`; renamed in place
) -> None:
    "Do to a page what smalldocs does not: drop its number and the directives in its prose."
    nb = read_nb(page)
    for cell in nb.cells:
        if cell.cell_type == 'raw': cell.source = re.sub(r'^output-file:.*\n', '', cell.source, flags=re.M)
        if cell.cell_type == 'markdown': cell.source = NUMBER.sub('', re.sub(r'\A(#\|.*\n)+', '', cell.source))
        for out in cell.get('outputs', []):
            if 'text/markdown' in out.get('data', {}):
                out['data']['text/markdown'] = SOURCE_LINK.sub('', out['data']['text/markdown'])
    page.unlink()
    write_nb(nb, page.with_name(NUMBER.sub('', page.name)))


class Targets(HTMLParser):
    "Collect the ids of a page and the links to other places of the site."
    def __init__(self, page: Path):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(page.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get('id'), attrs.get('name')}
        link = attrs.get('href') if tag == 'a' else attrs.get('src')
        if link and not re.match(r'[a-z]+:|//', link): self.links.add(link)


def broken(
    site: Path,  # a rendered site
) -> list[str]:  # one line for each link that leads nowhere, `page: link`
    "Follow every inner link of a site, to the file and to the place on the page."
    pages = {page.resolve(): Targets(page) for page in site.rglob('*.html')}

    def leads_nowhere(page, link):
        path, _, place = link.partition('#')
        target = (page.parent/path.partition('?')[0]).resolve() if path else page
        if target.is_dir(): target = target/'index.html'
        return not target.exists() or (place and target in pages and place not in pages[target].ids)

    return sorted(f'{page.relative_to(site.resolve())}: {link}'
                  for page, found in pages.items() for link in found.links if leads_nowhere(page, link))


def build() -> list[str]:  # what is wrong with the site, nothing when it is sound
    "Render the notebooks of this checkout to `_docs`."
    from nbdev.serve import proc_nbs
    from smalldocs.site import build as render

    staged = proc_nbs(n_workers=0, force=True)
    for page in staged.rglob('*.ipynb'): adapt(page)
    config = staged/'_quarto.yml'
    config.write_text(NUMBER.sub('', config.read_text(encoding='utf-8')), encoding='utf-8')
    warnings = render(staged, quiet=True).warnings
    site = ROOT/'_docs'
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(staged/'_docs', site)
    return warnings or broken(site)


if __name__ == '__main__':
    if sys.version_info < (3, 11): print('smalldocs needs Python 3.11: the docs are built on newer Pythons')
    elif problems := build(): sys.exit('\n  '.join(['The docs are not sound:', *problems]))
    else: print('The docs are in _docs')
