"""Reads what a request's headers say for the scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from engine_adapter.hints.values import FIELDS, PRIORITY, Complain, UnusableHintError, Value

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Names, in small letters, and values, as ASGI has them."""

HEADERS: dict[bytes, str] = {
    b"x-llm-d-inference-fairness-id": "tenant",
    b"x-gateway-inference-fairness-id": "tenant",
    b"x-sagesched-class": "service_class",
    b"x-llm-d-slo-ttft-ms": "slo_ttft_ms",
    b"x-slo-ttft-ms": "slo_ttft_ms",
    b"x-llm-d-slo-tpot-ms": "slo_tpot_ms",
    b"x-slo-tpot-ms": "slo_tpot_ms",
    b"x-sagesched-slo-e2e-ms": "slo_e2e_ms",
    b"x-sagesched-shed": "sheds",
    b"x-session-id": "session_id",
    b"x-dynamo-session-id": "session_id",
    b"x-claude-code-session-id": "session_id",
    b"session-id": "session_id",
    b"session_id": "session_id",
    b"thread-id": "session_id",
    b"x-session-affinity": "session_id",
    b"x-aibrix-session-key": "session_id",
}
"""Which field a header states; of two that state one field the upper counts."""

VLLM_PRIORITY = b"x-vllm-priority"
DYNAMO_PRIORITY = b"x-dynamo-request-priority"
SERVICE_TIER = b"x-sagesched-service-tier"
"""Header of the answer: the tier as which the request was served."""

_READ = HEADERS.keys() | {VLLM_PRIORITY, DYNAMO_PRIORITY}


class HeaderHints:
    """What a request's headers say for the scheduler; empty for most.

    Args:
        headers: The request's headers.
        complain: Is told of each value that cannot be used, which is then left out.
    """

    def __init__(self, headers: Headers, complain: Complain) -> None:
        # Of a header that stands there twice the first counts, as it does for vLLM.
        self._found = {name: value for name, value in reversed(headers) if name in _READ and value}
        self._complain = complain
        self.fields: dict[str, Value] = self._fields() if self._found else {}
        """Field of ``vllm_xargs`` and its value."""
        self.priority: int | None = self._priority() if self._found else None
        """VLLM's priority, lower first, where only Dynamo's header says one, which counts the other way round."""

    def _fields(self) -> dict[str, Value]:
        said: dict[str, Value] = {}
        for name, field in HEADERS.items():
            if name in self._found and field not in said:
                said.update(self._read(name, field))
        return said

    def _read(self, name: bytes, field: str) -> Iterable[tuple[str, Value]]:
        try:
            value = FIELDS[field].from_text(_text(self._found[name]), _source(name))
        except UnusableHintError as error:
            self._complain(error)
            return ()
        return () if value == 0 else ((field, value),)

    def _priority(self) -> int | None:
        for name in (VLLM_PRIORITY, DYNAMO_PRIORITY):
            if name not in self._found:
                continue
            try:
                value = int(PRIORITY.from_text(_text(self._found[name]), _source(name)))
            except UnusableHintError as error:
                self._complain(error)
                continue
            return -value if name == DYNAMO_PRIORITY else None
        return None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _source(name: bytes) -> str:
    return f"header {name.decode()}"
