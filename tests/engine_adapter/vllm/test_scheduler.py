"""The plugin in vLLM's real scheduler: order, gate, victim, classes, modes, and what happens when it fails."""

from __future__ import annotations

import ast
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vllm
import zmq
from msgspec import structs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, PriorityRequestQueue, SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from engine_adapter import vllm_scheduler
from engine_adapter.agent import agent
from engine_adapter.agent.hints import NAMES
from engine_adapter.ordering import ordering
from engine_adapter.transport.keys import EngineKey
from engine_adapter.transport.link import DirectLink, EngineLink, NoLink
from engine_adapter.virtual_time.engine import CompletedRequest, Totals, TraceRequest, serve
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm import plugin, request_events, scheduler_control
from engine_adapter.vllm.releases import SchedulerNames
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler
from store.records import Arrived, ControllerMessage, EngineMessage, Gate, Preempted, Settings

pytestmark = pytest.mark.vllm

Script = Callable[..., Any]
"""The class `ScriptedController` of this folder's conftest."""

Answer = Callable[[EngineMessage], Iterator[ControllerMessage]]

PROFILE = Profile(
    name="one-second-steps",
    base_s=1.0,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=256,
    block_size_tokens=16,
    max_num_seqs=4,
    token_budget=64,
    max_model_len_tokens=128,
)


def narrow(max_num_seqs: int) -> Profile:
    """The profile with so many places."""
    return replace(PROFILE, max_num_seqs=max_num_seqs)


def work(
    request_id: str, *, arrival_s: float = 0.0, output_tokens: int = 3, prompt_tokens: int = 8, **more: object
) -> TraceRequest:
    """A request of this file's size."""
    return TraceRequest(
        request_id=request_id,
        arrival_s=arrival_s,
        token_ids=tuple(range(100, 100 + prompt_tokens)),
        max_tokens=100,
        true_output_tokens=output_tokens,
        **more,  # type: ignore[arg-type]
    )


def engine(answer: Answer, profile: Profile = PROFILE, **more: object) -> VllmVirtualTimeEngine:
    """VLLM's scheduler with the plugin, on a script."""
    return VllmVirtualTimeEngine(profile, link=DirectLink(answer), scheduler_class=SageScheduler, **more)


def connect(served: VllmVirtualTimeEngine) -> None:
    """Let hello and welcome cross: two empty steps."""
    served.step()
    served.step()


def starts(totals: Totals) -> list[str]:
    """Request ids in the order in which they got their first place."""
    return [life.request_id for life in sorted(totals.completed, key=lambda life: life.scheduled_s)]


def lives(totals: Totals) -> dict[str, CompletedRequest]:
    """Lives by request id."""
    return {life.request_id: life for life in totals.completed}


@pytest.mark.parametrize("mode", ["off", "shadow", "on"])
def test_the_index_orders_the_queue_only_in_mode_on(scripted: Script, mode: str) -> None:
    """One place: with mode on the lowest index goes first, otherwise the first to come."""
    script = scripted(indexes={"a": 3.0, "b": 1.0, "c": 2.0}, mode=mode)
    served = engine(script, narrow(1))
    totals = serve(served, [work("first"), work("a"), work("b"), work("c")])
    assert starts(totals) == (["first", "b", "c", "a"] if mode == "on" else ["first", "a", "b", "c"])
    assert served.scheduler.policy == SchedulingPolicy.FCFS
    assert script.snapshots()[-1].mode == mode
    assert {snapshot.policy_errors for snapshot in script.snapshots()} == {0}


def test_the_gate_limits_how_many_run(scripted: Script) -> None:
    """16 blocks; each request needs 1 for its prompt and 6 for its growth: two fit, though four places are free.

    Reserved are then 12 blocks of growth.
    """
    script = scripted(gate=Gate(horizon_tokens=96), growth_tokens=96.0)
    served = engine(script)
    connect(served)
    running = []
    for number in range(6):
        served.submit(work(str(number)))
    while served.unfinished:
        running.append(served.step().running)
    assert max(running) == 2
    assert max(snapshot.reserved_blocks for snapshot in script.snapshots()) == 12
    assert {snapshot.admission_limit for snapshot in script.snapshots()} >= {2}


def test_the_highest_index_gives_way_when_memory_ends(scripted: Script) -> None:
    """The first to come has the highest index: stock vLLM would preempt the last to come, we preempt the first."""
    works = [work("old", prompt_tokens=60, output_tokens=60), work("new", prompt_tokens=60, output_tokens=60)]
    profile = replace(PROFILE, kv_tokens=160)
    stock = lives(serve(engine(scripted(mode="shadow"), profile), works))
    ours = lives(serve(engine(scripted(indexes={"old": 9.0, "new": 1.0}), profile), works))
    assert (stock["old"].preemptions, stock["new"].preemptions > 0) == (0, True)
    assert (ours["old"].preemptions > 0, ours["new"].preemptions) == (True, 0)


def test_a_requests_priority_is_a_strict_class_above_its_index(scripted: Script) -> None:
    """Under vLLM's priority policy the class comes first and the index orders within it."""
    indexes = {"low": 1.0, "high-a": 9.0, "high-b": 5.0}
    script = scripted(indexes=indexes)
    served = engine(script, narrow(1), scheduling="priority")
    works = [work("first"), work("low", priority=5), work("high-a", priority=1), work("high-b", priority=1)]
    assert starts(serve(served, works)) == ["first", "high-b", "high-a", "low"]


def test_a_higher_class_gets_a_place_in_a_full_engine_within_a_step(scripted: Script) -> None:
    """Two places are taken by class 10 for 60 steps; class 0 arrives at 5 s and starts at once, whatever its index.

    The one that gave way keeps its place in its class, before another that came later, and loses no token.
    """
    script = scripted(gate=Gate(horizon_tokens=32), indexes={"urgent": 9.0, "low-a": 1.0, "low-b": 2.0, "later": 3.0})
    served = engine(script, narrow(2), scheduling="priority")
    works = [
        work("low-a", output_tokens=60, priority=10),
        work("low-b", output_tokens=60, priority=10),
        work("later", output_tokens=60, priority=10, arrival_s=3.0),
        work("urgent", output_tokens=3, priority=0, arrival_s=5.0),
    ]
    ended = lives(serve(served, works))
    assert ended["urgent"].scheduled_s <= 6.0
    assert [ended[name].preemptions for name in ("urgent", "low-a", "low-b", "later")] == [0, 0, 1, 0]
    assert ended["low-b"].finished_s < ended["later"].finished_s
    assert [fact.cause for fact in script.facts(Preempted)] == ["policy"]
    assert {life.output_tokens for name, life in ended.items() if name != "urgent"} == {60}


@pytest.mark.parametrize(("scheduling", "queue"), [("fcfs", FCFSRequestQueue), ("priority", PriorityRequestQueue)])
def test_leaving_mode_on_restores_vllms_own_policy_queue_limit_and_order(
    scripted: Script, scheduling: str, queue: type
) -> None:
    """What stands in the queue is served first come, first served (or by class) again, and nothing is lost."""
    script = scripted(indexes={str(number): 9.0 - number for number in range(5)}, gate=Gate(horizon_tokens=1))
    served = engine(script, narrow(1), scheduling=scheduling)
    connect(served)
    for number in range(5):
        served.submit(work(str(number), arrival_s=number / 100))
    served.step()
    served.step()
    scheduler = served.scheduler
    assert isinstance(scheduler.waiting, FCFSRequestQueue)
    assert scheduler.policy == SchedulingPolicy.FCFS
    assert [request.request_id for request in scheduler.waiting] == ["4", "3", "2", "1"]
    script.push.append(script.settings("off"))
    finished: list[CompletedRequest] = []
    while served.unfinished:
        finished += served.step().finished
    assert isinstance(scheduler.waiting, queue)
    assert scheduler.policy == SchedulingPolicy(scheduling)
    assert SchedulerNames.of(scheduler).active_limit(scheduler) == 1
    assert [life.request_id for life in finished] == ["0", "1", "2", "3", "4"]


def test_an_error_of_ours_costs_no_request_and_heals(scripted: Script, caplog: pytest.LogCaptureFixture) -> None:
    """A table that cannot be read: logged once, counted, first come, first served, and a second later on again."""
    script = scripted(indexes={"bad": 1.0}, spoil=lambda table: structs.replace(table, index_s=(), growth_tokens=()))
    served = engine(script, narrow(1))
    works = [work("first"), work("a"), work("bad"), work("b", arrival_s=4.5, output_tokens=10)]
    totals = serve(served, works)
    assert starts(totals) == ["first", "a", "bad", "b"]
    assert set(script.finished()) == {"first", "a", "bad", "b"}
    assert script.snapshots()[-1].policy_errors >= 1
    assert script.snapshots()[-1].mode == "on"
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1


def test_every_change_of_mode_is_in_the_engines_log(scripted: Script, caplog: pytest.LogCaptureFixture) -> None:
    """Without a controller nobody else tells what the engine does: silence beyond the lease is logged, once."""
    script = scripted()
    served = engine(_silent_after(script, answers=3))
    with caplog.at_level(logging.INFO, logger="vllm.sagesched"):
        connect(served)
        serve(served, [work("a", output_tokens=10)])
    modes = [record for record in caplog.records if record.getMessage().startswith("SageSched mode")]
    assert [record.levelno for record in modes] == [logging.INFO, logging.WARNING]
    assert [record.getMessage() for record in modes] == [
        "SageSched mode on",
        "SageSched mode off: controller silent for more than 3 s",
    ]


def _silent_after(script: Any, *, answers: int) -> Answer:
    """A controller with a lease of three seconds that says so many things and then nothing more."""
    left = [answers]

    def answer(message: EngineMessage) -> Iterator[ControllerMessage]:
        for reply in script(message):
            if left[0] > 0:
                left[0] -= 1
                yield structs.replace(reply, lease_s=3.0) if isinstance(reply, Settings) else reply

    return answer


class _Unlucky(SageScheduler):  # type: ignore[misc]
    def _make_link(self, endpoint: str, key: EngineKey | None, group: int | None) -> EngineLink:
        raise OSError(f"no such thing as {endpoint}")


def test_an_engine_without_a_working_link_serves_plainly(caplog: pytest.LogCaptureFixture) -> None:
    """The controller's endpoint cannot be used: said once, and vLLM works as ever."""
    served = _Bare(_Unlucky)
    assert served.scheduler._sage is None
    assert "could not start" in caplog.text
    assert starts(serve(served, [work("a"), work("b")])) == ["a", "b"]


def test_an_endpoint_where_others_may_listen_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever listens in a shared folder would be sent every prompt: one line says so, and vLLM works as ever."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    listener = zmq.Context.instance().socket(zmq.ROUTER)
    listener.bind(f"ipc://{shared}/engine.sock")
    monkeypatch.setenv("SAGESCHED_ENDPOINT", f"ipc://{shared}/engine.sock")
    served = _Bare(SageScheduler)
    assert served.scheduler._sage is None
    (line,) = [record for record in caplog.records if "could not start" in record.message]
    assert f"directory {shared} of the endpoint" in line.message
    assert "can be written by others" in line.message
    assert line.exc_info is None
    assert starts(serve(served, [work("a"), work("b")])) == ["a", "b"]
    assert not listener.poll(300)
    listener.close(linger=0)


def test_the_group_that_shares_the_socket_is_read_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that the group may change is used where its number is given, and refused otherwise."""
    shared, group = tmp_path / "shared", os.getegid()
    shared.mkdir()
    shared.chmod(0o2770)
    monkeypatch.setenv("SAGESCHED_ENDPOINT", f"ipc://{shared}/engine.sock")
    for said, given in (("vllm", "is no number"), (None, f"by group {group}"), (str(group), "")):
        caplog.clear()
        if said:
            monkeypatch.setenv("SAGESCHED_SOCKET_GROUP", said)
        else:
            monkeypatch.delenv("SAGESCHED_SOCKET_GROUP")
        scheduler = _Bare(SageScheduler).scheduler
        assert (scheduler._sage is not None) is (not given)
        assert given in caplog.text
        scheduler.shutdown()


def test_an_error_in_an_idle_poll_costs_a_pause_and_touches_no_queue(
    scripted: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes in another thread than vLLM's, so that the order stays until vLLM's own next step gives it up."""
    script = scripted(indexes={str(number): 9.0 - number for number in range(4)}, gate=Gate(horizon_tokens=1))
    served = engine(script, narrow(1))
    connect(served)
    for number in range(4):
        served.submit(work(str(number)))
    served.step()
    served.step()
    plugin, waiting = served.scheduler._sage, served.scheduler.waiting
    order = list(waiting)
    with monkeypatch.context() as patch:
        patch.setattr(plugin.agent, "poll", lambda _now_s: 1 / 0)
        plugin._polled_s = served.now_s
        plugin._poll_if_idle()
        assert plugin.agent.mode(served.now_s) == "on", "a step was made just now"
        plugin._polled_s = -math.inf
        plugin._poll_if_idle()
    assert plugin.agent.fallback(served.now_s) == "ZeroDivisionError: division by zero"
    assert served.scheduler.waiting is waiting
    assert list(waiting) == order
    finished = [life.request_id for _ in range(100) for life in served.step().finished]
    assert sorted(finished) == ["0", "1", "2", "3"]
    assert script.snapshots()[-1].policy_errors == 1


class _Untouchable:
    """Nothing of it may be read."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"{name} was read in another thread than vLLM's")


def test_an_idle_engine_beats_without_touching_vllm(scripted: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first request and after its last, once a second; not in the thread of a step, and no more once it is closed."""
    script = scripted()
    served = engine(script)
    plugin = served.scheduler._sage

    def beats(seconds: int) -> list[tuple[int, int, int]]:
        """What it says in this time, in which nobody asks anything."""
        began, heard = served.now_s, len(script.snapshots())
        with monkeypatch.context() as patch:
            patch.setattr(plugin, "_scheduler", _Untouchable())
            patch.setattr(plugin, "_memory", _Untouchable())
            for tick in range(4 * seconds):
                served.advance_to(began + 0.25 * tick)
                plugin._poll_if_idle()
        return [(said.waiting, said.running, said.kv_blocks_used) for said in script.snapshots()[heard:]]

    assert beats(10) == [(0, 0, 0)] * 10
    assert script.heard[0].engine_id, "its name and its version came first"
    served.submit(work("a", output_tokens=3))
    while served.unfinished:
        plugin._poll_if_idle()  # Steps are made: it says nothing.
        served.step()
    stepped = script.snapshots()
    assert len({said.time_s for said in stepped}) == len(stepped)
    assert beats(10) == [(0, 0, 0)] * 9, "a second after its last step for the first time"
    plugin.close()
    assert beats(10) == []
    assert {said.policy_errors for said in script.snapshots()} == {0}


class _Bare(VllmVirtualTimeEngine):
    """The harness without its link, so that the scheduler makes its own."""

    def __init__(self, scheduler_class: type[AsyncScheduler]) -> None:
        plain = type("Plain", (scheduler_class,), {})
        super().__init__(PROFILE, link=NoLink(), scheduler_class=plain)
        config = self.scheduler.vllm_config
        self.scheduler = plain(
            vllm_config=config,
            kv_cache_config=self.scheduler.kv_cache_config,
            structured_output_manager=self.scheduler.structured_output_manager,
            block_size=PROFILE.block_size_tokens,
        )


def test_a_known_bad_vllm_gets_its_own_order_and_a_clear_word(
    scripted: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left alone: nothing is reported."""
    monkeypatch.setattr(vllm, "__version__", "0.25.0")
    script = scripted(indexes={"b": 1.0})
    served = engine(script, narrow(1))
    assert starts(serve(served, [work("first"), work("a"), work("b")])) == ["first", "a", "b"]
    assert "vLLM 0.25.0 does not keep the plugin's contract: its finish_requests returns no requests" in caplog.text
    assert script.heard == []


def test_requests_that_the_agent_does_not_know_are_served_first(scripted: Script) -> None:
    """A request that came past the plugin breaks nothing and is not reported."""
    script = scripted(indexes={"a": 1.0}, gate=Gate(horizon_tokens=1))
    served = engine(script, narrow(1))
    served.submit(work("first"))
    served.step()
    served.submit(work("a"))
    scheduler = served.scheduler
    stranger = Request("stranger", [5] * 8, SamplingParams(max_tokens=1), None)
    AsyncScheduler.add_request(scheduler, stranger)
    while served.unfinished:
        output = scheduler.schedule()
        if "stranger" in output.num_scheduled_tokens:
            assert [request.request_id for request in scheduler.waiting] == ["a"]
            AsyncScheduler.finish_requests(scheduler, "stranger", RequestStatus.FINISHED_ABORTED)
            output.num_scheduled_tokens.pop("stranger")
        served._record_places(_without(output, "stranger"))
        served._now_s += 1.0
        served._carry_out(output)
        served._ended.clear()
    assert set(script.finished()) == {"first", "a"}
    assert script.snapshots()[-1].policy_errors == 0


def _without(output: SchedulerOutput, request_id: str) -> SchedulerOutput:
    output.scheduled_new_reqs = [new for new in output.scheduled_new_reqs if new.req_id != request_id]
    return output


def test_the_plugin_never_reads_the_true_length() -> None:
    """No module that runs in the scheduler's process on our behalf names the virtual GPU's secret."""
    for module in (agent, ordering, request_events, plugin, scheduler_control, vllm_scheduler):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Constant | ast.Name | ast.Attribute):
                assert "true_len" not in ast.unparse(node), module


class _Watched(dict[str, object]):
    """Remembers which keys were asked for."""

    def __init__(self, **content: object) -> None:
        super().__init__(**content)
        self.asked: set[object] = set()

    def get(self, key: object, default: object = None) -> object:
        self.asked.add(key)
        return super().get(key, default)  # type: ignore[call-overload]

    def __getitem__(self, key: str) -> object:
        self.asked.add(key)
        return super().__getitem__(key)

    def _all(self) -> Iterator[object]:
        raise AssertionError("somebody reads everything")

    items = values = __iter__ = _all  # type: ignore[assignment]


def test_of_a_requests_extra_arguments_only_the_known_ones_are_read(scripted: Script) -> None:
    """The true length passes by and is not asked for."""
    script = scripted()
    served = engine(script)
    extra = _Watched(tenant="acme", true_len="3")
    sampling = SamplingParams(max_tokens=5)
    sampling.extra_args = extra
    request = Request("a", [5] * 8, sampling, None)
    extra.asked.clear()
    served.scheduler.add_request(request)
    served.scheduler.schedule()
    served.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    served.scheduler.schedule()
    assert extra.asked == set(NAMES)
    assert script.finished()["a"].reason == "abort"
    assert [fact.tenant for fact in script.facts(Arrived)] == ["acme"]
