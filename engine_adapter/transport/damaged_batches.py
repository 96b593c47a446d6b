"""Reads what can be read of a batch of facts that does not decode as a whole: one bad value costs one fact at most.

A batch that were dropped whole would never be acknowledged: its engine would send it for ever, and all later ones behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import structs
from msgspec.inspect import FloatType, IntType, Type, UnionType, type_info

from store.bounds import MAX_BATCH_FACTS, Count
from store.records import PROTOCOL, Arrived, Fact, Facts, Finished, FirstToken, Preempted

Bounds: TypeAlias = tuple[float, float]


class _Envelope(msgspec.Struct, frozen=True, tag="Facts"):
    """A batch whose facts are not decoded."""

    batch: Count
    facts: Annotated[tuple[msgspec.Raw, ...], msgspec.Meta(max_length=MAX_BATCH_FACTS)]
    oldest: Count


def _bounds_of(kind: Type) -> Bounds | None:
    if isinstance(kind, UnionType):
        return next(filter(None, map(_bounds_of, kind.types)), None)
    if isinstance(kind, IntType | FloatType) and kind.ge is not None and kind.le is not None:
        return kind.ge, kind.le
    return None


def _bounded_fields(kind: type[Fact]) -> Mapping[str, Bounds]:
    """The fields of a fact that may be put into their range: counts and the like, not moments, which order events."""
    return {
        field.name: bounds
        for field in structs.fields(kind)
        if not field.name.endswith("_s") and (bounds := _bounds_of(type_info(field.type)))
    }


_BOUNDED_FIELDS = {kind.__name__: _bounded_fields(kind) for kind in (Arrived, FirstToken, Preempted, Finished)}
_envelopes = msgspec.msgpack.Decoder(_Envelope)
_facts: msgspec.msgpack.Decoder[Fact] = msgspec.msgpack.Decoder(Fact)
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)


def readable_part(frame: bytes) -> Facts | None:
    """The batch in a frame without the facts that cannot be read; counts out of their range are put into it.

    ``damaged`` counts both. None for a frame that is no batch of this protocol, or has no number.
    """
    if frame[:1] != bytes((PROTOCOL,)):
        return None
    try:
        envelope = _envelopes.decode(memoryview(frame)[1:])
    except _UNREADABLE:
        return None
    facts, damaged = [], 0
    for raw in envelope.facts:
        fact, whole = _read(raw)
        damaged += not whole
        if fact is not None:
            facts.append(fact)
    return Facts(batch=envelope.batch, facts=tuple(facts), oldest=envelope.oldest, damaged=damaged)


def _read(raw: msgspec.Raw) -> tuple[Fact | None, bool]:
    """A fact, or None, and whether it is as it was sent."""
    try:
        return _facts.decode(raw), True
    except _UNREADABLE:
        return _mended(raw), False


def _mended(raw: msgspec.Raw) -> Fact | None:
    try:
        fields = msgspec.msgpack.decode(raw)
        return _facts.decode(msgspec.msgpack.encode(_in_range(fields))) if isinstance(fields, dict) else None
    except _UNREADABLE:
        return None


def _in_range(fields: dict[Any, Any]) -> dict[Any, Any]:
    kind = fields.get("type")
    bounded = _BOUNDED_FIELDS.get(kind, {}) if isinstance(kind, str) else {}
    for name, (least, most) in bounded.items():
        value = fields.get(name)
        if isinstance(value, int | float):
            # In this order a NaN becomes the least.
            fields[name] = min(most, max(least, value))
    return fields
