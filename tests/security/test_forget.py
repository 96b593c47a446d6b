"""Prompts: not stored unless asked for, and gone from every byte of the history once they are deleted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from controller.cli.main import run
from store.bounds import bounded_name
from store.entries import Entry
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.records import Arrived


def prompt(number: int) -> bytes:
    """Token ids that no compression can hide: they look like noise."""
    return hashlib.shake_256(f"prompt {number}".encode()).digest(160)


def written(path: Path, numbers: range, *, prompts: bool) -> None:
    with HistoryWriter(path, store_prompts=prompts) as writer:
        for number in numbers:
            arrived = Arrived(
                request_id=f"r'{number}",
                arrival_s=1.0,
                prompt_tokens=40,
                token_ids=prompt(number),
                max_tokens=9,
                temperature=1.0,
                tenant="acme" if number % 2 else "other",
            )
            writer.append([Entry(engine_id="e", session_id="s", batch=number + 1, record=arrived)])
            assert writer.flush(60.0)


def on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


def stored(path: Path) -> dict[str, bytes | None]:
    with open_history(path) as history:
        return dict(history.sql("SELECT request_id, token_ids FROM arrivals").fetchall())


def test_prompts_are_not_stored_unless_asked_for(tmp_path: Path) -> None:
    """No piece of them is in any file."""
    written(tmp_path / "h", range(6), prompts=False)
    everything = on_disk(tmp_path / "h")
    assert not any(prompt(number)[:16] in everything for number in range(6))
    assert set(stored(tmp_path / "h").values()) == {None}


@pytest.mark.parametrize(
    ("flags", "gone"), [(["--request", "r'3"], {3}), (["--tenant", "acme"], {1, 3, 5}), (["--all"], set(range(6)))]
)
def test_deleted_prompts_are_in_no_byte_of_the_history(
    tmp_path: Path, flags: list[str], gone: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the requests that were meant and of no other; all else that is known of them stays."""
    path = tmp_path / "h"
    written(path, range(6), prompts=True)
    assert all(prompt(number)[:16] in on_disk(path) for number in range(6))
    assert run(["forget", *flags, "--store", str(path)]) == 0
    assert f"prompts of {len(gone)} arrivals" in capsys.readouterr().out
    left = stored(path)
    assert {number for number in range(6) if left[f"r'{number}"] is None} == gone
    everything = on_disk(path)
    for number in range(6):
        assert (prompt(number)[:16] in everything) == (number not in gone)
    assert run(["forget", *flags, "--store", str(path)]) == 0
    assert "prompts of 0 arrivals" in capsys.readouterr().out
    written(path, range(6, 8), prompts=True)
    assert len(stored(path)) == 8
    for file in path.rglob("*"):
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_request_is_named_as_its_client_or_the_engine_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All answers of a client's request; a long tenant by its whole name. Who is not recorded is an error."""
    path, tenant = tmp_path / "h", 300 * "t"
    names = ["cmpl-a-0-1a2b3c4d", "1_cmpl-a-0-1a2b3c4d", "cmpl-ab-0-1a2b3c4d", "cmpl-b-0-1a2b3c4d"]
    with HistoryWriter(path, store_prompts=True) as writer:
        for number, name in enumerate(names):
            arrived = Arrived(
                request_id=name,
                arrival_s=1.0,
                prompt_tokens=40,
                token_ids=prompt(number),
                max_tokens=9,
                temperature=1.0,
                tenant=bounded_name(tenant) if number == 3 else None,
            )
            writer.append([Entry(engine_id="e", session_id="s", batch=number + 1, record=arrived)])
    for flags, gone in ((["--request", "cmpl-a"], {0, 1}), (["--request", names[2]], {2}), (["--tenant", tenant], {3})):
        assert run(["forget", *flags, "--store", str(path)]) == 0
        assert f"prompts of {len(gone)} arrivals" in capsys.readouterr().out
        assert all(stored(path)[names[number]] is None for number in gone)
    for flags in (["--request", "cmpl"], ["--request", "cmpl-."], ["--tenant", "nobody"]):
        assert run(["forget", *flags, "--store", str(path)]) == 1
        assert "no request of that id or tenant is recorded" in capsys.readouterr().err


def test_a_history_that_is_being_written_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says who writes it; without saying whose prompts nothing happens either."""
    path = tmp_path / "h"
    with HistoryWriter(path, store_prompts=True):
        assert run(["forget", "--all", "--store", str(path)]) == 1
        assert "is being written by process" in capsys.readouterr().err
    for flags in ([], ["--all", "--tenant", "x"], ["--request", "a", "--tenant", "x"]):
        assert run(["forget", *flags, "--store", str(path)]) == 2
    assert run(["forget", "--all", "--store", str(tmp_path / "none")]) == 1
