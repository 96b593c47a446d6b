"""Tries every behaviour of vLLM that the plugin relies on, within a bounded time, and says which does not hold.

Nothing of the engine is touched: each behaviour has a scheduler of its own (`engine_adapter.vllm.probe.trial`). All of
them take some tens of milliseconds.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from engine_adapter.vllm import contract
from engine_adapter.vllm.probe.behaviours import BEHAVIOURS, MakeTrial
from engine_adapter.vllm.probe.trial import Trial
from store.bounds import bounded_text

LIMIT_S = 5.0
"""Longest time in seconds that an engine's start waits for the probe."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of the behaviours: whether the plugin may steer, and a line that says so or why not."""

    steers: bool
    text: str


def try_behaviours(
    vllm_config: VllmConfig, scheduler_class: type[AsyncScheduler] = AsyncScheduler, *, limit_s: float = LIMIT_S
) -> Verdict:
    """Try all behaviours in a thread that is given up after ``limit_s`` seconds; never raises.

    Args:
        vllm_config: The engine's configuration, which is not changed.
        scheduler_class: The scheduler to try.
        limit_s: Time in seconds after which what has no answer counts as broken.
    """
    trials = _Trials(scheduler_class, vllm_config)
    thread = threading.Thread(target=trials.run, name="sagesched-probe", daemon=True)
    thread.start()
    thread.join(limit_s)
    broken = list(trials.broken)
    if not trials.ended:
        broken.append(f"{trials.at}: no answer within {limit_s:g} s")
        _give_up(thread)
    if broken:
        return Verdict(steers=False, text=bounded_text(contract.verdict(broken)))
    return Verdict(steers=True, text=f"all names and {len(BEHAVIOURS)} behaviours hold")


@dataclass(slots=True)
class _Trials:
    """The behaviours under trial, one after another, and what was found so far."""

    scheduler_class: type[AsyncScheduler]
    vllm_config: VllmConfig
    broken: list[str] = field(default_factory=list)
    at: str = "no behaviour yet"
    ended: bool = False

    def run(self) -> None:
        """Try each behaviour, until the thread is given up."""
        try:
            for number, behaviour in BEHAVIOURS.items():
                self.at = f"behaviour {number}, {str(behaviour.__doc__).rstrip('.')!r}"
                complaint = self._complaint(behaviour)
                if complaint is not None:
                    self.broken.append(f"{self.at}{complaint}")
            self.ended = True
        except _GivenUpError:
            return

    def _complaint(self, behaviour: Callable[[MakeTrial], bool]) -> str | None:
        try:
            holds = behaviour(partial(Trial, self.scheduler_class, self.vllm_config))
        except _GivenUpError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever vLLM raises, its behaviour is not the one relied on
            return f": {type(error).__name__}: {error}"
        return None if holds else ""


class _GivenUpError(BaseException):
    """Ends a thread from outside; no handler of ``Exception`` may stop it."""


def _give_up(thread: threading.Thread) -> None:
    """Raise an error in a thread that computes without end, so that it takes no time from the engine."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_GivenUpError))
