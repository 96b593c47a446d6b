"""The simulated engine: a discrete model of vLLM with the scheduling policy, in virtual time.

It implements the same protocol as vLLM's own scheduler (`engine_adapter.virtual_time.engine.VirtualEngine`)
and calls the same `Agent` at the same moments as the vLLM plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from engine_adapter.agent.agent import Agent, AgentLimits, View
from engine_adapter.agent.clock import StampClock
from engine_adapter.agent.shedding import SHED_REASON
from engine_adapter.ordering.kv_memory import KvMemory, PlainMemory, PrefixHit
from engine_adapter.ordering.ordering import Ordering, OrderingFactory, Plan
from engine_adapter.transport.link import EngineLink
from engine_adapter.virtual_time.block_hashes import BlockHashes
from engine_adapter.virtual_time.engine import CompletedRequest, Step, TraceRequest, answer_token_ids
from engine_adapter.virtual_time.kv_cache import KvCache
from engine_adapter.virtual_time.prefix_cache import PrefixCache
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.request_progress import (
    Load,
    RequestProgress,
    check_profile,
    check_request,
    ending,
    load_of,
)
from engine_adapter.virtual_time.simulated_scheduler import (
    Preemption,
    Schedule,
    Scheduling,
    SimulatedRequest,
    SimulatedScheduler,
)
from store.records import FinishReason, Hello, Preempted, RunningRequest

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that has begun and not ended."""

    schedule: Schedule
    load: Load
    start_s: float
    duration_s: float
    kv_blocks_used: int


class SimulatedEngine:
    """A `VirtualEngine` over a discrete model of vLLM's scheduler.

    Args:
        profile: Step times and sizes of the device.
        link: The connection to the controller.
        engine_id: The engine's name.
        session_id: Identifies this start of the engine.
        watermark: Share of the KV blocks that admission keeps free.
        scheduling: The engine's own order, used without a plan.
        reserve_full_prompt: Whether admission requires room for the whole prompt.
        chunk_tokens: Largest number of tokens of one request in a step while it is not the only one; None for no limit.
        prefix_caching: Whether equal prompt prefixes are computed once.
        limits: Bounds and intervals of the agent.
        start_s: The clock's start, in seconds.
        wall_s: The system clock, by which requests are stamped; the engine's own clock when None.
        make_ordering: Makes the ordering that applies index tables.

    Raises:
        ConfigError: ``profile`` cannot hold one full request.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        link: EngineLink,
        engine_id: str = "simulated",
        session_id: str = "virtual",
        watermark: float = 0.0,
        scheduling: Scheduling = "fcfs",
        reserve_full_prompt: bool = True,
        chunk_tokens: int | None = None,
        prefix_caching: bool = False,
        limits: AgentLimits | None = None,
        start_s: float = 0.0,
        wall_s: Callable[[], float] | None = None,
        make_ordering: OrderingFactory = Ordering,
    ) -> None:
        check_profile(profile)
        self._profile = profile
        self._now_s = start_s
        self._clock = StampClock(lambda: self._now_s, wall_s or (lambda: self._now_s))
        self._scheduler = SimulatedScheduler(
            cache=(PrefixCache if prefix_caching else KvCache)(
                blocks=profile.kv_blocks, block_size_tokens=profile.block_size_tokens, watermark=watermark
            ),
            token_budget=profile.token_budget,
            max_num_seqs=profile.max_num_seqs,
            scheduling=scheduling,
            reserve_full_prompt=reserve_full_prompt,
            chunk_tokens=chunk_tokens,
        )
        self._prefix_caching = prefix_caching
        hello = _hello(profile, engine_id, session_id, start_s, prefix_caching=prefix_caching)
        self.agent = Agent(hello=hello, link=link, limits=limits, make_ordering=make_ordering)
        self._progress: dict[str, RequestProgress] = {}
        self._requests: dict[str, SimulatedRequest] = {}
        self._ended: list[CompletedRequest] = []
        self._plan: Plan[SimulatedRequest] | None = None
        self._under_way: _UnderWay | None = None

    @property
    def now_s(self) -> float:
        """The engine's clock, in seconds."""
        return self._now_s

    @property
    def unfinished(self) -> int:
        """Requests that no step has returned as finished."""
        return len(self._progress) + len(self._ended)

    def submit(self, request: TraceRequest) -> None:
        """Add a request that arrives now, or is under way; raise `WorkloadError` for one that the engine cannot serve."""
        assert request.request_id not in self._progress, f"request {request.request_id!r} is here already"
        check_request(request, self._profile)
        request = replace(request, arrival_s=self._clock.own_s(request.arrival_s))
        progress = RequestProgress(request, output_tokens=request.attained_tokens)
        self._progress[request.request_id] = progress
        simulated = SimulatedRequest(
            request.request_id,
            request.arrival_s,
            num_prompt_tokens=len(request.token_ids),
            priority=request.priority,
            num_output_tokens=request.attained_tokens,
            block_hashes=self._block_hashes(request) if self._prefix_caching else None,
        )
        self._requests[request.request_id] = simulated
        if not (request.running and self._scheduler.resume(simulated)):
            self._scheduler.add(simulated)
        self._guard(self.agent.arrived, progress.arrived(), progress.count)

    def _block_hashes(self, request: TraceRequest) -> BlockHashes:
        answer = answer_token_ids(request.request_id)
        return BlockHashes(tuple(request.token_ids), answer, self._profile.block_size_tokens)

    def abort(self, request_id: str) -> None:
        """Abort an unfinished request; the next step returns it as finished."""
        assert self._under_way is None, "a step is under way"
        self._end(request_id, "abort")

    def step(self) -> Step:
        """Schedule and carry out one step; with nothing to compute, a step of zero duration."""
        self.begin_step()
        return self.end_step()

    def advance_to(self, time_s: float) -> None:
        """Advance the clock to a later time, as while the engine is idle or its host is late."""
        self._now_s = max(self._now_s, time_s)

    def retime(self, profile: Profile) -> None:
        """Let steps take what another profile of the same sizes says from now on."""
        assert profile.kv_blocks == self._profile.kv_blocks, "the same sizes"
        self._profile = profile

    def begin_step(self) -> float:
        """Schedule the next step; return the time at which it ends."""
        assert self._under_way is None, "a step is under way"
        if not self._guard(self._apply_policy):
            self._plan = None
            self._scheduler.restore()
        schedule = self._scheduler.schedule()
        load = load_of(schedule.tokens.items())
        duration_s = load.duration_s(self._profile) if schedule.tokens else 0.0
        self._under_way = _UnderWay(schedule, load, self._now_s, duration_s, self._scheduler.cache.used_blocks)
        for preemption in schedule.preemptions:
            self._preempt(preemption)
        for request in schedule.admitted:
            progress = self._progress[request.request_id]
            cached_tokens = request.num_computed_tokens - schedule.tokens[request]
            if progress.lost_tokens:
                self._guard(self.agent.resumed, max(0, progress.lost_tokens - cached_tokens))
            progress.start(self._now_s, cached_tokens=cached_tokens, expected_tokens=request.expected_cached_tokens)
        if self.agent.snapshot_due(self._now_s):
            self._guard(self.agent.report, self._now_s, self._view())
        return self._now_s + duration_s

    def end_step(self) -> Step:
        """Carry out the step under way: advance the clock, generate tokens, end answers."""
        assert self._under_way is not None, "no step is under way"
        done, self._under_way = self._under_way, None
        self._now_s = max(self._now_s, done.start_s + done.duration_s)
        leaving = [request for request in done.schedule.tokens if request.generates and self._generate(request)]
        for request in leaving:
            self._end(request.request_id, "abort")
        if done.schedule.tokens:
            self._guard(self.agent.generated)
            self._count(done)
            if not self._progress:
                self._report_idle()
        finished, self._ended = tuple(self._ended), []
        return Step(
            start_s=done.start_s,
            duration_s=done.duration_s,
            scheduled_tokens={request.request_id: tokens for request, tokens in done.schedule.tokens.items()},
            preempted=tuple(preemption.request.request_id for preemption in done.schedule.preemptions),
            finished=finished,
            waiting=len(self._scheduler.waiting),
            running=len(self._scheduler.running),
            kv_blocks_used=done.kv_blocks_used,
        )

    def close(self) -> None:
        """Disconnect from the controller."""
        self.agent.close(self._now_s)

    # --- the policy hook ----------------------------------------------------------------------------

    def _apply_policy(self) -> bool:
        """Exchange messages, then impose the plan's order; False for the engine's own order."""
        self.agent.poll(self._now_s)
        for request_id in self.agent.shed(self._now_s):
            self._end(request_id, "abort", shed=SHED_REASON)
        scheduler = self._scheduler
        plan = self.agent.plan(
            self._now_s,
            waiting=scheduler.waiting,
            running=scheduler.running,
            memory=self._memory(),
        )
        if plan is None:
            return False
        self._plan = plan
        scheduler.impose(
            waiting=plan.waiting,
            running=plan.running,
            admission_limit=plan.admission_limit,
            pushed_out=plan.pushed_out,
            step_tokens=plan.step_tokens,
            chunk_tokens=plan.chunk_tokens,
        )
        return True

    def _memory(self) -> KvMemory:
        scheduler, cache = self._scheduler, self._scheduler.cache
        free_blocks = cache.free_blocks - (cache.watermark_blocks if scheduler.running else 0)
        if isinstance(cache, PrefixCache):
            return _CachingMemory(free_blocks, cache)
        return PlainMemory(free_blocks, cache.block_size_tokens)

    def _guard(self, hook: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a hook; an exception becomes a fallback and never reaches the engine."""
        try:
            return hook(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the one place where a policy's error becomes FCFS
            self.agent.failed(self._now_s, error)
            return None

    # --- events of requests -------------------------------------------------------------------------

    def _preempt(self, preemption: Preemption) -> None:
        progress = self._progress[preemption.request.request_id]
        progress.preempt(preemption.lost_tokens)
        fact = Preempted(
            request_id=preemption.request.request_id,
            time_s=self._now_s,
            lost_tokens=preemption.lost_tokens,
            attained_tokens=progress.output_tokens,
            cause=preemption.cause,
        )
        self._guard(self.agent.preempted, fact)

    def _generate(self, request: SimulatedRequest) -> bool:
        """Add a token to an answer and end it if it is complete; whether its client leaves after this step."""
        progress = self._progress[request.request_id]
        progress.generate(self._now_s)
        request.num_output_tokens += 1
        if progress.output_tokens == 1:
            self._guard(self.agent.first_token, progress.first_token())
        reason = ending(progress.request, progress.output_tokens, self._profile)
        if reason is None or reason == "abort":
            return reason is not None
        self._end(request.request_id, reason)
        return False

    def _end(self, request_id: str, reason: FinishReason, *, shed: str | None = None) -> None:
        progress = self._progress.pop(request_id)
        self._scheduler.remove(self._requests.pop(request_id))
        self._ended.append(progress.completed(self._now_s, reason))
        self._guard(self.agent.finished, progress.finished(self._now_s, reason, shed=shed))

    # --- reports to the controller ------------------------------------------------------------------

    def _count(self, done: _UnderWay) -> None:
        self._guard(
            self.agent.count_step,
            step_s=done.duration_s,
            prefill_tokens=done.load.prefill_tokens,
            decode_tokens=done.load.decode_seqs,
            kv_tokens_read=done.load.kv_tokens,
            hook_s=0.0,
        )

    def _report_idle(self) -> None:
        """Send the last facts and an extra snapshot: the agent is not polled again before the next request."""
        self._guard(self.agent.poll, self._now_s)
        self._guard(self.agent.report, self._now_s, self._view())

    def _view(self) -> View:
        scheduler, plan = self._scheduler, self._plan
        return View(
            kv_blocks_used=scheduler.cache.used_blocks,
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            queue=(request.request_id for request in scheduler.waiting),
            running_requests=self._running_requests(),
            admission_limit=plan.admission_limit if plan else None,
            reserved_blocks=plan.reserved_blocks if plan else 0,
            step_tokens=scheduler.step_tokens,
            chunk_tokens=scheduler.chunk_tokens,
            clock_off_s=self._clock.off_s(),
            stamps_replaced=self._clock.replaced,
        )

    def _running_requests(self) -> Iterator[RunningRequest]:
        for request in self._scheduler.running:
            blocks = self._scheduler.cache.held_blocks(request.request_id)
            yield RunningRequest(request.request_id, request.num_output_tokens, blocks)


@dataclass(frozen=True, slots=True)
class _CachingMemory:
    """KV memory with a prefix cache."""

    free_blocks: int
    cache: PrefixCache

    def hit(self, request: SimulatedRequest) -> PrefixHit:
        """Return what a waiting request would find."""
        tokens, held_blocks = self.cache.expected_hit(request)
        request.expected_cached_tokens = tokens
        return PrefixHit(tokens, held_blocks)

    def freed_blocks(self, request: SimulatedRequest) -> float:
        """Return the blocks that no other running request holds."""
        return self.cache.own_blocks(request.request_id)

    def blocks(self, tokens: float) -> float:
        """Return the tokens over the tokens of a block."""
        return tokens / self.cache.block_size_tokens


def _hello(profile: Profile, engine_id: str, session_id: str, start_s: float, *, prefix_caching: bool) -> Hello:
    return Hello(
        engine_id=engine_id,
        session_id=session_id,
        model=profile.name,
        engine="simulated",
        engine_version="0.32",
        kv_blocks=profile.kv_blocks,
        block_size_tokens=profile.block_size_tokens,
        max_num_seqs=profile.max_num_seqs,
        token_budget=profile.token_budget,
        max_model_len_tokens=profile.max_model_len_tokens,
        prefix_caching=prefix_caching,
        started_s=start_s,
    )
