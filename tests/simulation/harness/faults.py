"""Which faults a seed injects, how often, and a count of each that was injected."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import duckdb
from harness.library_calls import LibraryCalls
from harness.timeline import Crash

NETWORK = (
    "frame delayed",
    "frame dropped",
    "frame duplicated",
    "frame reordered",
    "frame garbled",
    "connection cut",
    "buffer full",
)
STRANGERS = ("garbage to controller", "garbage to engine", "other protocol version", "spoiled table", "unknown table")
PROCESSES = (
    "controller killed",
    "controller killed within a turn",
    "controller hung",
    "controller slow",
    "engine killed",
    "engine stopped",
)
CLOCK = ("clock forwards", "clock backwards")
LEARNER = (
    "learner raises in features",
    "learner raises in predict",
    "learner raises in learn",
    "learner raises in prior",
    "learner raises in rebuild",
    "encoder raises",
    "library call raises in learner",
)
DISK = ("disk full", "disk error", "disk read-only", "disk error after the write", "library call raises in store")
DAMAGE = ("fact damaged",)
OPERATOR = ("mode switched", "client gone")
KINDS = (*NETWORK, *STRANGERS, *PROCESSES, *CLOCK, *LEARNER, *DISK, *OPERATOR, *DAMAGE)

USUAL_RATES = {
    "frame delayed": 0.2,
    "frame dropped": 0.03,
    "frame duplicated": 0.03,
    "frame reordered": 0.05,
    "frame garbled": 0.02,
    "connection cut": 0.15,
    "buffer full": 0.03,
    "garbage to controller": 0.5,
    "garbage to engine": 0.5,
    "other protocol version": 0.5,
    "spoiled table": 0.5,
    "unknown table": 0.5,
    "controller killed": 0.15,
    "controller killed within a turn": 0.15,
    "controller hung": 0.1,
    "controller slow": 0.2,
    "engine killed": 0.05,
    "engine stopped": 0.1,
    "clock forwards": 0.1,
    "clock backwards": 0.1,
    "learner raises in features": 0.03,
    "learner raises in predict": 0.03,
    "learner raises in learn": 0.03,
    "learner raises in prior": 0.03,
    "learner raises in rebuild": 0.02,
    "encoder raises": 0.1,
    "library call raises in learner": 0.05,
    "disk full": 0.05,
    "disk error": 0.05,
    "disk read-only": 0.03,
    "disk error after the write": 0.05,
    "library call raises in store": 0.2,
    "mode switched": 0.1,
    "client gone": 0.3,
    "fact damaged": 0.05,
}
"""Chance for each frame, call or write where the fault can strike; for what strikes by itself, times in a second."""

CALLS = 150
"""Of so many library calls one fails, if there are as many."""

SPONTANEOUS = (*STRANGERS, *PROCESSES, *CLOCK, *OPERATOR, "connection cut")
"""Faults that strike by themselves."""


class LearnerError(ArithmeticError):
    """What a broken learner raises."""


@dataclass(eq=False)
class Faults:
    """Decides, by the seed alone, whether a fault strikes here and now.

    As in swarm testing each seed has a few kinds of faults only, with rates of its own: rare combinations then
    come more often than if all struck always.
    """

    seed: int
    focus: frozenset[str] = frozenset()
    """Kinds of faults to inject, often, in place of those that the seed draws."""
    active: bool = True
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        chance = self.stream("kinds")
        share = chance.choice([0.05, 0.1, 0.25, 0.5, 0.8])
        self.rates = {
            kind: rate * chance.choice([0.3, 1.0, 3.0]) for kind, rate in USUAL_RATES.items() if chance.random() < share
        }
        if self.focus:
            self.rates = {kind: 3.0 * USUAL_RATES[kind] for kind in sorted(self.focus)}
        self._chance = self.stream("faults")
        self._within = self.stream("library calls")
        self.crash_within: int | None = None
        """Effects of the controller until it dies; None while it is not to."""

    def stream(self, name: str) -> random.Random:
        """A source of chance of its own for each part, so that one more draw here changes nothing there."""
        return random.Random(f"{self.seed}-{name}")

    def strikes(self, kind: str) -> bool:
        """Whether a fault strikes; counted if it does."""
        rate = self.rates.get(kind)
        if rate is None or not self.active or self._chance.random() >= rate:
            return False
        self.count(kind)
        return True

    def count(self, kind: str) -> None:
        """A fault was injected."""
        assert kind in KINDS, kind
        self.injected[kind] += 1

    def effect(self) -> None:
        """The controller is about to touch the world; it may die before it does."""
        if self.crash_within is not None:
            self.crash_within -= 1
            if self.crash_within <= 0:
                self.crash_within = None
                self.count("controller killed within a turn")
                raise Crash

    def disk(self) -> None:
        """The disk is about to be written; raises what an operating system or DuckDB would."""
        self.effect()
        if self.strikes("disk full"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.strikes("disk error"):
            raise duckdb.IOException("IO Error: Could not write file: Input/output error")
        if self.strikes("disk read-only"):
            raise OSError(errno.EROFS, "Read-only file system")

    def disk_after(self) -> None:
        """The disk was written, and what wrote it may not learn of it."""
        if self.strikes("disk error after the write"):
            raise duckdb.IOException("IO Error: Could not synchronise file: Input/output error")
        self.effect()

    @contextmanager
    def within(self, room: str, kind: str, error: Callable[[], Exception]) -> Iterator[None]:
        """Let one of the library calls that a room makes in the context raise, if the fault strikes."""
        rate = self.rates.get(kind)
        if rate is None or not self.active or self._within.random() >= rate:
            yield
            return
        calls = LibraryCalls((room,), self._within.randrange(CALLS), error)
        try:
            with calls.armed():
                yield
        finally:
            if calls.struck is not None:
                self.count(kind)

    def learner(self, part: str) -> None:
        """The learner is about to be used."""
        if self.strikes(f"learner raises in {part}"):
            raise LearnerError(part)
