"""One run: a policy on a workload, a virtual engine joined to the controller's own brain, served to the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from controller.benchmark.in_process import Brain
from controller.benchmark.scheduling.learners import bench_learner
from controller.policy.baselines import BenchContext, bench_policy, is_ours, ordering_of
from controller.policy.policies import Schedule
from controller.policy.policy import Policy
from controller.reports.latency_summary import PolicyFigures, figures
from engine_adapter.transport.link import EngineLink, NoLink
from engine_adapter.virtual_time.engine import CompletedRequest, Step, TraceRequest, VirtualEngine, serve
from engine_adapter.virtual_time.profiles import Profile, profile_named
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from engine_adapter.workloads.arrivals import ArrivalPlan, all_at_zero
from engine_adapter.workloads.requests import BenchTrace, bench_trace, planned_arrivals, with_arrivals
from store.errors import ConfigError

BenchEngine: TypeAlias = Literal["simulated", "vllm"]
Progress: TypeAlias = Callable[[int], None]
"""Receives the number of requests served so far."""

TIMELINE_POINTS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run; small, so that it travels to another process, which makes the workload again from its seed.

    Two runs of equal specs give equal results, so that a run which several tables need is done once.
    """

    policy: str
    """A policy's name, or that of one of its variants."""
    workload: str
    profile: str
    requests: int
    warmup: int
    seed: int
    rate_rps: float | None
    """None: everything is there from the start."""
    arrivals: ArrivalPlan
    engine: BenchEngine
    prefix_caching: bool
    watermark: float
    """vLLM's static watermark, a share of the KV cache."""
    schedule: Schedule
    """The settings of ours."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The engine's state after a step."""

    time_s: float
    waiting: int
    running: int
    kv_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRun:
    """What a policy did, for tables and plots."""

    name: str
    """The policy, or the variant of it that ran."""
    figures: PolicyFigures
    lives: tuple[CompletedRequest, ...]
    timeline: tuple[Moment, ...]
    left_out_share: float
    """Share of the workload's rows that no engine of this profile could ever serve."""


def run_policy(spec: RunSpec, timer: Callable[[], float], progress: Progress | None = None) -> PolicyRun:
    """Serve the measured requests under one policy, after the warm-up has taught its learner."""
    started_s = timer()
    profile = profile_named(spec.profile)
    works = _prepared(spec.workload, spec.requests, spec.warmup, spec.seed, _room_tokens(profile))
    measured = _timed(works, spec)
    policy = _policy(spec, profile, measured)
    brain = _brain(policy, works.warmup, spec.policy) if policy.orders else None
    engine = _Watched(_engine(spec, profile, policy, brain.link if brain else NoLink()), profile, progress)
    if brain is not None:
        brain.engine = engine
    totals = serve(engine, measured)
    if brain is not None:
        brain.check(len(measured))
    return PolicyRun(
        name=spec.policy,
        figures=figures(totals, watermark=spec.watermark, wall_s=timer() - started_s),
        lives=tuple(totals.lives),
        timeline=tuple(engine.timeline),
        left_out_share=works.left_out_share,
    )


@lru_cache(maxsize=2)
def _prepared(workload: str, requests: int, warmup: int, seed: int, kv_tokens: int) -> BenchTrace:
    """The works of a workload at their own times; made once in a process for all policies."""
    return bench_trace(workload, requests=requests, warmup=warmup, seed=seed, kv_tokens=kv_tokens)


def _room_tokens(profile: Profile) -> int:
    return min(profile.kv_tokens, profile.max_model_len_tokens)


def _timed(works: BenchTrace, spec: RunSpec) -> list[TraceRequest]:
    """The measured works at the run's rate; the same works with or without one."""
    if spec.rate_rps is None:
        return with_arrivals(works.measured, all_at_zero(spec.requests))
    arrivals_s = planned_arrivals(works.measured, spec.arrivals, rate_rps=spec.rate_rps, seed=spec.seed)
    return with_arrivals(works.measured, arrivals_s)


def _policy(spec: RunSpec, profile: Profile, measured: Sequence[TraceRequest]) -> Policy:
    lengths = {work.request_id: _true_tokens(work, profile) for work in measured}
    return bench_policy(spec.policy, BenchContext(schedule=spec.schedule, lengths=lengths))


def _brain(policy: Policy, warmup: Sequence[TraceRequest], name: str) -> Brain:
    return Brain(learner=bench_learner(name), policy=policy, warmup=warmup, guarded=is_ours(name))


def _true_tokens(work: TraceRequest, profile: Profile) -> int:
    """Tokens that the answer will really have."""
    room = profile.max_model_len_tokens - len(work.token_ids)
    return min(work.true_output_tokens, work.max_tokens, room)


def _engine(spec: RunSpec, profile: Profile, policy: Policy, link: EngineLink) -> VirtualEngine:
    options: dict[str, Any] = {
        "link": link,
        "watermark": spec.watermark,
        "prefix_caching": spec.prefix_caching,
        "make_ordering": ordering_of(policy),
    }
    if spec.engine == "simulated":
        return SimulatedEngine(profile, **options)
    try:
        # vLLM takes seconds to import and need not be there for the simulated engine.
        from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
        from engine_adapter.vllm_scheduler import SageScheduler
    except ImportError as error:
        raise ConfigError(
            f"engine is 'vllm' and vLLM cannot be imported ({error}): install it or take simulated"
        ) from error
    if isinstance(link, NoLink):
        return VllmVirtualTimeEngine(profile, **options)
    return VllmVirtualTimeEngine(profile, scheduler_class=SageScheduler, **options)


class _Watched:
    """The engine, with somebody watching: a bounded timeline, and progress."""

    def __init__(self, engine: VirtualEngine, profile: Profile, progress: Progress | None) -> None:
        self._engine = engine
        self._kv_blocks = profile.kv_blocks
        self._progress = progress
        self._served = 0
        self._spacing_s = 0.1
        self.timeline: list[Moment] = []

    @property
    def now_s(self) -> float:
        return self._engine.now_s

    @property
    def unfinished(self) -> int:
        return self._engine.unfinished

    def submit(self, work: TraceRequest) -> None:
        self._engine.submit(work)

    def abort(self, request_id: str) -> None:
        self._engine.abort(request_id)

    def advance_to(self, time_s: float) -> None:
        self._engine.advance_to(time_s)

    def step(self) -> Step:
        step = self._engine.step()
        self._record(step)
        if step.finished:
            self._served += len(step.finished)
            if self._progress is not None:
                self._progress(self._served)
        return step

    def _record(self, step: Step) -> None:
        """Keep a moment now and then; when there are too many, every second goes and the spacing doubles."""
        if self.timeline and step.start_s - self.timeline[-1].time_s < self._spacing_s:
            return
        share = step.kv_blocks_used / self._kv_blocks
        self.timeline.append(Moment(step.start_s, step.waiting, step.running, share))
        if len(self.timeline) >= 2 * TIMELINE_POINTS:
            del self.timeline[1::2]
            self._spacing_s *= 2.0
