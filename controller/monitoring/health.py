"""The controller's health: configuration, versions, the latest warnings of its log, and the findings of `doctor`."""

from __future__ import annotations

import logging
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from controller.config import Config, described, printed
from controller.monitoring.doctor import examine
from controller.prompt_encoder import Encoder
from store.http_api import DoctorView, HealthView, SettingView, WarningView

PACKAGES = ("sagesched-controller", "duckdb", "pyarrow", "numpy", "pyzmq", "fastapi", "streamlit", "vllm")
"""Packages whose versions are reported."""
WARNINGS_KEPT = 100
FINDINGS_KEPT_S = 30.0
"""Seconds for which the findings of `doctor` are reused, because the checks take seconds."""


class RecentWarnings(logging.Handler):
    """Keeps the latest warnings and errors that this process logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[WarningView] = deque(maxlen=WARNINGS_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        self._kept.append(WarningView(time_s=record.created, level=record.levelname, logger=record.name, text=text))

    def latest(self) -> tuple[WarningView, ...]:
        """The warnings kept, newest first."""
        return tuple(self._kept)[::-1]


@contextmanager
def recent_warnings() -> Iterator[RecentWarnings]:
    """Keep the warnings of this process's log while the context lasts."""
    kept, root = RecentWarnings(), logging.getLogger()
    root.addHandler(kept)
    try:
        yield kept
    finally:
        root.removeHandler(kept)


class Health:
    """Answers ``/api/health`` and ``/api/doctor``; safe to call from any thread."""

    def __init__(
        self, config: Config, warnings: RecentWarnings, clock: Callable[[], float], encoder: Encoder | None = None
    ) -> None:
        self._config = config
        self._warnings = warnings
        self._clock = clock
        self._encoder = encoder
        self._lock = threading.Lock()
        self._findings: DoctorView | None = None

    def view(self) -> HealthView:
        """Configuration with secrets masked, versions, the latest warnings and the encoder's counts."""
        meanings = dict(described())
        return HealthView(
            configuration=tuple(
                SettingView(key=key, value=value, meaning=meanings.get(key, "")) for key, value in printed(self._config)
            ),
            versions={"Python": platform.python_version(), "system": platform.platform(), **_versions()},
            recent_warnings=self._warnings.latest(),
            encoder=None if self._encoder is None else self._encoder.counts(),
        )

    def doctor(self) -> DoctorView:
        """Findings of `doctor`: one run at a time, reused for `FINDINGS_KEPT_S`."""
        with self._lock:
            now_s = self._clock()
            if self._findings is None or now_s - self._findings.time_s > FINDINGS_KEPT_S:
                self._findings = DoctorView(time_s=now_s, findings=tuple(examine(self._config, now_s=now_s)))
            return self._findings


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
