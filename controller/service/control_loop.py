"""The control loop: the one thread that owns the core and carries out all its effects.

`ControlLoop.run` calls `startup`, then `turn` until `stop` is called, then `shutdown`.
Messages of engines go to the core, its messages go to engines and its entries to the history. An engine's facts are
acknowledged only when the history has them on disk.
When the core fails, the loop logs and counts the failure and has the engine on whose message it failed serve first come,
first served until no failure has occurred for a while; all engines where it was no engine's message.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from msgspec import structs

from controller.api.commands import Commands, SetMode
from controller.core.core import Core
from controller.core.pause import PauseLimits, described
from controller.monitoring.engine_states import RefusedFrames, engine_states, own_clock_off
from controller.monitoring.live_state import Live
from controller.monitoring.metrics import Metrics
from controller.monitoring.present.pulse import Pulse
from controller.monitoring.request_tracker import RequestTracker
from controller.monitoring.surroundings import LOGGED_HERE, surrounding_states
from controller.monitoring.tracing import Ended, Telemetry
from controller.prompt_encoder import Encoder
from controller.service.event_log import EventLog
from controller.service.memory import Memory
from controller.service.trouble import Trouble
from engine_adapter.transport.link import ControllerHub
from store.entries import DriftDetected, Entry, Outcome, Prediction
from store.history.writer import HistoryWriter
from store.http_api import DegradedKind, DegradedState
from store.records import Arrived, EngineMessage, Finished, Snapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLimits:
    """Bounds and intervals of the loop."""

    wait_s: float = 0.02
    """Time to wait for messages while entries are on their way to the disk, or prompts with the encoder."""
    idle_wait_s: float = 0.25
    """The same, at most, while nothing is: messages and commands end it, and what is due by the clock."""
    overload_s: float = 0.5
    """Seconds in one turn after which further arrivals are deferred and use the prior: an engine whose messages wait too
    long falls back to its own order."""
    catch_up_s: float = 0.1
    """Seconds that a turn may spend on arrivals that were deferred in earlier turns."""
    publish_interval_s: float = 0.25
    idle_publish_interval_s: float = 1.0
    """The same while engines do nothing but say so."""
    unwritten_entries: int = 100_000
    """Number of entries not yet on disk beyond which facts are not recorded: engines keep them and send them again."""
    overload_warning_s: float = 600.0
    """Minimum seconds between two warnings that there is no time to learn from every answer."""
    error_pause_s: float = 5.0
    error_pause_limit_s: float = 300.0
    errors_logged: int = 100


class ControlLoop:
    """Moves messages between engines, core and history; not thread-safe."""

    def __init__(
        self,
        *,
        core: Core,
        hub: ControllerHub,
        history: HistoryWriter,
        live: Live,
        metrics: Metrics,
        commands: Commands,
        clock: Callable[[], float],
        wall: Callable[[], float] | None = None,
        encoder: Encoder | None = None,
        memory: Memory | None = None,
        limits: LoopLimits | None = None,
        telemetry: Telemetry | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self._core = core
        self._hub = hub
        self._history = history
        self._live = live
        self._metrics = metrics
        self._commands = commands
        self._clock = clock
        self._wall = wall or clock
        self._encoder = encoder
        self._memory = memory
        self._limits = limits or LoopLimits()
        self._telemetry = telemetry
        self._pulse = pulse or Pulse()
        self._requests = RequestTracker()
        self._unacknowledged: deque[tuple[int, str, int]] = deque()
        self._position = 0
        self._lines: list[Entry] = []
        """Entries that the history has not taken yet: those of a failed attempt come first in the next one."""
        self._next_publish_s = 0.0
        self._trouble = Trouble()
        self._refused = RefusedFrames()
        self._events = EventLog()
        self._logged: set[str] = set()
        self._not_learnt = 0
        self._next_warning_s = 0.0
        self._next_log_s: dict[DegradedKind, float] = {}
        self._stopping = threading.Event()

    def run(self) -> None:
        """Turn until `stop` is called, from a signal handler or another thread."""
        self.startup()
        try:
            while not self._stopping.is_set():
                self.turn()
        finally:
            self.shutdown()

    def stop(self) -> None:
        """Let `run` return after the current turn."""
        self._stopping.set()
        self._hub.wake()

    def startup(self) -> None:
        """Record the initial settings and publish the first live snapshot."""
        self._live.watch(self._core)
        self._record(self._clock())
        self._publish(self._clock())

    def turn(self) -> None:
        """Wait briefly for messages, then do all work that is due."""
        messages = self._receive()
        with self._metrics.pauses.turn():
            self._work_through(messages, self._clock())

    def _work_through(self, messages: list[tuple[bytes, EngineMessage]], started_s: float) -> None:
        self._metrics.messages_received.inc(len(messages))
        for connection, message in messages:
            self._core.arrivals.overloaded = self._clock() - started_s > self._limits.overload_s
            self._guarded(partial(self._core.handle, connection, message, more=True), started_s)
            while self._core.unhandled:
                self._guarded(partial(self._core.proceed, more=True), started_s)
        self._finish_facts(started_s)
        if any(not (isinstance(message, Snapshot) and message.is_idle) for _, message in messages):
            self._publish_soon(started_s)
        self._guarded(self._on_commands, started_s)
        self._guarded(self._on_tick, started_s)
        self._guarded(self._on_encoded, started_s)
        self._guarded(self._on_backlog, started_s)
        self._guarded(self._on_past, started_s)
        self._finish_facts(started_s)
        self._guarded(self._record, started_s)
        self._guarded(self._acknowledge, started_s)
        self._guarded(self._keep, started_s)
        if started_s >= self._next_publish_s:
            self._guarded(self._publish, started_s)
        took_s = max(0.0, self._clock() - started_s)
        self._metrics.tick_s.observe(took_s)
        self._pulse.turn(took_s, started_s)

    def _finish_facts(self, now_s: float) -> None:
        """Handle what is left of the facts, and predict each request that failed together with others alone."""
        self._guarded(self._core.proceed, now_s)
        while self._core.unhandled:
            self._guarded(self._core.proceed, now_s)

    def shutdown(self) -> None:
        """Do the deferred work and hand over the last entries; engines keep the facts that are not durable yet."""
        self._core.arrivals.withdraw_all()
        if self._memory is not None:
            self._memory.stop()
        while self._core.backlog:
            self._guarded(self._on_backlog, self._clock())
        self._guarded(self._record, self._clock())
        self._guarded(self._acknowledge, self._clock())

    # --- parts of a turn ----------------------------------------------------------------------------

    def _receive(self) -> list[tuple[bytes, EngineMessage]]:
        """Messages of engines; while the disk is far behind, their facts are handled and not recorded."""
        behind = self._position + len(self._lines) - self._history.durable_position
        self._core.recording = behind <= self._limits.unwritten_entries
        return self._hub.receive(self._wait_s())

    def _wait_s(self) -> float:
        """How long to wait for messages."""
        if self._core.backlog or (self._memory is not None and self._memory.can_go_on):
            return 0.0
        if self._unacknowledged or self._lines or self._encoder is not None:
            return self._limits.wait_s
        due_s = min(self._next_publish_s, self._core.next_tick_s) - self._clock()
        return min(max(due_s, self._limits.wait_s), self._limits.idle_wait_s)

    def _guarded(self, part: Callable[[float], None], now_s: float) -> None:
        """Carry out a part of a turn and send its messages; its failure affects neither other parts nor the engines."""
        try:
            part(now_s)
            self._send(now_s)
        except Exception as error:  # noqa: BLE001 - one of the two broad borders: the control tick
            self._failed(error, now_s)

    def _on_commands(self, now_s: float) -> None:
        for command in self._commands.drain():
            self._publish_soon(now_s)
            self._set_mode(command, now_s)
        for question in self._commands.questions():
            question.reply(self._core)

    def _on_encoded(self, now_s: float) -> None:
        """Predict requests again whose prompts the encoder has read."""
        for encoded in self._encoder.drain() if self._encoder is not None else []:
            self._core.refine(*encoded, now_s)

    def _on_backlog(self, now_s: float) -> None:
        """Do one item of deferred work between two looks for messages; more if arrivals are among it."""
        self._work(now_s)
        while self._core.arrivals.deferred and self._clock() - now_s < self._limits.catch_up_s:
            self._send(now_s)
            self._work(now_s)

    def _work(self, now_s: float) -> None:
        if self._core.backlog:
            with self._metrics.pauses.work():
                self._core.work(now_s)

    def _on_past(self, now_s: float) -> None:
        """Learn a slice of what was before this process."""
        if self._memory is not None and self._memory.can_go_on:
            with self._metrics.pauses.work():
                self._memory.learn(now_s)

    def _keep(self, now_s: float) -> None:
        """Keep what was learned, when it is time."""
        if self._memory is not None:
            with self._metrics.pauses.work() if self._memory.is_due(now_s) else nullcontext():
                self._memory.keep(self._position, self._history.durable_position, now_s)

    def _on_tick(self, now_s: float) -> None:
        """Do what is due by the clock, and end a fallback."""
        if self._trouble.is_over(now_s):
            self._core.set_mode(self._trouble.wanted, "no failure for a while", now_s)
        self._core.tick(now_s)

    def _set_mode(self, command: SetMode, now_s: float) -> None:
        """Carry out and record an operator's command, which also ends every fallback."""
        paused = self._trouble.until_s is not None
        switched = command.switched(self._trouble.wanted if paused else self._core.settings.mode, now_s)
        self._trouble.end(now_s)
        self._core.end_pauses(now_s)
        self._core.set_mode(command.mode, command.reason, now_s)
        self._core.record_switch(switched)
        log.info(
            "mode %(before)s -> %(mode)s by %(who)s (%(credential)s, %(address)s): %(reason)s", structs.asdict(switched)
        )
        self._send(now_s)
        command.answer.set_result(self._core.settings)

    def _failed(self, error: Exception, now_s: float) -> None:
        """Count a failure, log its kind once, and switch the engine that it is about, or all, to their own order."""
        self._metrics.tick_errors.inc()
        kind = described(error)
        if kind not in self._logged and len(self._logged) < self._limits.errors_logged:
            self._logged.add(kind)
            log.error("control loop failed, first come, first served follows", exc_info=error)
        pauses = PauseLimits(first_s=self._limits.error_pause_s, limit_s=self._limits.error_pause_limit_s)
        if self._trouble.observe(error, now_s) and self._memory is not None:
            self._memory.distrust()
        if not self._core.charge_engine(error, pauses, now_s):
            self._trouble.fail(error, self._core.settings.mode, pauses, now_s)
            self._core.set_mode("off", f"fallback: {kind}", now_s)
        self._send(now_s)

    def _send(self, now_s: float) -> None:
        """Send the messages of the core; a connection that is gone gets none of the rest."""
        gone: set[bytes] = set()
        for connection, message in self._core.drain_messages():
            if connection in gone:
                continue
            delivery = self._hub.send(connection, message)
            if delivery == "sent":
                self._metrics.messages_sent.inc()
            else:
                self._metrics.messages_lost.inc()
            if delivery == "gone":
                gone.add(connection)
                self._core.lost(connection, now_s)

    # --- history and live snapshot -------------------------------------------------------------------

    def _record(self, now_s: float) -> None:
        """Append new entries to the history, and remember which batch is durable once they are on disk."""
        entries = self._core.drain_entries()
        lines = self._lines = [*self._lines, *self._core.drain_repeated(), *entries]
        if lines:
            self._position, self._lines = self._history.append(lines), []
            newest = {entry.session_id: entry.batch for entry in lines if entry.batch is not None}
            self._unacknowledged.extend((self._position, session_id, batch) for session_id, batch in newest.items())
        for entry in (*self._core.drain_unrecorded(), *entries):
            self._show(entry, now_s)

    def _show(self, entry: Entry, now_s: float) -> None:
        record = entry.record
        self._events.observe(entry)
        request = self._requests.observe(entry)
        self._pulse.observe(entry, request, now_s)
        if isinstance(record, Snapshot):
            self._metrics.count_snapshot(entry.engine_id, record)
        elif isinstance(record, Finished):
            hello = self._requests.hello(entry.session_id)
            used_s = self._core.service_s(entry.session_id, record)
            model = hello.model if hello else None
            self._metrics.count_finished(entry.engine_id, record, request, model, used_s, now_s=now_s)
            if self._telemetry is not None:
                self._telemetry.record(Ended(record, request, hello))
        elif isinstance(record, Arrived):
            if self._encoder is not None:
                self._encoder.submit(entry.session_id, record.request_id, record.token_ids)
        elif isinstance(record, Prediction):
            self._metrics.count_prediction(record)
        elif isinstance(record, Outcome):
            self._metrics.count_outcome(record)
        elif isinstance(record, DriftDetected):
            self._live.record_drift(record)

    def _acknowledge(self, now_s: float) -> None:
        """Acknowledge the batches that are on disk."""
        durable = self._history.durable_position
        batches: dict[str, int] = {}
        while self._unacknowledged and self._unacknowledged[0][0] <= durable:
            _, session_id, batch = self._unacknowledged.popleft()
            batches[session_id] = batch
        for session_id, batch in batches.items():
            self._core.acknowledge(session_id, batch)

    def _publish_soon(self, now_s: float) -> None:
        """Something has happened: publish as soon after the last time as while engines are busy."""
        limits = self._limits
        before_s = self._next_publish_s - limits.idle_publish_interval_s
        self._next_publish_s = min(self._next_publish_s, max(now_s, before_s + limits.publish_interval_s))

    def _publish(self, now_s: float) -> None:
        self._next_publish_s = now_s + self._limits.idle_publish_interval_s
        self._warn_of_overload(now_s)
        loop = {
            "unacknowledged_batches": float(len(self._unacknowledged)),
            "errors": float(self._trouble.errors),
            "backlog": float(self._core.backlog),
            "clock_off_s": self._wall() - self._clock(),
        }
        sessions, stats = self._core.sessions, self._history.stats
        self._pulse.close_due(sessions, now_s)
        degraded = (
            *self._trouble.states(now_s),
            *own_clock_off(loop["clock_off_s"]),
            *engine_states(sessions, now_s),
            *surrounding_states(self._hub.troubles, stats, sessions, now_s),
            *self._refused.states(self._hub.bad_frames, now_s),
            *(self._memory.states() if self._memory is not None else ()),
        )
        self._log_surroundings(degraded, now_s)
        self._live.publish(
            self._core, store=stats, loop=loop, now_s=now_s, degraded=degraded, events=self._events.latest()
        )

    def _log_surroundings(self, degraded: Iterable[DegradedState], now_s: float) -> None:
        """Log states that nothing else logs, each kind at most every `overload_warning_s`."""
        for state in degraded:
            if state.kind in LOGGED_HERE and now_s >= self._next_log_s.get(state.kind, 0.0):
                self._next_log_s[state.kind] = now_s + self._limits.overload_warning_s
                log.warning("%s", state.text)

    def _warn_of_overload(self, now_s: float) -> None:
        """Log a warning if answers are not learned from, which is the first work that an overload drops."""
        counts = self._core.counts
        before, self._not_learnt = self._not_learnt, counts.not_learnt
        if counts.not_learnt > before and now_s >= self._next_warning_s:
            self._next_warning_s = now_s + self._limits.overload_warning_s
            log.warning(
                "requests come faster than this controller learns from them: %d answers were not learned from, and %d "
                "requests used the prior of their model; give it a faster core of its own, or spread the "
                "engines over two",
                counts.not_learnt,
                counts.not_predicted,
            )
