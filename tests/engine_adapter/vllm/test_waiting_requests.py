"""What vLLM does behind the gate's back: asynchronous loads, adapters, grammars, giants, delayed frees."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from vllm.config.lora import LoRAConfig
from vllm.lora.request import LoRARequest
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

from engine_adapter.ordering.crowding import MAKE_ROOM_AFTER_S
from engine_adapter.transport.link import DirectLink, NoLink
from engine_adapter.virtual_time.engine import Step, TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm import plugin
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler
from store.errors import ConfigError
from store.records import Gate

pytestmark = pytest.mark.vllm

Script = Callable[..., Any]

WINDOWED = SlidingWindowSpec(block_size=16, num_kv_heads=1, head_size=16, dtype=torch.float32, sliding_window=64)
FULL = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=16, dtype=torch.float32)
HYBRID = (FULL, *(WINDOWED,) * 5)

PROFILE = Profile(
    name="one-second-steps",
    base_s=1.0,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=256,
    block_size_tokens=16,
    max_num_seqs=16,
    token_budget=256,
    max_model_len_tokens=128,
)


def work(request_id: str, *, arrival_s: float = 0.0, output_tokens: int = 3, prompt_tokens: int = 8) -> TraceRequest:
    """A request of this file's size."""
    return TraceRequest(
        request_id=request_id,
        arrival_s=arrival_s,
        token_ids=tuple(range(100, 100 + prompt_tokens)),
        max_tokens=output_tokens,
        true_output_tokens=output_tokens,
    )


def connected(script: Script, profile: Profile = PROFILE, **more: Any) -> VllmVirtualTimeEngine:
    """VLLM's scheduler with the plugin, which has met its controller."""
    served = VllmVirtualTimeEngine(profile, link=DirectLink(script), scheduler_class=SageScheduler, **more)
    served.step()
    served.step()
    return served


def policy_errors(script: Any) -> set[int]:
    """Errors of ours that snapshots have told."""
    return {snapshot.policy_errors for snapshot in script.snapshots()}


class _Loads:
    """A connector that has every prompt but its last token elsewhere, and loads it in three steps."""

    def __init__(self, served: VllmVirtualTimeEngine) -> None:
        self.served = served
        self.loading: dict[str, int] = {}
        self.begun: list[str] = []
        served.scheduler.connector = self

    def get_num_new_matched_tokens(self, request: Request, computed_tokens: int) -> tuple[int, bool]:
        return request.num_tokens - 1 - computed_tokens, True

    def update_state_after_alloc(self, request: Request, _blocks: object, tokens: int) -> None:
        if tokens:
            self.loading[request.request_id] = 3
            self.begun.append(request.request_id)

    def step(self) -> Step:
        """A step of the engine, during which the loads go on."""
        step = self.served.step()
        self.loading = {request_id: steps - 1 for request_id, steps in self.loading.items()}
        done = {request_id for request_id, steps in self.loading.items() if not steps}
        for request_id in done:
            del self.loading[request_id]
        self.served.scheduler._update_from_kv_xfer_finished(KVConnectorOutput(finished_recving=done))
        return step

    def __getattr__(self, name: str) -> Any:
        """What else vLLM asks of a connector has nothing to tell here."""
        answers = {"request_finished": (False, None), "get_loaded_kv_cache_group_ids": ()}
        return lambda *_args, **_more: answers.get(name)


def holders(served: VllmVirtualTimeEngine) -> int:
    """Unfinished requests that hold KV blocks."""
    get_blocks = served.scheduler.kv_cache_manager.get_blocks
    return sum(any(get_blocks(request_id).blocks) for request_id in served.scheduler.requests)


def test_requests_that_load_their_kv_count_against_the_gate(scripted: Script) -> None:
    """16 blocks; each needs one and six for its growth: two at a time hold blocks, though vLLM counts none that loads."""
    script = scripted(gate=Gate(horizon_tokens=96), growth_tokens=96.0)
    loads = _Loads(connected(script))
    for number in range(6):
        loads.served.submit(work(str(number), output_tokens=96))
    held = []
    while loads.served.unfinished:
        assert not loads.step().preempted
        held.append(holders(loads.served))
    assert max(held) == 2
    assert set(script.finished()) == {str(number) for number in range(6)}
    assert policy_errors(script) == {0}


def test_two_hundred_requests_that_load_their_kv_are_served_in_order(scripted: Script) -> None:
    """The queue behind its head is hidden and shown again in each step: nobody is lost, and the index orders."""
    indexes = {str(number): float(200 - number) for number in range(200)}
    script = scripted(gate=Gate(horizon_tokens=32), growth_tokens=32.0, indexes=indexes)
    loads = _Loads(connected(script))
    for number in range(200):
        loads.served.submit(work(str(number), output_tokens=1 + number % 7))
    held = []
    while loads.served.unfinished:
        loads.step()
        held.append(holders(loads.served))
        waiting = loads.served.scheduler.waiting
        assert len({request.request_id for request in waiting}) == len(waiting)
    assert max(held) == 5
    assert loads.begun[5:] == sorted(loads.begun[5:], key=indexes.__getitem__)
    assert len(script.finished()) == 200
    assert policy_errors(script) == {0}


@pytest.mark.parametrize(
    ("layers", "blocks", "giant_tokens"), [(None, 16, 257), (HYBRID, 100, 900)], ids=["full attention", "hybrid"]
)
def test_a_request_that_can_never_fit_is_told_and_passed(
    scripted: Script, caplog: pytest.LogCaptureFixture, layers: Any, blocks: int, giant_tokens: int
) -> None:
    """It needs more blocks than there are: all 200 behind it end, and log and snapshots name it."""
    script = scripted(gate=Gate(horizon_tokens=32))
    with caplog.at_level(logging.WARNING, logger="vllm.sagesched"):
        profile = replace(PROFILE, kv_tokens=16 * blocks, max_model_len_tokens=16 * blocks, max_num_seqs=4)
        served = connected(script, profile, layers=layers)
        giant = Request("giant", [5] * giant_tokens, _sampling(served), None)
        served.scheduler.add_request(giant)
        for number in range(200):
            served.submit(work(str(number)))
        while len(script.finished()) < 200:
            served.step()
    assert "giant" in served.scheduler.requests
    assert [request.request_id for request in served.scheduler.waiting] == ["giant"]
    assert script.snapshots()[-1].impossible == 1
    said = [record.getMessage() for record in caplog.records if record.name == "vllm.sagesched"]
    assert [message.split(" has ")[0] for message in said] == ["SageSched: request giant"]
    served.scheduler.finish_requests("giant", RequestStatus.FINISHED_ABORTED)
    served.step()
    assert script.snapshots()[-1].impossible == 0
    assert policy_errors(script) == {0}


def _sampling(served: VllmVirtualTimeEngine) -> Any:
    served.submit(work("pattern"))
    return served.scheduler.requests["pattern"].sampling_params


def adapted(served: VllmVirtualTimeEngine, request: TraceRequest, adapter: str) -> None:
    """Let a request for an adapter arrive."""
    served.submit(request)
    number = ord(adapter)
    served.scheduler.requests[request.request_id].lora_request = LoRARequest(adapter, number, f"/adapters/{adapter}")


def test_a_request_whose_adapter_is_crowded_out_waits_a_bounded_time(scripted: Script) -> None:
    """One slot; an A a second for ten minutes, of five seconds each, so that A never leaves: B is let in all the same."""
    script = scripted(gate=Gate(horizon_tokens=8), growth_tokens=8.0)
    served = connected(script)
    served.scheduler.lora_config = LoRAConfig(max_loras=1, max_cpu_loras=2)
    for second in range(600):
        adapter = "B" if second % 60 == 1 else "A"
        adapted(served, work(f"{adapter}{second}", arrival_s=served.now_s, output_tokens=5), adapter)
        served.step()
    while served.unfinished:
        served.step()
    waits = {"A": [0.0], "B": [0.0]}
    for fact in script.finished().values():
        waits[fact.request_id[0]].append(fact.scheduled_s - fact.arrival_s)
    assert 5.0 < max(waits["B"]) <= MAKE_ROOM_AFTER_S + 10.0
    assert max(waits["A"]) <= MAKE_ROOM_AFTER_S + 10.0
    assert policy_errors(script) == {0}


@pytest.mark.parametrize("neighbour", ["C", None])
def test_room_for_an_adapter_is_made_at_the_cost_of_one_other_alone(scripted: Script, neighbour: str | None) -> None:
    """An answer of A takes 100 s, and B waits for its slot: who uses the other slot, or none, never waits."""
    script = scripted(gate=Gate(horizon_tokens=8), growth_tokens=8.0)
    served = connected(script, replace(PROFILE, kv_tokens=2048))
    served.scheduler.lora_config = LoRAConfig(max_loras=2 if neighbour else 1, max_cpu_loras=3)
    adapted(served, work("A", arrival_s=served.now_s, output_tokens=100), "A")
    if neighbour:
        for number in range(2):
            adapted(served, work(f"{neighbour}-{number}", arrival_s=served.now_s, output_tokens=120), neighbour)
    served.step()
    adapted(served, work("B", arrival_s=served.now_s, output_tokens=2), "B")
    for second in range(90):
        request = work(f"other{second}", arrival_s=served.now_s, output_tokens=1)
        if neighbour:
            adapted(served, request, neighbour)
        else:
            served.submit(request)
        served.step()
        if second in {35, 70}:
            adapted(served, work(f"A-{second}", arrival_s=served.now_s, output_tokens=2), "A")
    while served.unfinished:
        served.step()
    waits = {fact.request_id: fact.scheduled_s - fact.arrival_s for fact in script.finished().values()}
    assert max(wait_s for name, wait_s in waits.items() if name.startswith("other")) <= 2.0
    assert waits["B"] <= 101.0, "as soon as the answer of A has ended"
    assert 20.0 < waits["A-35"] <= 32.0, "held back for half a minute"
    assert waits["A-70"] <= 2.0
    assert policy_errors(script) == {0}


def test_a_request_that_waits_for_its_grammar_holds_up_nobody(scripted: Script) -> None:
    """It stands first, is not counted as started, and starts once its grammar is there."""
    script = scripted(gate=Gate(horizon_tokens=96), growth_tokens=96.0, indexes={"grammar": 0.5})
    served = connected(script)
    served.submit(work("grammar"))
    waiting = served.scheduler.requests["grammar"]
    waiting.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    served.scheduler.waiting.remove_request(waiting)
    served.scheduler._enqueue_waiting_request(waiting)
    for name in "abc":
        served.submit(work(name, output_tokens=20))
    assert set(served.step().scheduled_tokens) == {"a", "b"}
    served.scheduler._sage._control._passed_by.gather()
    assert [request.request_id for request in served.scheduler.waiting] == ["grammar", "c"]
    waiting.status = RequestStatus.WAITING
    ended: list[str] = []
    while served.unfinished:
        ended += [life.request_id for life in served.step().finished]
    assert ended.index("grammar") < ended.index("c")
    assert policy_errors(script) == {0}


def test_requests_whose_blocks_are_freed_later_cost_no_split_of_the_queue(
    scripted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished request stays among vLLM's requests while its KV is sent: the queue stays what it was."""
    script = scripted(gate=Gate(horizon_tokens=32))
    served = connected(script, replace(PROFILE, max_num_seqs=2))
    monkeypatch.setattr("engine_adapter.vllm.scheduler_control._split", _never)
    for number in range(6):
        served.submit(work(str(number)))
    monkeypatch.setattr(served.scheduler, "_connector_finished", lambda _request: (True, None))
    monkeypatch.setattr(type(served), "_generated", _generated)
    queue = None
    for _ in range(20):
        served.step()
        waiting = served.scheduler.waiting
        assert queue is None or not waiting or waiting is queue
        queue = waiting
    assert len(script.finished()) == len(served.scheduler.requests) == 6
    assert policy_errors(script) == {0}


def _never(*_arguments: object) -> None:
    raise AssertionError("the queue is split")


def _generated(served: VllmVirtualTimeEngine, request_id: str) -> None:
    """The harness without its own check that an ended request is gone."""
    served._progress[request_id].generate(served.now_s)


def test_a_victim_whose_blocks_cannot_be_freed_now_is_none(scripted: Script) -> None:
    """A step in flight may still write them: vLLM would free them later, and nothing would be won."""
    served = connected(scripted())
    served.submit(work("a", output_tokens=20))
    served.step()
    memory = served.scheduler._sage._memory
    request = served.scheduler.requests["a"]
    assert memory.freed_blocks(request) == 1
    served.scheduler.defer_block_free = True
    request.last_sched_seq = served.scheduler.processed_step_seq + 1
    assert memory.freed_blocks(request) is None


def test_a_model_with_a_scheduler_of_its_own_is_refused_at_the_start() -> None:
    """VLLM chooses its diffusion scheduler only where no other is named: ours would serve such a model wrongly."""
    config = VllmVirtualTimeEngine(PROFILE, link=NoLink(), scheduler_class=SageScheduler).scheduler.vllm_config
    plugin.check_model(config)
    config.diffusion_config = object()
    with pytest.raises(ConfigError, match="start vLLM without --scheduler-cls"):
        SageScheduler(vllm_config=config)


def test_strange_requests_alone_are_left_to_vllm(scripted: Script) -> None:
    """An engine that only embeds has nothing to order."""
    served = connected(scripted())
    stranger = Request("stranger", [5] * 8, _sampling(served), None)
    served.abort("pattern")
    served.step()
    super(SageScheduler, served.scheduler).add_request(stranger)
    assert list(_step_ids(served)) == ["stranger"]
    assert isinstance(served.scheduler.waiting, deque)


def _step_ids(served: VllmVirtualTimeEngine) -> Iterator[str]:
    yield from served.scheduler.schedule().num_scheduled_tokens
