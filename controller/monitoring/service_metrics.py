"""Metrics of service levels: who meets its targets, and how tenants share the engines.

Classes come from the configuration and are few; tenants are capped like all labels that clients choose.
Windows end at the latest request of whose end the controller has heard, by its own clock: one engine's may be wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge

from controller.monitoring.request_metrics import NONE, TENANTS, CappedLabel, bounded_label
from controller.monitoring.request_tracker import TrackedRequest
from store.records import Finished
from store.service_levels import TARGETS, course_of, judge, level_of

SLOT_S = 10.0
ATTAINMENT_S = 1800.0
"""Span over which attainment is told."""
SHARES_S = 300.0
"""Span within which a tenant counts as active."""
CLASSES = 32
TENANTS_COMPARED = 4096
"""Largest number of tenants that Jain's index compares."""

Key = TypeVar("Key", bound=Hashable)


class RecentSums(Generic[Key]):
    """Sums by key of what was added within the last ``window_s`` seconds, for at most ``limit`` keys.

    >>> sums = RecentSums[str](60.0, limit=2)
    >>> sums.add(0.0, "a", 1.0), sums.add(30.0, "a", 2.0), sums.add(65.0, "b", 1.0)
    (True, True, True)
    >>> sums.totals
    {'a': 2.0, 'b': 1.0}
    """

    def __init__(self, window_s: float, *, limit: int) -> None:
        self._slots_kept = round(window_s / SLOT_S)
        self._limit = limit
        self._slots: deque[tuple[int, dict[Key, float]]] = deque()
        self.totals: dict[Key, float] = {}

    def add(self, time_s: float, key: Key, amount: float) -> bool:
        """Add an amount; returns whether a new slot of time began with it."""
        number = int(time_s // SLOT_S)
        begins = not self._slots or number > self._slots[-1][0]
        if begins:
            self._slots.append((number, {}))
            self._forget(number - self._slots_kept)
        if key in self.totals or len(self.totals) < self._limit:
            slot = self._slots[-1][1]
            slot[key] = slot.get(key, 0.0) + amount
            self.totals[key] = self.totals.get(key, 0.0) + amount
        return begins

    def _forget(self, number: int) -> None:
        """Drop the slots up to this one, and sum the others anew, so that rounding does not add up."""
        if self._slots[0][0] > number:
            return
        while self._slots[0][0] <= number:
            self._slots.popleft()
        self.totals = {}
        for _, slot in self._slots:
            for key, amount in slot.items():
                self.totals[key] = self.totals.get(key, 0.0) + amount


class ServiceMetrics:
    """Judges every request that ended, and charges its tenant; for the control loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "sagesched_slo_requests_total",
            "Finished requests that had targets, by service class and by whether they met them all.",
            ("class", "met"),
            registry=registry,
        )
        self.missed = Counter(
            "sagesched_slo_missed_total",
            "Requests that missed a target, by service class and by why.",
            ("class", "cause"),
            registry=registry,
        )
        self.attainment = Gauge(
            "sagesched_slo_attainment_ratio",
            "Share of the requests that met a target, or all, of those that ended within half an hour.",
            ("class", "target"),
            registry=registry,
        )
        self.objective = Gauge(
            "sagesched_slo_objective_ratio",
            "Share of the requests of a service class that is to meet all targets.",
            ("class",),
            registry=registry,
        )
        self.service_s = Counter(
            "sagesched_tenant_service_seconds_total",
            "Engine-seconds that finished requests used, at the engine's prices when they ended, by tenant.",
            ("tenant",),
            registry=registry,
        )
        self.fairness = Gauge(
            "sagesched_tenant_jain_index",
            "Jain's index of the engine-seconds over weight of the tenants of the last five minutes; 1 is even.",
            registry=registry,
        )
        self._classes, self._tenants = CappedLabel(CLASSES), CappedLabel(TENANTS)
        self._judged = RecentSums[tuple[str, str, bool]](ATTAINMENT_S, limit=8 * (CLASSES + 1))
        self._used = RecentSums[str](SHARES_S, limit=TENANTS_COMPARED)

    def count(self, fact: Finished, request: TrackedRequest | None, service_s: float | None, now_s: float) -> None:
        """Count a request of whose end was heard now; ``service_s`` is what it used, None if that is not known."""
        self._judge(fact, request, now_s)
        if service_s is not None:
            self._charge(fact, request, service_s, now_s)

    def _judge(self, fact: Finished, request: TrackedRequest | None, now_s: float) -> None:
        level = level_of(request.promised if request else None)
        judged = judge(course_of(fact), level.targets)
        if judged.met is None:
            return
        label = self._classes.of(level.service_class)
        self.objective.labels(label).set(level.objective)
        self.requests.labels(label, str(judged.met).lower()).inc()
        if judged.cause is not None:
            self.missed.labels(label, judged.cause).inc()
        for target, met in (*((target, getattr(judged, target)) for target in TARGETS), ("all", judged.met)):
            if met is not None:
                self._attained(now_s, label, target, met=met)

    def _attained(self, time_s: float, label: str, target: str, *, met: bool) -> None:
        self._judged.add(time_s, (label, target, met), 1.0)
        totals = self._judged.totals
        kept, missed = totals.get((label, target, True), 0.0), totals.get((label, target, False), 0.0)
        self.attainment.labels(label, target).set(kept / (kept + missed))

    def _charge(self, fact: Finished, request: TrackedRequest | None, service_s: float, now_s: float) -> None:
        arrived, promised = (request.arrived, request.promised) if request else (None, None)
        tenant = (promised.account if promised else None) or (arrived.tenant if arrived else None) or NONE
        self.service_s.labels(self._tenants.of(tenant)).inc(max(0.0, service_s))
        weight = (promised.weight if promised else None) or 1.0
        if self._used.add(now_s, bounded_label(tenant), max(0.0, service_s) / weight):
            self.fairness.set(jain(list(self._used.totals.values())))


def jain(used: list[float]) -> float:
    """Jain's index of fairness (DEC-TR-301, 1984): 1 where all have the same, 1/n where one of n has everything.

    >>> jain([2.0, 2.0]), jain([4.0, 0.0]), jain([])
    (1.0, 0.5, 1.0)
    """
    squares = sum(value * value for value in used)
    return 1.0 if squares == 0.0 else sum(used) ** 2 / (len(used) * squares)
