"""The behaviours that the plugin relies on, each tried on a scheduler of its own, numbered as in `contract`.

A function returns whether its behaviour holds; its docstring is what a verdict says when it does not.
An exception means that it does not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from vllm.v1.core.sched.request_queue import FCFSRequestQueue, PriorityRequestQueue, SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from engine_adapter.vllm.probe.trial import BLOCK_TOKENS, BLOCKS, Trial, ids
from engine_adapter.vllm.releases import PassedBy

MakeTrial: TypeAlias = Callable[..., Trial]
"""Makes a trial of the scheduler, by `Trial`'s keyword arguments."""


def serves_its_queue_from_the_head(trial: MakeTrial) -> bool:
    """Under FCFS waiting is a deque, served from its head in its order."""
    one = trial(places=1)
    one.add("a", "b", output_tokens=2)
    one.add("c", output_tokens=2)
    one.step()
    is_deque = type(one.scheduler.waiting) is FCFSRequestQueue and one.waiting == ["b", "c"]
    one.step()
    one.step()
    return is_deque and one.running == ["b"] and one.waiting == ["c"]


def preempts_the_last_of_running(trial: MakeTrial) -> bool:
    """Under FCFS the victim of a failed allocation is the last of running."""
    return _crowded(trial).running == ["b"]


def returns_the_preempted_to_the_head(trial: MakeTrial) -> bool:
    """A preempted request goes to the head of waiting with no computed tokens left."""
    crowded = _crowded(trial)
    victim = crowded.scheduler.waiting[0]
    return victim.status == RequestStatus.PREEMPTED and not victim.num_computed_tokens and crowded.waiting == ["a", "c"]


def _crowded(trial: MakeTrial) -> Trial:
    """Two requests grow until memory is gone, the first of which was put behind the second; a third waits."""
    two = trial(places=2)
    two.add("a", "b", "c", prompt_tokens=40)
    two.step()
    two.scheduler.running.reverse()
    two.until(lambda: len(two.scheduler.running) < 2)
    return two


def admits_up_to_the_limit_of_each_step(trial: MakeTrial) -> bool:
    """The limit of active requests is read in every step, and none is admitted above it."""
    four = trial()
    four.add("a", "b", "c", "d")
    running = []
    for limit in (2, 2, 3, 3):
        four.names.limit_active(four.scheduler, limit)
        four.step()
        running.append(len(four.running))
    return running == [2, 2, 3, 3]


def lets_policy_and_queue_change_between_steps(trial: MakeTrial) -> bool:
    """Policy, queue and limit may change between steps, with steps in flight, and change back."""
    one = trial(places=1, policy="priority")
    one.add("a", "b", "c", output_tokens=4)
    scheduler = one.scheduler
    was_heap = type(scheduler.waiting) is PriorityRequestQueue
    one.schedule()
    one.schedule()
    scheduler.policy = SchedulingPolicy.FCFS
    scheduler.waiting = FCFSRequestQueue(sorted(scheduler.waiting, reverse=True))
    one.update()
    one.update()
    followed = one.until(lambda: (one.running, one.waiting) == (["c"], ["b"]), steps=8)
    heap = PriorityRequestQueue()
    for request in [*scheduler.waiting, one.add("d", output_tokens=4, priority=-1)]:
        heap.add_request(request)
    scheduler.policy = SchedulingPolicy.PRIORITY
    scheduler.waiting = heap
    return was_heap and followed and one.until(lambda: (one.running, ids(heap)) == (["d"], ["b"]), steps=8)


def reads_its_lists_afresh(trial: MakeTrial) -> bool:
    """Each schedule() reads waiting and running as they stand then, in their order."""
    three = trial(places=2)
    three.add("a", "b", "c", "d")
    three.step()
    scheduler = three.scheduler
    scheduler.running.reverse()
    scheduler.waiting = FCFSRequestQueue(reversed(scheduler.waiting))
    three.names.limit_active(scheduler, 3)
    scheduler.max_num_running_reqs = 3
    return list(three.step().num_scheduled_tokens) == ["b", "a", "d"]


def returns_the_requests_it_ends(trial: MakeTrial) -> bool:
    """finish_requests returns the requests that it ends; those that an output ends are finished when it returns.

    The ids of both are kept until the next step.
    """
    two = trial()
    first = two.add("a")
    two.add("b")
    last = two.add("c", output_tokens=1)
    two.step()
    finish, aborted = two.scheduler.finish_requests, RequestStatus.FINISHED_ABORTED
    ended = [ids(finish(name, aborted)) for name in ("a", "a", None)]
    reason = first.get_finished_reason()
    kept = set(two.scheduler.finished_req_ids) == {"a", "b", "c"}
    return kept and ended == [["a"], [], ["b"]] and last.is_finished() and reason is not None and reason.name == "ABORT"


def counts_computed_tokens_before_the_step(trial: MakeTrial) -> bool:
    """A step's output gives each request's computed tokens as they were before it."""
    one = trial()
    one.add("a", prompt_tokens=70)
    first, second = one.schedule(), one.schedule()
    return (
        [(new.req_id, new.num_computed_tokens) for new in first.scheduled_new_reqs] == [("a", 0)]
        and first.num_scheduled_tokens == {"a": 64}
        and list(second.scheduled_cached_reqs.num_computed_tokens) == [64]
        and second.total_num_scheduled_tokens == 6
    )


def counts_free_blocks(trial: MakeTrial) -> bool:
    """get_num_free_blocks() counts the blocks that can be allocated, never the null block."""
    one = trial()
    before = one.free_blocks
    one.add("a", prompt_tokens=20)
    one.step()
    pool = one.scheduler.kv_cache_manager.block_pool
    return before == pool.num_gpu_blocks - 1 == BLOCKS and one.free_blocks == BLOCKS - 2


def preempts_on_demand(trial: MakeTrial) -> bool:
    """_preempt_request may be called between steps, with steps in flight, for a request taken out of running."""
    two = trial()
    victim = two.add("a", output_tokens=12)
    other = two.add("b", output_tokens=12)
    two.step()
    two.schedule()
    two.schedule()
    two.scheduler.running.remove(victim)
    two.names.preempt(two.scheduler, victim)
    preempted = victim.status == RequestStatus.PREEMPTED and two.running == ["b"]
    two.update()
    two.update()
    ended = two.until(lambda: not two.scheduler.requests, steps=40)
    return preempted and ended and victim.num_output_tokens == other.num_output_tokens == 12


def reads_the_steps_bounds_afresh(trial: MakeTrial) -> bool:
    """The token budget and the limit on one prompt's share of it are read in every step."""
    two = trial()
    two.add("a", "b", prompt_tokens=40)
    scheduler = two.scheduler
    scheduler.max_num_scheduled_tokens = 24
    scheduler.scheduler_config.long_prefill_token_threshold = 16
    bounded = dict(two.step().num_scheduled_tokens)
    scheduler.max_num_scheduled_tokens = 64
    scheduler.scheduler_config.long_prefill_token_threshold = 0
    return (bounded, dict(two.step().num_scheduled_tokens)) == ({"a": 16, "b": 8}, {"a": 24, "b": 32})


def keeps_loading_requests_apart(trial: MakeTrial) -> bool:
    """A request whose KV is loaded asynchronously leaves waiting, is in kv_holding_waiting and takes no place."""
    two = trial()
    two.add("a", "b")
    scheduler = two.scheduler
    two.names.limit_active(scheduler, 1)
    scheduler.connector = _Loads()
    two.step()
    passed_by = sorted(ids(PassedBy(scheduler).gather()))
    holding = two.names.kv_holding(scheduler)
    statuses = {request.status for request in holding}
    return (
        (two.waiting, two.running, ids(holding), passed_by) == ([], [], ["a", "b"], ["a", "b"])
        and statuses == {RequestStatus.WAITING_FOR_REMOTE_KVS}
    )  # fmt: skip


class _Loads:
    """A connector that has every prompt but its last token elsewhere, and never ends loading it."""

    def get_num_new_matched_tokens(self, request: Request, computed_tokens: int) -> tuple[int, bool]:
        return request.num_tokens - 1 - computed_tokens, True

    def get_loaded_kv_cache_group_ids(self, _request: Request) -> tuple[int, ...]:
        return ()

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_more: None


def passes_blocked_requests_by(trial: MakeTrial) -> bool:
    """A request that cannot start yet lets the next one start, stays first, and is among the deferred until it starts."""
    two = trial()
    blocked = two.add("a")
    two.add("b")
    blocked.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    passed_by = PassedBy(two.scheduler)
    two.step()
    before = ids(passed_by.gather()), two.waiting, two.running
    blocked.status = RequestStatus.WAITING
    two.step()
    after = ids(passed_by.gather()), two.waiting, two.running
    return (before, after) == ((["a"], ["a"], ["b"]), ([], [], ["b", "a"]))


def looks_up_prefixes_without_a_trace(trial: MakeTrial) -> bool:
    """A prefix is looked up without changing the order of eviction, and what is cached has its predecessors cached."""
    one = trial(caching=True)
    head = one.add("a", prompt_tokens=3 * BLOCK_TOKENS, output_tokens=1).block_hashes
    one.step()
    manager = one.scheduler.kv_cache_manager
    pool, queue = manager.block_pool, manager.block_pool.free_block_queue
    before = [block.block_id for block in queue.get_all_free_blocks()]
    groups, tokens, *_ = manager.coordinator.find_longest_cache_hit(head, 3 * BLOCK_TOKENS - 1)
    found = [pool.get_cached_block(block_hash, (0,)) is not None for block_hash in head]
    untouched = before == [block.block_id for block in queue.get_all_free_blocks()]
    one.add("b", prompt_tokens=4 * BLOCK_TOKENS - 1, first_token=500)
    one.step()
    left = [pool.get_cached_block(block_hash, (0,)) is not None for block_hash in head]
    return untouched and (len(groups[0]), tokens, found, left) == (2, 32, [True] * 3, [True, True, False])


def keeps_ended_requests_whose_blocks_are_sent(trial: MakeTrial) -> bool:
    """A finished request whose blocks are freed later is still in requests, and in no queue."""
    one = trial()
    one.add("a")
    one.step()
    scheduler = one.scheduler
    scheduler._connector_finished = lambda _request: (True, None)  # noqa: SLF001 - as with a connector that sends
    scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    return ids(scheduler.requests.values()) == ["a"] and not one.waiting and not one.running


BEHAVIOURS: dict[int, Callable[[MakeTrial], bool]] = {
    1: serves_its_queue_from_the_head,
    2: preempts_the_last_of_running,
    3: returns_the_preempted_to_the_head,
    4: admits_up_to_the_limit_of_each_step,
    5: lets_policy_and_queue_change_between_steps,
    6: reads_its_lists_afresh,
    7: returns_the_requests_it_ends,
    8: counts_computed_tokens_before_the_step,
    9: counts_free_blocks,
    10: preempts_on_demand,
    11: reads_the_steps_bounds_afresh,
    12: keeps_loading_requests_apart,
    13: passes_blocked_requests_by,
    14: looks_up_prefixes_without_a_trace,
    15: keeps_ended_requests_whose_blocks_are_sent,
}
"""By their number in `engine_adapter.vllm.contract`; the sixteenth is a matter of configuration."""
