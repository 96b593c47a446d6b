"""The engine's side of the control loop: sends facts, receives tables and settings, serves FCFS without a controller.

`Agent` does not depend on an engine. The vLLM plugin and the simulated engine call it at the same moments:
`arrived`, `generated`, `first_token`, `preempted` and `finished` when the event occurs,
`poll` before every step, `plan` to order it, `count_step` after it and `report` when a snapshot is due.

Facts are retained until the controller acknowledges them as durable, so a controller may crash at any moment;
retention is bounded, and dropped facts are counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from itertools import islice
from typing import TypeVar

from msgspec import structs

from engine_adapter.agent.controller_lag import ControllerLag
from engine_adapter.agent.message_checks import check_message
from engine_adapter.agent.names import BoundedNames
from engine_adapter.agent.outbox import Outbox
from engine_adapter.agent.view import AgentLimits, StepSums, View
from engine_adapter.ordering.admission import Admission
from engine_adapter.ordering.kv_memory import KvMemory
from engine_adapter.ordering.ordering import Ordering, OrderingFactory, Plan, Schedulable
from engine_adapter.transport.link import EngineLink
from store.bounds import bounded_text
from store.errors import ProtocolError
from store.records import (
    Acknowledged,
    Arrived,
    ControllerMessage,
    Finished,
    FirstToken,
    Goodbye,
    Heartbeat,
    Hello,
    IndexTable,
    Mode,
    Preempted,
    RunningRequest,
    Settings,
    Snapshot,
    Welcome,
)

log = logging.getLogger(__name__)

__all__ = ["Agent", "AgentLimits", "View"]

R = TypeVar("R", bound=Schedulable)

PLACES_LOGGED = 100
"""Lines whose errors are logged, each once."""


class Agent:
    """Exchanges facts and decisions with the controller for one engine.

    Not thread-safe; never blocks and never raises on bad messages.

    Args:
        hello: The engine's description, sent until a controller answers.
        link: The connection to the controller.
        limits: Bounds and intervals; the defaults of `AgentLimits` when None.
        make_ordering: Makes the ordering that applies index tables; a benchmark's baselines bring their own.
        barred: Why the engine must keep its own order as long as it runs; None where it may follow tables.
    """

    def __init__(
        self,
        *,
        hello: Hello,
        link: EngineLink,
        limits: AgentLimits | None = None,
        make_ordering: OrderingFactory = Ordering,
        barred: str | None = None,
    ) -> None:
        self._hello = hello
        self._barred = barred
        self._link = link
        self._limits = limits or AgentLimits()
        self._ordering = make_ordering(hello.block_size_tokens, hello.max_num_seqs)
        self._settings: Settings | None = None
        self._welcomed = False
        self._controller_id: str | None = None
        self._restarting = False
        """Whether the tables were discarded after an error, so that the controller must send its decisions again."""
        self._received_s = -math.inf
        self._lag = ControllerLag()
        self._next_hello_s = -math.inf
        self._next_snapshot_s = -math.inf
        self._next_details_s = -math.inf
        self._next_beat_s = -math.inf
        self._unfinished: dict[str, Arrived] = {}
        self._names = BoundedNames()
        self._outbox = Outbox(
            facts_per_batch=self._limits.facts_per_batch,
            batch_bytes=self._limits.batch_bytes,
            interval_s=self._limits.facts_interval_s,
            retained_facts=self._limits.retained_facts,
            retained_bytes=self._limits.retained_bytes,
            resend_s=self._limits.resend_s,
            resend_limit_s=self._limits.resend_limit_s,
        )
        self._sums = StepSums()
        self._tables_applied = 0
        self._messages_dropped = 0
        self._policy_errors = 0
        self._errors_in_a_row = 0
        self._error: str | None = None
        self._error_until_s = -math.inf
        self._logged: set[str] = set()

    # --- facts ------------------------------------------------------------------------------------

    def arrived(self, arrived: Arrived, count: Callable[[], int] = int) -> None:
        """Record that a request entered the engine's queue; ``count`` returns its output tokens at any time."""
        request_id, bounded = arrived.request_id, self._names.enter(arrived)
        self._unfinished[request_id] = bounded
        self._ordering.track(
            request_id,
            priority=arrived.priority,
            arrival_s=arrived.arrival_s,
            count=count,
            prompt_tokens=arrived.prompt_tokens,
            session=arrived.session,
            sheds=arrived.sheds,
        )
        self._outbox.add(bounded)

    def generated(self, most_tokens: int = 1) -> None:
        """Follow the running requests after a step in which each has generated at most ``most_tokens``."""
        self._ordering.advance(most_tokens)

    def first_token(self, fact: FirstToken) -> None:
        """Record a request's first output token."""
        self._ordering.first_token(fact.request_id, fact.time_s)
        self._outbox.add(self._names.bounded(fact))

    def preempted(self, fact: Preempted) -> None:
        """Record that a running request was preempted."""
        self._outbox.add(self._names.bounded(fact))
        self._sums.preemptions += 1

    def resumed(self, recomputed_tokens: int) -> None:
        """Record that a preempted request runs again and recomputes ``recomputed_tokens`` tokens."""
        self._sums.recomputed_tokens += recomputed_tokens

    def finished(self, fact: Finished) -> None:
        """Record that a request ended, for whatever reason."""
        self._unfinished.pop(fact.request_id, None)
        self._ordering.forget(fact.request_id)
        self._outbox.add(self._names.bounded(fact))
        self._names.leave(fact.request_id)

    def impossible(self, request_id: str) -> bool:
        """Record that the engine can never serve a request; False if that is recorded already."""
        return self._ordering.put_last(request_id)

    @property
    def heard_s(self) -> float:
        """Time of the controller's last message."""
        return self._received_s

    @property
    def unacknowledged(self) -> int:
        """Number of facts that the controller has not yet acknowledged as durable."""
        return len(self._outbox)

    @property
    def policy_errors(self) -> int:
        """Number of errors of the scheduling code, since the engine started."""
        return self._policy_errors

    def knows(self, request_id: str) -> bool:
        """Whether a request arrived here and has not finished."""
        return request_id in self._unfinished

    # --- every step -------------------------------------------------------------------------------

    def poll(self, now_s: float) -> None:
        """Exchange messages with the controller: greet it if needed, apply its decisions, send the facts."""
        for message in self._link.receive():
            if not self._receive(message, now_s):
                break
        if not self._connected(now_s):
            self._welcomed = False
        if not self._informed() and now_s >= self._next_hello_s:
            self._next_hello_s = now_s + self._limits.hello_interval_s
            self._link.send(self._hello)
        if self._unfinished:
            self._outbox.gather_due(now_s)
        else:
            # An idle engine may not call again before the next request.
            self._outbox.gather()
        if self._welcomed:
            self._outbox.send(self._link, now_s)
        self._outbox.bound()

    def plan(
        self,
        now_s: float,
        *,
        waiting: Collection[R],
        running: Collection[R],
        memory: KvMemory,
        admission: Admission | None = None,
        steps_in_flight: int = 0,
    ) -> Plan[R] | None:
        """Return the order and the admission limit for the next step; None to keep the engine's own order."""
        if self.mode(now_s) != "on":
            return None
        return self._ordering.plan(
            now_s,
            waiting=waiting,
            running=running,
            memory=memory,
            admission=admission,
            steps_in_flight=steps_in_flight,
        )

    def shed(self, now_s: float) -> list[str]:
        """Return the requests to end now, because their targets are lost and their clients asked for that."""
        return self._ordering.take_shed() if self.mode(now_s) == "on" else []

    def count_step(
        self, *, step_s: float, prefill_tokens: int, decode_tokens: int, kv_tokens_read: int, hook_s: float
    ) -> None:
        """Add a completed step to the sums of the next snapshot."""
        sums = self._sums
        sums.steps += 1
        sums.step_s += step_s
        sums.prefill_tokens += prefill_tokens
        sums.decode_tokens += decode_tokens
        sums.kv_tokens_read += kv_tokens_read
        sums.hook_s += hook_s

    def snapshot_due(self, now_s: float) -> bool:
        """Whether `report` is due."""
        return now_s >= self._next_snapshot_s

    def beat_due(self, now_s: float) -> bool:
        """Whether an engine that makes no step is to report all the same: at once when welcomed, then once a second."""
        return self._welcomed and now_s >= self._next_beat_s

    def report(self, now_s: float, view: View) -> None:
        """Send a snapshot of the engine; when the link is full, drop and count it."""
        self._next_snapshot_s = now_s + self._limits.snapshot_interval_s
        if not self._welcomed:
            return
        sums, self._sums = self._sums, StepSums()
        detailed = now_s >= self._next_details_s
        if detailed:
            self._next_details_s = now_s + self._limits.details_interval_s
        snapshot = Snapshot(
            time_s=now_s,
            waiting=view.waiting,
            running=view.running,
            kv_blocks_used=view.kv_blocks_used,
            kv_blocks=self._hello.kv_blocks,
            mode=self.mode(now_s),
            fallback=self.fallback(now_s),
            steps=sums.steps,
            step_s=sums.step_s,
            prefill_tokens=sums.prefill_tokens,
            decode_tokens=sums.decode_tokens,
            kv_tokens_read=sums.kv_tokens_read,
            preemptions=sums.preemptions,
            recomputed_tokens=sums.recomputed_tokens,
            hook_s=sums.hook_s,
            admission_limit=view.admission_limit,
            reserved_blocks=view.reserved_blocks,
            step_tokens=view.step_tokens,
            chunk_tokens=view.chunk_tokens,
            impossible=self._ordering.impossible,
            detailed=detailed,
            running_requests=self._named_running(view) if detailed else (),
            queue=self._named_queue(view) if detailed else (),
            tables_held=self._ordering.tables_held,
            tables_applied=self._tables_applied,
            messages_dropped=self._messages_dropped + self._outbox.dropped + self._link.bad_frames,
            names_cut=self._names.cut,
            clock_off_s=view.clock_off_s,
            stamps_replaced=view.stamps_replaced,
            policy_errors=self._policy_errors,
        )
        self._next_beat_s = now_s + self._limits.beat_interval_s
        if not self._link.send(snapshot):
            self._messages_dropped += 1
            return
        self._lag.sent(now_s)

    def _named_running(self, view: View) -> tuple[RunningRequest, ...]:
        shown = islice(view.running_requests, self._limits.running_in_snapshot)
        return tuple(self._names.all_bounded(shown))

    def _named_queue(self, view: View) -> tuple[str, ...]:
        return tuple(self._names.bounded_ids(islice(view.queue, self._limits.queue_in_snapshot)))

    # --- state ------------------------------------------------------------------------------------

    def mode(self, now_s: float) -> Mode:
        """Return the mode in force: the controller's, or ``off`` during a fallback."""
        if self._settings is None or self.fallback(now_s) is not None:
            return "off"
        return self._settings.mode

    def fallback(self, now_s: float) -> str | None:
        """Return why the engine serves FCFS against the controller's mode; None without a fallback."""
        if self._settings is None or self._settings.mode == "off":
            return None
        if self._barred is not None or now_s < self._error_until_s:
            return self._barred or self._error
        if not self._connected(now_s):
            return f"controller silent for more than {self._settings.lease_s:g} s"
        if self._lag.late_s(now_s) > self._settings.lease_s:
            return f"controller late by more than {self._settings.lease_s:g} s"
        if not self._ordering.has_prior:
            return "controller has sent no prior yet"
        return None

    def failed(self, now_s: float, error: Exception) -> None:
        """Handle an error of the scheduling code: serve first come, first served for a pause, then start again.

        An error after the pause doubles the next one, up to ``error_pause_limit_s``; after that time without an error
        the pause is short again. An error within a pause restarts it.
        The controller is asked at once for all its decisions and still receives snapshots.
        """
        self._policy_errors += 1
        if now_s - self._error_until_s > self._limits.error_pause_limit_s:
            self._errors_in_a_row = 0
        self._errors_in_a_row += now_s >= self._error_until_s
        self._error = bounded_text(f"{type(error).__name__}: {error}")
        pause_s = self._limits.error_pause_s * 2.0 ** min(self._errors_in_a_row - 1, 32)
        self._error_until_s = now_s + min(pause_s, self._limits.error_pause_limit_s)
        self._ordering.start_over()
        self._restarting = True
        place = _place(error)
        if place not in self._logged and len(self._logged) < PLACES_LOGGED:
            self._logged.add(place)
            log.error("scheduling policy failed, serving first come, first served", exc_info=error)

    def send_again(self) -> None:
        """Let the next poll send all facts that are not acknowledged, after a hello if the controller was silent."""
        self._outbox.restart(0)
        if not self._welcomed:
            self._next_hello_s = -math.inf

    def greet_again(self) -> None:
        """Let the next poll greet the controller as if it had not answered yet."""
        self._welcomed = False
        self._next_hello_s = -math.inf

    def close(self, now_s: float) -> None:
        """Send the remaining facts and a `Goodbye`, then close the link."""
        self._outbox.gather()
        if self._welcomed:
            self._outbox.send(self._link, now_s)
        self._link.send(Goodbye(time_s=now_s))
        self._link.close()

    # --- messages ---------------------------------------------------------------------------------

    def _connected(self, now_s: float) -> bool:
        """Whether a message came within the lease; before the first settings, within the hello interval."""
        lease_s = self._settings.lease_s if self._settings else self._limits.hello_interval_s
        return now_s - self._received_s <= lease_s

    def _informed(self) -> bool:
        """Whether the controller has sent all that its mode needs; until then it is greeted again."""
        if self._restarting or not self._welcomed or self._settings is None:
            return False
        return self._settings.mode == "off" or self._ordering.has_prior

    def _receive(self, message: ControllerMessage, now_s: float) -> bool:
        """Check and apply a message; False for an invalid one, after which the batch's other messages are discarded."""
        try:
            check_message(message)
        except ProtocolError as error:
            self.failed(now_s, error)
            return False
        self._received_s = now_s
        self._handle(message)
        return True

    def _handle(self, message: ControllerMessage) -> None:
        match message:
            case IndexTable():
                applied = self._ordering.put(self._names.whole(message))
                self._tables_applied += applied and message.request_id is not None
            case Settings():
                self._apply(message)
            case Acknowledged():
                self._outbox.release(message.batch)
            case Welcome():
                self._welcome(message)
            case Heartbeat():
                if message.read_s is not None:
                    self._lag.confirm(message.read_s)
                self._apply(message.settings)

    def _apply(self, settings: Settings) -> None:
        self._settings = settings
        self._ordering.configure(settings)

    def _welcome(self, welcome: Welcome) -> None:
        """Send a controller what it lacks; only once when a stalled controller answers several hellos."""
        if self._welcomed and not self._restarting and welcome.controller_id == self._controller_id:
            self._outbox.release(welcome.durable_batch)
            return
        self._welcomed = True
        self._restarting = False
        self._controller_id = welcome.controller_id
        self._next_beat_s = -math.inf
        self._lag.reset()
        self._resynchronise(welcome)

    def _resynchronise(self, welcome: Welcome) -> None:
        """Release the durable facts, then send the rest and every unfinished request again."""
        self._outbox.restart(welcome.durable_batch)
        retained = self._outbox.arrivals()
        for request_id, arrived in self._unfinished.items():
            if arrived.request_id not in retained:
                self._outbox.add(_resent(arrived, self._ordering.attained_tokens(request_id)))


def _place(error: Exception) -> str:
    """Return the error's type and the line that raised it, without its message."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else f" at {last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
    return f"{type(error).__name__}{where}"


def _resent(arrived: Arrived, attained_tokens: int) -> Arrived:
    return structs.replace(arrived, resent=True, attained_tokens=attained_tokens)
