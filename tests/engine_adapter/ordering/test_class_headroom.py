"""Room that lower classes leave for requests of higher ones that are likely to come."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.ordering.class_headroom import LARGEST_SHARE, MEMORY_S, MOST_CLASSES, ClassHeadroom
from engine_adapter.ordering.kv_memory import PlainMemory
from engine_adapter.ordering.ordering import Ordering
from store.records import EngineRules, Gate, IndexTable, Settings

BLOCK = 16
BLOCKS = 1000


@dataclass
class Request:
    request_id: str
    num_tokens: int = 16 * 30
    num_computed_tokens: int = 0


def served(headroom: ClassHeadroom, priority: int, *, seconds: int, at_once: int, from_s: int = 0) -> None:
    """So many requests of a class are there at once, of 30 blocks each, new ones each second, and then none."""
    for second in range(from_s, from_s + seconds):
        for _ in range(at_once):
            headroom.enter(priority, float(second))
            headroom.started(priority, 30.0)
        headroom.observe(float(second), BLOCKS)
        for _ in range(at_once):
            headroom.leave(priority)


def test_the_room_of_those_that_are_missing_is_left_until_they_stay_away() -> None:
    """As long as the usual number is there nothing is left free; five mean gaps after the last one its room is used again."""
    headroom = ClassHeadroom()
    headroom.enter(5, 0.0)
    served(headroom, 0, seconds=600, at_once=2)
    blocks, slots = headroom.above(5, slots=64)
    assert (blocks, slots) == (pytest.approx(60.0, rel=0.05), pytest.approx(2.0, rel=0.05))
    headroom.enter(0, 600.0)
    assert headroom.above(5, slots=64)[1] == pytest.approx(1.0, rel=0.05)
    headroom.leave(0)
    headroom.observe(602.0, BLOCKS)
    assert headroom.above(5, slots=64)[1] >= 2.0
    headroom.observe(604.0, BLOCKS)
    assert headroom.above(5, slots=64) == (0.0, 0.0)


@given(
    crowds=st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 40), st.integers(1, 60)), max_size=6),
    priority=st.integers(-6, 6),
)
def test_no_more_than_a_share_is_left_and_none_by_the_highest_class(
    crowds: list[tuple[int, int, int]], priority: int
) -> None:
    """Whatever came before, a burst of a higher class costs the lower ones a tenth of the engine at most."""
    headroom, now_s = ClassHeadroom(), 0
    headroom.enter(6, 0.0)
    for crowd, at_once, seconds in crowds:
        served(headroom, crowd, seconds=seconds, at_once=at_once, from_s=now_s)
        now_s += seconds
    blocks, slots = headroom.above(priority, slots=64)
    assert 0.0 <= blocks <= LARGEST_SHARE * BLOCKS
    assert 0.0 <= slots <= LARGEST_SHARE * 64
    assert headroom.above(-6, slots=64) == (0.0, 0.0)


def test_classes_that_clients_make_up_are_bounded() -> None:
    """A thousand classes cost as much as a few, and when they are gone nothing is kept of them."""
    headroom = ClassHeadroom()
    for number in range(1000):
        headroom.enter(number, 0.0)
    headroom.observe(0.0, BLOCKS)
    headroom.observe(1.0, BLOCKS)
    assert len(headroom._usual) == MOST_CLASSES
    for number in range(1000):
        headroom.leave(number)
    for second in range(2, 2 + int(20 * MEMORY_S)):
        headroom.observe(float(second), BLOCKS)
    assert not headroom._usual
    assert not headroom._unfinished


def engine(low: int) -> tuple[Ordering, list[str]]:
    """An engine in which a request of class 0 was nearly always there and has just ended; two of another class wait."""
    ordering = Ordering(BLOCK, 64)
    ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=EngineRules(gate=Gate(horizon_tokens=0))))
    waiting = ["low-1", "low-2"]
    for name in ("runs", *waiting):
        ordering.track(name, priority=low, arrival_s=0.0)
        ordering.put(IndexTable(request_id=name, attained_tokens=(0,), index_s=(1.0,), growth_tokens=(0.0,)))
    for second in range(300):
        ordering.track(f"high-{second}", priority=0, arrival_s=float(second))
        place = [Request(f"high-{second}")]
        plan(ordering, place, free=BLOCKS, now_s=float(second))
        plan(ordering, [], free=BLOCKS, now_s=second + 0.9, running=place)
        ordering.forget(f"high-{second}")
    return ordering, waiting


def plan(
    ordering: Ordering, waiting: list[Request], *, free: int, now_s: float, running: list[Request] | None = None
) -> int:
    """Return how many are admitted beside one of the other class that runs."""
    active = [Request("runs", num_computed_tokens=480), *(running or [])]
    for request in active:
        request.num_computed_tokens = request.num_tokens
    made = ordering.plan(now_s, waiting=waiting, running=active, memory=PlainMemory(free, BLOCK))
    return 0 if made.admission_limit is None else made.admission_limit - len(active)


@pytest.mark.parametrize(("low", "free", "admitted"), [(10, 90, 1), (10, 150, 2), (0, 90, 2), (-1, 90, 2)])
def test_a_place_is_kept_for_the_next_request_of_a_higher_class(low: int, free: int, admitted: int) -> None:
    """Only one of two that would fit is started, unless there is room for both and the next; equals and higher ones both."""
    ordering, names = engine(low)
    assert plan(ordering, [Request(name) for name in names], free=free, now_s=300.0) == admitted


def test_the_kept_place_is_taken_at_once_by_whom_it_was_kept_for() -> None:
    """Nothing is pushed out for it."""
    ordering, _ = engine(10)
    ordering.track("high", priority=0, arrival_s=300.0)
    made = ordering.plan(
        300.0, waiting=[Request("high")], running=[Request("runs", 480, 480)], memory=PlainMemory(31, BLOCK)
    )
    assert (made.admission_limit, made.pushed_out) == (2, [])
