"""How much memory an object holds; for figures and for tests of bounds."""

from __future__ import annotations

import sys
from collections import deque
from types import ModuleType

import numpy as np


def held_bytes(root: object) -> int:
    """Bytes of everything that an object holds: containers, attributes and arrays, each once.

    Classes, modules and functions do not count.

    >>> held_bytes([np.zeros(1_000), np.zeros(1_000)]) > 16_000
    True
    """
    seen: set[int] = set()
    total = 0
    waiting: deque[object] = deque([root])
    while waiting:
        item = waiting.popleft()
        if id(item) in seen or isinstance(item, (type, ModuleType)) or callable(item):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        waiting.extend(_held(item))
    return total


def _held(item: object) -> list[object]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, (list, tuple, deque, set, frozenset)):
        return list(item)
    if isinstance(item, np.ndarray):
        return [] if item.base is None else [item.base]
    slots = [
        getattr(item, name)
        for kind in type(item).__mro__
        for name in getattr(kind, "__slots__", ())
        if isinstance(name, str) and hasattr(item, name)
    ]
    return [*slots, *vars(item).values()] if hasattr(item, "__dict__") else slots
