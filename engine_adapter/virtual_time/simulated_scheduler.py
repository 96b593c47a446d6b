"""A discrete model of the decisions of vLLM's scheduler in each step.

It models vLLM 0.32's ``Scheduler.schedule`` for text models with full attention, with and without prefix caching,
without speculation, LoRA and connectors. Running requests come first, in their order, each with the tokens that it lacks,
within the token budget and the limit on one prompt's share of it. When KV blocks run out, a victim is preempted and recomputed later. Waiting requests are
admitted from the head of the queue only in a step without a victim, while the token budget, the admission limit and the
KV cache allow it. A test compares it with vLLM's own scheduler, step by step.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from engine_adapter.ordering.ordered_queue import OrderedQueue
from engine_adapter.virtual_time.block_hashes import BlockHashes
from engine_adapter.virtual_time.kv_cache import KvCache
from store.records import PreemptionCause

Scheduling: TypeAlias = Literal["fcfs", "priority"]
"""The engine's own order (vLLM's ``--scheduling-policy``)."""


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """An unfinished request in the scheduler; names as in vLLM's ``Request``."""

    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    priority: int = 0
    num_output_tokens: int = 0
    num_computed_tokens: int = 0
    block_hashes: BlockHashes | None = None
    """None without prefix caching."""
    expected_cached_tokens: int | None = None
    """Tokens that the plan expected in the prefix cache when it last looked; None if it never did."""
    serial: int = 0
    """Its place in the order in which the scheduler received the requests."""

    @property
    def num_tokens(self) -> int:
        """Prompt tokens plus output tokens generated."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def generates(self) -> bool:
        """Whether all its tokens are computed, so that the step generates a new one."""
        return self.num_computed_tokens == self.num_prompt_tokens + self.num_output_tokens


@dataclass(frozen=True, slots=True)
class Preemption:
    """A preempted request, and the computed tokens that it lost."""

    request: SimulatedRequest
    lost_tokens: int
    cause: PreemptionCause = "memory"


@dataclass(slots=True)
class Schedule:
    """What one step computes."""

    tokens: dict[SimulatedRequest, int] = field(default_factory=dict)
    """New tokens of each request, in the order in which they were scheduled."""
    preemptions: list[Preemption] = field(default_factory=list)
    admitted: list[SimulatedRequest] = field(default_factory=list)
    """Requests that were waiting before this step."""


class SimulatedScheduler:
    """Queue, running requests and KV cache of one engine.

    ``waiting`` and ``running`` may be read by any caller; only `impose` and `restore` reorder them.

    Args:
        cache: The engine's KV cache.
        token_budget: Largest number of tokens in a step (vLLM's ``max_num_scheduled_tokens``).
        chunk_tokens: Largest number of tokens of one request in a step while it is not the only one; None for no limit
            (vLLM's ``long_prefill_token_threshold``, where 0 is no limit).
        max_num_seqs: Largest number of running requests.
        scheduling: The engine's own order, without an imposed one.
        reserve_full_prompt: Whether admission requires room for the whole prompt.
    """

    def __init__(
        self,
        *,
        cache: KvCache,
        token_budget: int,
        max_num_seqs: int,
        scheduling: Scheduling = "fcfs",
        reserve_full_prompt: bool = True,
        chunk_tokens: int | None = None,
    ) -> None:
        assert token_budget > 0
        assert chunk_tokens is None or chunk_tokens > 0
        assert max_num_seqs > 0
        self.cache = cache
        self.waiting: deque[SimulatedRequest] = deque()
        self.running: list[SimulatedRequest] = []
        self._received = 0
        self._token_budget = token_budget
        self._chunk_tokens = chunk_tokens
        self._max_num_seqs = max_num_seqs
        self._scheduling = scheduling
        self._reserve_full_prompt = reserve_full_prompt
        self._imposed = False
        self._admission_limit = max_num_seqs
        self._step_limit = token_budget
        self._chunk_limit = chunk_tokens or token_budget
        self._pushed_out: list[Preemption] = []

    @property
    def unfinished(self) -> int:
        """Requests waiting and running."""
        return len(self.waiting) + len(self.running)

    @property
    def step_tokens(self) -> int | None:
        """The imposed bound on a step's tokens; None while it is the engine's own."""
        return self._step_limit if self._step_limit < self._token_budget else None

    @property
    def chunk_tokens(self) -> int | None:
        """The imposed bound on one request's tokens in a step; None while it is the engine's own."""
        return self._chunk_limit if self._chunk_limit < (self._chunk_tokens or self._token_budget) else None

    def add(self, request: SimulatedRequest) -> None:
        """Add a request to the queue."""
        self._received += 1
        request.serial = self._received
        if self._scheduling == "priority" and not self._imposed:
            insort(self.waiting, request, key=_rank)
        else:
            self.waiting.append(request)

    def resume(self, request: SimulatedRequest) -> bool:
        """Let a request run with all but its newest token computed; False, without any change, if its blocks are not free."""
        if not request.num_output_tokens or not self.cache.allocate(request.request_id, tokens=request.num_tokens - 1):
            return False
        request.num_computed_tokens = request.num_tokens - 1
        self._received += 1
        request.serial = self._received
        self.running.append(request)
        return True

    def remove(self, request: SimulatedRequest) -> None:
        """Remove a request that ended or was aborted."""
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self.cache.release(request.request_id)

    def impose(
        self,
        *,
        waiting: Iterable[SimulatedRequest],
        running: Iterable[SimulatedRequest],
        admission_limit: int | None,
        pushed_out: Iterable[SimulatedRequest] = (),
        step_tokens: int | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        """Serve in this order until the next call; the last running request is preempted first.

        Args:
            waiting: The queue in order, with those of ``pushed_out`` in it; an `OrderedQueue` is kept as it is.
            running: The running requests that keep their place, in order.
            admission_limit: Number of running requests at which admission stops; None for no limit.
            pushed_out: Requests that ran until now and lose their blocks.
            step_tokens: Largest number of tokens in a step; None for the engine's own, which it never exceeds.
            chunk_tokens: Largest number of tokens of one request in a step while it is not the only one; the same.
        """
        self._imposed = True
        for request in pushed_out:
            self._pushed_out.append(Preemption(request, request.num_computed_tokens, "policy"))
            self.cache.release(request.request_id)
            request.num_computed_tokens = 0
        self.waiting = waiting if isinstance(waiting, OrderedQueue) else OrderedQueue(waiting)
        self.running = list(running)
        self._admission_limit = self._max_num_seqs if admission_limit is None else admission_limit
        self._limit_tokens(step_tokens, chunk_tokens)

    def restore(self) -> None:
        """Return to the engine's own order, as if no order had ever been imposed."""
        if not self._imposed:
            return
        self._imposed = False
        self._admission_limit = self._max_num_seqs
        self._limit_tokens(None, None)
        self.waiting = deque(sorted(self.waiting, key=_rank if self._scheduling == "priority" else _arrival))
        self.running.sort(key=_arrival)

    def schedule(self) -> Schedule:
        """Schedule a step and count its tokens as computed."""
        schedule = Schedule()
        longest = self._chunk_limit if self.unfinished > 1 else self._step_limit
        budget = self._schedule_running(schedule, longest)
        if not schedule.preemptions:
            self._admit(schedule, budget, longest)
        schedule.preemptions[:0] = self._pushed_out
        self._pushed_out.clear()
        for request, tokens in schedule.tokens.items():
            request.num_computed_tokens += tokens
        return schedule

    def _limit_tokens(self, step_tokens: int | None, chunk_tokens: int | None) -> None:
        """Limit the tokens of a step and of one request in it; None for the engine's own limit.

        As in the vLLM plugin a limit leaves room for a KV block, and in a step for a token of each running request too.
        """
        assert step_tokens is None or step_tokens > 0
        assert chunk_tokens is None or chunk_tokens > 0
        own_chunk, block = self._chunk_tokens or self._token_budget, self.cache.block_size_tokens
        least = block + len(self.running)
        self._step_limit = min(max(step_tokens or self._token_budget, least), self._token_budget)
        self._chunk_limit = min(max(chunk_tokens or own_chunk, block), own_chunk)

    def _schedule_running(self, schedule: Schedule, longest: int) -> int:
        """Schedule the tokens that running requests lack, each ``longest`` at most; return the remaining token budget."""
        budget = self._step_limit
        place = 0
        while place < len(self.running) and budget > 0:
            request = self.running[place]
            tokens = request.num_tokens - request.num_computed_tokens
            if tokens > 1:
                tokens = min(tokens, longest, budget)
            while not self.cache.allocate(request.request_id, tokens=request.num_computed_tokens + tokens):
                victim_place = self._victim_place()
                victim = self.running.pop(victim_place)
                place -= victim_place < place
                budget += schedule.tokens.pop(victim, 0)
                schedule.preemptions.append(Preemption(victim, victim.num_computed_tokens))
                self._put_back(victim)
                if victim is request:
                    return budget
            schedule.tokens[request] = tokens
            budget -= tokens
            place += 1
        return budget

    def _victim_place(self) -> int:
        """Return the place of the last running request; under vLLM's priority order, of the lowest rank's first."""
        if self._imposed or self._scheduling == "fcfs":
            return len(self.running) - 1
        return max(range(len(self.running)), key=lambda place: _rank(self.running[place])[:2])

    def _put_back(self, victim: SimulatedRequest) -> None:
        """Put a victim at the head of the queue, or at its place by priority."""
        self.cache.release(victim.request_id)
        victim.num_computed_tokens = 0
        if self._scheduling == "priority" and not self._imposed:
            insort(self.waiting, victim, key=_rank)
        else:
            self.waiting.appendleft(victim)

    def _admit(self, schedule: Schedule, budget: int, longest: int) -> None:
        """Admit waiting requests from the head; one that does not fit blocks those behind it."""
        limit = min(self._admission_limit, self._max_num_seqs)
        while self.waiting and budget > 0 and len(self.running) < limit:
            request = self.waiting[0]
            prefix = self.cache.find_prefix(request)
            tokens = min(request.num_tokens - prefix.tokens, longest, budget)
            in_total = prefix.tokens + tokens
            if not self.cache.admit(
                request,
                prefix,
                tokens=in_total,
                must_fit_tokens=request.num_tokens if self._reserve_full_prompt else in_total,
                keep_free_blocks=self.cache.watermark_blocks if self.running else 0,
            ):
                return
            request.num_computed_tokens = prefix.tokens
            self.running.append(self.waiting.popleft())
            schedule.admitted.append(request)
            schedule.tokens[request] = tokens
            budget -= tokens


def _rank(request: SimulatedRequest) -> tuple[int, float, str]:
    """Sort key of vLLM's priority order."""
    return request.priority, request.arrival_s, request.request_id


def _arrival(request: SimulatedRequest) -> tuple[float, int]:
    """Sort key of the order of arrival."""
    return request.arrival_s, request.serial
