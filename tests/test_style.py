"The notebooks read well, as far as it can be counted: short cells, one idea each, shown at once, in prose."
import ast
import re
from pathlib import Path
from statistics import median, quantiles

import pytest
from fastcore.nbio import NbCell, md_frontmatter, nb_frontmatter, read_nb

NBS = Path(__file__).resolve().parents[1]/'nbs'
PAGES = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MODULES = [p for p in PAGES if p.parent == NBS and p.name != 'index.ipynb']
DEFS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
IMPORTS = ast.Import, ast.ImportFrom
PATH = re.compile(r'(?<![\w.:/])/(?:home|root|work|tmp|opt|mnt|srv|usr|Users)/')
RUN_TO_RUN = re.compile(r'\bat 0x[0-9a-f]{6}|\d(?:it/s|s/it)\]|\r')


def cells(page: Path) -> list[NbCell]:
    "The cells of a notebook, each knowing its name for messages."
    nb = read_nb(page)
    for c in nb.cells: c.name_ = f'{page.relative_to(NBS)} cell {c.idx_} ({c.id})'
    return nb.cells


def code(page: Path) -> list[NbCell]: return [c for c in cells(page) if c.cell_type == 'code']
def size(c: NbCell) -> int: return len(lines(c))
def defs(c: NbCell) -> list[ast.AST]: return [o for o in c.parsed_() or [] if isinstance(o, DEFS)]
def exported(c: NbCell) -> bool: return bool({'export', 'exporti', 'exports'} & c.directives.keys())
def only_imports(c: NbCell) -> bool: return all(isinstance(o, IMPORTS) for o in c.parsed_() or [])


def lines(c: NbCell) -> list[str]:
    "The lines of a code cell that count: neither blank nor a directive."
    return [s for s in c.source.splitlines() if s.strip() and not s.lstrip().startswith('#|')]


def listed(found: list[NbCell]) -> str:
    "One line for each cell: where it is, and what it defines or how it begins."
    begins = {c.id: next((o.name for o in defs(c)), next(iter(lines(c)), '')) for c in found}
    return ''.join(f'\n  {c.name_}: {begins[c.id]}' for c in found)


def exports(pages: list[Path]) -> list[NbCell]:
    "The exported cells that hold more than imports."
    return [c for p in pages for c in code(p) if exported(c) and not only_imports(c)]


def shows(c: NbCell) -> bool:
    "Does this cell run something for the reader, instead of defining more?"
    return not exported(c) and not only_imports(c)


def not_shown(page: Path) -> list[NbCell]:
    "The exported definitions that the next code cell neither shows nor tests."
    found = code(page)
    followed = zip(found, [*found[1:], None])
    return [c for c, after in followed if exported(c) and defs(c) and not (after and shows(after))]


def words(page: Path) -> int:
    "The words of prose: Markdown without its code blocks."
    prose = (re.sub(r'```.*?```', '', c.source, flags=re.S) for c in cells(page) if c.cell_type == 'markdown')
    return sum(len(p.split()) for p in prose)


def text(c: NbCell) -> str:
    "What the stored outputs of a cell say."
    return '\n'.join([o.get('text', '') for o in c.outputs] +
                     [str(v) for o in c.outputs for kind, v in o.get('data', {}).items() if kind.startswith('text/')])


def public(c: NbCell) -> list[tuple[str, ast.AST]]:
    """The public parameters and dataclass fields that a cell defines, each with the name of its owner.
    What a method of a derived class takes is documented where it comes from, so only its `__init__` is asked."""
    def own(o, prefix='', only=()):
        hidden = o.name.startswith('_') and o.name not in ('__init__', '__call__')
        if hidden or (only and o.name not in only): return []
        if isinstance(o, ast.ClassDef):
            only = ['__init__'] if o.bases else ()
            inner = [p for f in o.body if isinstance(f, DEFS) for p in own(f, f'{prefix}{o.name}.', only)]
            fields = [f for f in o.body if isinstance(f, ast.AnnAssign) and not f.target.id.startswith('_')]
            return inner + [(prefix + o.name, f) for f in fields]
        params = [*o.args.posonlyargs, *o.args.args, *o.args.kwonlyargs]
        return [(prefix + o.name, p) for p in params if p.arg not in ('self', 'cls')]
    return [p for o in defs(c) for p in own(o)]


def undocumented(c: NbCell) -> list[str]:
    "The public parameters without a type, or without the comment on their line that documents them."
    rows = c.source.splitlines()
    return [f'{c.name_}: {owner}({p.arg if isinstance(p, ast.arg) else p.target.id})'
            for owner, p in public(c) if not p.annotation or '#' not in rows[p.end_lineno - 1]]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
class TestPage:
    def test_opens_with_title_and_subtitle(self, page):
        first = next((c.source for c in cells(page) if c.cell_type == 'markdown'), '')
        assert {'title', 'description'} <= md_frontmatter(first).keys(), f'{page.name} needs `# title` and a `> …` line'

    def test_stored_outputs_are_evidence(self, page):
        noisy = [c for c in code(page) if any(o.output_type == 'error' or o.get('name') == 'stderr' for o in c.outputs)]
        bad = noisy + [c for c in code(page) if PATH.search(text(c)) or RUN_TO_RUN.search(text(c))]
        assert not bad, f'errors, warnings, absolute paths, addresses or progress bars in stored outputs:{listed(bad)}'


@pytest.mark.parametrize('page', MODULES, ids=lambda p: p.stem)
class TestModule:
    def test_exported_cells_are_short(self, page):
        assert not (long := [c for c in exports([page]) if size(c) > 30]), f'over 30 lines:{listed(long)}'

    def test_public_parameters_are_documented(self, page):
        missing = [m for c in exports([page]) for m in undocumented(c)]
        assert not missing, 'these want a type and a comment on their line:\n  ' + '\n  '.join(missing)

    def test_imports_come_from_smaller_numbers(self, page):
        later = '|'.join(q.stem.partition('_')[2] for q in MODULES if q >= page)
        wrong = re.compile(rf'^\s*(from|import) qponder\.({later})\b', re.M)
        bad = [c for c in code(page) if exported(c) and wrong.search(c.source)]
        assert not bad, f'imports from its own or a larger number:{listed(bad)}'

    def test_private_names_stay_at_home(self, page):
        private = re.compile(r'from qponder\.\w+ import (?:[^()\n]*|\([^)]*)\b_[A-Za-z]')
        bad = [c for c in code(page) if exported(c) and private.search(c.source)]
        assert not bad, f'imports a private name of another module:{listed(bad)}'


class TestModules:
    def test_one_definition_to_a_cell(self):
        total = [c for c in exports(MODULES) if defs(c)]
        bad = [c for c in total if len(defs(c)) > 1]
        assert len(bad) <= .1 * len(total), f'several definitions in {len(bad)} of {len(total)} cells:{listed(bad)}'

    def test_exported_cells_are_short_as_a_rule(self):
        sizes = [size(c) for c in exports(MODULES)]
        middle, most = median(sizes), quantiles(sizes, n=10)[-1]
        assert middle <= 8 and most <= 20, f'lines of an exported cell: median {middle} (up to 8), p90 {most} (20)'

    def test_definitions_are_shown_at_once(self):
        total = sum(bool(defs(c)) for c in exports(MODULES))
        bad = [c for p in MODULES for c in not_shown(p)]
        assert len(bad) <= .15 * total, f'{len(bad)} of {total} definitions have no demo or test next:{listed(bad)}'

    def test_prose_outweighs_code(self):
        count = {p.stem: (words(p), sum(size(c) for c in code(p))) for p in MODULES}
        rate = sum(w for w, _ in count.values()) / sum(n for _, n in count.values())
        assert rate >= 1.5, f'{rate:.2f} words of prose to a line of code (words, lines): {count}'

    def test_comments_are_rare(self):
        found = [(c, s) for p in MODULES for c in code(p) for s in lines(c)]
        bad = [c for c, s in found if s.lstrip().startswith('#')]
        assert len(bad) < .03 * len(found), f'{len(bad)} of {len(found)} lines are comments:{listed(bad)}'


def test_the_lab_log_is_a_record():
    "A build never runs it: its stored outputs are what was found."
    log = read_nb(NBS/'experiments/lab-log.ipynb')
    assert nb_frontmatter(log).get('skip_exec'), '`skip_exec: true` is missing in the front matter of the lab log'
