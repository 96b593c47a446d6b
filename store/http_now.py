"""The answer of the HTTP API about the present: one verdict, the figures behind it, and what happened lately."""

from __future__ import annotations

from typing import Literal, TypeAlias

from store.http_api import View
from store.records import Mode
from store.rules import LEVELS, RULES, Level, RuleName

EngineState: TypeAlias = Literal["on", "shadow", "off", "idle", "fallback", "silent", "lost", "left", "connected"]
"""on, shadow, off: the mode in force while it serves; left: it said goodbye; connected: it has not reported yet."""
EventKind: TypeAlias = Literal["engine up", "engine left", "engine lost", "fallback", "order back", "mode", "drift"]


class Finding(View, frozen=True, kw_only=True):
    """One thing that is amiss, or worth knowing."""

    rule: RuleName
    level: Level
    subject: str = ""
    """The engine, model or class that it is about."""
    text: str
    """What was found, with its number."""
    do: str
    """What to do."""

    @property
    def title(self) -> str:
        """The rule's title about this subject."""
        return RULES[self.rule].title.replace("{name}", self.subject)


class Verdict(View, frozen=True, kw_only=True):
    """The worst of all findings."""

    level: Level
    findings: tuple[Finding, ...]
    """The worst first."""
    text: str
    """One sentence: the worst finding, or that all is well."""


class LatencyPoint(View, frozen=True):
    """Latency of the requests that ended within a bin; None where none did."""

    time_s: float
    p50_s: float | None = None
    p99_s: float | None = None


class LatencyNow(View, frozen=True, kw_only=True):
    """One latency of the last minutes."""

    requests: int
    p50_s: float | None
    p99_s: float | None
    before_p50_s: float | None
    """The same of the minutes before."""
    points: tuple[LatencyPoint, ...]


class DemandNow(View, frozen=True, kw_only=True):
    """What comes against what is served."""

    arrived_per_s: float
    ended_per_s: float
    waiting: int
    grown_per_minute: float
    ratio: float | None
    """What comes over what is served; None without traffic, 1 where the queue does not grow."""
    text: str
    """The same in words."""


class AttainedNow(View, frozen=True, kw_only=True):
    """How the requests of one class fared within ten minutes."""

    service_class: str
    objective: float
    judged: int
    """Requests that ended within the span, and those that wait for longer than their target by now."""
    missed: int


class EngineNow(View, frozen=True, kw_only=True):
    """One engine at a glance."""

    engine_id: str
    model: str
    version: str
    state: EngineState
    mode: Mode | None
    waiting: int | None
    running: int | None
    kv_share: float | None
    output_tokens_per_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    preemptions_per_minute: float | None
    last_seen_s: float
    idle_since_s: float | None = None
    """When its last request ended, within the last quarter of an hour."""


class Event(View, frozen=True, kw_only=True):
    """Something that happened, for the list and for the marks on charts."""

    time_s: float
    kind: EventKind
    level: Level
    engine_id: str
    """Empty where it is about all."""
    text: str


class NowView(View, frozen=True, kw_only=True):
    """Answer of ``/api/now``; the verdict is about everything, the figures about the chosen engines."""

    time_s: float
    span_s: float
    """Of the figures."""
    verdict: Verdict
    ttft: LatencyNow
    ttlt: LatencyNow
    attained: tuple[AttainedNow, ...]
    demand: DemandNow | None
    """None in the first seconds."""
    engines: tuple[EngineNow, ...]
    events: tuple[Event, ...]
    """The latest first."""


def verdict_of(findings: list[Finding]) -> Verdict:
    """The worst first, and its level and title for all."""
    rules = list(RULES)
    ranked = tuple(
        sorted(findings, key=lambda finding: (-LEVELS.index(finding.level), rules.index(finding.rule), finding.subject))
    )
    level = ranked[0].level if ranked else "green"
    level = "green" if level == "info" else level
    return Verdict(level=level, findings=ranked, text="All is well" if level == "green" else ranked[0].title)
