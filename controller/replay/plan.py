"""Capacity planning from a recorded run: the load that one engine bears at an objective, replicas, and what a class costs.

The recorded requests arrive faster or slower, with their own lengths and predictions, on the simulated engine of
`controller.replay.replay_engine`; a bisection finds the highest load at which enough of them meet their targets.
It is done on the record and on resamples of it, blocks of requests drawn with replacement and put one after the other:
what the loads found differ by is the uncertainty that the sample brings, not that of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
from msgspec import structs

from controller.policy.baselines import BenchContext, bench_policy, knows_service
from controller.policy.policies import Schedule
from controller.replay.fidelity import Fit, fit_of
from controller.replay.recorded_run import RecordedRequest, RecordedRun, Replayable
from controller.replay.replay import counted_requests, notes_of, require_predictions
from controller.replay.replay_engine import Progress, replay_as_recorded, replay_under
from controller.reports.service_figures import ServedRequest, ServiceFigures, service_figures
from store.errors import BadInputError
from store.records import Targets

LOWEST, HIGHEST = 1 / 32, 32.0
"""Multiples of the recorded load between which the bearable one is sought."""
STEP = 0.03
"""Relative error of a load that is found."""
BLOCKS = 20
"""Blocks of a resample: requests that arrive together stay together."""
FEWEST_REQUESTS = 100
"""Smallest number of requests for a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpec:
    """What to find out.

    Args:
        policies: orders to compare.
        schedule: the settings of `sage`.
        attainments: shares of the requests with targets that are to meet them.
        resamples: number of resamples beside the record itself.
        seed: seed of the resamples.
        load_rps: the load to be served, in requests per second; None for the recorded one.
    """

    policies: tuple[str, ...]
    schedule: Schedule
    attainments: tuple[float, ...] = (0.95,)
    resamples: int = 4
    seed: int = 1
    load_rps: float | None = None

    def __post_init__(self) -> None:
        for share in self.attainments:
            if not 0.0 < share < 1.0:
                raise BadInputError(f"attainment is {share:g}: give a share between 0 and 1, such as 0.95")
        if self.load_rps is not None and not 0.0 < self.load_rps < math.inf:
            raise BadInputError(f"load is {self.load_rps:g}: give requests per second above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearable:
    """The load that one engine bears under a policy at an attainment.

    Args:
        policy, attainment: what it holds for.
        multiples: the highest load found on the record and on each resample, as multiples of the recorded one; 0 if the
            attainment is not reached at `LOWEST`, `HIGHEST` if it still is there.
        recorded_rps: the recorded load of one engine.
        wanted_rps: the load to be served.
    """

    policy: str
    attainment: float
    multiples: tuple[float, ...]
    recorded_rps: float
    wanted_rps: float

    @property
    def rps(self) -> tuple[float, float, float]:
        """Mean, lowest and highest load in requests per second."""
        low, high = min(self.multiples), max(self.multiples)
        return self.recorded_rps * fmean(self.multiples), self.recorded_rps * low, self.recorded_rps * high

    @property
    def replicas(self) -> tuple[int | None, int | None, int | None]:
        """Engines that the wanted load needs, by the mean, the highest and the lowest load; None if none suffice."""
        mean, low, high = self.rps
        return self._engines(mean), self._engines(high), self._engines(low)

    def _engines(self, bears_rps: float) -> int | None:
        return math.ceil(self.wanted_rps / bears_rps - 1e-9) if bears_rps > 0.0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What comes of every class with all targets in force, or with all but those of one class.

    Args:
        without: the class whose targets the order is not told; None where it is told all of them.
        multiple: the load, as a multiple of the recorded one.
        service: what came of every class, by the targets that it has all the same.
    """

    without: str | None
    multiple: float
    service: ServiceFigures


@dataclass(frozen=True)
class Plan:
    """What was found."""

    spec: PlanSpec
    past: Replayable
    bearable: tuple[Bearable, ...]
    costs: tuple[Cost, ...]

    @cached_property
    def recorded_rps(self) -> float:
        """Recorded load of the engine."""
        return rate_rps(list(self.past.counted.values()))

    @cached_property
    def fit(self) -> Fit:
        """How well a replay of what happened reproduces it, which tells whether the plan can be trusted."""
        return fit_of(self.past.recorded, counted_requests(self.past, replay_as_recorded(self.past)))

    @property
    def notes(self) -> list[str]:
        """What a reader needs to judge the figures."""
        return notes_of([self.past])

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "engine_id": self.past.run.engine_id,
            "model": self.past.run.model,
            "requests": len(self.past.counted),
            "recorded_rps": self.recorded_rps,
            "bearable": [
                {
                    **asdict(one),
                    **dict(zip(("rps", "rps_low", "rps_high"), one.rps, strict=True)),
                    **dict(zip(("replicas", "replicas_low", "replicas_high"), one.replicas, strict=True)),
                }
                for one in self.bearable
            ],
            "costs": [asdict(one) for one in self.costs],
            "reproduction": list(self.fit.poor),
            "notes": list(self.notes),
        }


def make_plan(spec: PlanSpec, run: RecordedRun, progress: Progress | None = None) -> Plan:
    """Find the loads and the costs; ``progress`` is called for each answer that ends.

    Raises:
        BadInputError: too few requests, or none has a prediction that a policy needs.
    """
    past = Replayable.of(run.with_default_targets())
    require_predictions(spec.policies, spec.schedule, [run])
    if len(past.counted) < FEWEST_REQUESTS:
        raise BadInputError(
            f"engine {run.engine_id} has {len(past.counted)} answers in this slice: a plan needs {FEWEST_REQUESTS}, "
            "choose a wider one"
        )
    recorded_rps = rate_rps(list(past.counted.values()))
    found = tuple(
        Bearable(
            policy=policy,
            attainment=attainment,
            multiples=multiples,
            recorded_rps=recorded_rps,
            wanted_rps=spec.load_rps or recorded_rps,
        )
        for policy in spec.policies
        for attainment, multiples in _bearable(policy, spec, past, progress).items()
    )
    return Plan(spec=spec, past=past, bearable=found, costs=tuple(_costs(spec, past, found, progress)))


def bearable_load(attained: Callable[[float], float], objective: float, start: float = 1.0) -> float:
    """The highest multiple of the load, to `STEP`, at which enough targets are met.

    Args:
        attained: share that is met at a multiple; falls as it rises.
        objective: share that is to be met.
        start: where to begin.

    >>> round(bearable_load(lambda load: 1.0 if load <= 2.5 else 0.5, 0.9), 1)
    2.5
    """
    low, high = 0.0, math.inf
    load = start
    while True:
        if attained(load) >= objective:
            low = load
        else:
            high = load
        if high == math.inf:
            if low >= HIGHEST:
                return HIGHEST
            load = min(HIGHEST, 1.5 * low)
        elif low == 0.0:
            if high <= LOWEST:
                return 0.0
            load = max(LOWEST, high / 1.5)
        elif high / low <= 1.0 + STEP:
            return low
        else:
            load = math.sqrt(low * high)


def resampled(past: Replayable, seed: int) -> Replayable:
    """The counted requests in blocks drawn with replacement, each as long as it lasted; seed 0 leaves them as they were."""
    requests = list(past.counted.values())
    if seed == 0:
        return replace(past, requests=tuple(requests))
    blocks = np.array_split(np.arange(len(requests)), BLOCKS)
    gap_s = 1.0 / rate_rps(requests)
    ends_s = [*(requests[block[0]].arrival_s for block in blocks[1:]), requests[-1].arrival_s + gap_s]
    drawn, now_s = [], requests[0].arrival_s
    for place, chosen in enumerate(np.random.default_rng(seed).integers(0, BLOCKS, BLOCKS).tolist()):
        start_s = requests[blocks[chosen][0]].arrival_s
        for number in blocks[chosen]:
            request = requests[number]
            drawn.append(
                structs.replace(
                    request,
                    request_id=f"{place}/{request.request_id}",
                    arrival_s=now_s + request.arrival_s - start_s,
                )
            )
        now_s += ends_s[chosen] - start_s
    return replace(past, requests=tuple(drawn))


def scaled(past: Replayable, multiple: float) -> Replayable:
    """The requests at a multiple of their load."""
    start_s = past.requests[0].arrival_s
    requests = (
        structs.replace(request, arrival_s=start_s + (request.arrival_s - start_s) / multiple)
        for request in past.requests
    )
    return replace(past, requests=tuple(requests))


def rate_rps(requests: Sequence[RecordedRequest]) -> float:
    """Requests per second between the first and the last arrival."""
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    return (len(requests) - 1) / max(span_s, 1e-3)


class _Sample:
    """One sample of the requests under a policy, at any load."""

    def __init__(self, policy: str, spec: PlanSpec, past: Replayable, progress: Progress | None) -> None:
        self._policy = policy
        self._spec = spec
        self._past = past
        self._progress = progress
        self._known: dict[float, float] = {}

    def attained(self, multiple: float) -> float:
        """Share of the requests with targets that met them."""
        if multiple not in self._known:
            self._known[multiple] = self.served(multiple).goodput
        return self._known[multiple]

    def served(self, multiple: float, without: str | None = None) -> ServiceFigures:
        """What came of the requests, where the order is not told the targets of the class ``without``."""
        past = scaled(self._past, multiple)
        lengths = {request.request_id: past.length_tokens(request) for request in past.requests}
        policy = bench_policy(self._policy, BenchContext(schedule=self._spec.schedule, lengths=lengths))
        targets = knows_service(self._policy)
        totals = replay_under(_untold(past, without), policy, self._progress, targets=targets)
        levels = {request.request_id: request.level for request in past.requests}
        served = (
            ServedRequest(one, level.service_class, level.targets)
            for one in totals.completed
            for level in [levels[one.request_id]]
        )
        return service_figures(list(served))


def _bearable(
    policy: str, spec: PlanSpec, past: Replayable, progress: Progress | None
) -> dict[float, tuple[float, ...]]:
    """By attainment the multiple that was found on the record and on each resample."""
    found: dict[float, list[float]] = {attainment: [] for attainment in spec.attainments}
    for number in range(spec.resamples + 1):
        sample = _Sample(policy, spec, resampled(past, number and 1_000 * spec.seed + number), progress)
        for attainment, multiples in found.items():
            start = multiples[0] if multiples and multiples[0] else 1.0
            multiples.append(bearable_load(sample.attained, attainment, start))
    return {attainment: tuple(multiples) for attainment, multiples in found.items()}


def _costs(spec: PlanSpec, past: Replayable, found: Sequence[Bearable], progress: Progress | None) -> Iterator[Cost]:
    """All targets in force, and all but those of each class, at the load that the record bears at the first attainment."""
    at = next((one for one in found if knows_service(one.policy)), None)
    if at is None:
        return
    sample = _Sample(at.policy, spec, resampled(past, 0), progress)
    multiple = at.multiples[0] or 1.0
    classes = dict.fromkeys(
        request.service_class for request in past.counted.values() if request.targets not in {None, Targets()}
    )
    for without in (None, *classes):
        yield Cost(without=without, multiple=multiple, service=sample.served(multiple, without))


def _untold(past: Replayable, service_class: str | None) -> Replayable:
    if service_class is None:
        return past
    requests = (
        structs.replace(request, targets=None) if request.service_class == service_class else request
        for request in past.requests
    )
    return replace(past, requests=tuple(requests))
