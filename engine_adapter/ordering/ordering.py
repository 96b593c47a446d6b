"""Order, preemption and admission limit of an engine: the one code path that every engine applies, without effects.

The controller publishes an index table for each request (`store.records.IndexTable`).
`engine_adapter.ordering.indexed_requests` holds the tables of the unfinished requests and follows their output tokens;
`Ordering` derives a total order and an admission limit from both.
A step costs look-ups for the running requests that reach another entry and moves in the queue for those whose key changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Generic, Protocol, TypeAlias, TypeVar

from engine_adapter.ordering.admission import Admission
from engine_adapter.ordering.crowding import Crowding
from engine_adapter.ordering.indexed_requests import LAST_CLASS, IndexedRequests
from engine_adapter.ordering.kv_memory import KvMemory
from engine_adapter.ordering.ordered_queue import Key, OrderedQueue
from engine_adapter.ordering.pace import MOST_PROMPTS, PromptToCompute, paced_tokens, saves_prompt
from engine_adapter.ordering.prefix_hits import HEAD, PrefixHits
from engine_adapter.ordering.promises import LOST, URGENT
from engine_adapter.ordering.push_out import DEFAULT_TOKEN_S, PushOutCredit
from engine_adapter.ordering.step_shape import FREE_TOKEN_S, OWN_SHAPE, StepShape, shape_step
from store.records import StepCost


class Schedulable(Protocol):
    """The attributes of an engine's request that ordering and gate read; vLLM's ``Request`` has them."""

    request_id: str
    num_computed_tokens: int

    @property
    def num_tokens(self) -> int:
        """Prompt tokens plus output tokens generated: what must be computed before the next token."""
        ...


R = TypeVar("R", bound=Schedulable)

RESUME_SHARE = 0.05
"""Share of the tokens that a preempted request must compute again, for as many steps its place must last."""

MOST_RELEGATED = 16
"""Requests at the head of the queue that are judged anew in a step at most."""

MOST_STEP_TOKENS = 4
"""Tokens that a decoding request may have in a step, with those of a speculation, when the budget covers all of them."""


@dataclass(frozen=True, slots=True)
class Plan(Generic[R]):
    """The order, admission limit and preemptions of the engine's next step."""

    waiting: Sequence[R]
    """The queue in order of admission; the engine's own queue, put in order, where that is an `OrderedQueue`."""
    running: list[R]
    """The running requests; the last is preempted first."""
    admission_limit: int | None
    """Requests that may be active in the next step; None without a gate."""
    reserved_blocks: int
    """KV blocks reserved for the growth of the running requests."""
    pushed_out: list[R] = field(default_factory=list)
    """Running requests to preempt for waiting ones; ``waiting`` contains them already."""
    step_tokens: int | None = None
    """Largest number of tokens of the next step; None for the engine's own budget, which it never exceeds."""
    chunk_tokens: int | None = None
    """Largest number of tokens that the next step computes of one prompt; None for the engine's own limit."""
    skipped: int = 0
    """Requests among the first of ``waiting`` that the engine would pass by: with the admitted ones they are its head."""


class Ordering(IndexedRequests):
    """Order, gate and preemption over the unfinished requests of one engine.

    Args:
        block_size_tokens: Tokens in a KV block.
        max_num_seqs: Upper bound of running requests, whatever memory is free.
    """

    def __init__(self, block_size_tokens: int, max_num_seqs: int) -> None:
        super().__init__()
        self._block_size_tokens = block_size_tokens
        self._max_num_seqs = max_num_seqs
        self._crowding = Crowding()
        self._rest_steps = 0
        """Number of steps during which no running request may be pushed out."""
        self._hits = PrefixHits(block_size_tokens)
        self._credit = PushOutCredit()
        self._even_blocks: float | None = None
        """KV blocks of a token where each takes the same; None before the first plan and where it depends."""
        self._shape_known = False
        self._most_free_blocks = 0
        self._steps_in_flight = 0
        self._planned_s = 0.0
        """Seconds that the last planned step is expected to take."""

    @property
    def preempts(self) -> bool:
        """Whether a waiting request may push out running ones."""
        return self._rules.preemption is not None

    def plan(
        self,
        now_s: float,
        *,
        waiting: Collection[R],
        running: Collection[R],
        memory: KvMemory,
        admission: Admission | None = None,
        steps_in_flight: int = 0,
    ) -> Plan[R]:
        """Order both sets, and decide preemptions and how many requests may be active in the next step.

        Args:
            now_s: The engine's clock, in seconds.
            waiting: The queue; sorted in place if it is an `OrderedQueue`.
            running: The running requests.
            memory: The engine's KV memory.
            admission: Requests that hold memory without running, and those that the engine would skip; None for none.
            steps_in_flight: Steps that were planned and have not ended; the next begins when the last of them ends.
        """
        queue, active = waiting if isinstance(waiting, OrderedQueue) else list(waiting), list(running)
        rules = self._rules
        active = self._order.follow(active, rules.victims)
        self._steps_in_flight = steps_in_flight
        self._follow_clock(now_s, busy=bool(active))
        self._look_up_hits(queue, memory)
        self._sort_queue(queue)
        self._relegate(queue)
        if active:
            active = self._order_running(active, queue, memory)
        if not queue or not (rules.gate or self.preempts):
            shape = self._shape(now_s, queue, 0, memory)
            return Plan(queue, active, None, 0, step_tokens=shape.step_tokens, chunk_tokens=shape.chunk_tokens)
        self._begin_admission(now_s, memory)
        held = 0 if admission is None else len(admission.holding)
        reserved = self._reserve_blocks(memory, admission)
        admitted, skipped, pushed_out, held_back = self._admit(
            queue, active, memory=memory, room_blocks=memory.free_blocks - reserved, admission=admission
        )
        queue = _with_last(queue, held_back)
        shape = self._shape(now_s, queue, admitted + skipped, memory)
        self._rest_steps = max(0, self._rest_steps - 1)
        if pushed_out:
            self._pay(pushed_out)
            self._rest_steps = rules.preemption.rest_steps if rules.preemption else 0
            active = active[: len(active) - len(pushed_out)]
            self._order.keep(len(active))
            queue = _with_last(sorted([*queue, *pushed_out], key=self._key), held_back)
        limit = len(active) + held + admitted if rules.gate else None
        return Plan(
            queue,
            active,
            limit,
            math.ceil(reserved),
            pushed_out,
            step_tokens=shape.step_tokens,
            chunk_tokens=shape.chunk_tokens,
            skipped=skipped,
        )

    def _follow_clock(self, now_s: float, *, busy: bool) -> None:
        """Bring the keys up to a step that begins: standings change with the clock, and rounds once a step."""
        self._promises.begin_step(now_s, busy=busy)
        self._place_all()
        for tracked in self._promises.due():
            self._place(tracked)
        self._shares.settle()

    def _begin_admission(self, now_s: float, memory: KvMemory) -> None:
        """Note what admission goes by from step to step."""
        self._measure_blocks(memory)
        self._headroom.observe(now_s, memory.free_blocks)
        self._credit.earn(now_s)
        self._crowding.begin_step(now_s)

    def _shape(self, now_s: float, queue: Sequence[R], placed: int, memory: KvMemory) -> StepShape:
        """Bound the step's prefill, if its prompts delay others; ``placed`` of the queue are in it."""
        cost, filling = self._rules.step, self._order.filling
        if cost is None:
            return OWN_SHAPE
        decode_tokens = len(self._order.entries) - len(filling)
        decode_s = cost.base_s + cost.decode_seq_s * decode_tokens + cost.kv_token_s * self._used_tokens(memory)
        starts_s, self._planned_s = now_s + self._planned_s * self._steps_in_flight, decode_s
        if not (filling or queue):
            self._pace.observe_step(decode_s, 0.0)
            return OWN_SHAPE
        prompts = [entry.running.num_tokens - entry.running.num_computed_tokens for entry in filling]
        prompts += [
            request.num_tokens - self._tracked[request.request_id].hit.tokens for request in islice(queue, placed)
        ]
        shape = shape_step(
            prompts,
            unplaced=len(queue) - placed,
            decode_tokens=decode_tokens,
            cost=cost,
            arrivals_per_s=self._arrivals.per_s(now_s),
        )
        longest_s = self._longest_s(starts_s, decode_s, queue, cost)
        shape = shape.within(paced_tokens(longest_s, decode_s, decode_tokens, cost))
        room_tokens = (shape.step_tokens or cost.budget_tokens) - decode_tokens
        fills = bool(queue) and self._rules.gate is None
        self._plan_prefill(room_tokens if fills else sum(prompts), room_tokens, cost)
        return shape

    def _longest_s(self, starts_s: float, decode_s: float, queue: Sequence[R], cost: StepCost) -> float:
        """Return how long the step may take for the sake of those who decode; infinite for any length."""
        if self._pace.is_idle or cost.prefill_token_s <= FREE_TOKEN_S:
            return math.inf
        prompts = self._prompts(queue) if len(queue) <= MOST_PROMPTS else []
        prompts_s = prompts[-1].tokens * cost.prefill_token_s if prompts else math.inf
        step = self._pace.longest_step(starts_s, decode_s, tokens_in_flight=self._steps_in_flight, prompts_s=prompts_s)
        is_saved = step.late_s > step.in_time_s and saves_prompt(prompts, step, starts_s, decode_s, cost)
        return step.late_s if is_saved else step.in_time_s

    def _prompts(self, queue: Sequence[R]) -> list[PromptToCompute]:
        """Return what is to be computed of prompts, in order: those in prefill, then those that wait."""
        prompts, tokens = [], 0
        lacking = [
            (entry, entry.running.num_tokens - entry.running.num_computed_tokens) for entry in self._order.filling
        ]
        for request in queue:
            tracked = self._tracked[request.request_id]
            lacking.append((tracked, request.num_tokens - tracked.hit.tokens))
        for tracked, lacking_tokens in lacking:
            tokens += lacking_tokens
            prompts.append(PromptToCompute(tokens, self._promises.ttft_lost_s(tracked)))
        return prompts

    def _plan_prefill(self, lacking_tokens: int, room_tokens: int, cost: StepCost) -> None:
        """Note how long the step will take with its prompts, and what a prompt token takes where there are too many."""
        if 0 < room_tokens <= lacking_tokens:
            self._promises.observe_prefill(self._planned_s / room_tokens + cost.prefill_token_s)
        prompts_s = cost.prefill_token_s * max(0, min(lacking_tokens, room_tokens))
        self._planned_s += prompts_s
        self._pace.observe_step(self._planned_s, prompts_s)

    def _used_tokens(self, memory: KvMemory) -> int:
        """Return the tokens whose KV running requests hold, as far as it is known how many blocks there are."""
        self._most_free_blocks = max(self._most_free_blocks, memory.free_blocks)
        return (self._most_free_blocks - memory.free_blocks) * self._block_size_tokens

    def _key(self, request: R) -> Key:
        return self._tracked[request.request_id].key

    def _order_running(self, active: list[R], queue: Sequence[R], memory: KvMemory) -> list[R]:
        """Put the running requests in order where the step may preempt one of them or leave one out."""
        short = self._is_short(memory)
        if not short and not self._leaves_out(active, queue):
            return active
        self._rank_aged()
        settled = self._order.settle()
        return self._order.spare_oldest() if short and self._rules.victims == "later" else settled

    def _leaves_out(self, active: list[R], queue: Sequence[R]) -> bool:
        """Whether the step may push a running request out, or have no tokens for it."""
        first_class = self._key(queue[0])[0] if queue else LAST_CLASS
        classes, cost = self._order.classes, self._rules.step
        if self.preempts or len(classes) > 1 or first_class < max(classes):
            return True
        return cost is not None and MOST_STEP_TOKENS * len(active) > cost.budget_tokens

    def _is_short(self, memory: KvMemory) -> bool:
        """Whether the next step may run out of KV memory: a block for each running request, and what prompts lack."""
        order = self._order
        lacking_tokens: int = sum(
            entry.running.num_tokens - entry.running.num_computed_tokens for entry in order.filling
        )
        return memory.free_blocks < len(order.entries) + memory.blocks(lacking_tokens)

    def _look_up_hits(self, queue: list[R] | OrderedQueue[R], memory: KvMemory) -> None:
        """Look up new requests and the head of the queue in the prefix cache, and order by what is left to compute."""
        self._hits.begin_step()
        new = queue.new_requests() if isinstance(queue, OrderedQueue) else queue
        for request in chain(islice(queue, HEAD), new):
            if not self._hits.affordable:
                return
            tracked = self._tracked[request.request_id]
            if self._hits.refresh(tracked, request, memory):
                self._place(tracked)

    def _relegate(self, queue: list[R] | OrderedQueue[R]) -> None:
        """Put requests at the head of the queue that can no longer meet their targets behind the others.

        They are judged anew here: how long a prompt takes follows the pace of those that decode.
        """
        for _ in range(MOST_RELEGATED):
            tracked = self._tracked[queue[0].request_id] if queue else None
            if tracked is None or not self.promised(tracked) or tracked.standing == LOST:
                return
            self._place(tracked)
            if tracked.standing != LOST:
                return
            self._sort_queue(queue)

    def _sort_queue(self, queue: list[R] | OrderedQueue[R]) -> None:
        """Put the queue in order; in an `OrderedQueue` only what has changed since the last plan is moved."""
        if isinstance(queue, OrderedQueue):
            queue.settle(self._key, self._stood)
        else:
            queue.sort(key=self._key)
        self._stood.clear()

    def _measure_blocks(self, memory: KvMemory) -> None:
        """Find out once whether every token of every request takes the same share of a KV block."""
        if self._shape_known:
            return
        self._shape_known = True
        first, late = memory.blocks(1.0) - memory.blocks(0.0), memory.blocks(1e9 + 1.0) - memory.blocks(1e9)
        self._even_blocks = first if math.isclose(first, late, rel_tol=1e-3) else None

    def _grown_blocks(self, tokens: int, more_tokens: float, memory: KvMemory) -> float:
        """Return the KV blocks that a request of ``tokens`` takes for ``more_tokens`` further ones."""
        if self._even_blocks is not None:
            return more_tokens * self._even_blocks
        return memory.blocks(tokens + more_tokens) - memory.blocks(tokens)

    def _reserve_blocks(self, memory: KvMemory, admission: Admission | None) -> float:
        """Return the sum of `_claim_blocks` over the running requests and those that are under way without running."""
        under_way = () if admission is None else admission.under_way
        reserved = sum(self._claim_blocks(request, memory) for request in under_way)
        if self._even_blocks is None:
            return reserved + sum(self._claim_blocks(entry.running, memory) for entry in self._order.entries)
        lacking_tokens: int = sum(
            entry.running.num_tokens - entry.running.num_computed_tokens for entry in self._order.filling
        )
        growth_tokens = 0.0
        if self._rules.gate is not None:
            growth_tokens = self._rules.gate.margin * self._order.growth_tokens
        return reserved + (lacking_tokens + growth_tokens) * self._even_blocks

    def _need_blocks(self, request: R, memory: KvMemory) -> float:
        """Return the free KV blocks that a waiting request needs with its expected growth."""
        grown_blocks = self._grown_blocks(request.num_tokens, self._growth_tokens(request), memory)
        return self._own_blocks(request, memory) + grown_blocks + self._resume_blocks(request)

    def _own_blocks(self, request: R, memory: KvMemory) -> float:
        """Return the free KV blocks that a waiting request takes for the tokens that it has."""
        held_blocks = self._tracked[request.request_id].hit.held_blocks
        return max(0.0, math.ceil(memory.blocks(request.num_tokens)) - held_blocks)

    def _resume_blocks(self, request: R) -> float:
        """Return the free blocks for which a preempted request waits, so that it does not lose its place at once.

        They last for a share of as many steps as it has tokens to compute again, if every running request grows by a
        token in each; they are never more than those that it computes again, or a full engine would drain for it.
        """
        tracked = self._tracked[request.request_id]
        if not tracked.attained_tokens or self._rules.gate is None:
            return 0.0
        lost_tokens = max(0, request.num_tokens - tracked.hit.tokens)
        growing = len(self._order.entries) + 1
        return lost_tokens * min(RESUME_SHARE * growing, 1.0) / self._block_size_tokens

    def _claim_blocks(self, running: R, memory: KvMemory) -> float:
        """Return the KV blocks that a running request is expected to take beyond those that it holds."""
        lacking_tokens = running.num_tokens - running.num_computed_tokens
        unfilled_tokens = lacking_tokens if lacking_tokens > 1 else 0
        more_tokens = unfilled_tokens + self._growth_tokens(running)
        return self._grown_blocks(running.num_computed_tokens, more_tokens, memory)

    def _growth_tokens(self, request: R) -> float:
        gate = self._rules.gate
        return 0.0 if gate is None else gate.margin * self._tracked[request.request_id].growth_tokens

    def _admit(
        self,
        queue: Sequence[R],
        active: list[R],
        *,
        memory: KvMemory,
        room_blocks: float,
        admission: Admission | None,
    ) -> tuple[int, int, list[R], dict[str, R]]:
        """Return how many requests of the queue fit, how many among them the engine skips, victims, and who is held back.

        No request overtakes a head that does not fit, and an idle engine admits one whatever its size. One that is about to
        miss its targets needs no room to grow: those who run behind it in the order give way if memory runs out.
        The victims are the running requests to push out, the last first. Those held back, by id, are to go behind all others.
        """
        admitted = skipped = 0
        free_blocks: float = memory.free_blocks
        held = 0 if admission is None else len(admission.holding)
        pushed_out: list[R] = []
        held_back: dict[str, R] = {}
        for request in queue:
            if self._tracked[request.request_id].impossible:
                break
            if admission is not None and (readiness := admission.readiness(request)) != "ready":
                if readiness == "held_back":
                    held_back[request.request_id] = request
                    continue
                if readiness == "crowded_out" and self._crowding.presses(self._tracked[request.request_id].arrival_s):
                    admission.make_room(request)
                skipped += 1
                continue
            own_blocks = self._own_blocks(request, memory)
            need = self._need_blocks(request, memory)
            priority = self._tracked[request.request_id].priority
            left_blocks, left_slots = self._headroom.above(priority, slots=self._max_num_seqs)
            room = room_blocks - left_blocks
            if self._tracked[request.request_id].standing == URGENT and own_blocks < free_blocks:
                need = min(need, room)
            stays = len(active) - len(pushed_out)
            slots = self._max_num_seqs - stays - held - admitted
            idle = not (active or admitted or (admission is not None and admission.under_way))
            if (need > room and not idle) or slots <= left_slots:
                victims, freed_blocks = self._victims(request, active[:stays], memory, need - room, slots)
                if not victims:
                    break
                pushed_out.extend(victims)
                room_blocks += freed_blocks
            room_blocks -= need
            free_blocks -= own_blocks
            self._headroom.started(priority, need)
            admitted += 1
            if admission is not None:
                admission.start(request)
        return admitted, skipped, pushed_out, held_back

    def _victims(
        self, request: R, active: list[R], memory: KvMemory, lacking_blocks: float, slots: int
    ) -> tuple[list[R], float]:
        """Return the running requests to push out for a waiting one, the last first, and the blocks that they free.

        Returns none when those that may be pushed out do not free enough.
        """
        victims: list[R] = []
        freed_blocks = 0.0
        while active and self._yields(active[-1], request):
            victim = active.pop()
            freed = memory.freed_blocks(victim)
            if freed is None:
                break
            victims.append(victim)
            freed_blocks += freed + self._claim_blocks(victim, memory)
            if freed_blocks >= lacking_blocks and slots + len(victims) > 0:
                return victims, freed_blocks
        return [], 0.0

    def _pay(self, victims: list[R]) -> None:
        """Charge what the victims must compute again."""
        step = self._rules.step
        token_s = DEFAULT_TOKEN_S if step is None else step.prefill_token_s
        self._credit.spend(sum(victim.num_computed_tokens for victim in victims), token_s)

    def _yields(self, victim: R, request: R) -> bool:
        """Whether a running request yields to a waiting one: by strict class, or by index after the recomputation cost."""
        loser, winner = self._tracked[victim.request_id], self._tracked[request.request_id]
        if winner.key[0] < loser.key[0]:
            return self._credit.left
        preemption = self._rules.preemption
        if preemption is None or self._rest_steps > 0 or winner.key >= loser.key:
            return False
        price_s = preemption.token_s * victim.num_computed_tokens
        return winner.index_s + price_s <= (1.0 - preemption.hysteresis) * loser.index_s


def _with_last(queue: list[R] | OrderedQueue[R], last: Mapping[str, R]) -> list[R] | OrderedQueue[R]:
    """Return the queue with these requests, by id, behind all others; the same queue if there are none."""
    return [*(request for request in queue if request.request_id not in last), *last.values()] if last else queue


OrderingFactory: TypeAlias = Callable[[int, int], Ordering]
"""Makes the ordering of an engine from its ``block_size_tokens`` and ``max_num_seqs``."""
