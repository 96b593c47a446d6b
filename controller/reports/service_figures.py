"""How many requests of a run met their targets: goodput, attainment of each target, what was missed and why.

`store.service_levels` judges each request; here one that was aborted, by its client or because it was shed, misses all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from engine_adapter.virtual_time.engine import CompletedRequest
from store.records import Targets
from store.service_levels import TARGETS, Course, Judgement, Target, judge


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
    causes: dict[str, int]
    """Number of requests by why they missed it, of `store.service_levels.Cause`, the most frequent first."""
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
    """99% quantile of the inter-token times (ITL) of requests with a TPOT target, over that target; None without any."""

    @property
    def goodput(self) -> float:
        """Share of the requests with targets that met them; 1 where there is none."""
        return 1.0 if self.all.goodput is None else self.all.goodput


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """A request as it was served, and what it was promised."""

    request: CompletedRequest
    service_class: str | None
    targets: Targets | None


def service_figures(served: Sequence[ServedRequest], *, paced_itl_p99: float | None = None) -> ServiceFigures:
    """Sum a run up."""
    by_class: dict[str, list[ServedRequest]] = {}
    for one in served:
        if one.service_class is not None:
            by_class.setdefault(one.service_class, []).append(one)
    return ServiceFigures(
        all=_class_figures(served),
        classes={name: _class_figures(requests) for name, requests in sorted(by_class.items())},
        paced_itl_p99=paced_itl_p99,
    )


def judgement(request: CompletedRequest, targets: Targets) -> Judgement:
    """Whether a request met its targets; an aborted one missed them."""
    course = Course(
        arrival_s=request.arrival_s,
        finished_s=request.finished_s,
        reason=request.reason,
        output_tokens=request.output_tokens,
        scheduled_s=request.scheduled_s,
        first_token_s=request.first_token_s,
        preemptions=request.preemptions,
        itl_max_s=request.itl_max_s,
        shed="aborted" if request.reason == "abort" else None,
    )
    return judge(course, targets)


def _class_figures(served: Sequence[ServedRequest]) -> ClassFigures:
    assert served, "a class has at least one request"
    requests = [one.request for one in served]
    judged = [judgement(one.request, one.targets) for one in served if one.targets is not None]
    asked = [one for one in judged if one.met is not None]
    attained = {name: _share(_of(one, name) for one in asked) for name in TARGETS}
    return ClassFigures(
        requests=len(requests),
        asked=len(asked),
        goodput=_share(one.met for one in asked),
        attainment={name: share for name, share in attained.items() if share is not None},
        missed=_counted(_missed(one) for one in asked if not one.met),
        causes=_counted(one.cause for one in asked if one.cause is not None),
        mean_ttlt_s=fmean(request.ttlt_s for request in requests),
        makespan_s=max(request.finished_s for request in requests) - min(request.arrival_s for request in requests),
    )


def _of(judged: Judgement, name: Target) -> bool | None:
    return {"ttft": judged.ttft, "tpot": judged.tpot, "e2e": judged.e2e}[name]


def _missed(judged: Judgement) -> str:
    return "+".join(name for name in TARGETS if _of(judged, name) is False)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _share(met: Iterable[bool | None]) -> float | None:
    values = [one for one in met if one is not None]
    return fmean(values) if values else None
