"Every notebook runs from top to bottom, but for the cells that are flagged in `[tool.nbdev]`."
import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_notebook

CONFIG = get_config(__file__)
SLOW = 'experiments/rewards', # a hundred bootstraps of stored runs


def page(path):
    "A notebook, named after its place."
    name = path.relative_to(CONFIG.nbs_path).with_suffix('').as_posix()
    return pytest.param(path, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize('page', [*map(page, sorted(nbglob(CONFIG.nbs_path, as_path=True)))])
def test_notebook(page, capfd):
    passed, _ = run_notebook(page, skip_flags=CONFIG.tst_flags.split(), basepath=CONFIG.config_path)
    if not passed: pytest.fail(capfd.readouterr().err, pytrace=False)
