"""What must hold whatever happens: after every step, at every acknowledgement, and when all is quiet again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from harness.controllers import ControllerProcess
from harness.disk import History
from harness.engines import EngineProcess, Sent

from engine_adapter.agent.agent import Agent, AgentLimits
from engine_adapter.agent.clock import OLDEST_STAMP_S
from engine_adapter.virtual_time.engine import Step
from engine_adapter.virtual_time.request_progress import ending
from store.bounds import bounded_request_id
from store.records import Acknowledged, Facts, Welcome, decode_controller_message

MOST_EMPTY_STEPS = 3
"""Steps in a row that may compute nothing although requests are there: all that ran has just been pushed out."""

HUB_MESSAGES = 4000


class ViolationError(BaseException):
    """Something that must always hold did not; it is found in the product's own calls, no handler of which may catch it."""


def demand(condition: object, text: str) -> None:
    """Raise `ViolationError` where a condition does not hold."""
    if not condition:
        raise ViolationError(text)


@dataclass(eq=False)
class StepChecks:
    """What is demanded of an engine after each of its steps."""

    process: EngineProcess
    limits: AgentLimits
    empty_steps: int = 0
    modes: Counter[str] = field(default_factory=Counter)

    def after(self, step: Step) -> None:
        """Check one step."""
        self._progress(step)
        self._fallback(step.start_s)
        self._bounds(self.process.engine.agent)

    def _progress(self, step: Step) -> None:
        """Whoever is there is served: nothing that the controller does or leaves undone makes the engine wait."""
        idle = step.scheduled_tokens or not (step.waiting + step.running)
        self.empty_steps = 0 if idle else self.empty_steps + 1
        demand(self.empty_steps <= MOST_EMPTY_STEPS, f"the engine has work and computes nothing at {step.start_s}")

    def _fallback(self, now_s: float) -> None:
        """Silence beyond the lease means first come, first served, in the very next step."""
        link, agent = self.process.link, self.process.engine.agent
        mode = agent.mode(now_s)
        self.modes[mode] += 1
        if link.settings is None and mode == "on":
            demand(agent._settings is not None, "an engine has a mode without settings")
        settings = agent._settings
        if settings is not None and now_s - link.heard_s > settings.lease_s:
            demand(mode == "off", f"mode {mode} after {now_s - link.heard_s:.2f} s of silence")

    def _bounds(self, agent: Agent) -> None:
        limits = self.limits
        box = agent._outbox
        demand(box._retained_facts <= limits.retained_facts, "an engine keeps more facts than it may")
        demand(box._retained_bytes <= limits.retained_bytes, "an engine keeps more bytes than it may")
        demand(box._retained_facts == sum(len(facts.facts) for facts in box._retained), "facts are miscounted")
        demand(len(box._unsent) <= len(box._retained), "more is unsent than is kept")
        here = len(self.process.engine._progress)
        demand(len(agent._ordering._tracked) == here, "the order knows other requests than the engine has")


def check_loop(controller: ControllerProcess) -> None:
    """The controller's queues are bounded."""
    settings, stats = controller.settings, controller.writer.stats
    demand(stats.queued <= settings.queue_limit, f"{stats.queued} entries are queued, {settings.queue_limit} may be")
    demand(stats.refused == 0, f"{stats.refused} facts were refused: nothing is acknowledged any more")
    demand(
        len(controller.core._state.journal._entries) <= len(controller.core.sessions), "entries are left in the journal"
    )
    demand(not controller.core.unhandled, "facts are left unhandled between two turns")
    for session in controller.core.sessions:
        demand(
            len(session.requests) <= controller.core._state.config.max_unfinished, "too many requests are remembered"
        )


def acknowledged_batch(frame: bytes) -> int | None:
    """The batch up to which a frame of the controller calls facts durable; None for any other."""
    message = decode_controller_message(frame)
    match message:
        case Acknowledged(batch=batch) | Welcome(durable_batch=batch):
            return batch
        case _:
            return None


@dataclass(eq=False)
class Ledger:
    """What each engine told and each controller acknowledged, by session."""

    batches: dict[str, dict[int, Facts]] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)

    def told(self, session_id: str, facts: Facts) -> None:
        """An engine sent a batch; under its number it may never send anything else."""
        before = self.batches.setdefault(session_id, {}).setdefault(facts.batch, facts)
        demand(before.facts == facts.facts, f"batch {facts.batch} of {session_id} was told in two ways")

    def promised(self, session_id: str, batch: int, durable: int | None) -> None:
        """A controller calls batches durable."""
        demand(
            durable is None or batch <= durable, f"batch {batch} of {session_id} was acknowledged, {durable} is durable"
        )
        self.acknowledged[session_id] = max(batch, self.acknowledged.get(session_id, 0))


TABLE_OF = {"Arrived": "arrivals", "FirstToken": "first_tokens", "Preempted": "preemptions", "Finished": "completions"}


def check_recorded(ledger: Ledger, history: History, whole: set[str]) -> None:
    """Every acknowledged fact is there once, no fact is there twice, and of whole sessions all that was ever told."""
    rows: dict[tuple[str, int], list[tuple[str, dict[str, Any]]]] = {}
    for table in TABLE_OF.values():
        for row in history[table]:
            rows.setdefault((row["session_id"], row["batch"]), []).append((table, row))
    for session_id, batches in ledger.batches.items():
        for number, facts in batches.items():
            found = rows.pop((session_id, number), [])
            if number <= ledger.acknowledged.get(session_id, 0) or session_id in whole or found:
                _check_batch(session_id, facts, found)
    demand(not rows, f"the history has batches that nobody told: {sorted(rows)[:3]}")


def _check_batch(session_id: str, facts: Facts, found: list[tuple[str, dict[str, Any]]]) -> None:
    told = Counter((TABLE_OF[type(fact).__name__], fact.request_id) for fact in facts.facts)
    recorded = Counter((table, row["request_id"]) for table, row in found)
    demand(
        told == recorded,
        f"batch {facts.batch} of {session_id}: lost {told - recorded or 'nothing'}, doubled {recorded - told or 'nothing'}",
    )


def check_lives(process: EngineProcess, history: History) -> None:
    """Every request of an engine that lived to the end was served once, as its client saw it, and is recorded so."""
    whole = {bounded_request_id(name): name for name in process.works}
    rows = {
        name: [_renamed(row, whole) for row in history[name] if row["session_id"] == process.session_id]
        for name in history
    }
    arrivals = Counter(row["request_id"] for row in rows["arrivals"] if not row["resent"])
    demand(
        arrivals == Counter(list(process.works)),
        f"arrivals of {process.session_id} differ: {sorted(arrivals.keys() ^ process.works.keys())}",
    )
    ends = {row["request_id"]: row for row in rows["completions"]}
    demand(len(ends) == len(rows["completions"]), f"an end of {process.session_id} is recorded twice")
    demand(ends.keys() == process.works.keys(), f"ends of {process.session_id} are missing")
    outcomes = Counter(row["request_id"] for row in rows["outcomes"])
    demand(all(times == 1 for times in outcomes.values()), f"outcomes of {process.session_id} are doubled")
    preempted = Counter(row["request_id"] for row in rows["preemptions"])
    first = {row["request_id"]: row["time_s"] for row in rows["first_tokens"]}
    for name, end in ends.items():
        _check_life(process, name, end, preempted[name], first.get(name))


def _renamed(row: dict[str, Any], whole: dict[str, str]) -> dict[str, Any]:
    """A row under the id that the client chose, of which the history may have a bounded form."""
    request_id = row.get("request_id")
    return row if request_id is None else row | {"request_id": whole.get(request_id, request_id)}


def _check_life(
    process: EngineProcess, name: str, end: dict[str, Any], preemptions: int, first_token_s: float | None
) -> None:
    work, life = process.works[name], process.lives[name]
    told = (end["reason"], end["output_tokens"], end["preemptions"], end["time_s"], end["arrival_s"])
    seen = (life.reason, life.output_tokens, life.preemptions, life.finished_s, life.arrival_s)
    demand(told == seen, f"request {name}: recorded {told}, served {seen}")
    demand(preemptions == life.preemptions, f"request {name}: {preemptions} preemptions, served {life.preemptions}")
    demand(
        first_token_s == end["first_token_s"], f"request {name}: first token at {first_token_s}, {end['first_token_s']}"
    )
    if name not in process.left:
        reason = ending(work, life.output_tokens, process.profile)
        demand(reason == life.reason, f"request {name} ended as {life.reason} with {life.output_tokens} tokens")
        demand(ending(work, life.output_tokens - 1, process.profile) is None, f"request {name} got too many tokens")
    times = [end["arrival_s"], end["scheduled_s"], end["first_token_s"], end["time_s"]]
    _check_arrival(process.sent[name], end["arrival_s"], name)
    known = [time_s for time_s in times if time_s is not None]
    demand(known == sorted(known), f"request {name}: times out of order {times}")


def _check_arrival(sent: Sent, arrival_s: float, name: str) -> None:
    """It is when the client sent it, by the engine's clock; after a jump on its way, at least close to that."""
    least_s, most_s = (sent.entered_s - OLDEST_STAMP_S, sent.entered_s) if sent.jumped else 2 * (sent.sent_s,)
    demand(
        least_s - 1e-3 <= arrival_s <= most_s + 1e-3, f"request {name}: sent at {sent}, recorded arrival {arrival_s}"
    )


def check_answers(history: History) -> None:
    """Answers are numbered in the order of teaching, no number twice."""
    numbers = [row["answer"] for row in history["outcomes"]]
    demand(len(set(numbers)) == len(numbers), "two answers have the same number")
