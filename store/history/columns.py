"""Columns of a record: names, DuckDB types and comments, all derived from the record's declaration.

A record's field becomes a column of its name and type, with the text under the field as comment.
The fields of a record within a record become columns of their own; those of an optional one have its name before theirs.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

import msgspec

Kind = TypeVar("Kind", bound=msgspec.Struct)

Row: TypeAlias = tuple[Any, ...]
"""Values in the order of the table's columns."""

SQL_TYPES = {int: "BIGINT", float: "DOUBLE", str: "VARCHAR", bytes: "BLOB", bool: "BOOLEAN"}

LEFT_OUT = frozenset({"Hello.engine_id", "Hello.session_id", "Snapshot.detailed"})
"""Fields without a column of their own: an engine's names stand in every row, and lists that were not sent are NULL."""

WITHHELD = {
    "Arrived.token_ids": "NULL unless the operator had prompts stored",
    "Snapshot.running_requests": "in about every third snapshot, otherwise NULL",
    "Snapshot.queue": "in about every third snapshot, otherwise NULL",
}
"""Fields that always have a value and whose columns may be NULL, with what the comment says of it."""

COMMENTS = {"request_id": "The engine's name of the request."}
"""Of fields whose name says enough in the code."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, and the path of attributes from a record to its value."""

    name: str
    type: str
    optional: bool
    withheld: bool
    """Whether the value may be left out although the record has one."""
    comment: str
    path: tuple[str, ...]

    @property
    def definition(self) -> str:
        """Its line in the table's text."""
        return f"{self.name} {self.type}{'' if self.optional else ' NOT NULL'},  -- {self.comment}"


@cache
def columns_of(kind: type[msgspec.Struct]) -> tuple[Column, ...]:
    """The columns of a kind of record, in the order of its fields.

    >>> from store.entries import ClusterChanged, SettingsChanged
    >>> print(columns_of(ClusterChanged)[1].definition)
    kind VARCHAR NOT NULL,  -- born, split, merged or retired.
    >>> [column.name for column in columns_of(SettingsChanged)][4:7]
    ['lease_s', 'gate_horizon_tokens', 'gate_margin']
    """
    return tuple(_columns(kind))


def values_of(kind: type[msgspec.Struct]) -> Callable[[Any], Row]:
    """What gives the values of a record's columns."""
    paths = [column.path for column in columns_of(kind)]
    if any(column.optional and len(column.path) > 1 for column in columns_of(kind)):
        return lambda record: tuple(_reach(record, path) for path in paths)
    return attrgetter(*(".".join(path) for path in paths))


def record_of(kind: type[Kind], row: Mapping[str, Any]) -> Kind:
    """The record that a row of its columns keeps; raises `msgspec.ValidationError` for values that it cannot have.

    NULL in the column of a field that is never None says that an earlier release wrote the row: the field has its default.

    >>> from store.records import EngineRules, Gate
    >>> rules = EngineRules(victims="last", gate=Gate(horizon_tokens=32, margin=1.5))
    >>> names = [column.name for column in columns_of(EngineRules)]
    >>> record_of(EngineRules, dict(zip(names, values_of(EngineRules)(rules), strict=True))).gate
    Gate(horizon_tokens=32, margin=1.5)
    """
    fields: dict[str, Any] = {}
    for column in columns_of(kind):
        if row[column.name] is None and not column.optional:
            continue
        *parts, name = column.path
        inner = fields
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[name] = row[column.name]
    return msgspec.convert(_present(fields), kind)


def sql_type(hint: Any) -> str:  # noqa: ANN401 - whatever a field may be annotated with
    """The DuckDB type that keeps values of a Python type.

    >>> sql_type(tuple[float, ...]), sql_type(dict[str, float])
    ('DOUBLE[]', 'MAP(VARCHAR, DOUBLE)')
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "VARCHAR"
    if origin is tuple:
        return f"{sql_type(arguments[0])}[]"
    if origin is dict:
        return f"MAP({', '.join(map(sql_type, arguments))})"
    if _is_record(hint):
        return f"STRUCT({', '.join(f'{name} {sql_type(each)}' for name, each in typing.get_type_hints(hint).items())})"
    return SQL_TYPES[hint]


def _columns(kind: type, path: tuple[str, ...] = (), owner: str | None = None) -> Iterator[Column]:
    """The columns of a kind; ``owner`` is the optional field that holds the record."""
    comments = _field_texts(kind.__module__)
    for name, hint in typing.get_type_hints(kind).items():
        field = f"{kind.__name__}.{name}"
        if field in LEFT_OUT:
            continue
        value, optional = _required(hint)
        if _is_record(value):
            yield from _columns(value, (*path, name), name if optional else owner)
            continue
        comment = comments.get(field) or COMMENTS[name]
        note = WITHHELD.get(field) or (f"NULL without {owner}" if owner else None)
        yield Column(
            name=f"{owner}_{name}" if owner else name,
            type=sql_type(value),
            optional=optional or note is not None,
            withheld=field in WITHHELD,
            comment=f"{comment[:-1]}; {note}." if note else comment,
            path=(*path, name),
        )


def _reach(record: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - a value of any column
    """The value at the end of a path; None where an optional record on the way is missing."""
    for name in path:
        record = None if record is None else getattr(record, name)
    return record


def _present(fields: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of a record and of those in it; None where an optional one is missing, which has NULL everywhere."""
    if all(value is None for value in fields.values()):
        return None
    return {name: _present(value) if isinstance(value, dict) else value for name, value in fields.items()}


def _required(hint: Any) -> tuple[Any, bool]:  # noqa: ANN401 - whatever a field may be annotated with
    """A type without its None, and whether it had one."""
    if typing.get_origin(hint) not in {types.UnionType, typing.Union}:
        return hint, False
    (value,) = (each for each in typing.get_args(hint) if each is not types.NoneType)
    return value, True


def _is_record(hint: Any) -> typing.TypeGuard[type[msgspec.Struct]]:  # noqa: ANN401 - whatever a field may be annotated with
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


@cache
def _field_texts(module: str) -> dict[str, str]:
    """The text under each field of a module's classes, as ``Class.field``, in SQL's words."""
    classes = (
        node for node in ast.parse(inspect.getsource(sys.modules[module])).body if isinstance(node, ast.ClassDef)
    )
    return {
        f"{owner.name}.{field.target.id}": " ".join(text.value.value.split()).replace("`", "").replace("None", "NULL")
        for owner in classes
        for field, text in pairwise(owner.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
