"""The incrementally ordered queue against a full sort."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.ordering.kv_memory import PlainMemory
from engine_adapter.ordering.ordered_queue import Key, OrderedQueue
from engine_adapter.ordering.ordering import Ordering
from store.records import EngineRules, Gate, IndexTable, Settings

CHANGES = ("append", "appendleft", "extend", "extendleft", "popleft", "pop", "remove", "remove_all", "clear", "rekey")


@dataclass(eq=False)
class Request:
    request_id: str
    num_tokens: int = 10
    num_computed_tokens: int = 0
    output_tokens: int = 0

    def count(self) -> int:
        return self.output_tokens


@dataclass
class Model:
    """Requests with keys that may change, and the former keys that the queue receives."""

    keys: dict[str, Key]
    stood: dict[str, Key]

    def new(self, value: float) -> Request:
        request = Request(str(len(self.keys)))
        self.keys[request.request_id] = (0, value, 0.0, len(self.keys))
        return request

    def rekey(self, request: Request, value: float) -> None:
        former = self.keys[request.request_id]
        self.stood.setdefault(request.request_id, former)
        self.keys[request.request_id] = (0, value, 0.0, former[3])

    def key(self, request: Request) -> Key:
        return self.keys[request.request_id]


def change(queue: OrderedQueue[Request], model: Model, kind: str, value: float) -> None:
    place = int(value * 1000) % len(queue) if queue else None
    match kind:
        case "append" | "appendleft":
            getattr(queue, kind)(model.new(value))
        case "extend" | "extendleft":
            getattr(queue, kind)([model.new(value), model.new(-value)])
        case "popleft" | "pop" if queue:
            getattr(queue, kind)()
        case "remove" if place is not None:
            queue.remove(queue[place])
        case "remove_all":
            queue.remove_all([*list(queue)[: place or 0 : 3], Request("elsewhere")])
        case "rekey" if place is not None:
            model.rekey(queue[place], value)
        case "clear" if value > 0.9:
            queue.clear()


@given(
    st.lists(st.floats(0, 1), max_size=80),
    st.lists(st.lists(st.tuples(st.sampled_from(CHANGES), st.floats(0, 1)), max_size=6), max_size=8),
)
def test_whatever_an_engine_does_the_queue_settles_into_its_order(
    values: list[float], rounds: list[list[tuple[str, float]]]
) -> None:
    """After any changes in any number of rounds the queue equals a full sort; no request is lost."""
    model = Model({}, {})
    queue = OrderedQueue(sorted([model.new(value) for value in values], key=model.key))
    for changes in rounds:
        for kind, value in changes:
            change(queue, model, kind, value)
        expected = sorted(queue, key=model.key)
        queue.settle(model.key, model.stood)
        model.stood.clear()
        assert list(queue) == expected


def test_a_key_function_that_raises_leaves_the_queue_unchanged() -> None:
    """A policy error must not lose a request of the engine."""
    model = Model({}, {})
    queue = OrderedQueue(model.new(float(number)) for number in range(40))
    queue.append(Request("stranger"))
    before = list(queue)
    with pytest.raises(KeyError):
        queue.settle(model.key, {})
    assert list(queue) == before


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from(("table", "attain", "swap", "finish"))), max_size=30),
)
def test_a_kept_queue_gives_the_plans_of_a_fresh_one(
    requests: list[tuple[float, float]], events: list[tuple[int, str]]
) -> None:
    """An ordering with an incremental queue and one that sorts in every step make the same plans."""
    kept, fresh = _ordering(), _ordering()
    everybody = [Request(str(number)) for number in range(len(requests))]
    for ordering in (kept, fresh):
        for request, (arrival_s, index_s) in zip(everybody, requests, strict=True):
            ordering.track(request.request_id, priority=0, arrival_s=arrival_s, count=request.count)
            ordering.put(_table(request.request_id, index_s))
    queue, running = OrderedQueue[Request](), []
    queue.extend(everybody)
    for number, (place, event) in enumerate(events):
        _happen(event, place, number, queue, running, (kept, fresh))
        expected = fresh.plan(0.0, waiting=list(queue), running=list(running), memory=PlainMemory(place, 16))
        plan = kept.plan(0.0, waiting=queue, running=list(running), memory=PlainMemory(place, 16))
        assert list(plan.waiting) == expected.waiting
        assert (plan.running, plan.admission_limit, plan.reserved_blocks) == (
            expected.running,
            expected.admission_limit,
            expected.reserved_blocks,
        )
        running = plan.running


def _ordering() -> Ordering:
    ordering = Ordering(16, 8)
    rules = EngineRules(gate=Gate(horizon_tokens=32), boost_per_s=0.1)
    ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=rules))
    ordering.put(_table(None, 50.0))
    return ordering


def _table(request_id: str | None, index_s: float) -> IndexTable:
    return IndexTable(
        request_id=request_id, attained_tokens=(0, 5), index_s=(index_s, index_s / 2), growth_tokens=(8.0, 4.0)
    )


def _happen(  # noqa: PLR0917 - an event and everything that it may touch
    event: str,
    place: int,
    number: int,
    queue: OrderedQueue[Request],
    running: list[Request],
    orderings: tuple[Ordering, Ordering],
) -> None:
    """A new table, tokens, a preemption together with an admission, or an end."""
    everybody = [*queue, *running]
    if not everybody:
        return
    request = everybody[place % len(everybody)]
    if event == "swap":
        if running:
            queue.appendleft(running.pop())
        running.append(queue.popleft())
    elif event == "finish":
        (running if request in running else queue).remove(request)
    elif event == "attain" and request in running:
        request.output_tokens += place
    for ordering in orderings:
        if event == "table":
            ordering.put(_table(request.request_id, float(number)))
        elif event == "attain":
            ordering.advance(place)
        elif event == "finish":
            ordering.forget(request.request_id)
