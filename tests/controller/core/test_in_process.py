"""A controller and its engines in one process."""

from __future__ import annotations

from msgspec import structs

from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from engine_adapter.virtual_time.engine import TraceRequest, serve
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from online_learning.evaluation.global_learner import GlobalLearner
from store.entries import Entry, SettingsChanged
from store.records import Settings

PROFILE = PROFILES["h800-qwen3-32b-24k"]


def joined(controller: InProcessController, name: str) -> SimulatedEngine:
    """An engine that has sent its hello and received the answer."""
    link = controller.link(lambda: engine.now_s)
    engine = SimulatedEngine(PROFILE, link=link, engine_id=name, session_id=name)
    engine.step()
    engine.step()
    return engine


def requests(count: int) -> list[TraceRequest]:
    return [
        TraceRequest(
            request_id=f"r{number}",
            arrival_s=0.5 * number,
            token_ids=tuple(range(20)),
            max_tokens=100,
            true_output_tokens=30,
        )
        for number in range(count)
    ]


def test_every_linked_engine_receives_its_messages() -> None:
    """A switch reaches both engines at their next step, and what one serves is predicted and learned."""
    controller = InProcessController(GlobalLearner(), policy_named("sage"))
    engines = [joined(controller, name) for name in ("a", "b")]
    assert [engine.agent.mode(engine.now_s) for engine in engines] == ["on", "on"]
    serve(engines[0], requests(3))
    assert controller.core.counts.predictions == controller.core.counts.completions == 3
    controller.core.set_mode("shadow", "trial", 2.0)
    assert controller.deliver() == []
    for engine in engines:
        engine.step()
    assert [engine.agent.mode(engine.now_s) for engine in engines] == ["shadow", "shadow"]


def test_the_time_of_a_message_is_the_clock_of_its_engine() -> None:
    """Engines in virtual time have clocks of their own."""
    controller = InProcessController(GlobalLearner(), policy_named("sage"))
    early, late = joined(controller, "early"), joined(controller, "late")
    late.advance_to(50.0)
    early.step()
    late.step()
    assert controller.session("early").last_seen_s < 1.0
    assert controller.session("late").last_seen_s == 50.0


def test_messages_without_a_link_are_returned_and_entries_are_handed_on() -> None:
    """An engine behind a socket is served by the caller; the history gets each entry once."""
    entries: list[Entry] = []
    controller = InProcessController(GlobalLearner(), policy_named("sage"), on_entries=entries.extend)
    engine = joined(controller, "linked")
    hello = structs.replace(controller.session("linked").hello, session_id="s")
    returned = controller.handle(b"socket", hello, 1.0)
    assert {connection for connection, _ in returned} == {b"socket"}
    controller.core.set_mode("off", "trial", 2.0)
    assert [(connection, type(message)) for connection, message in controller.deliver()] == [(b"socket", Settings)]
    assert engine.agent.mode(engine.now_s) == "on", "it receives the switch with its next step"
    assert [entry.record.reason for entry in entries if isinstance(entry.record, SettingsChanged)] == ["start", "trial"]
