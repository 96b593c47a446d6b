"""The controller's health: configuration, versions, the latest warnings of its log, and the findings of `doctor`."""

from __future__ import annotations

import logging
import platform
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from controller.config import Config, meaning, printed
from controller.monitoring.doctor import examine, examine_vllm
from controller.prompt_encoder import Encoder
from store.http_api import DoctorView, HealthView, SettingView, WarningView

PACKAGES = ("sagesched-controller", "duckdb", "pyarrow", "numpy", "pyzmq", "fastapi", "streamlit", "vllm")
"""Packages whose versions are reported."""
KINDS_KEPT = 100
OF_A_KIND = 10
WARNINGS_SHOWN = 100
TEXT_KEPT = 2000
"""Characters of a warning that are kept."""
FINDINGS_KEPT_S = 30.0
"""Seconds for which the findings of `doctor` are reused, because the checks take seconds."""


class RecentWarnings(logging.Handler):
    """Keeps the latest warnings and errors that this process logs.

    Of each kind (logger, level and text before its values are put in) it keeps a few, so that a flood of one kind, which
    anybody who reaches a port may cause, does not push out the others.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kinds: OrderedDict[tuple[str, str, str], deque[WarningView]] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        text, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
        if error is not None:
            text = f"{text}: {type(error).__name__}: {error}"
        kind = (record.name, record.levelname, f"{str(record.msg)[:TEXT_KEPT]} {type(error).__name__}")
        self._kinds.setdefault(kind, deque(maxlen=OF_A_KIND)).append(
            WarningView(time_s=record.created, level=record.levelname, logger=record.name, text=text[:TEXT_KEPT])
        )
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KINDS_KEPT:
            self._forget_one()

    def _forget_one(self) -> None:
        """Drop the oldest kind of the logger with the most kinds."""
        loggers = Counter(name for name, _, _ in self._kinds)
        loudest, _ = loggers.most_common(1)[0]
        del self._kinds[next(kind for kind in self._kinds if kind[0] == loudest)]

    def latest(self) -> tuple[WarningView, ...]:
        """The warnings kept, newest first."""
        self.acquire()
        try:
            kept = [view for kind in self._kinds.values() for view in kind]
        finally:
            self.release()
        return tuple(sorted(kept, key=lambda view: view.time_s, reverse=True)[:WARNINGS_SHOWN])


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
        self._examining = False

    def view(self) -> HealthView:
        """Configuration with secrets masked, versions, the latest warnings and the encoder's counts."""
        return HealthView(
            configuration=tuple(
                SettingView(key=key, value=value, meaning=meaning(key)) for key, value in printed(self._config)
            ),
            versions={"Python": platform.python_version(), "system": platform.platform(), **_versions()},
            recent_warnings=self._warnings.latest(),
            encoder=None if self._encoder is None else self._encoder.counts(),
        )

    def examined(self) -> Future[DoctorView] | None:
        """The findings of `doctor`, without waiting: the last ones, or those to come of an examination that now starts.

        There is one examination at a time, in a thread of its own. While it runs others get the last findings, and None
        before there are any.
        """
        with self._lock:
            is_fresh = self._findings and self._clock() - self._findings.time_s <= FINDINGS_KEPT_S
            if not is_fresh and not self._examining:
                self._examining = True
                started: Future[DoctorView] = Future()
                started.set_running_or_notify_cancel()
                threading.Thread(target=self._examine, args=(started,), name="doctor", daemon=True).start()
                return started
            return _done(self._findings) if self._findings else None

    def _examine(self, answer: Future[DoctorView]) -> None:
        try:
            findings = (*examine(self._config, now_s=self._clock()), examine_vllm())
            self._findings = DoctorView(time_s=self._clock(), findings=findings)
            answer.set_result(self._findings)
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            answer.set_exception(error)
        finally:
            self._examining = False


def _done(findings: DoctorView) -> Future[DoctorView]:
    answer: Future[DoctorView] = Future()
    answer.set_result(findings)
    return answer


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
