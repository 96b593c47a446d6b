"""A line of the log for each event that an operator looks for: engines that come and go, modes, fallbacks, drift."""

from __future__ import annotations

import logging

from store.entries import DriftDetected, EngineSeen, Entry, ModeSwitched, SettingsChanged
from store.records import Mode, Snapshot

log = logging.getLogger(__name__)


class EventLog:
    """Logs events from the entries of the history, and remembers which engines are in fallback."""

    def __init__(self) -> None:
        self._fallbacks: dict[str, str] = {}
        self._modes: dict[str, Mode] = {}

    def observe(self, entry: Entry) -> None:
        """Log the entry if it is an event."""
        record = entry.record
        if isinstance(record, Snapshot):
            self._compare(entry.engine_id, entry.session_id, record.fallback)
        elif isinstance(record, EngineSeen):
            self._log_engine(entry, record)
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
            self._log_mode(entry, record)
        elif isinstance(record, DriftDetected):
            log.info(
                "output lengths of model %s, cluster %d changed: mean %.0f -> %.0f tokens",
                record.model,
                record.cluster,
                record.before_mean_tokens,
                record.after_mean_tokens,
            )

    def _log_engine(self, entry: Entry, seen: EngineSeen) -> None:
        hello = seen.hello
        level = logging.WARNING if seen.event == "lost" else logging.INFO
        about = f"{hello.engine} {hello.engine_version}, model {hello.model}"
        log.log(level, "engine %s %s (%s, session %s)", entry.engine_id, seen.event, about, entry.session_id)
        if seen.event in {"left", "lost"}:
            self._fallbacks.pop(entry.session_id, None)
            self._modes.pop(entry.session_id, None)

    def _log_mode(self, entry: Entry, changed: SettingsChanged) -> None:
        """Log settings if they change the mode of all engines or of one; most changes adapt the gate alone."""
        mode, reason = changed.settings.mode, changed.reason
        before = self._modes.get(entry.session_id) or self._modes.get("")
        self._modes[entry.session_id] = mode
        if not entry.session_id:
            log.info("mode of all engines: %s (%s)", mode, reason)
        elif before not in {None, mode}:
            log.warning("mode of engine %s: %s (%s)", entry.engine_id, mode, reason)

    def _compare(self, engine_id: str, session_id: str, fallback: str | None) -> None:
        before = self._fallbacks.get(session_id)
        if fallback == before:
            return
        if fallback is None:
            del self._fallbacks[session_id]
            log.info("engine %s follows the controller again", engine_id)
        else:
            self._fallbacks[session_id] = fallback
            log.warning("engine %s serves first come, first served: %s", engine_id, fallback)
