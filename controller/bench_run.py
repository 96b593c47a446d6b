"""One policy on one workload: a virtual engine joined to the controller's own brain, served to the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from controller.bench_figures import PolicyFigures, figures
from controller.core import Core, CoreConfig
from controller.policies import policy_named
from engine_adapter.arrivals import all_at_zero
from engine_adapter.engine import Life, Step, VirtualEngine, Work, serve
from engine_adapter.link import DirectLink, EngineLink, NoLink
from engine_adapter.lives import packed
from engine_adapter.profiles import Profile, profile_named
from engine_adapter.simulated_engine import SimulatedEngine
from engine_adapter.workloads import bench_works, with_arrivals
from online_learning.calibration import CalibrationSettings
from online_learning.guard import GuardSettings
from online_learning.mixture import MixtureLearner
from online_learning.prompt import LengthLearner, Observation, Prompt
from online_learning.similarity import SimilarityLearner
from store.errors import ConfigError
from store.records import ControllerMessage, EngineMessage, Gate, Hello

BenchEngine: TypeAlias = Literal["simulated", "vllm"]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Told the policy, the requests served so far, and all of them."""

CONNECTION = b"bench"
LEASE_S = 1e9
"""Virtual time jumps over idle hours, in which no heartbeat comes; the controller is in this process and cannot die."""
TIMELINE_POINTS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run; small, so that it travels to another process, which makes the workload anew from its seed."""

    policy: str
    workload: str
    profile: str
    requests: int
    warmup: int
    seed: int
    rate_rps: float | None
    """None: everything is there from the start."""
    engine: BenchEngine
    prefix_caching: bool
    gate: Gate | None
    boost_per_s: float | None


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
    figures: PolicyFigures
    lives: tuple[Life, ...]
    timeline: tuple[Moment, ...]


def run_policy(spec: RunSpec, timer: Callable[[], float], progress: Progress | None = None) -> PolicyRun:
    """Serve the measured requests under one policy, after the warm-up has taught its learner."""
    started_s = timer()
    profile = profile_named(spec.profile)
    warmup, measured = _works(spec, profile)
    brain = _Brain(spec, profile, warmup, measured) if spec.policy != "fcfs" else None
    engine = _Watched(_engine(spec, profile, brain.link if brain else NoLink()), profile, spec, progress)
    if brain is not None:
        brain.engine = engine
    totals = serve(engine, measured)
    if brain is not None:
        brain.check(len(measured))
    return PolicyRun(
        name=spec.policy,
        figures=figures(totals, wall_s=timer() - started_s),
        lives=tuple(totals.lives),
        timeline=tuple(engine.timeline),
    )


def _works(spec: RunSpec, profile: Profile) -> tuple[list[Work], list[Work]]:
    """Warm-up and measured requests; the same rows with or without a rate."""
    works = bench_works(
        spec.workload,
        requests=spec.requests,
        warmup=spec.warmup,
        seed=spec.seed,
        rate_rps=spec.rate_rps,
        kv_tokens=min(profile.kv_tokens, profile.max_model_len_tokens),
    )
    measured = (
        works.measured if spec.rate_rps is not None else with_arrivals(works.measured, all_at_zero(spec.requests))
    )
    return works.warmup, measured


def _engine(spec: RunSpec, profile: Profile, link: EngineLink) -> VirtualEngine:
    if spec.engine == "simulated":
        return SimulatedEngine(profile, link=link, prefix_caching=spec.prefix_caching)
    try:
        # vLLM takes seconds to import and need not be there for the simulated engine.
        from engine_adapter.vllm_scheduler import SageScheduler  # noqa: PLC0415
        from engine_adapter.vllm_virtual_time import VllmVirtualTimeEngine  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"engine is 'vllm' and vLLM cannot be imported ({error}): install it or take simulated"
        ) from error
    if isinstance(link, NoLink):
        return VllmVirtualTimeEngine(profile, link=link, prefix_caching=spec.prefix_caching)
    return VllmVirtualTimeEngine(profile, link=link, scheduler_class=SageScheduler, prefix_caching=spec.prefix_caching)


class _Brain:
    """The controller as it runs live, with a learner of the policy's own."""

    def __init__(self, spec: RunSpec, profile: Profile, warmup: Sequence[Work], measured: Sequence[Work]) -> None:
        self.engine: VirtualEngine | None = None
        self.link = DirectLink(self._answer)
        self._warmup = warmup
        self._learner = _learner(spec.policy)
        self._core = Core(
            learner=self._learner,
            policy=policy_named(
                spec.policy,
                gate=spec.gate,
                boost_per_s=spec.boost_per_s,
                lengths={work.request_id: _true_tokens(work, profile) for work in measured},
            ),
            config=CoreConfig(
                controller_id="bench",
                mode="on",
                hash_key=b"bench",
                lease_s=LEASE_S,
                acknowledge_at_once=True,
                # The guard is ours: a rival serves by its own predictions, whatever they are worth.
                calibration=CalibrationSettings(guard=GuardSettings(enabled=spec.policy == "sage")),
            ),
            now_s=0.0,
            timer=lambda: 0.0,
        )

    def check(self, requests: int) -> None:
        """A figure under a policy's name must come from that policy, from the first request to the last."""
        (session,) = self._core.sessions
        snapshot = session.snapshot
        assert snapshot is not None, "the engine reports"
        assert snapshot.policy_errors == 0, "the policy must not have failed"
        assert snapshot.fallback is None, f"the engine must not have fallen back: {snapshot.fallback}"
        assert self._core.counts.predictions == requests, "every request is predicted once"

    def _answer(self, message: EngineMessage) -> list[ControllerMessage]:
        assert self.engine is not None, "the engine exists before it speaks"
        if isinstance(message, Hello):
            self._warm_up(message.model)
        answers = self._core.take(CONNECTION, message, self.engine.now_s)
        self._core.drain_entries()
        return [answer for _, answer in answers]

    def _warm_up(self, model: str) -> None:
        """Teach answers of this model that ended before the first measured request arrives."""
        for work in self._warmup:
            prompt = Prompt(
                token_ids=np.frombuffer(packed(work.token_ids), dtype="<u4"),
                prompt_tokens=len(work.token_ids),
                max_tokens=work.max_tokens,
                temperature=work.temperature,
                model=model,
                tenant=work.tenant,
            )
            length = min(work.true_output_tokens, work.max_tokens)
            observation = Observation(length, censored=work.true_output_tokens > work.max_tokens)
            self._core.teach(self._learner.features(prompt), model, observation)


def _learner(policy: str) -> LengthLearner:
    """The paper predicts by similarity, as it says; all others with what runs live."""
    return SimilarityLearner() if policy == "sagesched-paper" else MixtureLearner()


def _true_tokens(work: Work, profile: Profile) -> int:
    """Tokens that the answer will really have."""
    room = profile.max_model_len_tokens - len(work.token_ids)
    return min(work.true_output_tokens, work.max_tokens, room)


class _Watched:
    """The engine, with somebody watching: a bounded timeline, and progress."""

    def __init__(self, engine: VirtualEngine, profile: Profile, spec: RunSpec, progress: Progress | None) -> None:
        self._engine = engine
        self._kv_blocks = profile.kv_blocks
        self._spec = spec
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

    def submit(self, work: Work) -> None:
        self._engine.submit(work)

    def abort(self, request_id: str) -> None:
        self._engine.abort(request_id)

    def advance_to(self, time_s: float) -> None:
        self._engine.advance_to(time_s)

    def step(self) -> Step:
        step = self._engine.step()
        self._note(step)
        if step.finished:
            self._served += len(step.finished)
            if self._progress is not None:
                self._progress(self._spec.policy, self._served, self._spec.requests)
        return step

    def _note(self, step: Step) -> None:
        """Keep a moment now and then; when there are too many, every second goes and the spacing doubles."""
        if self.timeline and step.start_s - self.timeline[-1].time_s < self._spacing_s:
            return
        share = step.kv_blocks_used / self._kv_blocks
        self.timeline.append(Moment(step.start_s, step.waiting, step.running, share))
        if len(self.timeline) >= 2 * TIMELINE_POINTS:
            del self.timeline[1::2]
            self._spacing_s *= 2.0
