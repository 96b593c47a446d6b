"""Asks every now and then, in a process of low priority, what the last requests would have taken under FCFS.

The work is that of `controller.gain`; it takes seconds of a core, so it runs neither in the control loop nor in its
process.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from controller.config import PolicySection
from controller.gain import FinishedRequest
from controller.gain_task import GainTask
from controller.live import EngineView, FinishedView, Live
from controller.processes import die_with_parent
from controller.step_model import StepSample

log = logging.getLogger(__name__)

METHOD_BEFORE = "A replay of the last finished requests on the simulated engine, as soon as there are enough of them."


@dataclass(frozen=True, slots=True, kw_only=True)
class GainLimits:
    """Bounds and intervals of the comparison."""

    interval_s: float = 30.0
    first_after_s: float = 5.0
    deadline_s: float = 90.0
    fewest_requests: int = 40
    requests: int = 2500
    samples: int = 2000


class GainWatch:
    """Keeps the newest comparison; `answer` may be read from any thread and is replaced, never changed."""

    def __init__(
        self, live: Live, policy: PolicySection, clock: Callable[[], float], limits: GainLimits | None = None
    ) -> None:
        self._live = live
        self._policy = policy
        self._clock = clock
        self._limits = limits or GainLimits()
        self._stopping = threading.Event()
        self._worker: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="gain", daemon=True)
        self.answer: dict[str, Any] = _empty("warming up", METHOD_BEFORE)

    def start(self) -> None:
        """Begin to compare."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and the process that is at it."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.kill()
        self._thread.join(self._limits.deadline_s)

    def _run(self) -> None:
        pause_s = self._limits.first_after_s
        while not self._stopping.wait(pause_s):
            task = self._task()
            if task is not None:
                self.answer = self._compute(task)
                pause_s = self._limits.interval_s

    def _task(self) -> GainTask | None:
        """The last requests of the busiest engine; None while there are too few."""
        picture = self._live.picture
        if picture is None or not picture.engines:
            return None
        finished = [view for view in self._live.finished(0.0) if view.finished.output_tokens > 0]
        engine = max(picture.engines, key=lambda e: sum(view.engine_id == e.hello.engine_id for view in finished))
        mine = [view for view in finished if view.engine_id == engine.hello.engine_id]
        if len(mine) < self._limits.fewest_requests:
            return None
        return self._task_of(engine, mine[-self._limits.requests :])

    def _task_of(self, engine: EngineView, finished: list[FinishedView]) -> GainTask:
        hello = engine.hello
        since_s = min(view.finished.arrival_s for view in finished)
        snapshots = [s for engine_id, s in self._live.snapshots(since_s) if engine_id == hello.engine_id]
        return GainTask(
            policy=self._policy.model_dump(),
            requests=tuple(_request(view) for view in finished),
            samples=tuple(
                StepSample(
                    steps=s.steps,
                    step_s=s.step_s,
                    prefill_tokens=s.prefill_tokens,
                    decode_tokens=s.decode_tokens,
                    kv_tokens_read=s.kv_tokens_read,
                )
                for s in snapshots[-self._limits.samples :]
            ),
            kv_blocks=hello.kv_blocks,
            block_size_tokens=hello.block_size_tokens,
            max_num_seqs=hello.max_num_seqs,
            token_budget=hello.token_budget,
            max_model_len_tokens=hello.max_model_len_tokens,
        )

    def _compute(self, task: GainTask) -> dict[str, Any]:
        """Have the worker answer; trouble is told in the answer and never raised."""
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "controller.gain_task"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one call into the kernel, no lock is taken
        )
        try:
            out, complaint = self._worker.communicate(msgspec.json.encode(task), timeout=self._limits.deadline_s)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.communicate()
            return _empty("unavailable", f"the replay took more than {self._limits.deadline_s:g} s")
        if self._worker.returncode != 0:
            last = (complaint.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
            if not self._stopping.is_set():
                log.warning("comparison with first come, first served failed: %s", last)
            return _empty("unavailable", f"the replay failed: {last}")
        answer: dict[str, Any] = msgspec.json.decode(out)
        return answer | {"computed_s": self._clock()}


def _request(view: FinishedView) -> FinishedRequest:
    fact = view.finished
    return FinishedRequest(
        request_id=fact.request_id,
        arrival_s=fact.arrival_s,
        finished_s=fact.time_s,
        prompt_tokens=fact.prompt_tokens,
        output_tokens=fact.output_tokens,
        max_tokens=fact.max_tokens,
        priority=view.priority,
        quantiles=view.quantiles,
    )


def _empty(status: str, method: str) -> dict[str, Any]:
    nothing = {"computed_s": None, "requests": 0, "actual": None, "fcfs": None, "modelled": None}
    return {"status": status, "method": method, **nothing}
