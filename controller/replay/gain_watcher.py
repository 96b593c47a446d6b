"""Asks every now and then, in a process of low priority, what the last requests would have taken under FCFS.

The work is that of `controller.replay.gain`; it takes seconds of a core, so it runs neither in the control loop nor in its
process.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from controller.config import PolicySection
from controller.core.step_time import StepSample
from controller.monitoring.live_state import QUANTILES, EngineView, FinishedView, Live, RequestView
from controller.replay.gain_worker import GainTask
from controller.replay.recorded_run import EngineSizes, RecordedRequest, RecordedRun, gap_between_steps_s
from engine_adapter.serving.processes import die_with_parent
from store.http_api import Gain, GainView
from store.records import Snapshot

log = logging.getLogger(__name__)

WARMING_UP = "the latest finished requests are replayed as soon as there are enough of them"


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
        self.answer = GainView(status="warming up", reason=WARMING_UP)

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
        """What the busiest engine did lately; None while it is too little."""
        live_snapshot = self._live.live_snapshot
        if live_snapshot is None or not live_snapshot.engines:
            return None
        ended = [view for view in self._live.finished(0.0) if view.finished.output_tokens > 0]
        engine = max(live_snapshot.engines, key=lambda e: sum(view.engine_id == e.hello.engine_id for view in ended))
        mine = [view for view in ended if view.engine_id == engine.hello.engine_id]
        if len(mine) < self._limits.fewest_requests:
            return None
        clusters = {view.finished.request_id: view.cluster for view in mine if view.cluster is not None}
        return GainTask(policy=self._policy.model_dump(), run=self._run_of(engine, mine), clusters=clusters)

    def _run_of(self, engine: EngineView, ended: list[FinishedView]) -> RecordedRun:
        """The latest requests that ended, by their arrival, and all that were in the engine beside them."""
        hello = engine.hello
        by_arrival = sorted(ended, key=lambda view: view.finished.arrival_s)
        earlier, latest = by_arrival[: -self._limits.requests], by_arrival[-self._limits.requests :]
        since_s = latest[0].finished.arrival_s
        beside = [_ended(view, counted=False) for view in earlier if view.finished.time_s > since_s]
        requests = [*beside, *(_ended(view, counted=True) for view in latest)]
        first_s = min(request.arrival_s for request in requests)
        snapshots = [s for engine_id, s in self._live.snapshots(first_s) if engine_id == hello.engine_id]
        modes = Counter(snapshot.mode for snapshot in snapshots)
        return RecordedRun(
            engine_id=hello.engine_id,
            session_id=hello.session_id,
            model=hello.model,
            sizes=msgspec.convert(hello, EngineSizes, from_attributes=True),
            requests=(*requests, *map(_unfinished, engine.requests)),
            samples=tuple(_sample(snapshot) for snapshot in snapshots[-self._limits.samples :]),
            gap_s=gap_between_steps_s(snapshots),
            modes={mode: count / len(snapshots) for mode, count in modes.items()},
        )

    def _compute(self, task: GainTask) -> GainView:
        """Have the worker compare; a failure becomes the reason of the answer and is never raised."""
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "controller.replay.gain_worker"],
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
            last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            if not self._stopping.is_set():
                log.warning("comparison with first come, first served failed: %s", last)
            return _unavailable(f"the replay failed: {last}")
        gain = msgspec.json.decode(out, type=Gain | None)
        if gain is None:
            return GainView(status="warming up", reason="too few finished requests have a prediction")
        return GainView(status="ready", computed_s=self._clock(), gain=gain)


def _ended(view: FinishedView, *, counted: bool) -> RecordedRequest:
    fact = view.finished
    return RecordedRequest(
        request_id=fact.request_id,
        arrival_s=fact.arrival_s,
        prompt_tokens=fact.prompt_tokens,
        output_tokens=fact.output_tokens,
        max_tokens=fact.max_tokens,
        priority=view.priority,
        scheduled_s=fact.scheduled_s,
        first_token_s=fact.first_token_s,
        finished_s=fact.time_s,
        cached_prompt_tokens=fact.cached_prompt_tokens,
        preemptions=fact.preemptions,
        recomputed_tokens=fact.recomputed_tokens,
        quantiles=view.quantiles,
        left=fact.reason in {"abort", "error"},
        counted=counted and fact.reason in {"stop", "length"},
    )


def _unfinished(view: RequestView) -> RecordedRequest:
    arrived = view.arrived
    return RecordedRequest(
        request_id=arrived.request_id,
        arrival_s=arrived.arrival_s,
        prompt_tokens=arrived.prompt_tokens,
        output_tokens=view.attained_tokens,
        max_tokens=arrived.max_tokens,
        priority=arrived.priority,
        quantiles=tuple(zip(QUANTILES, view.predicted.quantiles(QUANTILES), strict=True)),
        counted=False,
    )


def _sample(snapshot: Snapshot) -> StepSample:
    return StepSample(
        steps=snapshot.steps,
        step_s=snapshot.step_s,
        prefill_tokens=snapshot.prefill_tokens,
        decode_tokens=snapshot.decode_tokens,
        kv_tokens_read=snapshot.kv_tokens_read,
    )


def _unavailable(reason: str) -> GainView:
    return GainView(status="unavailable", reason=reason)
