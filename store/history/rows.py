"""From records to rows: which table an entry belongs to and the values of its columns."""

from __future__ import annotations

from store.entries import CalibrationMeasured, Decision, Entry, Prediction
from store.history.columns import Row, columns_of, values_of
from store.history.tables import TABLE_OF
from store.records import Arrived, Snapshot

DROPPABLE = (Snapshot, Prediction, Decision, CalibrationMeasured)
"""Kinds that may be dropped under pressure: facts, outcomes and settings suffice to reconstruct what happened."""


def row_of(entry: Entry, received_s: float, *, store_prompts: bool) -> Row:
    """The row that keeps an entry, without its token ids unless prompts are stored."""
    record = entry.record
    values = _VALUES[type(record)](record)
    prompt = isinstance(record, Arrived) and not store_prompts
    if prompt or (isinstance(record, Snapshot) and not record.detailed):
        withheld = _WITHHELD[type(record)]
        values = tuple(None if place in withheld else value for place, value in enumerate(values))
    return entry.engine_id, entry.session_id, entry.batch, received_s, *values


_VALUES = {kind: values_of(kind) for kind in TABLE_OF}
_WITHHELD: dict[type, frozenset[int]] = {
    kind: frozenset(place for place, column in enumerate(columns_of(kind)) if column.withheld)
    for kind in (Arrived, Snapshot)
}
