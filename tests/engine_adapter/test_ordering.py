import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.ordering import Ordering, boost_s
from store.records import Gate, IndexTable, Settings

BLOCK = 16


@dataclass
class Request:
    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0


def table(request_id: str | None, *steps: tuple[int, float, float]) -> IndexTable:
    attained, index, growth = zip(*steps, strict=True)
    return IndexTable(request_id=request_id, attained_tokens=attained, index_s=index, growth_tokens=growth)


def settings(*, gate: Gate | None = None, boost_per_s: float | None = None) -> Settings:
    return Settings(revision=1, mode="on", gate=gate, boost_per_s=boost_per_s, lease_s=1.0)


def order(ordering: Ordering, *request_ids: str) -> list[str]:
    requests = [Request(request_id, 10) for request_id in request_ids]
    return [r.request_id for r in ordering.plan(waiting=requests, running=[], free_blocks=100).waiting]


def test_the_lowest_index_is_served_first() -> None:
    """Without boost the queue is sorted by the index at the attained tokens."""
    ordering = Ordering(BLOCK)
    for arrival, (name, index) in enumerate([("long", 9.0), ("short", 1.0), ("middle", 5.0)]):
        ordering.track(name, priority=0, arrival_s=float(arrival))
        assert ordering.put(table(name, (0, index, 8.0)))
    assert order(ordering, "long", "short", "middle") == ["short", "middle", "long"]


def test_the_index_follows_the_attained_tokens_without_a_message() -> None:
    """A request's index is that of the last entry at or below its attained tokens."""
    ordering = Ordering(BLOCK)
    ordering.track("a", priority=0, arrival_s=0.0)
    ordering.put(table("a", (0, 5.0, 1.0), (10, 2.0, 1.0), (20, 9.0, 1.0)))
    seen = []
    for attained in (0, 9, 10, 19, 20, 500):
        ordering.attain("a", attained)
        seen.append(ordering.key("a")[1])
    assert seen == [5.0, 5.0, 2.0, 2.0, 9.0, 9.0]


def test_classes_are_strict() -> None:
    """A request of a lower class number goes before every other, whatever their indices."""
    ordering = Ordering(BLOCK)
    ordering.track("urgent", priority=-1, arrival_s=1.0)
    ordering.track("normal", priority=0, arrival_s=0.0)
    ordering.put(table("urgent", (0, 1000.0, 0.0)))
    ordering.put(table("normal", (0, 0.1, 0.0)))
    assert order(ordering, "normal", "urgent") == ["urgent", "normal"]


def test_until_its_table_comes_a_request_has_the_index_of_the_prior() -> None:
    """The prior holds for all without a table, and a table for an unknown request is refused."""
    ordering = Ordering(BLOCK)
    ordering.track("known", priority=0, arrival_s=0.0)
    ordering.track("new", priority=0, arrival_s=1.0)
    ordering.put(table(None, (0, 3.0, 0.0)))
    ordering.put(table("known", (0, 4.0, 0.0)))
    assert order(ordering, "known", "new") == ["new", "known"]
    assert not ordering.put(table("stranger", (0, 1.0, 0.0)))
    assert ordering.tables_held == 1


@given(st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(0, 1e4)), min_size=2, max_size=20))
def test_a_large_boost_rate_is_first_come_first_served(requests: list[tuple[float, float]]) -> None:
    """γ → ∞ orders by arrival, whatever the indices (which must not be zero)."""
    ordering = Ordering(BLOCK)
    ordering.configure(settings(boost_per_s=1e6))
    for number, (index, arrival_s) in enumerate(requests):
        ordering.track(str(number), priority=0, arrival_s=arrival_s)
        ordering.put(table(str(number), (0, index, 0.0)))
    names = [str(number) for number in range(len(requests))]
    assert order(ordering, *names) == sorted(names, key=lambda name: (requests[int(name)][1], int(name)))


@given(st.floats(1e-6, 1e4), st.floats(1e-6, 1e4), st.floats(1e-4, 10.0))
def test_the_boost_falls_with_the_index(one_s: float, other_s: float, rate: float) -> None:
    """A smaller request may overtake by more, and nobody by less than nothing."""
    small, large = sorted((one_s, other_s))
    assert boost_s(small, rate) >= boost_s(large, rate) >= 0.0


def test_the_gate_admits_while_prompt_and_growth_fit() -> None:
    """Growth of what runs and of what starts is kept free; nobody overtakes a head that does not fit."""
    ordering = Ordering(BLOCK)
    ordering.configure(settings(gate=Gate(horizon_tokens=32)))
    for name, growth in (("runs", 32.0), ("fits", 32.0), ("large", 32.0), ("small", 1.0)):
        ordering.track(name, priority=0, arrival_s=0.0)
        ordering.put(table(name, (0, {"runs": 0.0, "fits": 1.0, "large": 2.0, "small": 3.0}[name], growth)))
    running = [Request("runs", 40, 40)]
    waiting = [Request("small", 1), Request("large", 16 * 100), Request("fits", 16)]
    plan = ordering.plan(waiting=waiting, running=running, free_blocks=50)
    assert [r.request_id for r in plan.waiting] == ["fits", "large", "small"]
    assert plan.admission_limit == 2, "one runs, one fits, the large head stops the rest"
    assert plan.reserved_blocks == 2
    tight = ordering.plan(waiting=waiting, running=running, free_blocks=4)
    assert tight.admission_limit == 1, "2 reserved for growth, 3 needed by the head"


def test_an_idle_engine_always_starts_its_head() -> None:
    """The gate never starves the head of the queue, however large it is."""
    ordering = Ordering(BLOCK)
    ordering.configure(settings(gate=Gate(horizon_tokens=32)))
    ordering.track("huge", priority=0, arrival_s=0.0)
    ordering.put(table("huge", (0, 1.0, 32.0)))
    assert ordering.plan(waiting=[Request("huge", 10_000)], running=[], free_blocks=5).admission_limit == 1


@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 64)), max_size=12),
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 64)), min_size=1, max_size=12),
    st.integers(0, 200),
)
def test_the_gate_keeps_what_it_promises(
    running: list[tuple[int, float]], waiting: list[tuple[int, float]], free_blocks: int
) -> None:
    """What is admitted fits with all growth, one more would not; brute force over every number of admissions."""
    ordering = Ordering(BLOCK)
    ordering.configure(settings(gate=Gate(horizon_tokens=64, margin=1.0)))
    active, queue = [], []
    for kind, rows, into in (("r", running, active), ("w", waiting, queue)):
        for number, (tokens, growth) in enumerate(rows):
            name = f"{kind}{number}"
            ordering.track(name, priority=0, arrival_s=0.0)
            ordering.put(table(name, (0, float(number), growth)))
            into.append(Request(name, tokens, tokens if kind == "r" else 0))
    plan = ordering.plan(waiting=queue, running=active, free_blocks=free_blocks)
    assert plan.admission_limit is not None
    promised = sum(growth for _, growth in running) / BLOCK
    fitting = 0
    for tokens, growth in waiting:
        promised += math.ceil(tokens / BLOCK) + growth / BLOCK
        if promised > free_blocks + 1e-9:
            break
        fitting += 1
    assert abs(plan.admission_limit - len(running) - max(fitting, 0 if running else 1)) <= (
        1 if math.isclose(promised, free_blocks, abs_tol=1e-6) else 0
    )
