"""How many requests of a run met their targets: goodput, attainment of each target, and what was missed.

A request meets its targets if its time to first token (TTFT), its mean time per output token after the first (TPOT) and
its time from arrival to the last token (end to end) are at most those that it has, and its answer came to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

from engine_adapter.virtual_time.engine import CompletedRequest
from store.records import Targets

Target: TypeAlias = Literal["ttft", "tpot", "e2e"]
TARGETS: tuple[Target, ...] = ("ttft", "tpot", "e2e")
ANSWERED = frozenset({"stop", "length"})
"""Reasons with which an answer came to its end."""
ABORTED = "no whole answer"
"""What a request misses that was aborted, shed or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """The requests of a service class, or all of a run."""

    requests: int
    asked: int
    """Requests that have a target."""
    goodput: float | None
    """Share of these that met all of theirs; None where there is none."""
    attainment: dict[str, float]
    """Share of the requests with a target that met it, by `TARGETS`; a target that nobody has is left out."""
    missed: dict[str, int]
    """Number of requests by what they missed, such as ``ttft`` or ``ttft+tpot``, the most frequent first."""
    mean_ttlt_s: float
    makespan_s: float
    """From the first arrival to the last answer's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFigures:
    """Service levels of a run."""

    all: ClassFigures
    classes: dict[str, ClassFigures]
    """By service class, in alphabetical order; requests in no class are in none."""
    paced_itl_p99: float | None = None
    """99 % quantile of the inter-token times (ITL) of requests with a TPOT target, over that target; None without any."""

    @property
    def goodput(self) -> float:
        """Share of the requests with targets that met them; 1 where there is none."""
        return 1.0 if self.all.goodput is None else self.all.goodput


@dataclass(frozen=True, slots=True)
class Asked:
    """The service class and targets of a request."""

    service_class: str | None
    targets: Targets | None


def service_figures(
    completed: Sequence[CompletedRequest], asked: Mapping[str, Asked], *, paced_itl_p99: float | None = None
) -> ServiceFigures:
    """Sum a run up; ``asked`` has every request by its id."""
    by_class: dict[str, list[CompletedRequest]] = {}
    for request in completed:
        name = asked[request.request_id].service_class
        if name is not None:
            by_class.setdefault(name, []).append(request)
    targets = {request_id: one.targets for request_id, one in asked.items()}
    return ServiceFigures(
        all=_class_figures(completed, targets),
        classes={name: _class_figures(requests, targets) for name, requests in sorted(by_class.items())},
        paced_itl_p99=paced_itl_p99,
    )


def missed(request: CompletedRequest, targets: Targets) -> tuple[str, ...]:
    """The targets that a request missed, in the order of `TARGETS`; `ABORTED` alone for an answer without its end."""
    if request.reason not in ANSWERED:
        return (ABORTED,)
    return tuple(name for name, reached_s, limit_s in _spans(request, targets) if reached_s > limit_s)


def _class_figures(requests: Sequence[CompletedRequest], targets: Mapping[str, Targets | None]) -> ClassFigures:
    assert requests, "a class has at least one request"
    asking = [(request, own) for request in requests for own in [targets[request.request_id]] if own is not None]
    misses = [(own, missed(request, own)) for request, own in asking]
    return ClassFigures(
        requests=len(requests),
        asked=len(asking),
        goodput=_share(not lost for _, lost in misses),
        attainment={
            name: share
            for name in TARGETS
            if (share := _share(_kept(lost, name) for own, lost in misses if _limit_s(own, name) is not None))
            is not None
        },
        missed=dict(Counter("+".join(lost) for _, lost in misses if lost).most_common()),
        mean_ttlt_s=fmean(request.ttlt_s for request in requests),
        makespan_s=max(request.finished_s for request in requests) - min(request.arrival_s for request in requests),
    )


def _kept(lost: tuple[str, ...], name: Target) -> bool:
    return name not in lost and ABORTED not in lost


def _spans(request: CompletedRequest, targets: Targets) -> Iterable[tuple[Target, float, float]]:
    reached_s = {"ttft": request.ttft_s, "tpot": request.tpot_s, "e2e": request.ttlt_s}
    for name in TARGETS:
        if (limit_s := _limit_s(targets, name)) is not None:
            yield name, reached_s[name], limit_s


def _limit_s(targets: Targets, name: Target) -> float | None:
    return {"ttft": targets.ttft_s, "tpot": targets.tpot_s, "e2e": targets.e2e_s}[name]


def _share(met: Iterable[bool]) -> float | None:
    values = list(met)
    return fmean(values) if values else None
