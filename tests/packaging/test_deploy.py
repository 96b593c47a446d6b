"""The files for systemd and for a container start commands that exist, with flags that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from controller.cli.main import app
from controller.config import load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
CONTAINERFILE = DEPLOY / "Containerfile"


def check_command(words: list[str]) -> None:
    """The command line can be understood: its command and every flag are known and its values are valid."""
    group = typer.main.get_command(app)
    name, *arguments = words
    group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_a_command_that_exists(unit: Path) -> None:
    """What it starts can be understood, and the environment that it sets is a setting."""
    text = unit.read_text()
    [command] = re.findall(r"^ExecStart=\S+/sagesched (.+)$", text, re.MULTILINE)
    check_command(shlex.split(command))
    environment = dict(re.findall(r"^Environment=(SAGESCHED_\w+)=(.+)$", text, re.MULTILINE))
    load_config(environment=environment)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_understands_a_unit(unit: Path, tmp_path: Path) -> None:
    """Once the program is where the unit says, `systemd-analyze verify` has nothing to say."""
    here = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit.read_text(), flags=re.MULTILINE)
    here = re.sub(r"^(After|Wants)=sagesched\.service\n", "", here, flags=re.MULTILINE)
    (tmp_path / unit.name).write_text(here)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, [line for line in found.stderr.splitlines() if unit.name in line]) == (0, [])


def test_the_container_installs_extras_and_starts_a_command_that_exist() -> None:
    """Its extras are the project's, what it copies is there, and its command can be understood."""
    text = CONTAINERFILE.read_text()
    extras = set(re.findall(r"/src\[([\w,]+)\]", text)[0].split(","))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras <= project["optional-dependencies"].keys()
    for copied in re.findall(r"/src/([\w.]+)", text):
        assert (ROOT / copied).exists()
    check_command(json.loads(re.findall(r"^CMD (.+)$", text, re.MULTILINE)[0]))
    python = re.findall(r"^FROM python:(3\.\d+)", text, re.MULTILINE)
    assert python == re.findall(r">=(3\.\d+)", project["requires-python"])


@pytest.mark.parametrize(("typed", "offered"), [("sagesched be", "bench"), ("sagesched serve --obj", "--objective")])
def test_the_shell_completes_commands_and_flags(typed: str, offered: str) -> None:
    """Asked as bash asks, the program offers what begins so."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    command = [sys.executable, "-c", "from controller.cli.main import main; main()"]
    environment = {**os.environ, **words, "_SAGESCHED_COMPLETE": "complete_bash"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert offered in found.stdout.split()
