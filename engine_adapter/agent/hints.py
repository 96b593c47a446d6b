"""What a request says of its tenant, session, class and targets, as clients put it into ``vllm_xargs``.

Whatever cannot be used is left out: a request is served all the same. `engine_adapter.http_hints` refuses such values
where an operator wants that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from store.records import Targets

LONGEST_TARGET_MS = 86_400_000.0
"""A target beyond a day is none."""

LEAST_TARGET_S = 1e-9
"""A target that is smaller counts as this one, so that none becomes 0."""

MOST_TOKENS = 1 << 40

NAMES = (
    "tenant",
    "session_id",
    "service_class",
    "slo_ttft_ms",
    "slo_tpot_ms",
    "slo_e2e_ms",
    "expected_output_tokens",
    "sheds",
)
"""Names of the extra arguments that are read; no other is, in particular none that tells a virtual GPU the answer's length."""


@dataclass(frozen=True, slots=True)
class Hints:
    """The usable part of what a request says.

    >>> said = Hints.of({"tenant": "team-a", "slo_ttft_ms": 500, "slo_tpot_ms": "fast", "session_id": 7})
    >>> said.tenant, said.session, said.targets
    ('team-a', '7', Targets(ttft_s=0.5, tpot_s=None, e2e_s=None))
    >>> Hints.of(None).targets is None
    True
    """

    tenant: str | None = None
    session: str | None = None
    service_class: str | None = None
    targets: Targets | None = None
    expected_output_tokens: int | None = None
    sheds: bool = False

    @staticmethod
    def of(extra_args: Mapping[str, Any] | None, session_id: str | None = None) -> Hints:
        """Read a request's extra arguments; ``session_id`` is the engine's own, which comes first."""
        said = extra_args or {}
        if not said and session_id is None:
            return _NOTHING
        return Hints(
            tenant=_text(said.get("tenant")),
            session=_text(session_id) or _text(said.get("session_id")),
            service_class=_text(said.get("service_class")),
            targets=_targets(said),
            expected_output_tokens=_tokens(said.get("expected_output_tokens")),
            sheds=_number(said.get("sheds")) == 1.0,
        )


_NOTHING = Hints()


class Saying(Protocol):
    """A request that is about to be sent to an engine."""

    @property
    def tenant(self) -> str | None:
        """Its tenant."""
        ...

    @property
    def session(self) -> str | None:
        """Its session."""
        ...

    @property
    def service_class(self) -> str | None:
        """Its service class."""
        ...

    @property
    def targets(self) -> Targets | None:
        """Targets of its own."""
        ...

    @property
    def sheds(self) -> bool:
        """Whether its client prefers an early error."""
        ...


def extra_args(request: Saying) -> dict[str, str | float]:
    """Return what `Hints.of` reads; empty for a request that says nothing.

    >>> said = Hints(tenant="team-a", targets=Targets(ttft_s=0.5), sheds=True)
    >>> extra_args(said)
    {'tenant': 'team-a', 'slo_ttft_ms': 500.0, 'sheds': 1}
    >>> Hints.of(extra_args(said)) == said
    True
    """
    targets = request.targets or Targets()
    said = {
        "tenant": request.tenant,
        "session_id": request.session,
        "service_class": request.service_class,
        "slo_ttft_ms": _milliseconds(targets.ttft_s),
        "slo_tpot_ms": _milliseconds(targets.tpot_s),
        "slo_e2e_ms": _milliseconds(targets.e2e_s),
        "sheds": 1 if request.sheds else None,
    }
    return {name: value for name, value in said.items() if value is not None}


def _targets(said: Mapping[str, Any]) -> Targets | None:
    ttft_s, tpot_s, e2e_s = (_seconds(said.get(f"slo_{name}_ms")) for name in ("ttft", "tpot", "e2e"))
    if ttft_s is None and tpot_s is None and e2e_s is None:
        return None
    return Targets(ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s)


def _seconds(value: object) -> float | None:
    number = _number(value)
    return max(number / 1000.0, LEAST_TARGET_S) if number is not None and 0.0 < number <= LONGEST_TARGET_MS else None


def _tokens(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 1.0 <= number <= MOST_TOKENS else None


def _number(value: object) -> float | None:
    """Return a finite number, also one that is written as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000.0 * seconds
