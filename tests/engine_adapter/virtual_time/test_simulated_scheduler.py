from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_adapter.virtual_time.block_hashes import BlockHashes
from engine_adapter.virtual_time.kv_cache import KvCache
from engine_adapter.virtual_time.prefix_cache import PrefixCache
from engine_adapter.virtual_time.simulated_scheduler import Schedule, Scheduling, SimulatedRequest, SimulatedScheduler

MODEL_LEN_TOKENS = 60
SCHEDULINGS: tuple[Scheduling, ...] = ("fcfs", "priority")


class SchedulerLife(RuleBasedStateMachine):
    """Requests come, go and are reordered at random; after every step all invariants hold."""

    @initialize(data=st.data())
    def build(self, data: st.DataObject) -> None:
        """An engine that can hold one full request at least."""
        block = data.draw(st.sampled_from([1, 4, 16]))
        self.caching = data.draw(st.booleans())
        self.cache = (PrefixCache if self.caching else KvCache)(
            blocks=-(-MODEL_LEN_TOKENS // block) + data.draw(st.integers(0, 10)),
            block_size_tokens=block,
            watermark=data.draw(st.sampled_from([0.0, 0.1, 0.5])),
        )
        self.scheduling = data.draw(st.sampled_from(SCHEDULINGS))
        self.budget = data.draw(st.integers(1, 50))
        self.seqs = data.draw(st.integers(1, 6))
        chunk = data.draw(st.none() | st.integers(1, 20))
        self.own_chunk = chunk or self.budget
        self.step_limit, self.chunk_limit = self.budget, self.own_chunk
        self.scheduler = SimulatedScheduler(
            cache=self.cache,
            token_budget=self.budget,
            max_num_seqs=self.seqs,
            scheduling=self.scheduling,
            reserve_full_prompt=data.draw(st.booleans()),
            chunk_tokens=chunk,
        )
        self.requests: list[SimulatedRequest] = []
        self.arrived = 0
        self.imposed = False

    @rule(prompt_tokens=st.integers(1, MODEL_LEN_TOKENS - 1), priority=st.integers(0, 2), document=st.integers(0, 2))
    def arrive(self, prompt_tokens: int, priority: int, document: int) -> None:
        """A request joins the queue; its prompt begins one of a few documents."""
        self.arrived += 1
        request = SimulatedRequest(f"r{self.arrived:04d}", float(self.arrived), prompt_tokens, priority)
        if self.caching:
            answer = range(100 * self.arrived, 100 * self.arrived + 100)
            request.block_hashes = BlockHashes((document,) * prompt_tokens, answer, self.cache.block_size_tokens)
        self.requests.append(request)
        self.scheduler.add(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A request is aborted, wherever it is."""
        request = data.draw(st.sampled_from(self.requests))
        self.requests.remove(request)
        self.scheduler.remove(request)
        assert self.cache.held_blocks(request.request_id) == 0

    @rule(
        data=st.data(),
        limit=st.none() | st.integers(0, 5),
        step_tokens=st.none() | st.integers(1, 60),
        chunk_tokens=st.none() | st.integers(1, 60),
    )
    def impose(self, data: st.DataObject, limit: int | None, step_tokens: int | None, chunk_tokens: int | None) -> None:
        """A plan orders queue and running requests, and limits the step's tokens."""
        waiting = data.draw(st.permutations(self.scheduler.waiting))
        running = data.draw(st.permutations(self.scheduler.running))
        self.scheduler.impose(
            waiting=waiting,
            running=running,
            admission_limit=limit,
            step_tokens=step_tokens,
            chunk_tokens=chunk_tokens,
        )
        self.imposed = True
        block = self.cache.block_size_tokens
        self.step_limit = min(self.budget, max(step_tokens or self.budget, block + len(running)))
        self.chunk_limit = min(self.own_chunk, max(chunk_tokens or self.own_chunk, block))

    @rule()
    def restore(self) -> None:
        """The queue is in the engine's own order again."""
        self.scheduler.restore()
        if self.imposed:
            queue = list(self.scheduler.waiting)
            assert queue == sorted(queue, key=self._own_order)
        self.imposed = False
        self.step_limit, self.chunk_limit = self.budget, self.own_chunk

    @rule()
    def step(self) -> None:
        """A step obeys budget, capacity and order, and takes every request one step on at most."""
        queue, active = list(self.scheduler.waiting), list(self.scheduler.running)
        schedule = self.scheduler.schedule()
        self._check_budget(schedule, alone=len(queue) + len(active) == 1)
        self._check_order(schedule, queue, active)
        if active or queue:
            held_up = self.imposed and not active
            assert schedule.tokens or held_up or schedule.preemptions
        for preemption in schedule.preemptions:
            assert preemption.request in self.scheduler.waiting
            assert preemption.request.num_computed_tokens == 0
            assert preemption.request not in schedule.tokens
        if schedule.preemptions:
            assert not schedule.admitted, "nobody is admitted in a step that preempts"
        if active and schedule.admitted:
            assert self.cache.free_blocks >= self.cache.watermark_blocks
        self._generate(schedule)

    @invariant()
    def every_block_is_somewhere(self) -> None:
        """Blocks are conserved, and nobody holds fewer than its tokens need or any while it waits."""
        held = [self.cache.held_blocks(request.request_id) for request in self.scheduler.running]
        assert self.cache.used_blocks <= self.cache.blocks
        assert sum(held) == self.cache.used_blocks or self.caching, "only cached prefixes are shared"
        for request, blocks in zip(self.scheduler.running, held, strict=True):
            assert blocks == self.cache.blocks_for(request.num_computed_tokens)
        assert all(self.cache.held_blocks(request.request_id) == 0 for request in self.scheduler.waiting)

    @invariant()
    def the_longest_cached_prefix_is_found(self) -> None:
        """Block after block, as vLLM looks it up; a block is free, or held by as many as count it, and cached ones last."""
        if not isinstance(self.cache, PrefixCache):
            return
        cache = self.cache
        holders = Counter(block for table in cache._tables.values() for block in table.blocks)
        assert [holders[block] for block in range(cache.blocks)] == cache._references
        free = [*cache._blank, *cache._idle]
        assert sorted(free) == [block for block in range(cache.blocks) if not holders[block]]
        assert len(free) == cache.free_blocks
        assert all(cache._hash_of[block] is not None for block in cache._idle)
        assert all(cache._hash_of[block] is None for block in cache._blank)
        for request in self.scheduler.waiting:
            assert request.block_hashes is not None
            most = (request.num_tokens - 1) // cache.block_size_tokens
            hashes = request.block_hashes.first(most)[:most]
            blocks = [cache._found_by[value] for value in takewhile(cache._found_by.__contains__, hashes)]
            prefix = cache.find_prefix(request)
            assert list(prefix.blocks) == blocks
            assert prefix.tokens == len(blocks) * cache.block_size_tokens
            assert prefix.idle_blocks == sum(block in cache._idle for block in blocks)

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        """No request is lost, and none is there twice."""
        present = [request.request_id for request in (*self.scheduler.waiting, *self.scheduler.running)]
        assert sorted(present) == sorted(request.request_id for request in self.requests)
        assert len(self.scheduler.running) <= self.seqs
        if self.scheduling == "priority" and not self.imposed:
            assert list(self.scheduler.waiting) == sorted(self.scheduler.waiting, key=self._own_order)

    def _own_order(self, request: SimulatedRequest) -> tuple[int, float]:
        return (request.priority if self.scheduling == "priority" else 0), request.arrival_s

    def _check_budget(self, schedule: Schedule, *, alone: bool) -> None:
        assert sum(schedule.tokens.values()) <= self.step_limit
        for request, tokens in schedule.tokens.items():
            assert tokens > 0
            assert tokens <= self.chunk_limit or alone, "a limit on one request is for the sake of the others"
            assert request.num_computed_tokens <= request.num_tokens

    def _check_order(self, schedule: Schedule, queue: list[SimulatedRequest], active: list[SimulatedRequest]) -> None:
        """Running requests come in their order, then the head of the queue without a gap."""
        scheduled = list(schedule.tokens)
        running = [request for request in scheduled if request in active]
        assert running == [request for request in active if request in running]
        assert scheduled[: len(running)] == running
        assert schedule.admitted == queue[: len(schedule.admitted)] == scheduled[len(running) :]
        if self.imposed or self.scheduling == "fcfs":
            victims = [preemption.request for preemption in schedule.preemptions]
            assert victims == active[::-1][: len(victims)], "the last of the running gives way first"

    def _generate(self, schedule: Schedule) -> None:
        """Give out tokens; an answer ends when the model's length is reached."""
        for request in schedule.tokens:
            if request.generates:
                request.num_output_tokens += 1
            if request.num_tokens >= MODEL_LEN_TOKENS:
                self.requests.remove(request)
                self.scheduler.remove(request)


SchedulerLife.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestSchedulerLife = SchedulerLife.TestCase


@dataclass
class Pool:
    """The oracle of the KV cache: every block by name."""

    free: set[int]
    held: dict[str, set[int]]


@given(
    blocks=st.integers(1, 30),
    block_size=st.integers(1, 16),
    moves=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200) | st.none(), st.integers(0, 5)), max_size=40),
)
def test_the_cache_counts_as_if_it_named_every_block(
    blocks: int, block_size: int, moves: list[tuple[str, int | None, int]]
) -> None:
    """Allocation succeeds exactly when a pool of named blocks could serve it, and counts agree after every move."""
    cache = KvCache(blocks=blocks, block_size_tokens=block_size)
    pool = Pool(free=set(range(blocks)), held={})
    for name, tokens, keep in moves:
        held = pool.held.setdefault(name, set())
        if tokens is None:
            pool.free |= held
            held.clear()
            cache.release(name)
        else:
            lacking = max(0, -(-tokens // block_size) - len(held))
            fits = (lacking == 0 and keep == 0) or lacking + keep <= len(pool.free)
            assert cache.can_allocate(name, tokens=tokens, keep_free_blocks=keep) == (lacking + keep <= len(pool.free))
            assert cache.allocate(name, tokens=tokens, keep_free_blocks=keep) == fits
            if fits:
                held |= {pool.free.pop() for _ in range(lacking)}
        assert cache.free_blocks == len(pool.free)
        assert cache.held_blocks(name) == len(held)


def test_requests_of_one_moment_go_back_in_the_order_in_which_they_came() -> None:
    """VLLM's own order is given back by arrival, and among equal arrivals by receipt, whatever order was imposed."""
    cache = KvCache(blocks=10, block_size_tokens=16)
    scheduler = SimulatedScheduler(cache=cache, token_budget=64, max_num_seqs=2)
    first, second, third, fourth = (SimulatedRequest(name, 1.0, 8) for name in "dcba")
    for request in (first, second, third, fourth):
        scheduler.add(request)
    scheduler.schedule()
    scheduler.impose(waiting=[fourth, third], running=[second, first], admission_limit=None)
    scheduler.restore()
    assert (list(scheduler.running), list(scheduler.waiting)) == ([first, second], [third, fourth])
