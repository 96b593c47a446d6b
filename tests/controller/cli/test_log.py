"""A log that nobody reads holds up nothing."""

from __future__ import annotations

import io
import logging
import os
import threading

import pytest

from controller.cli import log
from controller.cli.log import LINES_KEPT, PatientHandler


def a_log(stream: io.TextIOBase) -> tuple[logging.Logger, PatientHandler]:
    handler = PatientHandler(stream)
    logger = logging.Logger("test")  # noqa: LOG001 - no other test is to have its handler
    logger.addHandler(handler)
    return logger, handler


def test_a_pipe_that_nobody_empties_holds_up_no_one_who_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is dropped and counted; once somebody reads, lines follow in their order."""
    monkeypatch.setattr(log, "FLUSH_S", 30.0)
    read, write = os.pipe()
    logger, handler = a_log(open(write, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - the writer's thread has it
    told = 3 * LINES_KEPT
    for number in range(told):
        logger.warning("%d", number)
    lines: list[str] = []
    with open(read, encoding="utf-8") as pipe:  # noqa: PTH123 - a descriptor
        reader = threading.Thread(target=lambda: lines.extend(iter(pipe.readline, "last\n")), daemon=True)
        reader.start()
        handler.flush()
        logger.warning("last")
        reader.join(10.0)
        assert not reader.is_alive()
    numbers = [int(line) for line in lines if line.strip().isdecimal()]
    dropped = [int(line.split()[0]) for line in lines if "were dropped" in line]
    assert numbers == sorted(set(numbers))
    assert min(dropped) > 0
    assert len(numbers) + sum(dropped) == told


def test_the_end_waits_a_moment_for_a_pipe_that_nobody_empties(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer."""
    monkeypatch.setattr(log, "FLUSH_S", 0.2)
    read, write = os.pipe()
    logger, handler = a_log(open(write, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - the writer's thread has it
    logger.warning("x" * 1_000_000)
    handler.flush()
    os.close(read)


def test_a_stream_that_takes_nothing_ends_nothing() -> None:
    """A full disk, or a reader that has gone: later lines are tried again."""
    read, write = os.pipe()
    os.close(read)
    logger, handler = a_log(open(write, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - the writer's thread has it
    for _ in range(3):
        logger.warning("nobody hears it")
        handler.flush()
    assert any(thread.name == "log" for thread in threading.enumerate())
