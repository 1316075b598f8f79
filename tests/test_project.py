"The repository is in order: what is generated is fresh, what is linked is there, no file names a place but its own."
import json
import re
import shlex
import subprocess
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from dev.readme import README, readme
from dev.sync import stale
from qponder import __version__
from qponder.cli import given, make_parser
from qponder.settings import check_keys, read_overrides, stage_settings

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
LOCAL = re.compile(r'(?<![\w.:/])/(?:home|root|work|opt|mnt|srv|Users)/[\w.-]+|file:///\w')
REGISTRY = re.compile(r'pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.org|index-url|find-links')


def tracked() -> list[Path]:
    "The text files that git would commit."
    if not (ROOT/'.git').exists(): pytest.skip('not a git checkout')
    command = ['git', 'ls-files', '--cached', '--others', '--exclude-standard']
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT/name for name in names.splitlines()]
    return [f for f in files if f.is_file() and not f.is_symlink() and b'\0' not in f.read_bytes()[:8000]]


def pages(node) -> list[str]:
    "The notebooks that a part of `_quarto.yml` names, in order."
    if isinstance(node, str): return [node] if node.endswith('.ipynb') else []
    return [page for child in (node.values() if isinstance(node, dict) else node) for page in pages(child)]


def shell(page: Path) -> list[str]:
    "The lines of a page's ```sh blocks, and those of its code cells that begin with an exclamation mark."
    notebook = page.suffix == '.ipynb'
    cells = json.loads(page.read_text(encoding='utf-8'))['cells'] if notebook else [
        dict(cell_type='markdown', source=[page.read_text(encoding='utf-8')])]
    text = {kind: '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == kind)
            for kind in ('markdown', 'code')}
    blocks = re.findall(r'```(?:sh|bash|console)\n(.*?)```', text['markdown'], re.S)
    return [line for block in (*blocks, *re.findall(r'^!((?:.*\\\n)*.*)', text['code'], re.M))
            for line in block.replace('\\\n', ' ').splitlines()]


def commands(page: Path) -> list[list[str]]:
    "The arguments of every `qponder …` on a page, however it is launched."
    found, between = [], ('&&', '||', ';', '|', '>')
    for line in shell(page):
        if 'qponder' not in line: continue
        words = shlex.split(line.replace('$(which qponder)', '&& qponder'), comments=True)
        begin = [i for i, w in enumerate(words) if w == 'qponder' and (not i or words[i - 1] in between)]
        found += [[*takewhile(lambda w: w not in between, words[i + 1:])] for i in begin]
    return found


def test_commands_are_found(tmp_path):
    page = tmp_path/'page.md'
    page.write_text('```sh\npip install qponder  # qponder no\nx $(which qponder) run \\\n --preset a && ls\n```\n'
                    '```python\nqponder no\n```', encoding='utf-8')
    assert commands(page) == [['run', '--preset', 'a']]
    page = page.with_suffix('.ipynb')
    cell = dict(cell_type='code', source=['!qponder rate a.jpg \\\n', '  --json'])
    page.write_text(json.dumps(dict(cells=[cell])), encoding='utf-8')
    assert commands(page) == [['rate', 'a.jpg', '--json']]


def test_commands_in_pages_exist(capsys):
    found = [(page, words) for page in (README, *sorted(NBS.rglob('*.ipynb'))) for words in commands(page)]
    assert len(found) > 20
    for page, words in found:
        try: args = make_parser().parse_args(words)
        except SystemExit: pytest.fail(f'{page.name}: qponder {shlex.join(words)}: {capsys.readouterr().err}')
        check_keys(read_overrides(given(args)), stage_settings())


def test_notebooks_are_clean_and_exported():
    assert not (files := stale()), f'run `make write`: {files}'


def test_readme_is_the_index_notebook():
    assert README.read_text(encoding='utf-8') == readme(), 'run `make write`'


def test_readme_runs_from_the_top_level(monkeypatch, capsys):
    "Whoever copies its first lines gets what stands below them."
    monkeypatch.chdir(ROOT)
    text = README.read_text(encoding='utf-8')
    code, said = re.search(r'(?s)((?:```python\n.*?```\n\n)+)((?:    [^\n]*\n\n)+)', text).groups()
    exec(re.sub(r'```(python)?', '', code), {})
    scores = lambda text: [float(s) for s in re.findall(r'(\d\.\d) of 5', text)]
    assert len(scores(said)) == 2 and scores(capsys.readouterr().out) == pytest.approx(scores(said), abs=.15)


@pytest.mark.parametrize('link', ['qponder/settings.ini', 'nbs/_quarto.yml'])
def test_links_lead_to_the_top_level(link):
    link = ROOT/link
    assert link.is_symlink() and link.readlink() == Path('..')/link.name and link.is_file()


def test_sidebar_lists_every_page_once():
    listed = pages(yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar'])
    have = {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    differ = f'only in _quarto.yml: {set(listed) - have}; only in nbs: {have - set(listed)}'
    assert sorted(listed) == sorted(have), differ


@pytest.mark.parametrize('what', [LOCAL, REGISTRY], ids=['absolute paths', 'package registries'])
def test_files_name_no_place_but_their_own(what):
    others = [f for f in tracked() if f != Path(__file__).resolve()]
    found = [f'{f.relative_to(ROOT)}: {m[0]}' for f in others for m in what.finditer(f.read_text(encoding='utf-8'))]
    assert not found, found


@pytest.mark.parametrize('file, before', [('CHANGELOG.md', '## '), ('CITATION.cff', 'version: ')])
def test_version_is_named(file, before):
    line = re.compile(rf'^{before}{re.escape(__version__)}\b', re.M)
    assert line.search((ROOT/file).read_text(encoding='utf-8')), f'{file} does not name {__version__}'
