"""One run: a policy on a workload, served by a virtual engine with a controller in the same process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from controller.benchmark.scheduling.group_figures import GroupFigures, TenantService, session_figures
from controller.benchmark.scheduling.inter_token_times import InterTokenTimes
from controller.benchmark.scheduling.learners import bench_learner
from controller.benchmark.scheduling.service_mix import in_classes, mix_named, told
from controller.benchmark.warm_up import RememberedFeatures, warm_up
from controller.core.in_process import IN_PROCESS, InProcessController
from controller.policy.baselines import (
    BenchContext,
    bench_policy,
    is_ours,
    knows_service,
    ordering_of,
    scheduling_of,
)
from controller.policy.policies import Schedule
from controller.policy.policy import Policy
from controller.policy.service_levels import ServiceLevels, Tenants
from controller.reports.latency_summary import PartFigures, PolicyFigures, figures, part_figures
from controller.reports.service_figures import ServedRequest, ServiceFigures, service_figures
from engine_adapter.transport.link import EngineLink, NoLink
from engine_adapter.virtual_time.engine import (
    CompletedRequest,
    Step,
    TraceRequest,
    VirtualEngine,
    capacity_rps,
    serve,
)
from engine_adapter.virtual_time.profiles import Profile, profile_named
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from engine_adapter.virtual_time.simulated_scheduler import Scheduling
from engine_adapter.workloads.arrivals import ArrivalPlan, all_at_zero
from engine_adapter.workloads.requests import BenchTrace, bench_trace, planned_arrivals, with_arrivals
from online_learning.calibration.calibration import CalibrationSettings
from online_learning.calibration.guard import GuardSettings
from store.errors import ConfigError

BenchEngine: TypeAlias = Literal["simulated", "vllm"]
Progress: TypeAlias = Callable[[int], None]
"""Called with the number of requests served so far."""

TIMELINE_POINTS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Specification of one run, from which another process makes the workload again by its seed.

    Two runs of equal specifications give equal results, so that a run that several tables need is done once.
    """

    policy: str
    """A policy's name, or that of one of its variants."""
    workload: str
    profile: str
    requests: int
    warmup: int
    seed: int
    rate_rps: float | None
    """Arrivals per second; None if all requests arrive at the start."""
    arrivals: ArrivalPlan
    engine: BenchEngine
    prefix_caching: bool
    watermark: float
    """vLLM's static watermark, a share of the KV cache."""
    token_budget: int | None = None
    """Tokens in a step (vLLM's ``--max-num-batched-tokens``); None for the profile's."""
    scheduling: Scheduling = "fcfs"
    """The engine's own order under policies that order; those that do not have their own."""
    mix: str | None = None
    """Service classes that the requests are in; None for none."""
    fair_tenants: bool = False
    """Whether tenants share the engine by equal weights under `sage`, and how fairly they did is measured."""
    schedule: Schedule
    """The settings of `sage`."""
    lives: bool = True
    """Whether the result has each request's life and the engine's state over time, or the figures alone."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The engine's state after a step."""

    time_s: float
    waiting: int
    running: int
    kv_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRun:
    """The result of a run, for tables and plots."""

    name: str
    """The policy, or the variant of it that ran."""
    figures: PolicyFigures
    parts: dict[str, PartFigures]
    """Figures of the requests with short and with long prompts, and of each class, where there are several."""
    service: ServiceFigures | None
    """How many met their targets; None for requests in no service classes."""
    groups: GroupFigures
    served_rps: float
    """Requests per second between the 20th and the 80th percentile of the completions: with all requests at once the capacity."""
    completed: tuple[CompletedRequest, ...]
    timeline: tuple[Moment, ...]
    left_out_share: float
    """Share of the workload's rows that are too long for this profile."""


def run_policy(spec: RunSpec, timer: Callable[[], float], progress: Progress | None = None) -> PolicyRun:
    """Serve the measured requests under one policy, after the warm-up has taught its learner."""
    started_s = timer()
    profile = profile_named(spec.profile)
    trace = _prepared(spec.workload, spec.requests, spec.warmup, spec.seed, _room_tokens(profile))
    measured = _timed(trace, spec)
    policy = _policy(spec, profile, measured)
    controller = _controller(spec, policy, trace.warmup, model=profile.name) if policy.orders else None
    link: EngineLink = controller.link(lambda: engine.now_s) if controller else NoLink()
    engine = _engine(spec, profile, policy, link)
    timeline = _Timeline(profile, progress)
    levels = _ServiceLevels(measured, spec)
    groups = _Groups(measured, spec, profile)

    def on_step(step: Step) -> None:
        timeline.add(step)
        levels.add(step)
        groups.add(step)

    totals = serve(engine, levels.told, on_step=on_step)
    if controller is not None:
        _check_served(controller, len(measured))
    return PolicyRun(
        name=spec.policy,
        figures=figures(totals, watermark=spec.watermark, wall_s=timer() - started_s),
        parts=parts_of(totals.completed, measured),
        service=levels.figures(totals.completed),
        groups=groups.figures(totals.completed),
        served_rps=capacity_rps(totals.completed),
        completed=tuple(totals.completed) if spec.lives else (),
        timeline=tuple(timeline.moments) if spec.lives else (),
        left_out_share=trace.left_out_share,
    )


LONG_PROMPT_TOKENS = 2_000
"""Prompts from this length on are long ones."""

MOST_TENANTS = 8
"""Figures are reported of each tenant where there are no more than these."""


def parts_of(completed: Sequence[CompletedRequest], measured: Sequence[TraceRequest]) -> dict[str, PartFigures]:
    """Figures of the short and the long prompts, of each class and of a few tenants; none where there is but one of them."""
    classes = {request.request_id: request.priority for request in measured}
    tenants = {request.request_id: request.tenant for request in measured}
    by_length: defaultdict[str, list[CompletedRequest]] = defaultdict(list)
    by_class: defaultdict[str, list[CompletedRequest]] = defaultdict(list)
    by_tenant: defaultdict[str, list[CompletedRequest]] = defaultdict(list)
    for request in completed:
        by_length["long" if request.prompt_tokens >= LONG_PROMPT_TOKENS else "short"].append(request)
        by_class[f"class {classes[request.request_id]}"].append(request)
        by_tenant[f"tenant {tenants[request.request_id]}"].append(request)
    few = by_tenant if len(by_tenant) <= MOST_TENANTS else {}
    several = [parts for parts in (by_length, by_class, few) if len(parts) > 1]
    return {name: part_figures(requests) for parts in several for name, requests in sorted(parts.items())}


@lru_cache(maxsize=2)
def _prepared(workload: str, requests: int, warmup: int, seed: int, kv_tokens: int) -> BenchTrace:
    """The requests of a workload at their own times, made once in each process for all policies."""
    return bench_trace(workload, requests=requests, warmup=warmup, seed=seed, kv_tokens=kv_tokens, closed_loops=True)


def _room_tokens(profile: Profile) -> int:
    return min(profile.kv_tokens, profile.max_model_len_tokens)


def _timed(trace: BenchTrace, spec: RunSpec) -> list[TraceRequest]:
    """The measured requests at the run's rate; the same requests with or without one."""
    if spec.rate_rps is None:
        return with_arrivals(trace.measured, all_at_zero(spec.requests))
    arrivals_s = planned_arrivals(trace.measured, spec.arrivals, rate_rps=spec.rate_rps, seed=spec.seed)
    return with_arrivals(trace.measured, arrivals_s)


def _policy(spec: RunSpec, profile: Profile, measured: Sequence[TraceRequest]) -> Policy:
    lengths = {request.request_id: _true_tokens(request, profile) for request in measured}
    return bench_policy(spec.policy, BenchContext(schedule=spec.schedule, lengths=lengths))


def _controller(spec: RunSpec, policy: Policy, warmup: Sequence[TraceRequest], *, model: str) -> InProcessController:
    """The controller under a policy; a baseline has no guard and uses its own predictions, right or wrong."""
    learner = RememberedFeatures(bench_learner(spec.policy))
    guard = GuardSettings(enabled=is_ours(spec.policy))
    service = ServiceLevels(tenants=Tenants(fair=spec.fair_tenants and knows_service(spec.policy)))
    config = replace(IN_PROCESS, calibration=CalibrationSettings(guard=guard), service=service)
    controller = InProcessController(learner, policy, config=config)
    warm_up(controller.core, learner, warmup, model=model)
    return controller


def _check_served(controller: InProcessController, requests: int) -> None:
    """Assert that the policy ordered every request, so that the figures are those of the policy."""
    (session,) = controller.core.sessions
    snapshot = session.snapshot
    assert snapshot is not None, "the engine reports"
    assert snapshot.policy_errors == 0, "the policy must not have failed"
    assert snapshot.fallback is None, f"the engine must not have fallen back: {snapshot.fallback}"
    assert controller.core.counts.predictions == requests, "every request is predicted once"


def _true_tokens(request: TraceRequest, profile: Profile) -> int:
    """Number of tokens that the answer will have."""
    room = profile.max_model_len_tokens - len(request.token_ids)
    return min(request.true_output_tokens, request.max_tokens, room)


def _engine(spec: RunSpec, profile: Profile, policy: Policy, link: EngineLink) -> VirtualEngine:
    options: dict[str, Any] = {
        "link": link,
        "watermark": spec.watermark,
        "prefix_caching": spec.prefix_caching,
        "make_ordering": ordering_of(policy),
        "scheduling": spec.scheduling if policy.orders else scheduling_of(policy),
    }
    if spec.token_budget is not None:
        profile = replace(profile, token_budget=spec.token_budget)
    if spec.engine == "simulated":
        return SimulatedEngine(profile, **options)
    try:
        # vLLM takes seconds to import and need not be there for the simulated engine.
        from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
        from engine_adapter.vllm_scheduler import SageScheduler
    except ImportError as error:
        raise ConfigError(
            f"engine is 'vllm' and vLLM cannot be imported ({error}): install it or use simulated"
        ) from error
    if isinstance(link, NoLink):
        return VllmVirtualTimeEngine(profile, **options)
    return VllmVirtualTimeEngine(profile, scheduler_class=SageScheduler, **options)


class _ServiceLevels:
    """The service classes of a run's requests, what its policy is told of them, and how many met their targets."""

    def __init__(self, measured: Sequence[TraceRequest], spec: RunSpec) -> None:
        mix = () if spec.mix is None else mix_named(spec.mix)
        requests = in_classes(measured, mix, spec.seed) if mix else list(measured)
        self.told = told(requests, mix, spec.policy) if mix else requests
        self._asked = {one.request_id: one for one in requests} if mix else {}
        self._times = InterTokenTimes(
            {name: one.targets.tpot_s for name, one in self._asked.items() if one.targets and one.targets.tpot_s}
        )

    def add(self, step: Step) -> None:
        """Add a step."""
        if self._asked:
            self._times.add(step)

    def figures(self, completed: Sequence[CompletedRequest]) -> ServiceFigures | None:
        """The figures; None without service classes."""
        if not self._asked:
            return None
        served = [
            ServedRequest(one, asked.service_class, asked.targets)
            for one in completed
            for asked in [self._asked[one.request_id]]
        ]
        return service_figures(served, paced_itl_p99=self._times.p99_over_target)


class _Groups:
    """Tenants and sessions of a run."""

    def __init__(self, measured: Sequence[TraceRequest], spec: RunSpec, profile: Profile) -> None:
        tenants = {one.request_id: one.tenant or "" for one in measured}
        self._sessions = {one.request_id: one.session for one in measured if one.session is not None}
        self._tenants = TenantService(profile, tenants) if spec.fair_tenants else None

    def add(self, step: Step) -> None:
        """Add a step."""
        if self._tenants is not None:
            self._tenants.add(step)

    def figures(self, completed: Sequence[CompletedRequest]) -> GroupFigures:
        """The figures."""
        mean_s, p95_s = session_figures(completed, self._sessions) or (None, None)
        jain_index = self._tenants.jain_index(completed) if self._tenants else None
        return GroupFigures(jain_index=jain_index, session_mean_s=mean_s, session_p95_s=p95_s)


class _Timeline:
    """Samples of the engine's state, at most ``2 * TIMELINE_POINTS``, and the progress of the run."""

    def __init__(self, profile: Profile, progress: Progress | None) -> None:
        self._kv_blocks = profile.kv_blocks
        self._progress = progress
        self._served = 0
        self._spacing_s = 0.1
        self.moments: list[Moment] = []

    def add(self, step: Step) -> None:
        """Add a step."""
        self._sample(step)
        if step.finished:
            self._served += len(step.finished)
            if self._progress is not None:
                self._progress(self._served)

    def _sample(self, step: Step) -> None:
        """Add a moment if the last one is old enough; if there are too many, halve them and double the spacing."""
        if self.moments and step.start_s - self.moments[-1].time_s < self._spacing_s:
            return
        share = step.kv_blocks_used / self._kv_blocks
        self.moments.append(Moment(step.start_s, step.waiting, step.running, share))
        if len(self.moments) >= 2 * TIMELINE_POINTS:
            del self.moments[1::2]
            self._spacing_s *= 2.0
