"""Validated reading of a workload file's values: each error names file, row, column, value and remedy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from engine_adapter.workloads.token_ids import PREFIX_BLOCK_TOKENS
from store.errors import WorkloadError

MAX_TOKENS_PER_ROW = 10_000_000
"""A prompt or an answer longer than this is taken for a mistake."""

MAX_TIME_S = 1e11
"""A time later than this (the year 5138, as Unix time) is taken for a mistake, such as milliseconds for seconds."""


@dataclass(frozen=True, slots=True)
class Place:
    """File and number of a row; rows count from 1."""

    file: Path
    row: int

    def error(self, column: str, value: object, remedy: str) -> WorkloadError:
        """Return the exception for an invalid value."""
        shown = repr(value)
        if len(shown) > 60:
            shown = shown[:57] + "..."
        return WorkloadError(f"{self.file}, row {self.row}: {column} is {shown}: {remedy}")


def prompt_tokens(place: Place, column: str, value: object) -> int:
    """Return the length of a prompt; an empty one counts as 1, for its beginning-of-sequence token."""
    return max(1, whole_number(place, column, value))


def response_tokens(place: Place, column: str, value: object) -> int:
    """Return the length of an answer; an empty one counts as 1, for its end-of-sequence token."""
    return max(1, whole_number(place, column, value))


def whole_number(place: Place, column: str, value: object) -> int:
    """Return a count from 0 to `MAX_TOKENS_PER_ROW`, from a number or its text."""
    number = _number(place, column, value)
    if number != math.floor(number) or not 0 <= number <= MAX_TOKENS_PER_ROW:
        raise place.error(column, value, f"give a whole number from 0 to {MAX_TOKENS_PER_ROW}")
    return int(number)


def seconds(place: Place, column: str, value: object) -> float:
    """Return a time in seconds, 0 or later."""
    number = _number(place, column, value)
    if not 0 <= number <= MAX_TIME_S:
        raise place.error(column, value, f"give seconds from 0 to {MAX_TIME_S:g}")
    return number


def milliseconds(place: Place, column: str, value: object) -> float:
    """Return a time in seconds from a number of milliseconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise place.error(column, value, "give milliseconds")
    return seconds(place, column, value) / 1000.0


def block_hashes(place: Place, column: str, value: object) -> tuple[int, ...]:
    """Return the hashes of a prompt's blocks, each a whole number of 0 or more."""
    if not isinstance(value, list):
        raise place.error(column, value, "give a list of block hashes")
    for block_hash in value:
        if isinstance(block_hash, bool) or not isinstance(block_hash, int) or block_hash < 0:
            raise place.error(column, block_hash, "give whole numbers of 0 or more")
    return tuple(value)


def block_size_tokens(place: Place, value: object) -> int:
    """Return the tokens of a hashed block, `PREFIX_BLOCK_TOKENS` where the source does not say."""
    return some_tokens(place, "block_size_tokens", value) or PREFIX_BLOCK_TOKENS


def some_tokens(place: Place, column: str, value: object) -> int | None:
    """Return a number of tokens of 1 or more; None where the source does not say."""
    if value is None:
        return None
    tokens = whole_number(place, column, value)
    if not tokens:
        raise place.error(column, value, "give 1 or more")
    return tokens


def text(place: Place, column: str, value: object) -> str:
    """Return a text, which must be present."""
    if not isinstance(value, str):
        raise place.error(column, value, "give a text")
    return value


def text_or_none(place: Place, column: str, value: object) -> str | None:
    """Return a text, or None where the source has none."""
    return None if value is None else text(place, column, value)


def _number(place: Place, column: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise place.error(column, value, "give a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise place.error(column, value, "give a number") from None
    if not math.isfinite(number):
        raise place.error(column, value, "give a finite number, or remove the row")
    return number
