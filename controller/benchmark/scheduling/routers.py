"""Compares routers in virtual time: simulated engines of one model share a controller and one stream of requests.

Every engine serves in our order, and all share one learner. A router chooses the engine of each request by round robin,
the shorter of two random queues, the fewest outstanding requests, or the predicted cost
(`engine_adapter.routing.ranking` on the answer of ``POST /api/route``, from live snapshots as old as real ones).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.benchmark.warm_up import RememberedFeatures, warm_up
from controller.core.in_process import InProcessController
from controller.monitoring.live_state import Live
from controller.monitoring.wait_forecast import Outlooks
from controller.policy.policies import policy_named
from controller.reports.latency_summary import PolicyFigures, figures
from engine_adapter.routing.ranking import Ledger, Sent, ranked
from engine_adapter.serving.simulated_server import faster
from engine_adapter.transport.link import NoLink
from engine_adapter.virtual_time.engine import Step, Totals, TraceRequest, capacity_rps, serve
from engine_adapter.virtual_time.profiles import Profile, profile_named
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from engine_adapter.workloads.arrivals import all_at_zero, arrival_plan
from engine_adapter.workloads.requests import BenchTrace, bench_trace, planned_arrivals, with_arrivals
from online_learning.mixture.mixture import MixtureLearner
from store.bounds import packed_tokens
from store.errors import ConfigError
from store.history.writer import WriterStats
from store.records import Arrived

ROUTERS = ("round-robin", "two-choices", "least-outstanding", "predicted")
SNAPSHOT_S = 0.25
"""Seconds between two live snapshots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """Settings of a comparison; raises `ConfigError` for invalid ones."""

    workload: str = "synthetic"
    profile: str = "h800-qwen3-32b-24k"
    speeds: tuple[float, ...] = (1.0, 1.0)
    """Speed of each engine, relative to the profile."""
    load: float = 1.05
    """Arrival rate relative to the capacity of all engines under first come, first served."""
    requests: int = 600
    """Measured requests for each engine."""
    warmup: int = 1000
    arrivals: str = "own"
    seeds: tuple[int, ...] = (1, 2, 3)
    routers: tuple[str, ...] = ROUTERS

    def __post_init__(self) -> None:
        profile_named(self.profile)
        arrival_plan(self.arrivals)
        for router in self.routers:
            if router not in ROUTERS:
                raise ConfigError(f"unknown router {router!r}: choose one of {', '.join(ROUTERS)}")
        if not 2 <= len(self.speeds) <= 64 or not all(0.01 <= speed <= 100.0 for speed in self.speeds):
            raise ConfigError(f"speeds are {self.speeds}: give 2 to 64 numbers from 0.01 to 100, such as 1,1,0.5")
        if not 0.0 < self.load < 100.0:
            raise ConfigError(f"load is {self.load}: give a share of capacity above 0, such as 1.05")
        if self.requests < 10 or self.warmup < 0 or not self.seeds or not self.routers:
            raise ConfigError("give 10 requests or more, 0 of warm-up or more, a seed and a router")


@dataclass(frozen=True, slots=True)
class RouterRun:
    """One router on one seed."""

    router: str
    seed: int
    figures: PolicyFigures
    shares: tuple[float, ...]
    """Share of the requests on each engine."""


def run_routers(spec: RouterSpec, *, progress: Callable[[int], None] = lambda _served: None) -> list[RouterRun]:
    """Run every router on every seed, with the same requests at the same times.

    ``progress`` is called with the number of requests served since its last call.
    """
    profile = profile_named(spec.profile)
    room = min(profile.kv_tokens, profile.max_model_len_tokens)
    runs: list[RouterRun] = []
    for seed in spec.seeds:
        count = spec.requests * len(spec.speeds)
        trace = bench_trace(spec.workload, requests=count, warmup=spec.warmup, seed=seed, kv_tokens=room)
        measured = _timed(trace, spec, profile, seed)
        runs.extend(_run(spec, router, profile, trace.warmup, measured, seed, progress) for router in spec.routers)
    return runs


def _timed(trace: BenchTrace, spec: RouterSpec, profile: Profile, seed: int) -> list[TraceRequest]:
    """The measured requests at the load's rate."""
    sample = with_arrivals(trace.measured[: spec.requests], all_at_zero(spec.requests))
    alone_rps = capacity_rps(serve(SimulatedEngine(profile, link=NoLink()), sample).completed)
    rate_rps = spec.load * alone_rps * sum(spec.speeds)
    plan = arrival_plan(spec.arrivals)
    return with_arrivals(trace.measured, planned_arrivals(trace.measured, plan, rate_rps=rate_rps, seed=seed))


def _run(  # noqa: PLR0917 - one run's parts
    spec: RouterSpec,
    name: str,
    profile: Profile,
    warmup: Sequence[TraceRequest],
    requests: Sequence[TraceRequest],
    seed: int,
    progress: Callable[[int], None],
) -> RouterRun:
    cluster = Cluster([faster(profile, speed) for speed in spec.speeds], warmup)
    router = _router(name, cluster, seed)
    totals, counts = Totals(), [0] * len(spec.speeds)
    for request in requests:
        progress(_add(totals, cluster.advance(request.arrival_s)))
        chosen = router.choose(request)
        counts[chosen] += 1
        cluster.engines[chosen].submit(request)
    progress(_add(totals, cluster.drain()))
    totals.recomputed_tokens = sum(request.recomputed_tokens for request in totals.completed)
    return RouterRun(name, seed, figures(totals), tuple(count / len(requests) for count in counts))


class Cluster:
    """Engines of one model and the controller that they share."""

    def __init__(self, profiles: Sequence[Profile], warmup: Sequence[TraceRequest]) -> None:
        self.model = profiles[0].name
        learner = RememberedFeatures(MixtureLearner())
        controller = InProcessController(learner, policy_named("sage"))
        self.core = controller.core
        warm_up(self.core, learner, warmup, model=self.model)
        self.engines = [_engine(controller, profile, f"engine-{number}") for number, profile in enumerate(profiles)]
        for engine in self.engines:
            engine.step()  # Sends hello; the next step receives the answer.
            engine.step()

    def advance(self, time_s: float) -> Iterator[Step]:
        """Let every engine serve until a time, or to the end of the step that is under way then."""
        for engine in self.engines:
            while engine.unfinished and engine.now_s < time_s:
                yield engine.step()
            if not engine.unfinished:
                engine.advance_to(time_s)

    def drain(self) -> Iterator[Step]:
        """Serve what is left."""
        for engine in self.engines:
            while engine.unfinished:
                yield engine.step()


def _engine(controller: InProcessController, profile: Profile, name: str) -> SimulatedEngine:
    link = controller.link(lambda: engine.now_s)
    engine = SimulatedEngine(profile, link=link, engine_id=name, session_id=name)
    return engine


class Router(Protocol):
    """Chooses an engine for each request."""

    def choose(self, request: TraceRequest) -> int:
        """Return the number of the engine."""
        ...


class _RoundRobin:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._next = 0

    def choose(self, request: TraceRequest) -> int:
        self._next += 1
        return (self._next - 1) % len(self._cluster.engines)


class _Shortest:
    """The fewest outstanding requests of ``tried`` random engines, or of all."""

    def __init__(self, cluster: Cluster, chance: random.Random, tried: int | None) -> None:
        self._cluster = cluster
        self._chance = chance
        self._tried = tried or len(cluster.engines)

    def choose(self, request: TraceRequest) -> int:
        engines = self._cluster.engines
        tried = self._chance.sample(range(len(engines)), min(self._tried, len(engines)))
        return min(tried, key=lambda number: engines[number].unfinished)


class _Predicted:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._live = Live()
        self._outlooks = Outlooks()
        self._ledger = Ledger()
        self._next_snapshot_s = 0.0

    def choose(self, request: TraceRequest) -> int:
        cluster, now_s = self._cluster, request.arrival_s
        if now_s >= self._next_snapshot_s:
            self._next_snapshot_s = now_s + SNAPSHOT_S
            self._live.publish(cluster.core, store=WriterStats(), loop={}, now_s=now_s)
        live_snapshot = self._live.live_snapshot
        assert live_snapshot is not None, "it was published"
        predicted_on = cluster.core.predict_on(cluster.model, _arrived(request))
        forecast = self._outlooks.forecast(live_snapshot, predicted_on, len(request.token_ids))
        best = ranked(forecast.engines, self._ledger.unseen(forecast.time_s))[0]
        self._ledger.record(Sent(now_s, best.engine_id, best.cost_s, best.need_tokens))
        return int(best.engine_id.removeprefix("engine-"))


def _router(name: str, cluster: Cluster, seed: int) -> Router:
    if name == "round-robin":
        return _RoundRobin(cluster)
    if name == "predicted":
        return _Predicted(cluster)
    return _Shortest(cluster, random.Random(seed), 2 if name == "two-choices" else None)


def _add(totals: Totals, steps: Iterator[Step]) -> int:
    """Add steps to the totals; returns the number of requests that ended in them."""
    before = len(totals.completed)
    for step in steps:
        totals.steps += 1
        totals.computed_tokens += sum(step.scheduled_tokens.values())
        totals.preemptions += len(step.preempted)
        totals.completed.extend(step.finished)
    return len(totals.completed) - before


def _arrived(request: TraceRequest) -> Arrived:
    return Arrived(
        request_id="route",
        arrival_s=request.arrival_s,
        prompt_tokens=len(request.token_ids),
        token_ids=packed_tokens(request.token_ids),
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        tenant=request.tenant,
    )
