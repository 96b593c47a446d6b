"""The answer of the HTTP API about service levels: who met its targets, what is left of error budgets, who used what."""

from __future__ import annotations

from typing import Literal, TypeAlias

from store.http_api import View
from store.service_levels import NOT_CONFIGURED, Cause, Target

Group: TypeAlias = Literal["class", "tenant"]


class TargetAttainment(View, frozen=True, kw_only=True):
    """How many requests of a class had one kind of target, and how many of them met it."""

    target: Target
    longest_s: float
    """The target; the longest where requests had several."""
    shortest_s: float
    judged: int
    met: int


class ClassAttainment(View, frozen=True, kw_only=True):
    """How the requests of one service class fared."""

    name: str
    objective: float
    """Share of them that is to meet all targets."""
    requests: int
    """Requests that ended."""
    judged: int
    """Of these, how many had targets and count."""
    met: int
    """Of these, how many met all."""
    recent_judged: int
    """Of those judged, how many ended within the last twelfth of the span."""
    recent_met: int
    targets: tuple[TargetAttainment, ...] = ()

    @property
    def attainment(self) -> float | None:
        """Share that met all targets; None where none is judged."""
        return self.met / self.judged if self.judged else None

    @property
    def configured(self) -> bool:
        """Whether anybody promised these targets."""
        return self.name != NOT_CONFIGURED

    @property
    def keeps(self) -> bool:
        """Whether it keeps its objective, as far as is known."""
        return self.attainment is None or self.attainment >= self.objective

    @property
    def burn_rate(self) -> float | None:
        """How many times as many miss their targets as the objective allows."""
        return _burn_rate(self.judged, self.met, self.objective)

    @property
    def recent_burn_rate(self) -> float | None:
        """The same within the last twelfth of the span."""
        return _burn_rate(self.recent_judged, self.recent_met, self.objective)

    @property
    def budget_left(self) -> float | None:
        """Share of the misses that the objective allows for these requests which is not spent; negative if overspent.

        >>> chat = ClassAttainment(
        ...     name="chat", objective=0.5, requests=9, judged=8, met=6, recent_judged=4, recent_met=1
        ... )
        >>> chat.attainment, chat.budget_left, chat.burn_rate, chat.recent_burn_rate
        (0.75, 0.5, 0.5, 1.5)
        """
        return None if self.burn_rate is None else 1.0 - self.burn_rate


class AttainmentPoint(View, frozen=True, kw_only=True):
    """How many requests of a class or tenant that ended in one bucket of time met all their targets."""

    by: Group
    name: str
    time_s: float
    """Start of the bucket."""
    judged: int
    met: int


class Misses(View, frozen=True, kw_only=True):
    """Requests of one class and tenant that missed a target for one cause."""

    service_class: str
    tenant: str
    cause: Cause
    requests: int
    ttft: int
    """Of these, how many missed their TTFT target."""
    tpot: int
    e2e: int


class TenantService(View, frozen=True, kw_only=True):
    """What one tenant used and how it fared."""

    name: str
    weight: float | None
    """None where no shares are kept."""
    requests: int
    judged: int
    met: int
    service_s: float | None
    """Engine-seconds that it used, as far as known."""
    share: float | None
    """Its part of the engine-seconds of all tenants."""
    fair_share: float
    """Its weight among those of all tenants with requests."""
    mean_queue_s: float | None
    mean_ttlt_s: float | None


class ServiceView(View, frozen=True, kw_only=True):
    """Answer of ``/api/service``: service levels of the requests that ended in a span of time."""

    newest_s: float | None
    """When the last request ended, in the span or before it; None where none has."""
    bucket_s: float
    since_s: float = 0.0
    """Begin of the span."""
    until_s: float = 0.0
    """End of the span."""
    recent_s: float = 0.0
    """The last twelfth of the span, in seconds."""
    requests: int = 0
    """The latest requests of the span, on which all rests."""
    capped: bool = False
    """Whether there are more of them in the span."""
    classes: tuple[ClassAttainment, ...] = ()
    """Those with most requests first."""
    tenants: tuple[TenantService, ...] = ()
    """Those that used most first; the largest only."""
    tenants_active: int = 0
    jain_index: float | None = None
    """Jain's index of engine-seconds over weight, over all tenants; None with fewer than two."""
    points: tuple[AttainmentPoint, ...] = ()
    misses: tuple[Misses, ...] = ()
    """The most frequent first."""


def _burn_rate(judged: int, met: int, objective: float) -> float | None:
    return (judged - met) / judged / (1.0 - objective) if judged else None
