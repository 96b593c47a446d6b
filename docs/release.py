"""Builds a release and checks it: ``make release`` writes wheel, sdist and bill of materials into dist/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TWINE = "twine==6.2.0"
PACKAGES = {"controller", "dashboard", "engine_adapter", "online_learning", "store"}
NEEDED = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt"}


def main() -> None:
    """Build, check, and run the demo from the wheel in an environment of its own."""
    dist = ROOT / "dist"
    release = version()
    for old in dist.glob("sagesched_controller-*"):
        old.unlink()
    run(sys.executable, "-m", "hatchling", "build", "-d", dist)
    wheel, sdist = built(dist, release)
    check_wheel(wheel)
    check_sdist(sdist)
    with tempfile.TemporaryDirectory(prefix="sagesched-release-") as folder:
        python = environment(Path(folder, "checks"), TWINE)
        run(python, "-m", "twine", "check", "--strict", wheel, sdist)
        python = environment(Path(folder, "fresh"), f"{wheel}[controller]")
        finished = demo(python, Path(folder))
    sys.stdout.write(f"{wheel.name}, {sdist.name}: checked; the demo served {finished} requests\n")


def version() -> str:
    """The version, which the change log's newest section must have with a date; raises `SystemExit` otherwise."""
    release = str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if newest is None or not re.fullmatch(rf"{re.escape(release)} - \d{{4}}-\d{{2}}-\d{{2}}", newest[1]):
        raise SystemExit(f"CHANGELOG.md begins with {newest and newest[1]!r}: write '## {release} - YYYY-MM-DD'")
    return release


def built(dist: Path, release: str) -> tuple[Path, Path]:
    """Wheel and sdist of the version."""
    stem = f"sagesched_controller-{release}"
    return dist / f"{stem}-py3-none-any.whl", dist / f"{stem}.tar.gz"


def check_wheel(wheel: Path) -> None:
    """Raise `SystemExit` unless the wheel holds the five packages, the command, and nothing else."""
    with zipfile.ZipFile(wheel) as files:
        tops = {name.split("/")[0] for name in files.namelist()}
    extra = {top for top in tops if not top.endswith(".dist-info")} ^ PACKAGES
    if extra:
        raise SystemExit(f"{wheel.name} and the five packages differ by {sorted(extra)}")


def check_sdist(sdist: Path) -> None:
    """Raise `SystemExit` unless the sdist holds what it takes to build the wheel, and no cache or environment."""
    with tarfile.open(sdist) as files:
        names = {Path(name).relative_to(Path(name).parts[0]).as_posix() for name in files.getnames()}
    missing = NEEDED - names | {package for package in PACKAGES if f"{package}/__init__.py" not in names}
    stray = [name for name in names if re.search(r"(^|/)(\.venv|\.cache|__pycache__|dist|shared)(/|$)", name)]
    if missing or stray:
        raise SystemExit(f"{sdist.name} lacks {sorted(missing)} and has {sorted(stray)[:5]}")


def environment(folder: Path, *requirements: str) -> Path:
    """A fresh environment with these packages; returns its Python."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", *requirements)
    return python


def demo(python: Path, folder: Path) -> int:
    """Run the demo for some seconds with the installed command, away from the sources; requests that were served."""
    command = python.with_name("sagesched")
    words = ["demo", "--duration", "5", "--no-dashboard", "--json", "--store", "store"]
    finished = json.loads(run(command, *words, cwd=folder).splitlines()[-1])["requests_finished"]
    if not finished:
        raise SystemExit("the demo served no request")
    return int(finished)


def run(*command: object, cwd: Path = ROOT) -> str:
    """A command's output; raises `SystemExit` with all that it said when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
