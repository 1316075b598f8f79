"""Does the wheel work where nobody has this checkout?

It is built through the source distribution, installed into an environment of its own that borrows its dependencies
here, and used from an empty folder.
"""
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHOTO = 'qponder/assets/kodak'
LIMIT = 100e6  # bytes that PyPI takes


def run(
    *command: str | Path,
    cwd: Path,  # the folder to run it in
) -> str:  # what it printed
    "Run a command; its failure is ours, with what it said."
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{" ".join(map(str, command))} failed:\n{done.stdout}{done.stderr}')
    return done.stdout


def install(
    wheel: Path,
    home: Path,  # where the new environment goes
) -> Path:  # its folder of commands
    "Install the wheel alone; a `.pth` file lets it find the dependencies installed here."
    venv.create(home, with_pip=False)
    bin = home/'bin'
    site = Path(run(bin/'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=home).strip())
    (site/'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    run(sys.executable, '-m', 'pip', '--python', bin/'python', 'install', '--no-deps', '--no-index', wheel, cwd=home)
    return bin


def check() -> None:
    "Build, install, write the settings, rate a photo."
    with tempfile.TemporaryDirectory() as tmp:
        tmp, away = Path(tmp), Path(tmp)/'away'
        away.mkdir()
        run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp, ROOT, cwd=ROOT)
        wheel = next(tmp.glob('*.whl'))
        assert wheel.stat().st_size < LIMIT, f'{wheel.stat().st_size / 1e6:.1f} MB are too many for PyPI'
        bin = install(wheel, tmp/'env')
        where = run(bin/'python', '-c', 'import qponder; print(qponder.__file__)', cwd=away).strip()
        assert Path(where).is_relative_to(tmp.resolve()), f'qponder comes from {where}, not from the wheel'
        run(bin/'qponder', 'init', cwd=away)
        assert (away/'settings.ini').read_bytes() == (ROOT/'settings.ini').read_bytes(), 'other settings in the wheel'
        photo = sorted((Path(where).parent.parent/PHOTO).glob('*.webp'))[0]
        rating = json.loads(run(bin/'qponder', 'rate', photo, '--json', cwd=away))
        assert 1 <= rating['score'] <= 5, f'no score: {rating}'
        print(f'the wheel rates {photo.name}: {rating}')


if __name__ == '__main__': check()
