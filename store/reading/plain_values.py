"""Answers to SQL in values that JSON, CSV, tables and browsers know, whatever types they have.

Arrow's own conversion to Python raises for infinite moments and for those beyond the years 1 to 9999, and CSV knows no
nested values.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_ENDLESS = {64: (1 << 63) - 1, 32: (1 << 31) - 1}
"""What stands for an infinite moment, by the bits of its type; less than nothing for one without a beginning."""


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """A column's values in Python; never raises.

    Structs and maps become dictionaries, moments that Python has no value for their text.
    """
    kind = column.type
    if pa.types.is_decimal(kind) and kind.scale == 0:  # Sums of whole numbers come so.
        return [None if value is None else int(value) for value in column.to_pylist()]
    if not (pa.types.is_nested(kind) or pa.types.is_temporal(kind)):
        return list(column.to_pylist())
    return [_value(scalar) for chunk in column.chunks for scalar in chunk]


def plain(answer: pa.Table) -> pa.Table:
    """The answer with text in place of values that CSV, browsers and charts do not know: nested ones, bytes, far moments."""
    columns = [_plain(column) for column in answer.columns]
    return pa.Table.from_arrays(columns, names=answer.column_names, metadata=answer.schema.metadata)


def text_of(value: object) -> str:
    r"""A value in one line.

    >>> text_of({"cluster": 0.7, "bands": 0.3}), text_of([1, None, b"\xaa"])
    ('cluster: 0.7, bands: 0.3', '1, , aa')
    """
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return ", ".join(f"{text_of(key)}: {text_of(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if _is_known(kind) and not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return column
    values = values_of(column)
    if _is_known(kind) and not any(isinstance(value, str) for value in values):
        return column
    texts = [None if value is None else text_of(value) for value in values]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _is_known(kind: pa.DataType) -> bool:
    """Whether CSV and browsers have this type."""
    known = (
        *(pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_string),
        *(pa.types.is_large_string, pa.types.is_date, pa.types.is_timestamp, pa.types.is_time),
    )
    return any(is_it(kind) for is_it in known)


def _value(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - a value of any column
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if pa.types.is_nested(kind):
        return _nested(scalar)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _moment(scalar)
    try:
        value = scalar.as_py()
    except (ArithmeticError, ValueError, TypeError, NotImplementedError, pa.ArrowException):
        return str(scalar)
    return str(value) if pa.types.is_interval(kind) or pa.types.is_duration(kind) else value


def _nested(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - a list or a dictionary
    kind = scalar.type
    if pa.types.is_map(kind):
        return {text_of(_value(item[0])): _value(item[1]) for item in scalar.values}
    if pa.types.is_struct(kind):
        return {kind.field(place).name: _value(scalar[place]) for place in range(kind.num_fields)}
    return [_value(item) for item in scalar.values]


def _moment(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - a date, a moment, or its text
    if not (pa.types.is_timestamp(scalar.type) and scalar.type.unit == "ns"):
        try:
            return scalar.as_py()
        except (ArithmeticError, ValueError, pa.ArrowException):
            pass
    if abs(scalar.value) >= _ENDLESS[scalar.type.bit_width]:
        return "infinity" if scalar.value > 0 else "-infinity"
    try:
        return str(pc.cast(scalar, pa.string()).as_py())
    except pa.ArrowException:
        return f"{scalar.value} since 1970"
