from __future__ import annotations

import tempfile
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.entries import EngineSeen, Entry, SettingsChanged, StoreRecord
from store.history.reader import open_history
from store.history.tables import TABLE_OF
from store.history.writer import HistoryWriter
from store.records import EngineRules, FairShares, Gate, Hello, Preemption, Settings, Snapshot, StepCost, Targets

LARGEST = 2**63 - 1
NO_LISTS: dict[str, Any] = {"running_requests": (), "queue": ()}
"""Of a snapshot that does not tell them."""


def values(annotation: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one for each kind of type
    """Any value that a field of this type can hold and a column must keep."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kind, bounds = arguments
        if kind is bytes:
            return st.binary(max_size=3).map(lambda words: 4 * words)
        if kind not in {int, float}:
            return values(kind)
        if kind is int:
            return st.integers(bounds.ge, bounds.le)
        least = bounds.gt if bounds.ge is None else bounds.ge
        return st.floats(least, bounds.le, exclude_min=bounds.ge is None)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(each) for each in arguments])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=4).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=8), values(float), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return records(annotation)
    return {
        int: st.integers(-LARGEST - 1, LARGEST),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=12),
        bytes: st.binary(max_size=12),
        bool: st.booleans(),
        type(None): st.none(),
    }[annotation]


def records(kind: type) -> st.SearchStrategy[Any]:
    """Any record of a kind."""
    hints = typing.get_type_hints(kind, include_extras=True)
    made = st.fixed_dictionaries({name: values(hint) for name, hint in hints.items()}).map(
        lambda fields: kind(**(fields | NO_LISTS if fields.get("detailed") is False else fields))
    )
    return made.filter(lambda record: record != Targets()) if kind is Targets else made


KINDS: tuple[type, ...] = tuple(typing.get_args(StoreRecord))


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    """Some entries of every kind, each in a session of its own so that it is found again."""
    drawn = [record for kind in KINDS for record in draw(st.lists(records(kind), min_size=1, max_size=3))]
    entries = []
    for number, record in enumerate(drawn):
        session_id = f"{number}"
        if isinstance(record, EngineSeen):
            hello = msgspec.structs.replace(record.hello, engine_id="e", session_id=session_id)
            record = msgspec.structs.replace(record, hello=hello)  # noqa: PLW2901 - the same record, in its session
        batch = draw(st.none() | st.integers(0, LARGEST))
        entries.append(Entry(engine_id="e", session_id=session_id, batch=batch, record=record))
    return entries


def optional(row: dict[str, Any], name: str, kind: type) -> Any:
    """The record that a field may hold; None if it has no value in any column."""
    fields = {field: row[f"{name}_{field}"] for field in kind.__struct_fields__}
    return None if set(fields.values()) == {None} else kind(**fields)


def record_from(row: dict[str, Any], kind: type) -> Any:
    """Undo `store.history.rows.row_of`, written down independently of it."""
    if kind is EngineSeen:
        hello = Hello(**{name: row[name] for name in Hello.__struct_fields__})
        return EngineSeen(time_s=row["time_s"], event=row["event"], hello=hello)
    if kind is SettingsChanged:
        parts = {
            name: optional(row, name, part)
            for name, part in {"gate": Gate, "preemption": Preemption, "step": StepCost, "shares": FairShares}.items()
        }
        rules = EngineRules(
            **parts, **{name: row[name] for name in ("boost_per_s", "victims", "by_arrival", "sessions")}
        )
        sent = Settings(rules=rules, **{name: row[name] for name in ("revision", "mode", "lease_s")})
        return SettingsChanged(time_s=row["time_s"], settings=sent, reason=row["reason"])
    if "targets" in kind.__struct_fields__:
        row = row | {"targets": optional(row, "targets", Targets)}
    if kind is Snapshot:
        row = row | {"detailed": row["queue"] is not None, "queue": row["queue"] or []}
        row["running_requests"] = [list(request.values()) for request in row["running_requests"] or []]
    fields = {name: row[name] for name in kind.__struct_fields__}
    return msgspec.convert(fields, kind)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(histories())
def test_every_record_comes_back_as_it_was(entries: list[Entry]) -> None:
    """What goes in comes out of the catalog, field by field and bit by bit, for every kind of record."""
    with tempfile.TemporaryDirectory() as folder:
        with HistoryWriter(Path(folder), store_prompts=True, commit_interval_s=0.0) as writer:
            assert writer.append(entries) == len(entries)
        assert writer.stats.durable_position == len(entries)
        assert writer.stats.rejected == 0
        with open_history(Path(folder)) as connection:
            for kind in KINDS:
                answer = connection.execute(f"SELECT * FROM {TABLE_OF[kind]}")
                names = [column[0] for column in answer.description]
                found = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
                expected = [entry for entry in entries if type(entry.record) is kind]
                assert [(row["session_id"], row["batch"]) for row in found] == [
                    (entry.session_id, entry.batch) for entry in expected
                ]
                assert [record_from(row, kind) for row in found] == [entry.record for entry in expected]


def test_a_row_that_no_column_can_hold_stops_nothing(tmp_path: Path, make: Any) -> None:
    """A number beyond 64 bits and a broken string are left out and counted; their neighbours are kept."""
    odd = msgspec.structs.replace(make.arrived("odd"), max_tokens=2**64)
    broken = msgspec.structs.replace(make.arrived("broken"), tenant="\ud800")
    with HistoryWriter(tmp_path) as writer:
        writer.append([make.entry(record, 1) for record in (make.arrived("a"), odd, broken, make.arrived("b"))])
        assert writer.flush(10.0)
        assert writer.stats.rejected == 2
    with open_history(tmp_path) as connection:
        assert connection.sql("SELECT request_id FROM arrivals").fetchall() == [("a",), ("b",)]


@pytest.mark.slow
def test_prompts_are_kept_only_when_asked_for(tmp_path: Path, make: Any) -> None:
    """Token ids are NULL by default, and what was sent with ``store_prompts``."""
    for store_prompts, kept in ((False, None), (True, b"\x01\x00\x00\x00")):
        path = tmp_path / str(store_prompts)
        with HistoryWriter(path, store_prompts=store_prompts) as writer:
            writer.append([make.entry(make.arrived("a"), 1)])
        with open_history(path) as connection:
            assert connection.sql("SELECT token_ids FROM arrivals").fetchall() == [(kept,)]
