"""What an engine says about its waiting requests beside KV memory: which hold blocks already, which it would skip.

Engines without such requests have no `Admission`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Protocol, TypeAlias

Readiness: TypeAlias = Literal["ready", "skipped", "crowded_out", "held_back"]
"""Whether the engine would start a waiting request now.

``skipped``: it waits for something of its own, such as its grammar, and the engine passes it by.
``crowded_out``: it waits for something that running requests hold, such as the slot of a LoRA adapter, so that it can
wait for ever while requests behind it are started.
``held_back``: the engine would start it, and it would keep what one that is crowded out waits for.
"""


class Admission(Protocol):
    """An engine's waiting requests at the start of a step."""

    @property
    def holding(self) -> Collection[Any]:
        """Requests outside the queue that hold KV blocks but do not run, for example while their KV is loaded."""
        ...

    @property
    def under_way(self) -> Collection[Any]:
        """Those of ``holding`` that go on by themselves; a session that waits for its client's input may never do so."""
        ...

    def readiness(self, request: Any) -> Readiness:  # noqa: ANN401 - the engine's own request
        """Return whether the engine would start a waiting request, after those that `start` has named."""
        ...

    def make_room(self, request: Any) -> None:  # noqa: ANN401 - as above
        """Hold back, in this step, as few requests as will let a request that is crowded out in.

        Those that hold nothing of what it waits for are never among them.
        """
        ...

    def start(self, request: Any) -> None:  # noqa: ANN401 - as above
        """Record that the plan starts a request in this step."""
        ...
