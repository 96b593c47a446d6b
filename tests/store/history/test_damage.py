"""Segments and catalogs that rot, shrink or vanish: the rest of the history stays readable and is written on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.history.damage import checksum
from store.history.reader import learning_history, open_history
from store.history.segments import FAN_IN
from store.history.writer import HistoryWriter

pytestmark = pytest.mark.slow

NOON_S = 1_772_366_400.0


def flip_bits(file: Path) -> None:
    """As a bad disk does, anywhere: the size stays."""
    content = bytearray(file.read_bytes())
    for position in range(0, len(content), 7):
        content[position] ^= 0x10
    file.write_bytes(content)


def flip_one_bit(file: Path) -> None:
    """In the middle of the values, where no format looks."""
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0x01
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


SHALLOW = (truncate, empty, remove)
DEEP = (flip_bits, flip_one_bit)
Harm = Callable[[Path], None]


def segments(path: Path, table: str = "first_tokens") -> list[Path]:
    return sorted((path / "segments" / table).rglob("*.parquet"))


def names(path: Path) -> list[str]:
    with open_history(path) as connection:
        return [name for (name,) in connection.sql("SELECT request_id FROM first_tokens ORDER BY ALL").fetchall()]


def three_segments(history: Any, make: Any) -> Any:
    """An open history with the rows a, b and c, each in a segment."""
    live = history.open(NOON_S)
    for name in "abc":
        history.write(NOON_S, make.entry(make.first_token(name)))
        live.maintain(NOON_S)
    return live


@pytest.mark.parametrize("harm", SHALLOW)
def test_what_is_gone_at_a_glance_is_left_out_and_taken_back(
    hands: Callable[..., Any], make: Any, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen with the next sealing, told once; a copy that is put in its place brings the rows back."""
    history = hands()
    live = three_segments(history, make)
    path = history.folder.path
    second = segments(path)[1]
    copy = second.read_bytes()
    harm(second)
    for moment in range(3):
        live.maintain(NOON_S + moment)
    assert (names(path), live.damaged_count()) == (["a", "c"], 1)
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1
    assert second.name in told[0].getMessage()
    second.write_bytes(copy)
    live.maintain(NOON_S + 5.0)
    assert (names(path), live.damaged_count()) == (["a", "b", "c"], 0)


@pytest.mark.parametrize("harm", SHALLOW)
def test_a_damaged_history_opens(hands: Callable[..., Any], make: Any, harm: Harm) -> None:
    """Without what it lacks, and without removing anything: scheduling must not wait for an operator."""
    history = hands()
    three_segments(history, make)
    history.close()
    path = history.folder.path
    harm(segments(path)[0])
    left = segments(path)
    live = history.open(NOON_S + 1.0, writer="later")
    assert (names(path), live.damaged_count()) == (["b", "c"], 1)
    assert segments(path) == left


@pytest.mark.parametrize("harm", [flip_bits, flip_one_bit])
def test_rotten_bits_are_found_within_one_reading_of_the_history(
    hands: Callable[..., Any], make: Any, harm: Harm
) -> None:
    """Each start reads everything once, in parts."""
    history = hands()
    three_segments(history, make)
    path = history.folder.path
    second = segments(path)[1]
    history.close()
    harm(second)
    live = history.open(NOON_S + 1.0, writer="later")
    live.maintain(NOON_S + 2.0)
    assert (names(path), live.damaged_count()) == (["a", "c"], 1)


def test_a_name_tells_the_checksum_of_its_file(hands: Callable[..., Any], make: Any) -> None:
    """Anybody can check a copy."""
    history = hands()
    three_segments(history, make)
    for file in segments(history.folder.path):
        assert file.stem.endswith(f"-{checksum(file)}")


@pytest.mark.parametrize("harm", [*SHALLOW, *DEEP])
def test_compaction_goes_round_what_is_damaged(hands: Callable[..., Any], make: Any, harm: Harm) -> None:
    """It is never merged into something new; the others still are, and what comes later is sealed as ever."""
    history = hands()
    live = history.open(NOON_S)
    path = history.folder.path
    for n in range(FAN_IN - 1):
        history.write(NOON_S, make.entry(make.first_token(f"{n:02d}")))
        live.maintain(NOON_S)
    harm(segments(path)[3])
    for n in range(FAN_IN - 1, FAN_IN + 2):
        history.write(NOON_S, make.entry(make.first_token(f"{n:02d}")))
        live.maintain(NOON_S)
    assert names(path) == [f"{n:02d}" for n in range(FAN_IN + 2) if n != 3]
    assert live.damaged_count() == 1
    assert live.segment_count() < FAN_IN, "the others were merged"


@pytest.mark.parametrize("harm", [*SHALLOW, flip_bits])
def test_a_catalog_that_rots_or_goes_is_built_again(hands: Callable[..., Any], make: Any, harm: Harm) -> None:
    """With the next sealing, whether there is anything to seal or not; and at the start."""
    history = hands()
    live = three_segments(history, make)
    path = history.folder.path
    harm(history.folder.catalog)
    live.maintain(NOON_S + 1.0)
    assert names(path) == ["a", "b", "c"]
    history.close()
    harm(history.folder.catalog)
    history.open(NOON_S + 2.0, writer="later")
    assert names(path) == ["a", "b", "c"]


def test_a_running_writer_goes_on_and_tells(tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Facts go on becoming durable and visible beside a segment that was lost; it is counted, and logged once."""
    with HistoryWriter(tmp_path, seal_interval_s=0.05, commit_interval_s=0.01) as writer:
        writer.append([make.entry(make.first_token("a"), 1)])
        assert writer.flush(60.0)
        _until(lambda: writer.stats.sealed_rows == 2)
        remove(segments(tmp_path)[0])
        writer.append([make.entry(make.first_token("b"), 2)])
        _until(lambda: writer.stats.damaged_segments == 1 and writer.stats.sealed_rows == 4)
        _until(lambda: names(tmp_path) == ["b"])
        assert (writer.stats.errors, writer.stats.last_error) == (0, None)
        assert writer.durable_position == 2
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_a_history_that_cannot_be_read_is_looked_through_on_demand(tmp_path: Path, make: Any) -> None:
    """After `verify` a learner can read what is left, however much has rotted since the start."""
    with HistoryWriter(tmp_path, seal_interval_s=0.05, commit_interval_s=0.01) as writer:
        writer.append([make.entry(make.engine())])
        for name in "ab":
            writer.append([make.entry(make.prediction(name)), make.entry(make.outcome(name, answer=ord(name)))])
            assert writer.flush(60.0)
            _until(lambda: writer.stats.queued == 0 and writer.stats.sealed_rows == sum(writer.stats.rows.values()))
    with HistoryWriter(tmp_path, seal_interval_s=3600.0) as writer:
        flip_one_bit(segments(tmp_path, "outcomes")[0])
        assert writer.verify(60.0)
        assert writer.stats.damaged_segments == 1
        assert [answer.features for answer in learning_history(tmp_path, 10)] == [b"b"]


def _until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < deadline_s, "not so after a minute"
        time.sleep(0.02)
