"""When a learner tries to form something anew from what it has seen, and when it tries again after a failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

AGAIN_ANSWERS = 20
"""Answers after a failed attempt before the next one."""


class Attempts:
    """Attempts at given numbers of answers; one that fails is made again every `AGAIN_ANSWERS` answers.

    >>> attempts = Attempts((60, 200))
    >>> attempts.is_due(59), attempts.is_due(60), attempts.is_due(80)
    (False, True, False)
    """

    def __init__(self, marks: Sequence[int]) -> None:
        self._marks = frozenset(marks)
        self._failed = False

    def is_due(self, answers: int) -> bool:
        """Whether it is time for an attempt."""
        return answers in self._marks or (self._failed and answers % AGAIN_ANSWERS == 0)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Make an attempt; what it raises is raised, and another one follows."""
        self._failed = True
        yield
        self._failed = False
