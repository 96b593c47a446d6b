"""What the tests of files for deployment and monitoring share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from controller.cli.main import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def check_command() -> Callable[[list[str]], None]:
    """Raises unless a command line can be understood: its command and every flag are known, its values are valid."""

    def check(words: list[str]) -> None:
        group = typer.main.get_command(app)
        name, *arguments = words
        group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]

    return check


@pytest.fixture(scope="session")
def promtool() -> str:
    """The checker of Prometheus itself; without it these tests fail rather than be left out in silence."""
    found = shutil.which("promtool") or shutil.which(ROOT / ".cache" / "promtool" / "usr" / "bin" / "promtool")
    if found is None:
        pytest.fail("promtool is not installed: run `make promtool`, or leave these tests out with -k 'not promtool'")
    return found
