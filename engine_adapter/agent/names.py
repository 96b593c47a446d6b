"""Names that clients choose, as they cross the border: bounded, and found again when an answer comes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from msgspec import structs

from store.bounds import bounded_name, bounded_request_id
from store.records import Arrived, Finished, FirstToken, IndexTable, Preempted, RunningRequest

Named = TypeVar("Named", FirstToken, Preempted, Finished, RunningRequest)


CHOSEN = ("tenant", "lora", "session", "service_class")
"""Fields of an arrival, beside its id, that hold a name of a client's choice."""


class BoundedNames:
    """Request ids of an engine's unfinished requests: whole in the engine, bounded for the controller.

    Nearly all ids are both at once, and those are not kept here.
    """

    def __init__(self) -> None:
        self.cut = 0
        """Number of names that were cut."""
        self._bounded: dict[str, str] = {}
        self._whole: dict[str, str] = {}

    def enter(self, arrived: Arrived) -> Arrived:
        """Return an arrival with bounded names, and remember the request's id if it was cut."""
        request_id = bounded_request_id(arrived.request_id)
        if request_id is not arrived.request_id:
            self._bounded[arrived.request_id] = request_id
            self._whole[request_id] = arrived.request_id
        cut = {name: bounded for name in CHOSEN if (bounded := _cut(getattr(arrived, name))) is not None}
        if request_id is not arrived.request_id:
            cut["request_id"] = request_id
        self.cut += len(cut)
        return structs.replace(arrived, **cut) if cut else arrived

    def leave(self, request_id: str) -> None:
        """Forget a request that has ended."""
        bounded = self._bounded.pop(request_id, None)
        if bounded is not None:
            self._whole.pop(bounded, None)

    def bounded(self, named: Named) -> Named:
        """Return a fact or an entry of a snapshot with its bounded request id."""
        request_id = self._bounded.get(named.request_id)
        return named if request_id is None else structs.replace(named, request_id=request_id)

    def all_bounded(self, named: Iterable[Named]) -> Iterable[Named]:
        """Return the same of several at once; a snapshot names hundreds."""
        return map(self.bounded, named) if self._bounded else named

    def bounded_ids(self, request_ids: Iterable[str]) -> Iterable[str]:
        """Return request ids in their bounded form."""
        if not self._bounded:
            return request_ids
        return (self._bounded.get(request_id, request_id) for request_id in request_ids)

    def whole(self, table: IndexTable) -> IndexTable:
        """Return a table with the id that the engine knows."""
        request_id = self._whole.get(table.request_id) if table.request_id is not None else None
        return table if request_id is None else structs.replace(table, request_id=request_id)


def _cut(name: str | None) -> str | None:
    """Return the bounded form of a name that is not bounded; None for any other."""
    if name is None:
        return None
    bounded = bounded_name(name)
    return None if bounded is name else bounded
