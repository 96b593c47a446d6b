"""Whether a finished request met its targets, and why not; and the targets that are assumed where nothing was promised.

The view `service_levels` of the history says the same in SQL; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from store.entries import Promised
from store.formatting import span
from store.records import Finished, FinishReason, Targets

DEFAULT_TARGETS = Targets(ttft_s=2.0, tpot_s=0.1)
"""Targets of a request that is in no class and brings none: they tell how the server feels before anybody configured one."""

DEFAULT_OBJECTIVE = 0.95
"""Share of the requests outside all classes that is to meet its targets."""

NOT_CONFIGURED = "default (not configured)"
"""Class of the requests that are in none and bring no targets."""

OWN_TARGETS = "own targets"
"""Class of the requests that are in none and bring targets."""

NO_TENANT = "none"
"""Tenant of the requests that name none, where no shares are kept."""

Target: TypeAlias = Literal["ttft", "tpot", "e2e"]
"""ttft: time to first token; tpot: time per output token after the first; e2e: time from arrival to the last token."""

TARGETS: tuple[Target, ...] = ("ttft", "tpot", "e2e")

Cause: TypeAlias = Literal["queued", "prefill", "paced", "preempted", "too_long", "shed", "failed"]
"""Why a request missed a target.

``shed``: it was ended before it was served, as its client had asked for; ``failed``: it ended with an error;
``queued``: it would have met the target without its time in the queue; ``prefill``: computing its prompt alone took
longer than its TTFT target; ``paced``: its tokens came too slowly; ``preempted``: it would have met the target without
the longest pause after a preemption; ``too_long``: its answer took longer than its end-to-end target without the queue.
"""

CAUSES: dict[Cause, str] = {
    "queued": "queued",
    "prefill": "prompt too long",
    "paced": "paced",
    "preempted": "preempted",
    "too_long": "too long anyway",
    "shed": "shed",
    "failed": "failed",
}
"""In words, the order in which they are shown."""

MEANINGS: dict[Cause, str] = {
    "queued": "without its time in the queue it would have met the target",
    "prefill": "computing its prompt alone took longer than its TTFT target",
    "paced": "its tokens came too slowly",
    "preempted": "without the longest pause after a preemption it would have met the target",
    "too_long": "even without the queue its answer took longer than its end-to-end target",
    "shed": "it was ended before it was served, as its client had asked for",
    "failed": "it ended with an error",
}
"""Each as a sentence about a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What happened to a finished request; moments are Unix seconds."""

    arrival_s: float
    finished_s: float
    reason: FinishReason
    output_tokens: int
    scheduled_s: float | None = None
    first_token_s: float | None = None
    preemptions: int = 0
    itl_max_s: float | None = None
    shed: str | None = None

    @property
    def counts(self) -> bool:
        """Whether it is judged at all: not one whose client left before its first token."""
        return self.shed is not None or self.reason != "abort" or self.first_token_s is not None

    @property
    def lost(self) -> bool:
        """Whether it missed all its targets, whatever its times."""
        return self.shed is not None or self.reason == "error"

    @property
    def ttft_s(self) -> float:
        """Time to first token; up to the end if there was none."""
        return (self.finished_s if self.first_token_s is None else self.first_token_s) - self.arrival_s

    @property
    def queue_s(self) -> float:
        """Time before its first step; up to its first token if that step is not known."""
        return self.ttft_s if self.scheduled_s is None else self.scheduled_s - self.arrival_s

    @property
    def decode_s(self) -> float:
        """Time from the first to the last token."""
        return 0.0 if self.first_token_s is None else self.finished_s - self.first_token_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None with fewer than two."""
        if self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def stall_s(self) -> float:
        """The longest pause that preemption can have caused."""
        if not self.preemptions:
            return 0.0
        return self.decode_s if self.itl_max_s is None else self.itl_max_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel:
    """What was promised to a request, with defaults where that is nothing."""

    service_class: str = NOT_CONFIGURED
    targets: Targets = DEFAULT_TARGETS
    objective: float = DEFAULT_OBJECTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether a request met each target; None for one that it does not have, or if it is not counted."""

    ttft: bool | None = None
    tpot: bool | None = None
    e2e: bool | None = None
    met: bool | None = None
    """Whether it met all that it has."""
    cause: Cause | None = None
    """Why it did not."""


def service_level(service_class: str | None, targets: Targets | None, objective: float | None = None) -> ServiceLevel:
    """The targets in force for a request of a class, or of none, with these targets, or none.

    >>> service_level(None, None).service_class
    'default (not configured)'
    """
    if service_class is None and targets is None:
        return ServiceLevel()
    return ServiceLevel(
        service_class=OWN_TARGETS if service_class is None else service_class,
        targets=targets or Targets(),
        objective=DEFAULT_OBJECTIVE if objective is None else objective,
    )


def level_of(promised: Promised | None) -> ServiceLevel:
    """The targets in force for a request, by what is recorded of it."""
    if promised is None:
        return ServiceLevel()
    return service_level(promised.service_class, promised.targets, promised.objective)


def targets_in_words(targets: Targets) -> str:
    """Targets in one line; empty for none.

    >>> targets_in_words(Targets(ttft_s=2.0, tpot_s=0.1)), targets_in_words(Targets(e2e_s=3600.0))
    ('TTFT 2 s, TPOT 100 ms', 'end to end 1 h')
    """
    named = (("TTFT", targets.ttft_s), ("TPOT", targets.tpot_s), ("end to end", targets.e2e_s))
    return ", ".join(f"{name} {span(seconds)}" for name, seconds in named if seconds is not None)


def course_of(finished: Finished) -> Course:
    """What happened to a request, by the last fact about it."""
    return Course(
        arrival_s=finished.arrival_s,
        finished_s=finished.time_s,
        reason=finished.reason,
        output_tokens=finished.output_tokens,
        scheduled_s=finished.scheduled_s,
        first_token_s=finished.first_token_s,
        preemptions=finished.preemptions,
        itl_max_s=finished.itl_max_s,
        shed=finished.shed,
    )


def judge(course: Course, targets: Targets) -> Judgement:
    """Whether a request met its targets.

    >>> served = Course(arrival_s=0.0, scheduled_s=2.5, first_token_s=3.0, finished_s=4.0, reason="stop", output_tokens=11)
    >>> judge(served, DEFAULT_TARGETS)
    Judgement(ttft=False, tpot=True, e2e=None, met=False, cause='queued')
    """
    if targets == Targets() or not course.counts:
        return Judgement()
    ttft = _met(course.ttft_s, targets.ttft_s, course)
    tpot = _met(course.tpot_s, targets.tpot_s, course)
    e2e = _met(course.finished_s - course.arrival_s, targets.e2e_s, course)
    if False not in {ttft, tpot, e2e}:
        return Judgement(ttft=ttft, tpot=tpot, e2e=e2e, met=True)
    cause = _cause(course, targets, ttft=ttft, tpot=tpot)
    return Judgement(ttft=ttft, tpot=tpot, e2e=e2e, met=False, cause=cause)


def _met(took_s: float | None, target_s: float | None, course: Course) -> bool | None:
    if target_s is None:
        return None
    if course.lost:
        return False
    return None if took_s is None else took_s <= target_s


def _cause(course: Course, targets: Targets, *, ttft: bool | None, tpot: bool | None) -> Cause:
    """The cause of the first target that was missed, in the order TTFT, TPOT, end to end."""
    if course.lost:
        return "failed" if course.shed is None else "shed"
    if ttft is False:
        assert targets.ttft_s is not None
        return "prefill" if course.ttft_s - course.queue_s > targets.ttft_s else "queued"
    if tpot is False:
        assert targets.tpot_s is not None
        paced = course.decode_s - course.stall_s > targets.tpot_s * (course.output_tokens - 1)
        return "preempted" if course.preemptions and not paced else "paced"
    assert targets.e2e_s is not None
    served_s = course.finished_s - course.arrival_s - course.queue_s
    if served_s <= targets.e2e_s:
        return "queued"
    return "too_long" if served_s - course.stall_s > targets.e2e_s else "preempted"
