"""Is what stands in the repository what `nbdev-clean` and `nbdev-export` would write?

Both run on a copy, so the answer does not depend on what is committed, and nobody's files are touched.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HAND_WRITTEN = '__init__.py'  # nbdev reads the version from it


def sources(
    root: Path,  # a checkout
) -> dict[Path, bytes]:  # each notebook and module by its path in the checkout
    "Read the files that nbdev writes."
    files = [*root.glob('nbs/**/*.ipynb'), root/'nbs/llms.txt', *root.glob('qponder/*.py')]
    return {f.relative_to(root): f.read_bytes() for f in files if f.is_file() and '.ipynb_checkpoints' not in f.parts}


def rewritten(
    root: Path,  # a checkout; it is only read
) -> dict[Path, bytes]:  # the same files after `nbdev-clean` and `nbdev-export`, modules written anew
    "Clean and export a copy of the checkout."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'qponder'
        shutil.copytree(root/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('.*'))
        (copy/'qponder').mkdir()
        for name in ('pyproject.toml', f'qponder/{HAND_WRITTEN}'): shutil.copy(root/name, copy/name)
        env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}  # with IN_TEST nbdev-export does nothing
        for command in ('nbdev-clean', 'nbdev-export'):
            subprocess.run([Path(sys.executable).with_name(command)], cwd=copy, env=env, check=True)
        return sources(copy)


def stale(
    root: Path = ROOT,  # a checkout
) -> list[str]:  # the files to write anew, add or remove, as paths in the checkout
    "List the notebooks that are not clean, and the modules that are not what their notebooks say."
    have, want = sources(root), rewritten(root)
    return sorted(str(f) for f in have.keys() | want.keys() if have.get(f) != want.get(f))


if __name__ == '__main__':
    if files := stale():
        sys.exit('\n  '.join(['Not clean, or not what the notebooks export (run `make write`):', *files]))
