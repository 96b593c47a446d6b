"""State kept for each served model, with a bound on how many models are remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

State = TypeVar("State")


class ModelTable(Generic[State]):
    """States by the served model's name; the model that was taught longest ago makes room for a new one.

    >>> table = ModelTable(list, bound=2)
    >>> for name in ("a", "b", "a", "c"):
    ...     table.get_or_create(name).append(name)
    >>> table.get("a"), table.get("b"), len(table)
    (['a', 'a'], None, 2)
    """

    def __init__(self, create: Callable[[], State], *, bound: int) -> None:
        assert bound > 0, "there must be room for a model"
        self._create = create
        self._bound = bound
        self._states: OrderedDict[str, State] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def states(self) -> list[State]:
        """All states, the one taught longest ago first."""
        return list(self._states.values())

    def items(self) -> list[tuple[str, State]]:
        """All models with their states, in the same order."""
        return list(self._states.items())

    def get(self, model: str) -> State | None:
        """The model's state, or None; changes nothing."""
        return self._states.get(model)

    def get_or_create(self, model: str) -> State:
        """The model's state, created when new, and marked as the latest."""
        if model not in self._states:
            self._states[model] = self._create()
            if len(self._states) > self._bound:
                self._states.popitem(last=False)
        self._states.move_to_end(model)
        return self._states[model]
