"""Does the runs of a benchmark in one process or in several at once, and reports their common progress."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_int
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeAlias

from controller.benchmark.scheduling.run import PolicyRun, RunSpec, run_policy
from store.errors import EngineError

Served: TypeAlias = Callable[[int], None]
"""Receives the number of requests served so far in all runs together."""

Done: TypeAlias = Callable[[Mapping[RunSpec, PolicyRun]], None]
"""Receives all runs done so far, whenever more are."""

LOOK_EVERY_S = 0.2


class WorkerPool:
    """Does runs; leaving the context by an error or Ctrl-C stops every process that it started.

    ``most_runs`` bounds the number of runs of the pool; ``timer`` gives the seconds for ``wall_s``.
    """

    def __init__(self, *, processes: int, most_runs: int, timer: Callable[[], float], served: Served) -> None:
        assert processes >= 1
        self._timer = timer
        self._served = served
        self._started = 0
        self._done: dict[RunSpec, PolicyRun] = {}
        context = multiprocessing.get_context("spawn")
        self._board: Any = context.RawArray(c_int, most_runs)
        self._stop: Any = context.RawValue(c_int, 0)
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1 and most_runs > 1:
            self._pool = ProcessPoolExecutor(
                min(processes, most_runs),
                mp_context=context,
                initializer=_start_worker,
                initargs=(self._board, self._stop, os.getpid()),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.value = kind is not None
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, specs: Iterable[RunSpec], on_done: Done = lambda _done: None) -> dict[RunSpec, PolicyRun]:
        """Do each of these runs once, in about this order; runs that were done before are not repeated."""
        wanted = list(dict.fromkeys(specs))
        new = [spec for spec in wanted if spec not in self._done]
        if self._pool is None:
            self._run_here(new, on_done)
        else:
            self._run_in(self._pool, new, on_done)
        return {spec: self._done[spec] for spec in wanted}

    def _run_here(self, specs: list[RunSpec], on_done: Done) -> None:
        for spec in specs:
            number = self._next_number()

            def report(served: int, number: int = number) -> None:
                self._board[number] = served
                self._report()

            self._done[spec] = run_policy(spec, self._timer, report)
            on_done(self._done)

    def _run_in(self, pool: ProcessPoolExecutor, specs: list[RunSpec], on_done: Done) -> None:
        runs: dict[Future[PolicyRun], RunSpec] = {
            pool.submit(_work, self._next_number(), spec, self._timer): spec for spec in specs
        }
        waiting = set(runs)
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
                for future in ended:
                    self._done[runs[future]] = future.result()
                self._report()
                if ended:
                    on_done(self._done)
        except BrokenProcessPool:
            raise EngineError(
                "a process of the benchmark was killed, most likely because memory ran out: lower --processes"
            ) from None

    def _next_number(self) -> int:
        self._started += 1
        return self._started - 1

    def _report(self) -> None:
        self._served(sum(self._board))


_board: Any = None


def _start_worker(board: Any, stop: Any, parent: int) -> None:  # noqa: ANN401 - ctypes' shared values have no better type
    """Share the board with the parent, which alone handles Ctrl-C, and end with it."""
    global _board  # noqa: PLW0603 - a worker's only way to what its parent shares
    _board = board
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_watch, args=(stop, parent), daemon=True).start()


def _watch(stop: Any, parent: int) -> None:  # noqa: ANN401 - as above
    """End this process at once if its result is no longer needed or its parent is gone."""
    while not stop.value and os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)


def _work(number: int, spec: RunSpec, timer: Callable[[], float]) -> PolicyRun:
    def report(served: int) -> None:
        _board[number] = served

    return run_policy(spec, timer, report)
