"""In which condition the controller is: its configuration, what it runs on, its last warnings, doctor's findings."""

from __future__ import annotations

import logging
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from controller.config import Config, described, printed
from controller.monitoring.doctor import examine
from controller.prompt_encoder import Encoder

PACKAGES = ("sagesched-controller", "duckdb", "pyarrow", "numpy", "pyzmq", "fastapi", "streamlit", "vllm")
"""Packages whose version an operator is asked for."""
COMPLAINTS_KEPT = 100
EXAMINED_S = 30.0
"""Doctor's findings are given again for so long, because looking costs seconds."""


class RecentWarnings(logging.Handler):
    """Keeps the last warnings and errors of the process that logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[dict[str, Any]] = deque(maxlen=COMPLAINTS_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        self._kept.append({"time_s": record.created, "level": record.levelname, "logger": record.name, "text": text})

    def latest(self) -> list[dict[str, Any]]:
        """The last ones, newest first."""
        return list(self._kept)[::-1]


@contextmanager
def kept_complaints() -> Iterator[RecentWarnings]:
    """Listen to this process's log for as long as it lasts."""
    recent_warnings, root = RecentWarnings(), logging.getLogger()
    root.addHandler(recent_warnings)
    try:
        yield recent_warnings
    finally:
        root.removeHandler(recent_warnings)


class Health:
    """Answers of ``/api/health`` and ``/api/doctor``; may be asked from any thread."""

    def __init__(
        self,
        config: Config,
        recent_warnings: RecentWarnings,
        clock: Callable[[], float],
        encoder: Encoder | None = None,
    ) -> None:
        self._config = config
        self._recent_warnings = recent_warnings
        self._clock = clock
        self._encoder = encoder
        self._lock = threading.Lock()
        self._examined: dict[str, Any] | None = None

    def view(self) -> dict[str, Any]:
        """Configuration with secrets hidden, versions, the last warnings and errors, newest first, and the encoder's counts."""
        meanings = dict(described())
        return {
            "configuration": [
                {"key": key, "value": value, "meaning": meanings.get(key, "")} for key, value in printed(self._config)
            ],
            "versions": {"Python": platform.python_version(), "system": platform.platform(), **_versions()},
            "complaints": self._recent_warnings.latest(),
            "encoder": None if self._encoder is None else self._encoder.counts()._asdict(),
        }

    def examined(self) -> dict[str, Any]:
        """Doctor's findings; one look at a time, and not more often than every half minute."""
        with self._lock:
            now_s = self._clock()
            if self._examined is None or now_s - self._examined["time_s"] > EXAMINED_S:
                findings = [asdict(finding) for finding in examine(self._config, now_s=now_s)]
                self._examined = {"time_s": now_s, "findings": findings}
            return self._examined


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
