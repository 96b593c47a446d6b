"""The probe of vLLM's behaviours: each holds in this release, is missed where it is broken, and nothing is touched."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import Request, RequestStatus

from engine_adapter.transport.link import DirectLink, NoLink
from engine_adapter.virtual_time.engine import Totals, TraceRequest, serve
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm import plugin
from engine_adapter.vllm.probe.behaviours import BEHAVIOURS
from engine_adapter.vllm.probe.trial import Trial
from engine_adapter.vllm.probe.verdict import LIMIT_S, try_behaviours
from engine_adapter.vllm.releases import SchedulerNames
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler
from store.records import Hello

pytestmark = pytest.mark.vllm

Script = Callable[..., Any]

PROFILE = Profile(
    name="one-second-steps",
    base_s=1.0,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=256,
    block_size_tokens=16,
    max_num_seqs=1,
    token_budget=64,
    max_model_len_tokens=128,
)


@pytest.fixture(scope="module")
def stock() -> VllmVirtualTimeEngine:
    """An engine with vLLM's own scheduler, whose configuration is tried."""
    return VllmVirtualTimeEngine(PROFILE, link=NoLink())


class _ServesTheTail(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self.waiting = FCFSRequestQueue(reversed(self.waiting))
        return super().schedule(*args, **kwargs)


class _FirstOut(list[Request]):
    def pop(self, *_place: Any) -> Request:
        return super().pop(0)


class _PreemptsTheFirst(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self.running = _FirstOut(self.running)
        return super().schedule(*args, **kwargs)


class _PreemptsToTheTail(AsyncScheduler):  # type: ignore[misc]
    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self.waiting.remove_request(request)
        self.waiting.add_request(request)


class _KeepsItsFirstLimit(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        SchedulerNames.of(self).limit_active(self, self.scheduler_config.max_num_seqs)
        return super().schedule(*args, **kwargs)


class _KeepsItsFirstQueue(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self.waiting = self.first_queue = getattr(self, "first_queue", self.waiting)
        return super().schedule(*args, **kwargs)


class _SortsRunning(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self.running.sort(key=lambda request: request.arrival_time)
        return super().schedule(*args, **kwargs)


class _ReturnsPairs(AsyncScheduler):  # type: ignore[misc]
    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        return [(request.request_id, request.client_index) for request in super().finish_requests(*args, **kwargs)]


class _CountsAfterTheStep(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        output = super().schedule(*args, **kwargs)
        cached = output.scheduled_cached_reqs
        cached.num_computed_tokens = [self.requests[name].num_computed_tokens for name in cached.req_ids]
        return output


class _FreesTheNullBlock(AsyncScheduler):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pool = self.kv_cache_manager.block_pool
        free_blocks = pool.get_num_free_blocks
        pool.get_num_free_blocks = lambda: free_blocks() + 1


class _PreemptsItselfOnly(AsyncScheduler):  # type: ignore[misc]
    scheduling = False

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self.scheduling = True
        output = super().schedule(*args, **kwargs)
        self.scheduling = False
        return output

    def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
        assert self.scheduling, "not between steps"
        super()._preempt_request(*args, **kwargs)


class _KeepsItsFirstBudget(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self.max_num_scheduled_tokens = self.scheduler_config.max_num_batched_tokens
        return super().schedule(*args, **kwargs)


class _KeepsLoadingInTheQueue(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        output = super().schedule(*args, **kwargs)
        holding = SchedulerNames.of(self).kv_holding(self)
        while holding:
            self.waiting.add_request(holding.pop_request())
        return output


class _WaitsForABlockedHead(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        waiting = self.waiting
        blocked = waiting and waiting.peek_request().status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        self.waiting = FCFSRequestQueue() if blocked else waiting
        output = super().schedule(*args, **kwargs)
        self.waiting = waiting
        return output


class _TouchesWhatItLooksUp(AsyncScheduler):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        manager = self.kv_cache_manager
        look_up, queue = manager.coordinator.find_longest_cache_hit, manager.block_pool.free_block_queue

        def touching(*args: Any, **kwargs: Any) -> Any:
            queue.append(queue.popleft())
            return look_up(*args, **kwargs)

        manager.coordinator.find_longest_cache_hit = touching


class _ForgetsTheEnded(AsyncScheduler):  # type: ignore[misc]
    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        ended = super().finish_requests(*args, **kwargs)
        for request in ended:
            self.requests.pop(request.request_id, None)
        return ended


BREAKS: dict[int, type[AsyncScheduler]] = {
    1: _ServesTheTail,
    2: _PreemptsTheFirst,
    3: _PreemptsToTheTail,
    4: _KeepsItsFirstLimit,
    5: _KeepsItsFirstQueue,
    6: _SortsRunning,
    7: _ReturnsPairs,
    8: _CountsAfterTheStep,
    9: _FreesTheNullBlock,
    10: _PreemptsItselfOnly,
    11: _KeepsItsFirstBudget,
    12: _KeepsLoadingInTheQueue,
    13: _WaitsForABlockedHead,
    14: _TouchesWhatItLooksUp,
    15: _ForgetsTheEnded,
}
"""Schedulers that differ from vLLM's in one behaviour."""


@pytest.mark.parametrize("number", BEHAVIOURS)
@pytest.mark.parametrize("asynchronous", [True, False])
def test_every_behaviour_holds(stock: VllmVirtualTimeEngine, number: int, asynchronous: bool) -> None:
    """In this release, with asynchronous scheduling and without."""
    config = copy.copy(stock.scheduler.vllm_config)
    config.scheduler_config = copy.copy(config.scheduler_config)
    config.scheduler_config.async_scheduling = asynchronous
    assert BEHAVIOURS[number](partial(Trial, AsyncScheduler, config))


def test_all_hold_for_the_second_model_runner_too(
    stock: VllmVirtualTimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLLM takes it by itself on GPUs, and its scheduler then works otherwise."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    config = stock.scheduler.vllm_config
    assert Trial(AsyncScheduler, config).scheduler.use_v2_model_runner
    assert try_behaviours(config, limit_s=60.0).text == "all names and 15 behaviours hold"


@pytest.mark.parametrize("number", BEHAVIOURS)
def test_a_broken_behaviour_is_found(stock: VllmVirtualTimeEngine, number: int) -> None:
    """The behaviour itself says so, by its answer or an error, and the verdict that the plugin does not steer."""
    found = try_behaviours(stock.scheduler.vllm_config, BREAKS[number], limit_s=60.0)
    assert not found.steers
    assert not _holds(number, partial(Trial, BREAKS[number], stock.scheduler.vllm_config))


def _holds(number: int, trial: Callable[..., Trial]) -> bool:
    try:
        return BEHAVIOURS[number](trial)
    except (AssertionError, AttributeError):
        return False


def test_all_behaviours_hold_and_the_engine_is_untouched(stock: VllmVirtualTimeEngine) -> None:
    """Configuration, blocks, queues and vLLM's hash seed are what they were."""
    scheduler = stock.scheduler
    config = scheduler.vllm_config
    parts = ("cache_config", "parallel_config", "scheduler_config")

    def seen() -> object:
        values = [dict(vars(getattr(config, part))) for part in parts]
        pool = scheduler.kv_cache_manager.block_pool
        blocks = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
        return values, dict(vars(config)), blocks, list(scheduler.waiting), getattr(kv_cache_utils, "NONE_HASH", None)

    before = seen()
    found = try_behaviours(config, limit_s=60.0)
    assert (found.steers, found.text) == (True, "all names and 15 behaviours hold")
    assert seen() == before


class _NeverEnds(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *_args: Any, **_kwargs: Any) -> SchedulerOutput:
        while True:
            time.sleep(0.0)


def test_a_probe_that_never_ends_is_given_up(stock: VllmVirtualTimeEngine) -> None:
    """The start waits for the limit and no longer, and nothing computes on behind it."""
    found = try_behaviours(stock.scheduler.vllm_config, _NeverEnds, limit_s=0.2)
    assert (found.steers, "no answer within 0.2 s" in found.text) == (False, True)
    assert 0.5 < LIMIT_S <= 10.0
    deadline_s = time.monotonic() + 30.0
    while any(thread.name == "sagesched-probe" for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


class _Ends(AsyncScheduler):  # type: ignore[misc]
    def schedule(self, *_args: Any, **_kwargs: Any) -> SchedulerOutput:
        raise SystemExit(3)


def test_an_exit_in_the_probe_ends_the_probe_alone(stock: VllmVirtualTimeEngine) -> None:
    """What is no ordinary error counts like any other."""
    found = try_behaviours(stock.scheduler.vllm_config, _Ends, limit_s=60.0)
    assert not found.steers
    assert "SystemExit: 3" in found.text


def _served(script: Any) -> Totals:
    served = VllmVirtualTimeEngine(PROFILE, link=DirectLink(script), scheduler_class=SageScheduler)
    works = [
        TraceRequest(request_id=name, arrival_s=0.0, token_ids=tuple(range(8)), max_tokens=9, true_output_tokens=9)
        for name in ("first", "a", "b")
    ]
    return serve(served, works)


@pytest.mark.parametrize("breaks", [None, _SortsRunning])
def test_an_engine_that_does_not_hold_keeps_its_order_and_says_why(
    scripted: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, breaks: Any
) -> None:
    """Facts are reported all the same; the greeting, every snapshot and the log have the reason."""
    if breaks is not None:
        monkeypatch.setattr(plugin, "try_behaviours", partial(try_behaviours, scheduler_class=breaks))
    script = scripted(indexes={"a": 9.0, "b": 1.0})
    started = [life.request_id for life in sorted(_served(script).completed, key=lambda life: life.scheduled_s)]
    hello = next(message for message in script.heard if isinstance(message, Hello))
    last = script.snapshots()[-1]
    assert set(script.finished()) == {"first", "a", "b"}
    assert last.policy_errors == 0
    if breaks is None:
        assert started == ["first", "b", "a"]
        assert (hello.contract, last.fallback) == ("all names and 15 behaviours hold", None)
    else:
        assert started == ["first", "a", "b"]
        assert "does not keep the plugin's contract: behaviour 2, " in (hello.contract or "")
        assert (last.mode, last.fallback) == ("off", hello.contract)
        assert str(hello.contract) in caplog.text
