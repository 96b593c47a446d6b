"""The incremental order of running requests equals a fresh one, whatever happens between two steps."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.ordering.running_order import RunningOrder, Tracked
from store.records import Victims


@dataclass(eq=False)
class Request:
    """The attributes of a running request that the order reads."""

    request_id: str
    num_tokens: int
    num_computed_tokens: int

    @property
    def lacks_tokens(self) -> bool:
        """Whether it is in prefill."""
        return self.num_tokens - self.num_computed_tokens > 1


class Engine:
    """Running requests in their order, with their `Tracked` states."""

    def __init__(self) -> None:
        self.known: dict[str, Tracked] = {}
        self.running: list[Request] = []
        self.order = RunningOrder(self.known.__getitem__)

    def start(self, value: int, prompt_tokens: int) -> None:
        """A request starts, of which a chunk of 50 tokens is computed."""
        number = len(self.known)
        name = f"r{number}"
        self.known[name] = Tracked(name, priority=value % 2, arrival_s=0.0, serial=number, count=int)
        self.known[name].key = (value % 2, float(value), 0.0, number)
        self.running.append(Request(name, prompt_tokens, min(prompt_tokens, 50)))

    def step(self) -> None:
        """All compute what they lack, at most 50 tokens, and those that lack nothing get one more."""
        for request in self.running:
            request.num_computed_tokens = min(request.num_tokens, request.num_computed_tokens + 50)
            request.num_tokens += request.num_computed_tokens == request.num_tokens

    def expected(self, rule: Victims) -> list[Request]:
        """Brute force: classes, then who decodes, then the rule."""

        def place(request: Request) -> tuple[int, bool, object]:
            entry = self.known[request.request_id]
            dearest = (-request.num_computed_tokens, entry.serial)
            return entry.priority, request.lacks_tokens, entry.key if rule == "last" else dearest

        return sorted(self.running, key=place)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["start", "end", "key", "step", "plan", "plan"]), st.integers(0, 200)), max_size=60
)


@given(events=EVENTS, rule=st.sampled_from(["last", "cheapest"]))
def test_the_incremental_order_equals_a_full_sort(events: list[tuple[str, int]], rule: Victims) -> None:
    """Starts, ends, changed keys and steps in any order; after every plan the engine runs in the order that it gave."""
    engine = Engine()
    for event, value in [*events, ("plan", 0)]:
        if event == "start":
            engine.start(value, prompt_tokens=value)
        elif event == "step":
            engine.step()
        elif event == "end" and engine.running:
            engine.running.pop(value % len(engine.running))
        elif event == "key" and engine.running:
            entry = engine.known[engine.running[value % len(engine.running)].request_id]
            former, entry.key = entry.key, (entry.priority, float(value), 0.0, entry.serial)
            engine.order.rekeyed(former, entry.key)
        elif event == "plan":
            engine.running = engine.order.follow(engine.running, rule)
            assert engine.order.filling == [engine.known[r.request_id] for r in engine.expected(rule) if r.lacks_tokens]
            if value % 2 == 0 or len(engine.order.classes) > 1:
                engine.running = engine.order.settle()
                assert engine.running == engine.expected(rule)
            lacking = [request.lacks_tokens for request in engine.running]
            assert len(engine.order.classes) > 1 or lacking == sorted(lacking), "those that decode go first"
            assert [entry.running for entry in engine.order.entries] == engine.running
