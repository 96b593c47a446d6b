"""Every command with junk: code 2 and one clear line, nothing printed, nothing written, no traceback."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from controller.cli.main import app, run
from store.atomic_file import write_whole
from store.errors import BadInputError

JUNK = [
    "", " ", "\x00", "-", "--", "-1", "💥", "\u202egnirts", "x" * 5000, "../../../etc/passwd", "/dev/null/x", "nan", "-inf",
    "1e999", "0x10", "'; DROP TABLE x; --", "$(touch pwned)", "`touch pwned`", "{}", "[]", "\n", "%s%n", "\ud800",
]  # fmt: skip
CHANCE = random.Random(7)


def commands() -> Iterator[tuple[list[str], Any]]:
    def walk(names: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
        inner = getattr(command, "commands", {})
        for name, subcommand in inner.items():
            yield from walk([*names, name], subcommand)
        if not inner:
            yield names, command

    yield from walk([], typer.main.get_command(app))


ALL = [pytest.param(names, command, id=" ".join(names)) for names, command in commands()]


def numbers_and_choices(command: Any) -> Iterator[str]:
    """Flags that cannot take just any text."""
    for parameter in command.params:
        kind = str(getattr(parameter.type_descriptor, "annotation", ""))
        if any(word in kind for word in ("float", "int", "Literal")) and parameter.opts[0].startswith("--"):
            yield parameter.opts[0]


@pytest.mark.parametrize(("names", "command"), ALL)
def test_junk_is_one_clear_line_and_code_2(
    names: list[str], command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown flag, a value that is none for every number and choice, and texts where nothing is expected."""
    monkeypatch.chdir(tmp_path)
    lines = [[*names, "--no-such-flag", junk] for junk in CHANCE.sample(JUNK, 3)]
    lines += [
        [*names, flag, CHANCE.choice(["💥", "nan", "1e999", "", "x" * 200])] for flag in numbers_and_choices(command)
    ]
    lines += [[*names, *["superfluous"] * 9]]
    for line in lines:
        assert run(line) == 2, line
        out, complaint = capsys.readouterr()
        assert out == "", line
        assert len(complaint.strip().splitlines()) == 1, (line, complaint)
        assert complaint.startswith("sagesched: "), line
        assert "Traceback" not in complaint
    assert list(tmp_path.iterdir()) == []


READERS = [
    ["sql", "SELECT 1", "--store"], ["explain", "r", "--store"], ["replay", "--store"], ["doctor", "--config"],
    ["sql", "SELECT 1", "--config"], ["mode", "off", "--config"],
    ["evaluate", "--quiet", "--workload"], ["keys", "list", "--keys"], ["keys", "list", "--config"],
    ["serve", "--port", "0", "--config"], ["serve", "--port", "0", "--endpoint"],
]  # fmt: skip


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_junk_for_a_file_or_an_address_is_one_clear_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that cannot be, folders for files, files for folders, binary content."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGESCHED_STORE__PATH", str(tmp_path / "never"))
    binary, empty = tmp_path / "binary", tmp_path / "empty"
    binary.write_bytes(bytes(range(256)) * 8)
    empty.mkdir()
    for junk in [*JUNK[2:14:2], "\ud800", str(binary), str(empty) if command[-1] != "--store" else str(binary)]:
        if junk == "--" or (junk in ("", " ", "-") and command[0] in ("doctor", "keys", "sql", "explain", "replay")):
            continue  # The present folder, or nothing at all: no junk.
        code = run([*command, junk])
        out, complaint = capsys.readouterr()
        assert code in (1, 2), (junk, out, complaint)
        assert len(complaint.strip().splitlines()) == 1, (junk, complaint)
        assert "Traceback" not in complaint
    assert {path.name for path in tmp_path.iterdir()} <= {"binary", "empty"}


@pytest.mark.parametrize("command", [["keys", "authorize"], ["keys", "engine"], ["keys", "revoke"]], ids=" ".join)
def test_junk_for_an_engine_or_a_key_writes_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No name leads out of the folder, no key authorizes."""
    assert run(["keys", "controller", "--keys", str(tmp_path / "keys")]) == 0
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    for junk in (junk for junk in JUNK if junk not in ("nan", "0x10", "1e999")):  # Good names, if odd ones.
        more = ["x" * 40] if command[1] == "authorize" else []
        assert run([*command, "--keys", str(tmp_path / "keys"), "--", junk, *more]) == 2, junk
        assert len(capsys.readouterr().err.strip().splitlines()) == 1, junk
    files = [path for path in sorted(tmp_path.rglob("*")) if path.name != "authorized_engines"]
    assert files == before


def test_a_file_that_a_command_writes_is_whole_or_as_it_was(tmp_path: Path) -> None:
    """A failure half-way leaves the old content and no remnant; a special file is written as it is."""
    file = tmp_path / "figures.json"
    write_whole(file, "old")
    file.chmod(0o640)
    write_whole(file, "new")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o640)
    (tmp_path / "folder").mkdir()
    for nowhere in (tmp_path / "folder", tmp_path / "none" / "x", Path("/proc/nowhere"), file / "below"):
        with pytest.raises(BadInputError, match="cannot write"):
            write_whole(nowhere, "x")
    with pytest.raises(BadInputError, match="No space"):
        write_whole(Path("/dev/full"), "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "folder"]
