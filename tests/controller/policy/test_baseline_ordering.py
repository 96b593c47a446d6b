"""What the baselines' engines do beyond ordering: preemption at no price, and promotion of who starves."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from controller.policy.baseline_ordering import PreemptiveOrdering, PromotingOrdering
from engine_adapter.ordering.kv_memory import PlainMemory
from engine_adapter.ordering.ordering import Ordering, Plan
from store.records import EngineRules, IndexTable, Preemption, Settings


@dataclass(eq=False)
class Request:
    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0


def put(ordering: Ordering, request_id: str, index_s: float, *, priority: int = 0) -> None:
    ordering.track(request_id, priority=priority, arrival_s=0.0)
    ordering.put(IndexTable(request_id=request_id, attained_tokens=(0,), index_s=(index_s,), growth_tokens=(0.0,)))


REQUESTS = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 5).map(float), st.integers(0, 1)), min_size=1, max_size=8
)


@given(running=REQUESTS, waiting=REQUESTS, free_blocks=st.integers(0, 20), slots=st.integers(1, 10))
def test_preemption_at_no_price_is_that_of_a_price_of_zero(
    running: list[tuple[int, float, int]], waiting: list[tuple[int, float, int]], free_blocks: int, slots: int
) -> None:
    """The plan is the one that our own preemption makes when lost tokens cost nothing."""
    settings = Settings(revision=1, mode="on", lease_s=1.0, rules=EngineRules(preemption=Preemption(token_s=0.0)))
    priced, free = Ordering(16, slots), PreemptiveOrdering(16, slots)
    priced.configure(settings)

    def plan(ordering: Ordering) -> Plan[Request]:
        for kind, rows in (("r", running), ("w", waiting)):
            for number, (_, index_s, priority) in enumerate(rows):
                put(ordering, f"{kind}{number}", index_s, priority=priority)
        active = [Request(f"r{number}", tokens, tokens) for number, (tokens, _, _) in enumerate(running)]
        queue = [Request(f"w{number}", tokens) for number, (tokens, _, _) in enumerate(waiting)]
        return ordering.plan(0.0, waiting=queue, running=active, memory=PlainMemory(free_blocks, 16))

    one, other = plan(priced), plan(free)
    for part in ("waiting", "running", "pushed_out"):
        assert [r.request_id for r in getattr(one, part)] == [r.request_id for r in getattr(other, part)]
    assert one.admission_limit is other.admission_limit is None


def promoting() -> tuple[PromotingOrdering, Request, Request]:
    ordering = PromotingOrdering(16, 1000, idle_steps=3, promoted_steps=2)
    put(ordering, "small", 1.0)
    put(ordering, "large", 9.0)
    return ordering, Request("small", 10, 10), Request("large", 10)


def test_who_was_passed_over_in_too_many_steps_is_promoted_for_a_while() -> None:
    """After ``idle_steps`` a request goes first, and stays there for ``promoted_steps`` of running."""
    ordering, small, large = promoting()

    def large_stands_first(*, large_runs: bool) -> bool:
        running = [small, large] if large_runs else [small]
        ordering.plan(0.0, waiting=[] if large_runs else [large], running=running, memory=PlainMemory(0, 16))
        return ordering.key("large") < ordering.key("small")

    assert [large_stands_first(large_runs=False) for _ in range(5)] == [False, False, False, True, True]
    assert [large_stands_first(large_runs=True) for _ in range(3)] == [True, False, False]


def test_nothing_is_kept_of_a_request_that_left() -> None:
    """What counts steps forgets a request as the ordering does."""
    ordering, small, large = promoting()
    for _ in range(5):
        ordering.plan(0.0, waiting=[large], running=[small], memory=PlainMemory(0, 16))
    for name in ("small", "large"):
        ordering.forget(name)
    assert not ordering._ran_in_step
    assert not ordering._promoted
