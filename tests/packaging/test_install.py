"""What an installation says when it is not whole, and the ways to install."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("release")


@pytest.fixture(scope="module")
def wheel(release: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of these sources."""
    folder = tmp_path_factory.mktemp("dist")
    release.run(sys.executable, "-m", "hatchling", "build", "-d", folder, "-t", "wheel")
    return release.built(folder, release.version())[0]  # type: ignore[no-any-return]


@pytest.fixture
def bare(wheel: Path, tmp_path: Path) -> Path:
    """The Python of an environment that holds the wheel's files, and nothing else."""
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=False, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(packages)
    return folder / "bin" / "python"


def _said(python: Path, folder: Path, *words: str) -> str:
    """The one line in which a command is refused."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    return line


def test_the_base_installation_says_what_to_install(bare: Path, tmp_path: Path) -> None:
    """The command of the serving environment, which has no command line: one line and no trace."""
    line = _said(bare, tmp_path, "-c", "from controller.__main__ import main; main()")
    assert line == 'sagesched: typer is missing: pip install "sagesched-controller[controller,dashboard]"'


def test_the_command_is_the_one_that_says_so(wheel: Path) -> None:
    """The wheel's entry point."""
    with zipfile.ZipFile(wheel) as files:
        [entry] = [files.read(name).decode() for name in files.namelist() if name.endswith("entry_points.txt")]
    assert "sagesched = controller.__main__:main" in entry


def test_an_environment_behind_a_link_is_its_own(bare: Path, tmp_path: Path) -> None:
    """Homes and environments are often reached by links."""
    (tmp_path / "link").symlink_to(bare.parents[1])
    line = _said(tmp_path / "link" / "bin" / "python", tmp_path, "-c", "from controller.__main__ import main; main()")
    assert line.startswith("sagesched: typer is missing")


def test_a_folder_that_hides_a_package_is_named(bare: Path, tmp_path: Path) -> None:
    """Python imports from the working directory first."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "__init__.py").touch()
    line = _said(bare, tmp_path, "-m", "controller", "--help")
    assert line.startswith(f"sagesched: not SageSched's own: 'store' is {tmp_path / 'store'}; start from another")


def test_another_package_of_the_same_names_is_named(bare: Path, tmp_path: Path) -> None:
    """Installed later, it has put its files over ours."""
    [packages] = bare.parents[1].glob("lib/python*/site-packages")
    other = packages / "store-2020.2.10.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: store\nVersion: 2020.2.10\n")
    (other / "RECORD").write_text("store/__init__.py,,\n")
    code = "from controller.own_packages import complaint; import sys; sys.stderr.write(str(complaint())); sys.exit(2)"
    assert "'store' has files of the package store; start from" in _said(bare, tmp_path, "-P", "-c", code)


def test_children_do_not_import_from_the_working_directory() -> None:
    """Every child that is started as a module of Python is started with ``-P``."""
    packages = ("controller", "dashboard", "engine_adapter", "online_learning", "store")
    starts = [
        (file.name, found[1])
        for package in packages
        for file in (ROOT / package).rglob("*.py")
        for found in re.finditer(r"sys\.executable, (\"-[^\"]+\")", file.read_text(encoding="utf-8"))
    ]
    assert len(starts) >= 10
    assert {flag for _, flag in starts} == {'"-P"'}, starts


def test_version_and_change_log_agree(release: ModuleType, wheel: Path) -> None:
    """The newest section is this version's, with its date; the wheel holds what it should."""
    release.check_wheel(wheel)
    assert wheel.name.startswith(f"sagesched_controller-{release.version()}-")


def _readme_lines() -> list[list[str]]:
    """The arguments of the README's ``pip install`` of a clone, a wheel and a repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [shlex.split(line, comments=True) for line in re.findall(r"^pip (install .*)$", text, re.MULTILINE)]


@pytest.mark.long
@pytest.mark.parametrize("way", ["wheel", "clone", "git"])
def test_every_way_to_install_runs_the_demo(release: ModuleType, way: str, wheel: Path, tmp_path: Path) -> None:
    """The README's lines, in a fresh environment each, away from the sources."""
    clone = tmp_path / "clone"
    release.run("git", "clone", "--quiet", ROOT, clone)
    marks = {"wheel": ".whl", "clone": ".[", "git": "git+"}
    [words] = [words for words in _readme_lines() if marks[way] in words[-1] and "controller," in words[-1]]
    # An older pip takes no file:// without a host.
    what = words[-1].replace("git+URL", f"git+file://localhost{clone}").replace(f"dist/{wheel.name}", str(wheel))
    what = what.replace(".[", f"{clone}[") if way == "clone" else what
    python = release.environment(tmp_path / "environment", what)
    assert release.demo(python, tmp_path) > 0
