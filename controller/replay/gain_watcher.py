"""Periodically computes, in a process of low priority, how long the latest requests would have taken under FCFS.

`controller.replay.gain` takes seconds of CPU time, so it runs neither in the control loop nor in its process.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from controller.config import PolicySection
from controller.replay.gain_pace import GainLimits, GainPace, cpu_s, host_cores
from controller.replay.gain_worker import GainTask
from controller.replay.read_history import read_latest_run
from engine_adapter.serving.processes import die_with_parent
from store.errors import StoreError
from store.history.recent_rows import RecentRows
from store.http_api import Gain, GainView
from store.reading import replay_sql

__all__ = ["GainLimits", "GainWatch"]

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Interval at which the thread looks whether a comparison is due."""
WARMING_UP = "the latest finished requests are replayed as soon as there are enough of them"


class GainWatch:
    """Keeps the latest comparison; any thread may read `answer`, which is replaced and never changed, or `ask` for it.

    It is computed again while somebody asks, else rarely, and never takes more than a share of the host (`GainPace`).

    Args:
        rows: the history, up to now.
        policy: what is compared with first come, first served.
        clock: Unix seconds.
        limits: bounds and intervals.
        written: how much of the history there is of ended requests; while it stays the same nothing is compared anew.
    """

    def __init__(
        self,
        rows: RecentRows,
        policy: PolicySection,
        clock: Callable[[], float],
        limits: GainLimits | None = None,
        *,
        written: Callable[[], object] | None = None,
    ) -> None:
        self._rows = rows
        self._policy = policy
        self._clock = clock
        self._limits = limits or GainLimits()
        self._written = written
        self._asked = threading.Event()
        self._stopping = threading.Event()
        self._worker: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="gain", daemon=True)
        self.answer = GainView(status="warming up", reason=WARMING_UP)

    def start(self) -> None:
        """Begin to compare."""
        self._thread.start()

    def ask(self) -> GainView:
        """The latest comparison, for somebody who looks: it is computed again before long."""
        self._asked.set()
        return self.answer

    def stop(self) -> None:
        """Stop the thread and the process that computes."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.kill()
        self._thread.join(self._limits.deadline_s)

    def _run(self) -> None:
        pace, before = GainPace(self._limits, cores=host_cores(), now_s=time.monotonic()), None
        while not self._stopping.wait(min(LOOK_S, self._limits.first_after_s)):
            if self._asked.is_set():
                self._asked.clear()
                pace.asked(time.monotonic())
            if time.monotonic() < pace.due_s:
                continue
            written = None if self._written is None else self._written()
            if written is not None and written == before:
                continue
            began_s, used_s = time.monotonic(), cpu_s()
            if self._compare():
                pace.ran(began_s=began_s, ended_s=time.monotonic(), cpu_s=cpu_s() - used_s)
            before = None if self.answer.status == "unavailable" else written

    def _compare(self) -> bool:
        """Compute a new answer; False if there is too little to compare."""
        try:
            task = self._task()
        except StoreError as error:
            self.answer = _unavailable(str(error))
            return True
        if task is None:
            return False
        self.answer = self._compute(task)
        return True

    def _task(self) -> GainTask | None:
        """The latest run of the busiest engine; None if it has too few requests."""
        since_s = self._clock() - self._limits.window_s
        with self._rows.open(replay_sql.RUN_TABLES, since_s) as connection:
            run = read_latest_run(connection, last=self._limits.requests, fewest=self._limits.fewest_requests)
        return None if run is None else GainTask(policy=self._policy.model_dump(), run=run)

    def _compute(self, task: GainTask) -> GainView:
        """Run the comparison in the worker; a failure becomes the reason of the answer and is not raised."""
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "controller.replay.gain_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one call into the kernel, no lock is taken
        )
        try:
            out, errors = self._worker.communicate(msgspec.json.encode(task), timeout=self._limits.deadline_s)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.communicate()
            return _unavailable(f"the replay took more than {self._limits.deadline_s:g} s")
        if self._worker.returncode != 0:
            last = (errors.decode(errors="replace").strip().splitlines() or [_ending(self._worker.returncode)])[-1]
            if not self._stopping.is_set():
                log.warning("comparison with first come, first served failed: %s", last)
            return _unavailable(f"the replay failed: {last}")
        gain = msgspec.json.decode(out, type=Gain | None)
        if gain is None:
            return GainView(status="warming up", reason="too few finished requests have a prediction")
        return GainView(status="ready", computed_s=self._clock(), gain=gain)


def _ending(code: int) -> str:
    """How a process ended that said nothing.

    >>> _ending(-9), _ending(3)
    ('its process was ended by SIGKILL, as the kernel does where memory is short', 'its process ended with code 3')
    """
    if code == -signal.SIGKILL:
        return "its process was ended by SIGKILL, as the kernel does where memory is short"
    return f"its process ended with code {code}" if code > 0 else f"its process was ended by signal {-code}"


def _unavailable(reason: str) -> GainView:
    return GainView(status="unavailable", reason=reason)
