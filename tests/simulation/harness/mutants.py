"""Defects that somebody could put into the product; the simulation is worth what it finds of them.

Each spoils one thing in the code that ships, for as long as a test lets it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from harness import controllers
from msgspec import structs

from controller.core.core import Core
from controller.core.pause import Pause
from controller.service.warm_start import learn_again
from engine_adapter.agent import agent as engine_agent
from engine_adapter.agent.agent import Agent
from engine_adapter.agent.clock import StampClock
from engine_adapter.agent.names import BoundedNames
from engine_adapter.agent.outbox import Outbox
from engine_adapter.ordering.ordering import Ordering
from engine_adapter.transport import frames
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from store.history.writer import HistoryWriter
from store.records import Facts, Finished

if TYPE_CHECKING:
    import pytest

Spoil: TypeAlias = "Callable[[pytest.MonkeyPatch], None]"


def _acknowledges_before_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HistoryWriter, "durable_position", property(lambda writer: writer._position))


def _never_sends_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "_send_again", lambda box: setattr(box, "_resend_due_s", math.inf))


def _no_second_try(patch: pytest.MonkeyPatch) -> None:
    send = Outbox.send

    def once(box: Outbox, link: Any, now_s: float) -> None:
        box._resend_due_s = math.inf
        send(box, link, now_s)

    patch.setattr(Outbox, "send", once)


def _knows_no_duplicates(patch: pytest.MonkeyPatch) -> None:
    record = Core._record_facts

    def twice(core: Core, session: Any, facts: Facts) -> None:
        session.received_batch = min(session.received_batch, facts.batch - 1)
        record(core, session, facts)

    patch.setattr(Core, "_record_facts", twice)
    patch.setattr(HistoryWriter, "_why_not", lambda writer, entry, *, room: None)  # noqa: ARG005 - as the original


def _takes_batches_in_any_order(patch: pytest.MonkeyPatch) -> None:
    record = Core._record_facts
    patch.setattr(Core, "_record_facts", lambda core, session, facts: record(core, session, _missing_nothing(facts)))


def _missing_nothing(facts: Facts) -> Facts:
    return Facts(batch=facts.batch, facts=facts.facts, oldest=facts.batch)


def _writes_a_chunk_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "harness.disk.MemoryFile.position", property(lambda _file: -1, lambda _file, _position: None), raising=False
    )


def _forgets_the_chunk_of_a_failed_commit(patch: pytest.MonkeyPatch) -> None:
    failed = HistoryWriter._failed

    def forget(writer: HistoryWriter, error: BaseException) -> None:
        writer._chunk, writer._chunk_entries = None, 0
        failed(writer, error)

    patch.setattr(HistoryWriter, "_failed", forget)


def _trusts_a_silent_controller(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Agent, "_connected", lambda agent, _now_s: agent._received_s > -math.inf)


def _greets_once_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Agent, "_informed", lambda agent: agent._next_hello_s > -math.inf)


def _forgets_no_request(patch: pytest.MonkeyPatch) -> None:
    forget = Ordering.forget

    def keep(ordering: Ordering, request_id: str) -> None:
        if not request_id.endswith("7"):
            forget(ordering, request_id)

    patch.setattr(Ordering, "forget", keep)


def _takes_any_table(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine_agent, "check_message", lambda _message: None)
    patch.setattr(SimulatedEngine, "_guard", lambda _engine, hook, *args, **kwargs: hook(*args, **kwargs))


def _gate_admits_nobody(patch: pytest.MonkeyPatch) -> None:
    admit = Ordering._admit

    def idle(
        ordering: Ordering, queue: Sequence[Any], active: list[Any], **more: Any
    ) -> tuple[int, int, list[Any], dict[str, Any]]:
        return admit(ordering, queue, active, **more) if active else (0, 0, [], {})

    patch.setattr(Ordering, "_admit", idle)


def _drops_the_rest_of_a_failed_batch(patch: pytest.MonkeyPatch) -> None:
    proceed = Core.proceed

    def drop(core: Core, now_s: float, *, more: bool = False) -> None:
        try:
            proceed(core, now_s, more=more)
        except Exception:
            core._unhandled.clear()
            core.arrivals._waiting.clear()
            core.arrivals._failed.clear()
            raise

    patch.setattr(Core, "proceed", drop)


def _never_comes_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pause, "is_over", lambda _pause, _now_s: False)


def _goes_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(controllers, "steady_clock", lambda wall, _monotonic: wall)


def _numbers_answers_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        controllers,
        "learn_again",
        lambda core, answers, *, next_answer: learn_again(core, answers, next_answer=0 * next_answer),
    )


def _reports_other_tokens(patch: pytest.MonkeyPatch) -> None:
    finished = Agent.finished

    def lie(agent: Agent, fact: Finished) -> None:
        finished(agent, structs.replace(fact, output_tokens=fact.output_tokens + (fact.output_tokens > 20)))

    patch.setattr(Agent, "finished", lie)


def _stamps_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StampClock, "own_s", lambda _clock, stamp_s: stamp_s)


def _is_silent_about_the_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StampClock, "off_s", lambda _clock: 0.0)


def _drops_a_damaged_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "readable_part", lambda _frame: None)


def _cuts_no_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BoundedNames, "enter", lambda _names, arrived: arrived)


@dataclass(frozen=True)
class Mutant:
    """A defect, and the faults under which it shows soonest."""

    spoil: Spoil
    focus: frozenset[str]


def _mutant(spoil: Spoil, *focus: str) -> Mutant:
    return Mutant(spoil, frozenset(focus))


MUTANTS = {
    "acknowledges before the disk has it": _mutant(_acknowledges_before_durable, "controller killed"),
    "facts are never sent again": _mutant(_never_sends_again, "controller killed"),
    "what a link lost is never sent again": _mutant(_no_second_try, "frame dropped"),
    "duplicates are taken for new": _mutant(_knows_no_duplicates, "frame duplicated"),
    "batches are taken in any order": _mutant(_takes_batches_in_any_order, "frame reordered"),
    "the chunk of a failed commit is forgotten": _mutant(_forgets_the_chunk_of_a_failed_commit, "disk full"),
    "a chunk is written again after an error": _mutant(_writes_a_chunk_twice, "disk error after the write"),
    "a silent controller is trusted": _mutant(_trusts_a_silent_controller, "controller hung", "controller killed"),
    "the engine greets once only": _mutant(_greets_once_only, "controller killed", "frame dropped"),
    "the order forgets not all who ended": _mutant(_forgets_no_request, "client gone"),
    "the gate admits nobody to an idle engine": _mutant(_gate_admits_nobody, "client gone"),
    "a failing fact takes others with it": _mutant(
        _drops_the_rest_of_a_failed_batch, "learner raises in predict", "connection cut", "controller hung"
    ),
    "the core never comes back": _mutant(_never_comes_back, "learner raises in predict"),
    "intervals go by the wall clock": _mutant(_goes_by_the_wall_clock, "clock backwards"),
    "arrivals go by the front end's clock": _mutant(_stamps_by_the_wall_clock, "clock backwards", "clock forwards"),
    "a step of an engine's clock is not told": _mutant(_is_silent_about_the_clock, "clock forwards"),
    "a damaged batch is dropped whole": _mutant(_drops_a_damaged_batch, "fact damaged"),
    "names are sent as clients chose them": _mutant(_cuts_no_name, "client gone"),
    "answers are numbered anew after a start": _mutant(
        _numbers_answers_anew, "controller killed", "learner raises in predict"
    ),
    "a completion tells another length": _mutant(_reports_other_tokens, "client gone"),
    "a spoiled table reaches the engine": _mutant(_takes_any_table, "spoiled table"),
}
