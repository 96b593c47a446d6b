"""The targets of the suite as checks of a case's figures; pure functions of what was measured.

All ratios are ours over theirs, means over the seeds of the ratios seed by seed.
A baseline dominates where its mean and its 99th percentile of the time to last token (TTLT) are both lower than ours by more than 3%.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from controller.benchmark.suite.cases import TAIL_LOAD, Kind
from controller.benchmark.suite.measured import (
    Measured,
    Series,
    jain_index,
    mean_of,
    part_mean,
    part_ratio,
    ratio,
    session_ratio,
)
from controller.policy.baselines import PRIORITY
from engine_adapter.workloads.beside_others import LARGE, SMALL, SMALL_ALONE

DOMINATED_BELOW = 0.97
"""A baseline that has less than this share of our mean and of our 99th percentile dominates us."""

QUEUE_SHARE = 0.1
"""A queue stands where requests of stock first come, first served wait for this share of their time, on average."""

PROMISES: frozenset[Kind] = frozenset({"tenants", "backlog", "interactive"})
"""Kinds of traffic in which some requests are to go before others at the cost of these: only their own targets count."""

GATING = ("never dominated", "mean over stock")
"""The checks that decide the short form."""

Limit: TypeAlias = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One target and what was found.

    Args:
        name: name of the target.
        value: what was found, a ratio unless the name says otherwise.
        limit: the target.
        against: the baseline that the value is relative to; None for none.
        sense: whether the value may be at most or must be at least the limit.

    >>> Check(name="mean over stock", value=1.03, limit=1.02, against="fcfs").passed
    False
    """

    name: str
    value: float
    limit: float
    against: str | None = None
    sense: Limit = "at most"

    @property
    def passed(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.limit if self.sense == "at most" else self.value >= self.limit

    @property
    def badness(self) -> float:
        """The value over the limit, or the limit over the value: above 1 the check fails, and more is worse."""
        high, low = (self.value, self.limit) if self.sense == "at most" else (self.limit, self.value)
        if low == high:
            return 1.0
        return high / low if low else float("inf")


def checks(measured: Measured) -> list[Check]:
    """Every target that a case has."""
    own = _OF_KIND.get(measured.case.kind, _none)(measured)
    if measured.case.kind in PROMISES:
        return list(own)
    return [*_default(measured), *_mean_objective(measured), *_tail_objective(measured), *own]


def domination(ours: Series, baselines: Mapping[str, Series]) -> tuple[float, str]:
    """How close a baseline comes to dominating us, and which: the higher, the closer, and above 1 / 0.97 it does.

    For each baseline this is the lower of the two ratios of ours to theirs, mean and 99th percentile of TTLT.
    """
    return max(
        (min(ratio(ours, theirs, "mean_ttlt_s"), ratio(ours, theirs, "p99_ttlt_s")), name)
        for name, theirs in baselines.items()
    )


def over_best(ours: Series, baselines: Mapping[str, Series], figure: str) -> tuple[float, str]:
    """The highest ratio of our figure to a baseline's, and whose."""
    return max((ratio(ours, theirs, figure), name) for name, theirs in baselines.items())


def _default(measured: Measured) -> Iterator[Check]:
    ours, stock, paper = measured.default, measured.stock, measured.paper
    closest, whose = domination(ours, measured.baselines)
    yield Check(name="never dominated", value=closest, limit=1.0 / DOMINATED_BELOW, against=whose)
    highest, whose = over_best(ours, measured.baselines, "mean_ttlt_s")
    yield Check(name="mean over best baseline", value=highest, limit=1.25, against=whose)
    yield Check(name="mean over stock", value=ratio(ours, stock, "mean_ttlt_s"), limit=1.02, against="fcfs")
    yield Check(
        name="tokens/s over stock",
        value=ratio(ours, stock, "throughput_tokens_per_s"),
        limit=0.99,
        against="fcfs",
        sense="at least",
    )
    if measured.case.has_load and measured.case.load > 1.0:
        value = ratio(ours, paper, "max_ttlt_s")
        yield Check(name="longest over paper", value=value, limit=0.8, against=paper[0].variant)
    yield Check(name="P50 over paper", value=ratio(ours, paper, "p50_ttlt_s"), limit=1.3, against=paper[0].variant)
    yield Check(name="recompute tax", value=mean_of(ours, "recompute_tax"), limit=0.05)


def _mean_objective(measured: Measured) -> Iterator[Check]:
    ours = measured.ours.get("mean")
    if ours is None:
        return
    highest, whose = over_best(ours, measured.baselines, "mean_ttlt_s")
    yield Check(name="objective mean: mean over best baseline", value=highest, limit=1.03, against=whose)
    p99 = ratio(ours, measured.paper, "p99_ttlt_s")
    yield Check(name="objective mean: P99 over paper", value=p99, limit=1.0, against=measured.paper[0].variant)


def _tail_objective(measured: Measured) -> Iterator[Check]:
    ours, tuned = measured.ours.get("tail"), measured.tuned_fcfs
    if ours is None or not measured.case.has_load or measured.case.load > TAIL_LOAD:
        return
    p99 = ratio(ours, tuned, "p99_ttlt_s")
    yield Check(name="objective tail: P99 over FCFS", value=p99, limit=1.05, against="fcfs")
    if queue_stands(measured.stock):
        mean = ratio(ours, tuned, "mean_ttlt_s")
        yield Check(name="objective tail: mean over FCFS", value=mean, limit=0.9, against="fcfs")


def queue_stands(stock: Series) -> bool:
    """Whether requests wait for a noticeable share of their time under stock first come, first served."""
    return mean_of(stock, "mean_ttft_s") >= QUEUE_SHARE * mean_of(stock, "mean_ttlt_s")


def _prefix(measured: Measured) -> Iterator[Check]:
    value = ratio(measured.default, measured.stock, "p99_ttft_s")
    yield Check(name="P99 TTFT over stock", value=value, limit=1.2, against="fcfs")


def _sessions(measured: Measured) -> Iterator[Check]:
    value = ratio(measured.default, measured.stock, "mean_ttft_s")
    yield Check(name="mean TTFT over stock", value=value, limit=0.7, against="fcfs")
    hits = ratio(measured.default, measured.stock, "prefix_hit_share")
    yield Check(name="prefix hits over stock", value=hits, limit=1.0, against="fcfs", sense="at least")
    whole = session_ratio(measured.default, measured.stock)
    yield Check(name="mean time of a session over stock", value=whole, limit=0.8, against="fcfs")


def _long_prompts(measured: Measured) -> Iterator[Check]:
    ours, stock = measured.default, measured.stock
    yield Check(name="mean TTFT of short prompts, s", value=part_mean(ours, "short", "mean_ttft_s"), limit=0.6)
    value = part_ratio(ours, stock, "long", "mean_ttlt_s")
    yield Check(name="mean TTLT of long prompts over stock", value=value, limit=1.15, against="fcfs")
    yield Check(name="mean TPOT over stock", value=ratio(ours, stock, "mean_tpot_s"), limit=1.1, against="fcfs")


def _classes(measured: Measured) -> Iterator[Check]:
    ours, first = measured.default, min(_classes_of(measured.default), key=_number)
    yield Check(name="longest TTFT of the first class, s", value=part_mean(ours, first, "max_ttft_s"), limit=6.0)
    yield Check(
        name="tokens/s over priority",
        value=ratio(ours, measured.best[PRIORITY], "throughput_tokens_per_s"),
        limit=0.97,
        against=PRIORITY,
        sense="at least",
    )


def _tenants(measured: Measured) -> Iterator[Check]:
    ours = measured.default
    beside, alone = (part_mean(ours, f"tenant {name}", "mean_ttlt_s") for name in (SMALL, SMALL_ALONE))
    yield Check(name="TTLT of the small tenant beside the large one over alone", value=beside / alone, limit=2.0)
    tokens = part_ratio(ours, measured.stock, f"tenant {LARGE}", "tokens_per_s")
    yield Check(
        name="tokens/s of the large tenant over stock", value=tokens, limit=0.95, against="fcfs", sense="at least"
    )


def _backlog(measured: Measured) -> Iterator[Check]:
    found = jain_index(measured.default)
    yield Check(
        name="Jain's index while both tenants wait", value=1.0 if found is None else found, limit=0.9, sense="at least"
    )


def _interactive(measured: Measured) -> Iterator[Check]:
    ours = measured.default
    first, last = (pick(_classes_of(ours), key=_number) for pick in (min, max))
    yield Check(name="P99 TTFT of the first class, s", value=part_mean(ours, first, "p99_ttft_s"), limit=1.0)
    makespan = part_ratio(ours, measured.stock, last, "makespan_s")
    yield Check(name="makespan of the batch over stock", value=makespan, limit=1.05, against="fcfs")


def _classes_of(series: Series) -> Iterable[str]:
    return [part for part in series[0].parts if part.startswith("class ")]


def _number(part: str) -> int:
    return int(part.removeprefix("class "))


def _none(_measured: Measured) -> Iterator[Check]:
    return iter(())


_OF_KIND: dict[Kind, Callable[[Measured], Iterator[Check]]] = {
    "prefix": _prefix,
    "sessions": _sessions,
    "long-prompts": _long_prompts,
    "classes": _classes,
    "tenants": _tenants,
    "backlog": _backlog,
    "interactive": _interactive,
}
