"""What a learner has learnt as plain data, and back: bytes without code, from which the same learner is made again.

Written are numbers, texts, containers, arrays by their raw bytes, and the attributes of objects of this package's classes,
each object once, so that what two share they share again. What can be called belongs to no state: it stays with the learner
that is restored, which must be of the same settings. River's drift detector gives and takes its state itself.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from river._river_rust.drift import AdaptiveWindowing

_PACKAGE = __name__.partition(".")[0]
_LARGEST_INT = (1 << 63) - 1
_SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_MAPPINGS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}


class UnknownStateError(Exception):
    """Something that cannot be written as plain data, or that plain data do not fit to."""


def written(state: object) -> bytes:
    """A learner, or a container of what was learnt, as plain data.

    Raises `UnknownStateError` if there is something in it that would not come back as it was.
    """
    return msgspec.msgpack.encode(_Writer().value(state))


def restored(data: bytes, blank: object) -> Any:  # noqa: ANN401 - whatever was written
    """What `written` wrote; ``blank`` is the same before anything was learnt, and is changed.

    The data must be trusted, or their checksum. Raises `UnknownStateError` where they do not fit: ``blank`` is then of no use.
    """
    try:
        return _Reader().value(msgspec.msgpack.decode(data), blank)
    except (msgspec.DecodeError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UnknownStateError(f"{type(error).__name__}: {error}") from error


class _Writer:
    """Turns objects into lists that begin with what they are; those that were met before into their number."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[int, object]] = {}

    def value(self, value: object) -> Any:  # noqa: ANN401 - a tree for msgpack
        kind = type(value)
        if value is None or kind in {bool, float, str, bytes}:
            return value
        if isinstance(value, int) and kind is int:
            return value if abs(value) <= _LARGEST_INT else ["int", hex(value)]
        if id(value) in self._met:
            return ["met", self._met[id(value)][0]]
        self._met[id(value)] = (len(self._met), value)  # It is kept, so that no other has its id.
        return self._compound(value)

    def _compound(self, value: object) -> list[Any]:
        name = type(value).__name__
        if _SEQUENCES.get(name) is type(value):
            return [name, [self.value(item) for item in self._in_order(value)]]
        if _MAPPINGS.get(name) is type(value):
            assert isinstance(value, dict), "the table says so"
            return [name, [[self.value(key), self.value(item)] for key, item in value.items()]]
        return self._special(value) or self._object(value)

    def _special(self, value: object) -> list[Any] | None:
        match value:
            case np.ndarray():
                return _array(value)
            case np.generic():
                return ["scalar", value.dtype.str, value.tobytes()]
            case np.random.Generator():
                return ["generator", self.value(value.bit_generator.state)]
            case deque():
                return ["deque", value.maxlen, [self.value(item) for item in value]]
            case AdaptiveWindowing():
                return ["drift test", self.value(value.__getnewargs__()), value.__getstate__()]
        return None

    @staticmethod
    def _in_order(value: Any) -> Any:  # noqa: ANN401 - a list, tuple or set
        return sorted(value, key=repr) if isinstance(value, set | frozenset) else value

    def _object(self, value: object) -> list[Any]:
        name = _name(type(value))
        if isinstance(value, tuple):
            return ["named", name, [self.value(item) for item in value]]
        attributes = dict(_attributes(value))
        kept = [attribute for attribute, held in attributes.items() if callable(held)]
        state = [[attribute, self.value(held)] for attribute, held in attributes.items() if attribute not in kept]
        return ["struct" if isinstance(value, msgspec.Struct) else "object", name, state, kept]


class _Reader:
    """Makes the objects again, in the order in which they were met, out of the blank ones where there are such."""

    def __init__(self) -> None:
        self._met: list[Any] = []
        self._used: set[int] = set()
        """Blank objects that are filled: what was two becomes two again."""
        self._make: dict[str, Callable[[int, list[Any], Any], Any]] = {
            "array": self._array,
            "scalar": lambda _number, parts, _blank: np.frombuffer(parts[1], parts[0])[0],
            "generator": self._generator,
            "deque": self._deque,
            "drift test": self._drift_test,
            "named": self._named,
            "struct": self._struct,
            "object": self._object,
            **dict.fromkeys(_SEQUENCES, self._sequence),
            **dict.fromkeys(_MAPPINGS, self._mapping),
        }

    def value(self, data: Any, blank: Any = None) -> Any:  # noqa: ANN401 - whatever was written
        if not isinstance(data, list):
            return data
        kind, *parts = data
        if kind == "int":
            return int(parts[0], 16)
        if kind == "met":
            return self._met[parts[0]]
        number = len(self._met)
        self._met.append(None)
        if kind in _SEQUENCES or kind in _MAPPINGS:
            parts = [kind, *parts]
        made = self._make[kind](number, parts, blank)
        self._met[number] = made
        return made

    def _items(self, data: list[Any], blank: Any) -> Iterator[Any]:  # noqa: ANN401 - whatever was written
        blanks = list(blank) if isinstance(blank, list | tuple | deque) and len(blank) == len(data) else []
        return (self.value(item, blanks[place] if blanks else None) for place, item in enumerate(data))

    @staticmethod
    def _array(_number: int, parts: list[Any], _blank: object) -> Any:  # noqa: ANN401 - an array of any type
        dtype, shape, order, data = parts
        return np.frombuffer(data, dtype).reshape(shape, order=order).copy(order="K")

    def _generator(self, _number: int, parts: list[Any], _blank: object) -> np.random.Generator:
        generator = np.random.default_rng()
        generator.bit_generator.state = self.value(parts[0])
        return generator

    def _deque(self, number: int, parts: list[Any], blank: object) -> deque[Any]:
        made: deque[Any] = deque(maxlen=parts[0])
        self._met[number] = made
        made.extend(self._items(parts[1], blank))
        return made

    def _drift_test(self, _number: int, parts: list[Any], _blank: object) -> Any:  # noqa: ANN401 - River's own
        made = AdaptiveWindowing(*self.value(parts[0]))
        made.__setstate__(parts[1])
        return made

    def _sequence(self, number: int, parts: list[Any], blank: object) -> Any:  # noqa: ANN401 - a list, tuple or set
        kind, items = _SEQUENCES[parts[0]], self._items(parts[1], blank)
        if kind is not list:
            return kind(items)
        made: list[Any] = []
        self._met[number] = made
        made.extend(items)
        return made

    def _mapping(self, number: int, parts: list[Any], blank: Any) -> Any:  # noqa: ANN401 - a dictionary
        self._met[number] = made = _MAPPINGS[parts[0]]()
        blanks = blank if isinstance(blank, dict) else {}
        for key, item in parts[1]:
            name = self.value(key)
            made[name] = self.value(item, blanks.get(name))
        return made

    def _named(self, _number: int, parts: list[Any], _blank: object) -> Any:  # noqa: ANN401 - a named tuple
        return _class(parts[0])(*self._items(parts[1], None))

    def _struct(self, _number: int, parts: list[Any], _blank: object) -> Any:  # noqa: ANN401 - a msgspec structure
        return _class(parts[0])(**{attribute: self.value(held) for attribute, held in parts[1]})

    def _object(self, number: int, parts: list[Any], blank: Any) -> Any:  # noqa: ANN401 - one of this package
        kind, (_, state, kept) = _class(parts[0]), parts
        made = blank if self._may_fill(blank, kind) else kind.__new__(kind)
        self._met[number] = made
        values = {attribute: self.value(held, getattr(blank, attribute, None)) for attribute, held in state}
        if hasattr(kind, "__setstate__") and not is_dataclass(kind):
            made.__setstate__(values)
        else:
            for attribute, held in values.items():
                object.__setattr__(made, attribute, held)
        missing = [attribute for attribute in kept if not hasattr(made, attribute)]
        if missing:
            raise UnknownStateError(f"{parts[0]} has no {', '.join(missing)}")
        return made

    def _may_fill(self, blank: object, kind: type) -> bool:
        """Whether an object is to be the restored one: of the blank ones each once, and none that never changes."""
        if type(blank) is not kind or id(blank) in self._used or _is_frozen(kind):
            return False
        self._used.add(id(blank))
        return True


def _is_frozen(kind: type) -> bool:
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _array(value: np.ndarray[Any, Any]) -> list[Any]:
    if value.dtype.hasobject or type(value) is not np.ndarray:
        raise UnknownStateError(f"an array of {value.dtype} is no plain data")
    order: Literal["F", "C"] = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    return ["array", value.dtype.str, list(value.shape), order, value.tobytes(order)]


def _name(kind: type) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if _class(name) is not kind:
        raise UnknownStateError(f"{name} is no class of a module of this package")
    return name


def _class(name: str) -> Any:  # noqa: ANN401 - a class
    """A class of a loaded module of this package."""
    module, _, qualified = name.partition(":")
    kind = getattr(sys.modules.get(module), qualified, None) if module.split(".")[0] == _PACKAGE else None
    if not isinstance(kind, type) or kind.__module__ != module:
        raise UnknownStateError(f"{name} is no class of a module of this package")
    return kind


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    """The attributes of an object, of its slots and its dictionary."""
    for kind in reversed(type(value).__mro__):
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in {"__dict__", "__weakref__"} and hasattr(value, name):
                yield name, getattr(value, name)
    yield from getattr(value, "__dict__", {}).items()
