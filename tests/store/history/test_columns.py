"""Columns follow from the records: one field more is one column more, with its type, its comment and its value."""

from __future__ import annotations

from typing import Literal

import duckdb
import msgspec

from store.entries import SettingsChanged
from store.history.columns import columns_of, record_of, values_of
from store.history.tables import ROW_COLUMNS, TABLE_OF, TABLES, statements
from store.records import EngineRules, Gate, Preemption, Record, Settings


class Part(Record, frozen=True):
    """Half of a whole."""

    size_tokens: int
    """Its size."""


class Whole(Record, frozen=True):
    """Made of parts."""

    kind: Literal["a", "b"]
    """What it is."""
    first: Part
    second: Part | None
    weight: float | None
    """None when `it` was never
    weighed."""


def test_parts_become_columns_and_an_optional_part_has_its_name_before_theirs() -> None:
    """Comments are the texts under the fields, in SQL's words; what may be missing may be NULL."""
    assert [column.definition for column in columns_of(Whole)] == [
        "kind VARCHAR NOT NULL,  -- What it is.",
        "size_tokens BIGINT NOT NULL,  -- Its size.",
        "second_size_tokens BIGINT,  -- Its size; NULL without second.",
        "weight DOUBLE,  -- NULL when it was never weighed.",
    ]
    values = values_of(Whole)
    assert values(Whole("a", Part(1), Part(2), 0.5)) == ("a", 1, 2, 0.5)
    assert values(Whole("b", Part(1), None, None)) == ("b", 1, None, None)


def test_settings_are_spread_over_columns() -> None:
    """Every knob of the rules has a column, whether its part is there or not."""
    names = [column.name for column in columns_of(SettingsChanged)]
    rules = EngineRules(gate=Gate(horizon_tokens=32), boost_per_s=0.5, preemption=Preemption(token_s=0.1))
    for sent in (rules, EngineRules()):
        settings = Settings(revision=1, mode="on", lease_s=2.0, rules=sent)
        changed = SettingsChanged(time_s=1.0, reason="start", settings=settings)
        row = dict(zip(names, values_of(SettingsChanged)(changed), strict=True))
        assert row["victims"] == "last"
        assert row["boost_per_s"] == sent.boost_per_s
        assert row["gate_margin"] == (sent.gate.margin if sent.gate else None)
        assert record_of(SettingsChanged, row) == changed
        assert row["preemption_token_s"] == (sent.preemption.token_s if sent.preemption else None)


def test_the_tables_have_the_columns_of_their_rows_in_their_order() -> None:
    """Each kind of record has a table, and each of a row's values a column there."""
    with duckdb.connect() as connection:
        for table in TABLES:
            for statement in statements(table):
                connection.execute(statement)
        for name, columns in ROW_COLUMNS.items():
            described = connection.sql(f"SELECT * FROM {name} LIMIT 0")
            assert tuple(described.columns) == columns
    assert all(issubclass(kind, msgspec.Struct) for kind in TABLE_OF)
