"""Paths that stand in strings, where no import and no type checker would miss them."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.config import described

ROOT = Path(__file__).parents[2]
PACKAGES = ("controller", "online_learning", "store", "dashboard", "engine_adapter")
NAMES = "|".join(PACKAGES)
DOTTED = re.compile(rf"(?<![\w./:-])(?:{NAMES})(?:\.[A-Za-z_]\w*)+(?![\w(])")
FILE = re.compile(rf"(?<![\w./-])(?:(?:{NAMES}|tests|docs)/[\w./-]*\w)")
TEXTS = ("*.md", "*.toml", "*.yml", "*.yaml", "*.service", "*.json", "Makefile", "Containerfile*", "*.conf", ".ci/run")
PUBLIC = (
    "engine_adapter.http_hints.HttpHints",
    "engine_adapter.vllm_scheduler.SageScheduler",
    "engine_adapter.ray_router.SageRequestRouter",
    "engine_adapter.engine_key",
    "controller.__main__",
    "controller.cli.main.main",
)
"""What users write in their own commands and configuration; these names stay."""
OTHER = {key for key, _ in described()} | {"controller.key", "controller.log", "store.pth"}
"""What looks like a module's name: settings, and files."""
INVENTED = {"controller.test", "controller.elsewhere", "controller.nothing", "controller.core.core.Nothing"}
"""Names that tests made up; in a document, NAME stands for what the reader calls it."""


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def strings(file: Path) -> Iterator[str]:
    """The strings of a module, docstrings among them, and the whole text of any other file."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_there(dotted: str) -> bool:
    """Whether a module has this name, or a module this member at its top."""
    parts = dotted.split(".")
    place = ROOT / parts[0]
    for number, part in enumerate(parts[1:], start=1):
        if (place / part).is_dir():
            place /= part
        elif (place / f"{part}.py").is_file():
            return number + 1 == len(parts) or defined(place / f"{part}.py", parts[number + 1])
        else:
            return defined(place / "__init__.py", part)
    return True


def defined(module: Path, name: str) -> bool:
    """Whether a module defines or imports a name."""
    pattern = rf"^(?:class |def |async def |import |from .* import .*\b)?{name}\b"
    return module.is_file() and re.search(pattern, module.read_text(), re.MULTILINE) is not None


FILES = tracked("*.py", *TEXTS)


def missing(file: Path) -> set[str]:
    """Names of modules and of files of ours that stand in a file and do not exist."""
    found = set()
    for text in strings(file):
        found |= {name for name in DOTTED.findall(text) if name not in OTHER | INVENTED and not is_there(name)}
        found |= {name for name in FILE.findall(text) if "NAME" not in name and not (ROOT / name).exists()}
    return found


def test_every_path_of_ours_in_a_string_exists() -> None:
    """Dotted names and file names in strings, documents, the Makefile and the files for deployment lead somewhere."""
    lost = {str(file.relative_to(ROOT)): names for file in FILES if (names := missing(file))}
    assert lost == {}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_stays(name: str) -> None:
    """What is written in a user's own command line is where it was."""
    assert is_there(name)


def test_a_lost_path_is_found() -> None:
    """A name that leads nowhere is told from one that does."""
    assert importlib.util.find_spec("controller.core.core") is not None
    assert is_there("controller.core.core.Core")
    assert not is_there("controller.core.core.Nothing")
    assert not is_there("controller.nothing")
