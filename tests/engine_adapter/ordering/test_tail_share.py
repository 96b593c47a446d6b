import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.ordering.kv_memory import PlainMemory
from engine_adapter.ordering.ordering import LAST_CLASS, Ordering
from engine_adapter.ordering.running_order import Tracked
from engine_adapter.ordering.tail_share import TailShare, boost_s
from store.records import EngineRules, Gate, IndexTable, Settings

BLOCK = 16
BLOCKS = 500


@dataclass
class Request:
    request_id: str
    num_tokens: int
    num_computed_tokens: int
    left_steps: int
    arrival_step: int


@given(st.floats(1e-6, 1e4), st.floats(1e-6, 1e4), st.floats(1e-4, 10.0))
def test_the_boost_falls_with_the_index(one_s: float, other_s: float, rate: float) -> None:
    """A smaller request may overtake by more; the boost is never negative."""
    small, large = sorted((one_s, other_s))
    assert boost_s(small, rate) >= boost_s(large, rate) >= 0.0


class Overload:
    """An engine that serves one token per running request and step, under twice the load that it can bear.

    One answer in twenty is fifty times as long as the others; the index is the true cost.
    """

    def __init__(self, tail_share: float) -> None:
        self.ordering = Ordering(BLOCK, 1000)
        rules = EngineRules(gate=Gate(horizon_tokens=32), boost_per_s=0.2, victims="longest", tail_share=tail_share)
        self.ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=rules))
        self.chance = random.Random(5)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.waits: dict[str, list[int]] = {"short": [], "long": []}
        self.held = self.held_promoted = 0
        self.step_number = 0

    def arrive(self) -> None:
        """Let a request arrive."""
        kind = "long" if self.chance.random() < 0.05 else "short"
        steps = 1000 if kind == "long" else 20
        name = f"{kind}-{self.step_number}-{len(self.waiting)}"
        self.ordering.track(name, priority=0, arrival_s=0.03 * self.step_number)
        self.ordering.put(
            IndexTable(
                request_id=name, attained_tokens=(0,), index_s=(steps * 0.03,), growth_tokens=(min(32.0, steps),)
            )
        )
        self.waiting.append(Request(name, 100, 0, steps, self.step_number))

    def step(self) -> None:
        """Plan and carry out a step."""
        self.step_number += 1
        free = BLOCKS - sum(-(-request.num_tokens // BLOCK) for request in self.running)
        plan = self.ordering.plan(
            0.03 * self.step_number,
            waiting=self.waiting,
            running=self.running,
            memory=PlainMemory(max(0, free), BLOCK),
        )
        started = plan.waiting[: max(0, (plan.admission_limit or 0) - len(plan.running))]
        for request in started:
            self.waits[request.request_id.split("-")[0]].append(self.step_number - request.arrival_step)
        if self.waiting:
            self.held += sum(request.num_computed_tokens for request in self.running)
            self.held_promoted += sum(
                request.num_computed_tokens for request in self.running if self.ordering.is_promoted(request.request_id)
            )
        self.waiting = list(plan.waiting)[len(started) :]
        self.running = [*plan.running, *started]
        for request in self.running:
            request.num_computed_tokens = request.num_tokens
            request.num_tokens += 1
            request.left_steps -= 1
        for request in [request for request in self.running if not request.left_steps]:
            self.running.remove(request)
            self.ordering.forget(request.request_id)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_who_is_served_out_of_turn_holds_the_share_of_memory_and_no_more(share: float) -> None:
    """In a lasting overload the promoted hold about the share, beyond it at most what a single one holds."""
    engine = Overload(share)
    for _ in range(12_000):
        if engine.chance.random() < 0.4:
            engine.arrive()
        engine.step()
    assert engine.ordering.promoted > 10
    assert 0.5 * share < engine.held_promoted / engine.held < share + 0.1


def test_every_wait_ends_in_an_overload_that_would_starve_long_answers() -> None:
    """While short answers alone fill the engine, by the index no long one starts again, by the share they go on to."""
    served = {}
    for share in (0.0, 0.2):
        engine = Overload(share)
        for _ in range(12_000):
            if engine.chance.random() < 0.5:
                engine.arrive()
            engine.step()
        late = [wait for wait in engine.waits["long"] if wait > 200]
        served[share] = len(late), len(engine.waits["short"])
    assert served[0.2][0] > served[0.0][0] + 10
    assert served[0.2][1] > 0.7 * served[0.0][1]


def test_a_share_of_the_whole_engine_is_the_boost_order() -> None:
    """With share 1 requests go by arrival less boost, with share 0 by the index."""
    orders = {}
    for share in (0.0, 1.0):
        ordering = Ordering(BLOCK, 1000)
        rules = EngineRules(boost_per_s=0.05, tail_share=share)
        ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=rules))
        for name, arrival_s, index_s in (("old", 0.0, 30.0), ("new", 100.0, 1.0), ("newest", 101.0, 25.0)):
            ordering.track(name, priority=0, arrival_s=arrival_s)
            ordering.put(IndexTable(request_id=name, attained_tokens=(0,), index_s=(index_s,), growth_tokens=(0.0,)))
        queue = [Request(name, 16, 0, 1, 0) for name in ("old", "new", "newest")]
        plan = ordering.plan(102.0, waiting=queue, running=[], memory=PlainMemory(9, BLOCK))
        orders[share] = [request.request_id for request in plan.waiting]
    assert orders == {0.0: ["new", "newest", "old"], 1.0: ["old", "new", "newest"]}


def test_nobody_of_a_lower_class_is_served_out_of_turn() -> None:
    """The share works within the class that stands first."""
    ordering = Ordering(BLOCK, 1000)
    rules = EngineRules(gate=Gate(horizon_tokens=32), tail_share=0.5)
    ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=rules))
    for name, priority, arrival_s, index_s in (("low", 1, 0.0, 1.0), ("high", 0, 5.0, 9.0), ("short", 0, 6.0, 1.0)):
        ordering.track(name, priority=priority, arrival_s=arrival_s)
        ordering.put(IndexTable(request_id=name, attained_tokens=(0,), index_s=(index_s,), growth_tokens=(0.0,)))
    queue = [Request(name, 160, 0, 1, 0) for name in ("low", "high", "short")]
    for _ in range(20):
        plan = ordering.plan(7.0, waiting=queue, running=[], memory=PlainMemory(0, BLOCK))
    assert [request.request_id for request in plan.waiting] == ["high", "short", "low"]
    assert ordering.promoted == 1


def entries(*boosted_s: float) -> list[Tracked]:
    """Waiting requests with these places in the boost order."""
    tracked = [Tracked(str(number), 0, 0.0, number, 0, None) for number in range(len(boosted_s))]
    for entry, place_s in zip(tracked, boosted_s, strict=True):
        entry.boosted_s = place_s
    return tracked


def test_requests_that_can_never_be_served_are_not_promoted_and_bar_nobody() -> None:
    """One becomes impossible while it is the promoted one that waits; another waits with it: the rule goes on."""
    tail = TailShare()
    giant, other, old, young = waiting = entries(0.0, 1.0, 2.0, 9.0)
    for entry in waiting:
        tail.place(entry)
    assert tail.choose(0.5, first=young, running=[]) is giant
    for entry in (giant, other):
        entry.impossible = True
        entry.key = (LAST_CLASS, 0.0, 0.0, entry.serial)
        tail.place(entry)
    assert tail.choose(0.5, first=young, running=[]) is old
    tail.forget(old)
    tail.forget(young)
    assert tail.choose(0.5, first=other, running=[]) is None
    assert tail.promoted == 2


@given(
    st.lists(st.tuples(st.sampled_from(["place", "start", "wait", "end", "look"]), st.integers(0, 19), st.floats(0, 9)))
)
def test_the_first_of_the_boost_order_is_chosen(events: list[tuple[str, int, float]]) -> None:
    """Brute force over the waiting requests, after any changes; obsolete places stay bounded."""
    tail = TailShare()
    tracked = dict(enumerate(entries(*map(float, range(20)))))
    for entry in tracked.values():
        tail.place(entry)
    head = entries(100.0)[0]
    for event, number, place_s in [*events, ("look", 0, 0.0)]:
        entry = tracked.get(number)
        if event == "look":
            waiting = [entry for entry in tracked.values() if entry.running is None]
            first = min(waiting, key=lambda entry: (entry.boosted_s, entry.serial), default=None)
            assert tail.choose(1.0, first=head, running=[]) is first
            if first is not None:
                first.promoted = False
                tail._chosen.remove(first)
                tail._next = None
        elif entry is None:
            continue
        elif event == "place" and entry.running is None:
            entry.boosted_s = place_s
            tail.place(entry)
        elif event == "start":
            entry.running = object()
        elif event == "wait":
            entry.running = None
            tail.place(entry)
        elif event == "end":
            tail.forget(tracked.pop(number))
        assert len(tail._order) <= 2 * 20 + 64
