"""Events that an operator looks for, as lines of the log and for *Now*: engines that come and go, modes, fallbacks, drift."""

from __future__ import annotations

import logging
from collections import deque

from store.entries import DriftDetected, EngineSeen, Entry, ModeSwitched, SettingsChanged
from store.http_now import Event, EventKind
from store.records import Mode, Snapshot
from store.rules import Level

log = logging.getLogger(__name__)

KEPT = 200
"""Largest number of events that are kept."""

_SEEN: dict[str, EventKind] = {
    "connected": "engine up", "reconnected": "engine up", "left": "engine left", "lost": "engine lost"
}  # fmt: skip
_LOGGED: dict[Level, int] = {
    "green": logging.INFO,
    "info": logging.INFO,
    "amber": logging.WARNING,
    "red": logging.WARNING,
}


class EventLog:
    """Finds events in the entries of the history, logs them, and keeps the latest."""

    def __init__(self) -> None:
        self._fallbacks: dict[str, str] = {}
        self._modes: dict[str, Mode] = {}
        self._recent: deque[Event] = deque(maxlen=KEPT)

    def latest(self) -> tuple[Event, ...]:
        """The events that are kept, the latest first."""
        return tuple(reversed(self._recent))

    def observe(self, entry: Entry) -> None:
        """Log and keep the entry if it is an event."""
        record = entry.record
        if isinstance(record, Snapshot):
            self._compare(entry, record)
        elif isinstance(record, EngineSeen):
            self._engine(entry, record)
        elif isinstance(record, ModeSwitched):
            who = record.who or f"a caller with {record.credential}"
            log.info(
                "mode %s -> %s, asked for by %s at %s: %s",
                record.before,
                record.mode,
                who,
                record.address,
                record.reason,
            )
        elif isinstance(record, SettingsChanged):
            self._mode(entry, record)
        elif isinstance(record, DriftDetected):
            text = (
                f"output lengths of model {record.model}, cluster {record.cluster} changed: mean "
                f"{record.before_mean_tokens:.0f} -> {record.after_mean_tokens:.0f} tokens"
            )
            self._keep("drift", "info", record.time_s, text)

    def _keep(self, kind: EventKind, level: Level, time_s: float, text: str, engine_id: str = "") -> None:
        log.log(_LOGGED[level], "%s", text)
        self._recent.append(Event(time_s=time_s, kind=kind, level=level, engine_id=engine_id, text=text))

    def _engine(self, entry: Entry, seen: EngineSeen) -> None:
        hello = seen.hello
        about = f"{hello.engine} {hello.engine_version}, model {hello.model}"
        text = f"engine {entry.engine_id} {seen.event} ({about})"
        level: Level = "red" if seen.event == "lost" else "info" if seen.event == "left" else "green"
        self._keep(_SEEN[seen.event], level, seen.time_s, text, entry.engine_id)
        if seen.event in {"left", "lost"}:
            self._fallbacks.pop(entry.session_id, None)
            self._modes.pop(entry.session_id, None)

    def _mode(self, entry: Entry, changed: SettingsChanged) -> None:
        """Settings that change the mode of all engines or of one; most changes adapt the gate alone."""
        mode, reason = changed.settings.mode, changed.reason
        before = self._modes.get(entry.session_id) or self._modes.get("")
        self._modes[entry.session_id] = mode
        if before in {None, mode}:
            return
        level: Level = "info" if mode == "on" else "amber"
        whose = f"engine {entry.engine_id}" if entry.session_id else "all engines"
        self._keep("mode", level, changed.time_s, f"mode of {whose}: {mode} ({reason})", entry.engine_id)

    def _compare(self, entry: Entry, snapshot: Snapshot) -> None:
        before, name = self._fallbacks.get(entry.session_id), entry.engine_id
        if snapshot.fallback == before:
            return
        if snapshot.fallback is None:
            del self._fallbacks[entry.session_id]
            self._keep("order back", "green", snapshot.time_s, f"engine {name} follows the controller again", name)
        else:
            self._fallbacks[entry.session_id] = snapshot.fallback
            text = f"engine {name} serves first come, first served: {snapshot.fallback}"
            self._keep("fallback", "amber", snapshot.time_s, text, name)
