"""The values that a request may state for the scheduler, their names and their bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec

from store.bounds import Class, Size, bounded_name, bounded_text
from store.errors import BadInputError

MAX_MS = 86_400_000
"""The longest target: a day."""

Value: TypeAlias = str | int | float


class UnusableHintError(BadInputError):
    """A header or a field states something for the scheduler that cannot be used; names what is allowed.

    Args:
        source: The header or field, as ``header x-llm-d-slo-ttft-ms``.
        shown: What it says; cut where it is long.
        allowed: What may stand there.
    """

    def __init__(self, source: str, shown: str, allowed: str) -> None:
        super().__init__(f"{source} is {bounded_text(shown)!r}: give {allowed}")
        self.source = source


Complain: TypeAlias = Callable[[UnusableHintError], None]
"""Is told of a value that cannot be used: raises the error, or counts it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: its type with its bounds, what is allowed in words, and the form that the scheduler sees."""

    type: Any
    allowed: str
    form: Callable[[Any], Value]
    strict: bool = False
    """Whether a number must stand there as one, and not in a string."""

    def from_text(self, text: str, source: str) -> Value:
        """Read a header's text; raises `UnusableHintError`."""
        try:
            return self.form(msgspec.convert(text, self.type, strict=self.strict))
        except msgspec.ValidationError:
            raise UnusableHintError(source, text, self.allowed) from None

    def from_json(self, raw: msgspec.Raw, source: str) -> Value:
        """Read a field's JSON; raises `UnusableHintError`."""
        try:
            return self.form(msgspec.json.decode(raw, type=self.type, strict=self.strict))
        except (msgspec.DecodeError, ValueError, RecursionError):
            shown = bytes(memoryview(raw)[:1024]).decode("utf-8", "replace")
            raise UnusableHintError(source, shown, self.allowed) from None


NAME = Kind(str | int | float, "a name", lambda name: bounded_name(str(name)), strict=True)
MILLISECONDS = Kind(
    Annotated[float, msgspec.Meta(gt=0.0, le=MAX_MS)], f"milliseconds above 0 and up to a day ({MAX_MS})", float
)
TOKENS = Kind(Size, "a whole number of tokens, 1 or more", int)
YES_OR_NO = Kind(Annotated[int, msgspec.Meta(ge=0, le=1)], "1 or 0", int)
PRIORITY = Kind(Class, "a whole number", int)

FIELDS: dict[str, Kind] = {
    "tenant": NAME,
    "service_class": NAME,
    "slo_ttft_ms": MILLISECONDS,
    "slo_tpot_ms": MILLISECONDS,
    "slo_e2e_ms": MILLISECONDS,
    "session_id": NAME,
    "expected_output_tokens": TOKENS,
    "sheds": YES_OR_NO,
}
"""What the scheduler reads of a request's ``vllm_xargs``."""
