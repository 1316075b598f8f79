"The repository is in order: what is generated is fresh, what is linked is there, no file names a place but its own."
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dev.readme import README, readme
from dev.sync import stale
from qponder import __version__

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


def test_notebooks_are_clean_and_exported():
    assert not (files := stale()), f'run `make write`: {files}'


def test_readme_is_the_index_notebook():
    assert README.read_text(encoding='utf-8') == readme(), 'run `make write`'


def test_readme_runs_from_the_top_level(monkeypatch, capsys):
    "Whoever copies its first lines gets what stands below them."
    monkeypatch.chdir(ROOT)
    text = README.read_text(encoding='utf-8')
    code, said = re.search(r'(?s)((?:```python\n.*?```\n\n)+)    (.*?)\n', text).groups()
    exec(re.sub(r'```(python)?', '', code), {})
    photo, score = said.split(' of 5')[0].rsplit(': ', 1)
    told = capsys.readouterr().out
    assert (ROOT/photo).is_file() and told.startswith(f'{photo}: ')
    assert abs(float(told.split(' of 5')[0].rsplit(': ', 1)[1]) - float(score)) < .15


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
