import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from engine_adapter.ordering.admission import Readiness
from engine_adapter.ordering.kv_memory import NO_HIT, PlainMemory, PrefixHit
from engine_adapter.ordering.ordered_queue import OrderedQueue
from engine_adapter.ordering.ordering import Ordering
from engine_adapter.ordering.prefix_hits import HASHES_PER_STEP, SAVED_STEPS
from engine_adapter.ordering.push_out import DEFAULT_TOKEN_S, PUSH_OUT_SHARE, SAVED_S
from store.records import EngineRules, Gate, IndexTable, Preemption, Settings, StepCost, Victims

BLOCK = 16


@dataclass
class Request:
    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0


def table(request_id: str | None, *steps: tuple[int, float, float]) -> IndexTable:
    attained, index, growth = zip(*steps, strict=True)
    return IndexTable(request_id=request_id, attained_tokens=attained, index_s=index, growth_tokens=growth)


def settings(
    *,
    gate: Gate | None = None,
    boost_per_s: float | None = None,
    preemption: Preemption | None = None,
    victims: Victims = "last",
) -> Settings:
    rules = EngineRules(gate=gate, boost_per_s=boost_per_s, preemption=preemption, victims=victims)
    return Settings(revision=1, mode="on", lease_s=1.0, rules=rules)


def order(ordering: Ordering, *request_ids: str) -> list[str]:
    requests = [Request(request_id, 10) for request_id in request_ids]
    return [
        r.request_id for r in ordering.plan(0.0, waiting=requests, running=[], memory=PlainMemory(100, BLOCK)).waiting
    ]


def test_the_lowest_index_is_served_first() -> None:
    """Without boost the queue is sorted by the index at the attained tokens."""
    ordering = Ordering(BLOCK, 1000)
    for arrival, (name, index) in enumerate([("long", 9.0), ("short", 1.0), ("middle", 5.0)]):
        ordering.track(name, priority=0, arrival_s=float(arrival))
        assert ordering.put(table(name, (0, index, 8.0)))
    assert order(ordering, "long", "short", "middle") == ["short", "middle", "long"]


def test_the_index_follows_the_attained_tokens_without_a_message() -> None:
    """A request's index is that of the last entry at or below its attained tokens."""
    ordering, tokens = Ordering(BLOCK, 1000), [1]
    ordering.track("a", priority=0, arrival_s=0.0, count=lambda: len(tokens))
    ordering.put(table("a", (0, 5.0, 1.0), (10, 2.0, 1.0), (20, 9.0, 1.0)))
    ordering.plan(0.0, waiting=[], running=[Request("a", 10)], memory=PlainMemory(100, BLOCK))
    seen = [ordering.key("a")[2]]
    while len(tokens) < 29:
        tokens.append(1)
        ordering.advance(1)
        seen.append(ordering.key("a")[2])
    assert seen == 9 * [5.0] + 10 * [2.0] + 10 * [9.0]


def test_a_table_that_comes_late_holds_for_the_tokens_that_a_request_has() -> None:
    """Between two entries nobody asks for its tokens, but a new table, a resent fact and a preemption do."""
    ordering, tokens = Ordering(BLOCK, 1000), 0
    ordering.track("a", priority=0, arrival_s=0.0, count=lambda: tokens)
    ordering.put(table("a", (0, 5.0, 1.0)))
    running = [Request("a", 10)]
    ordering.plan(0.0, waiting=[], running=running, memory=PlainMemory(100, BLOCK))
    tokens = 15
    ordering.put(table("a", (0, 5.0, 1.0), (10, 2.0, 1.0), (20, 9.0, 1.0)))
    assert (ordering.key("a")[2], ordering.attained_tokens("a")) == (2.0, 15)
    ordering.plan(0.0, waiting=running, running=[], memory=PlainMemory(100, BLOCK))
    tokens = 20
    ordering.plan(0.0, waiting=[], running=running, memory=PlainMemory(100, BLOCK))
    assert ordering.key("a")[2] == 9.0, "one that runs again is looked up"


def test_classes_are_strict() -> None:
    """A request of a lower class number goes before every other, whatever their indices."""
    ordering = Ordering(BLOCK, 1000)
    ordering.track("urgent", priority=-1, arrival_s=1.0)
    ordering.track("normal", priority=0, arrival_s=0.0)
    ordering.put(table("urgent", (0, 1000.0, 0.0)))
    ordering.put(table("normal", (0, 0.1, 0.0)))
    assert order(ordering, "normal", "urgent") == ["urgent", "normal"]


def test_until_its_table_comes_a_request_has_the_index_of_the_prior() -> None:
    """The prior applies to all requests without a table, and a table for an unknown request is refused."""
    ordering = Ordering(BLOCK, 1000)
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
    ordering = Ordering(BLOCK, 1000)
    ordering.configure(settings(boost_per_s=1e6))
    for number, (index, arrival_s) in enumerate(requests):
        ordering.track(str(number), priority=0, arrival_s=arrival_s)
        ordering.put(table(str(number), (0, index, 0.0)))
    names = [str(number) for number in range(len(requests))]
    assert order(ordering, *names) == sorted(names, key=lambda name: (requests[int(name)][1], int(name)))


def test_the_gate_admits_while_prompt_and_growth_fit() -> None:
    """Room for the growth of running and admitted requests stays free; no request overtakes a head that does not fit."""
    ordering = Ordering(BLOCK, 1000)
    ordering.configure(settings(gate=Gate(horizon_tokens=32)))
    for name, growth in (("runs", 32.0), ("fits", 32.0), ("large", 32.0), ("small", 1.0)):
        ordering.track(name, priority=0, arrival_s=0.0)
        ordering.put(table(name, (0, {"runs": 0.0, "fits": 1.0, "large": 2.0, "small": 3.0}[name], growth)))
    running = [Request("runs", 40, 40)]
    waiting = [Request("small", 1), Request("large", 16 * 100), Request("fits", 16)]
    plan = ordering.plan(0.0, waiting=waiting, running=running, memory=PlainMemory(50, BLOCK))
    assert [r.request_id for r in plan.waiting] == ["fits", "large", "small"]
    assert plan.admission_limit == 2, "one runs, one fits, the large head stops the rest"
    assert plan.reserved_blocks == 2
    tight = ordering.plan(0.0, waiting=waiting, running=running, memory=PlainMemory(4, BLOCK))
    assert tight.admission_limit == 1, "2 reserved for growth, 3 needed by the head"


def test_an_idle_engine_always_starts_its_head() -> None:
    """The gate never starves the head of the queue, however large it is."""
    ordering = Ordering(BLOCK, 1000)
    ordering.configure(settings(gate=Gate(horizon_tokens=32)))
    ordering.track("huge", priority=0, arrival_s=0.0)
    ordering.put(table("huge", (0, 1.0, 32.0)))
    assert (
        ordering.plan(0.0, waiting=[Request("huge", 10_000)], running=[], memory=PlainMemory(5, BLOCK)).admission_limit
        == 1
    )


@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 64)), max_size=12),
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 64)), min_size=1, max_size=12),
    st.integers(0, 200),
)
def test_the_gate_keeps_what_it_promises(
    running: list[tuple[int, float]], waiting: list[tuple[int, float]], free_blocks: int
) -> None:
    """The admitted requests fit with all growth, one more would not; brute force over every number of admissions."""
    ordering = Ordering(BLOCK, 1000)
    ordering.configure(settings(gate=Gate(horizon_tokens=64, margin=1.0)))
    active, queue = [], []
    for kind, rows, into in (("r", running, active), ("w", waiting, queue)):
        for number, (tokens, growth) in enumerate(rows):
            name = f"{kind}{number}"
            ordering.track(name, priority=0, arrival_s=0.0)
            ordering.put(table(name, (0, float(number), growth)))
            into.append(Request(name, tokens, tokens if kind == "r" else 0))
    plan = ordering.plan(0.0, waiting=queue, running=active, memory=PlainMemory(free_blocks, BLOCK))
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


def two_running(preemption: Preemption | None, *, slots: int = 1000) -> tuple[Ordering, list[Request]]:
    """An engine whose two running requests hold five blocks each; "worse" stands behind "bad"."""
    ordering = Ordering(BLOCK, slots)
    ordering.configure(settings(preemption=preemption))
    for name, index in (("bad", 50.0), ("worse", 100.0)):
        ordering.track(name, priority=0, arrival_s=0.0)
        ordering.put(table(name, (0, index, 0.0)))
    return ordering, [Request("bad", 80, 80), Request("worse", 80, 80)]


def test_a_better_request_pushes_out_the_worst_that_make_room() -> None:
    """A request that does not fit takes the blocks of the last running requests, and of no more than it needs."""
    ordering, running = two_running(Preemption(token_s=0.0))
    ordering.track("good", priority=0, arrival_s=1.0)
    ordering.put(table("good", (0, 1.0, 0.0)))
    small = ordering.plan(0.0, waiting=[Request("good", 64)], running=running, memory=PlainMemory(0, BLOCK))
    assert [r.request_id for r in small.pushed_out] == ["worse"]
    assert [r.request_id for r in small.waiting] == ["good", "worse"]
    assert [r.request_id for r in small.running] == ["bad"]
    large = ordering.plan(0.0, waiting=[Request("good", 160)], running=running, memory=PlainMemory(0, BLOCK))
    assert [r.request_id for r in large.pushed_out] == ["worse", "bad"]


def test_nobody_is_pushed_out_in_vain() -> None:
    """No victim when there is room, when the victims would not suffice, or when only the engine preempts."""
    ordering, running = two_running(Preemption(token_s=0.0))
    ordering.track("good", priority=0, arrival_s=1.0)
    ordering.put(table("good", (0, 70.0, 0.0)))
    assert not ordering.plan(
        0.0, waiting=[Request("good", 64)], running=running, memory=PlainMemory(4, BLOCK)
    ).pushed_out
    assert not ordering.plan(
        0.0, waiting=[Request("good", 96)], running=running, memory=PlainMemory(0, BLOCK)
    ).pushed_out
    ordering.configure(settings())
    assert not ordering.plan(
        0.0, waiting=[Request("good", 64)], running=running, memory=PlainMemory(0, BLOCK)
    ).pushed_out


def test_a_full_engine_gives_a_slot_to_a_better_request() -> None:
    """With every slot taken and memory free, the worst running request yields its slot."""
    ordering, running = two_running(Preemption(token_s=0.0), slots=2)
    ordering.track("good", priority=0, arrival_s=1.0)
    ordering.put(table("good", (0, 1.0, 0.0)))
    plan = ordering.plan(0.0, waiting=[Request("good", 64)], running=running, memory=PlainMemory(100, BLOCK))
    assert [r.request_id for r in plan.pushed_out] == ["worse"]


@given(token_s=st.floats(0, 2), hysteresis=st.floats(0, 0.9), index_s=st.floats(0.1, 120))
def test_preemption_is_worth_its_price(token_s: float, hysteresis: float, index_s: float) -> None:
    """A victim is pushed out exactly when the other's index plus the recomputation cost is below its own index."""
    ordering, running = two_running(Preemption(token_s=token_s, hysteresis=hysteresis))
    ordering.track("good", priority=0, arrival_s=1.0)
    ordering.put(table("good", (0, index_s, 0.0)))
    plan = ordering.plan(0.0, waiting=[Request("good", 64)], running=running, memory=PlainMemory(0, BLOCK))
    pays = index_s < 100.0 and index_s + 80 * token_s <= (1 - hysteresis) * 100.0
    assert bool(plan.pushed_out) == pays


def test_a_higher_class_pushes_out_a_lower_one_whatever_the_price() -> None:
    """Strict classes come before prices."""
    ordering, running = two_running(Preemption(token_s=1e9))
    ordering.track("urgent", priority=-1, arrival_s=1.0)
    ordering.put(table("urgent", (0, 1e6, 0.0)))
    assert ordering.plan(0.0, waiting=[Request("urgent", 64)], running=running, memory=PlainMemory(0, BLOCK)).pushed_out


def running_order(ordering: Ordering, *running: Request) -> list[str]:
    return [r.request_id for r in ordering.plan(0.0, waiting=[], running=running, memory=PlainMemory(0, BLOCK)).running]


def test_a_long_prompt_takes_what_decoding_requests_leave() -> None:
    """A request in prefill comes after the decoding ones of its class, whatever its index, until its prefill ends."""
    ordering = Ordering(BLOCK, 1000)
    for name, priority, index in (("prefills", 0, 1.0), ("decodes", 0, 9.0), ("lower", 1, 0.5)):
        ordering.track(name, priority=priority, arrival_s=0.0)
        ordering.put(table(name, (0, index, 0.0)))
    prefills, decodes, lower = Request("prefills", 100, 40), Request("decodes", 100, 99), Request("lower", 50, 49)
    assert running_order(ordering, prefills, decodes, lower) == ["decodes", "prefills", "lower"]
    prefills.num_computed_tokens = 99
    assert running_order(ordering, prefills, decodes, lower) == ["prefills", "decodes", "lower"]


def test_the_cheapest_victim_has_the_fewest_tokens_to_recompute() -> None:
    """Under this rule class comes first, then computed tokens; the index has no effect."""
    ordering = Ordering(BLOCK, 1000)
    ordering.configure(settings(victims="cheapest"))
    for name, priority, index in (("old", 0, 9.0), ("new", 0, 1.0), ("lower", 1, 1.0)):
        ordering.track(name, priority=priority, arrival_s=0.0)
        ordering.put(table(name, (0, index, 0.0)))
    computed = {"old": 900, "new": 100, "lower": 2000}
    running = [Request(name, tokens + 1, tokens) for name, tokens in computed.items()]
    plan = ordering.plan(2.0, waiting=[], running=running, memory=PlainMemory(0, BLOCK))
    assert [r.request_id for r in plan.running] == ["old", "new", "lower"]


def test_a_preempted_request_never_waits_for_more_than_twice_its_own_blocks() -> None:
    """Beside a hundred running requests it needs its blocks and as many free ones, not those of five engines."""
    names = [f"r{number}" for number in range(100)]
    for free_blocks, limit in ((200, 101), (199, 100)):
        ordering = Ordering(BLOCK, 1000)
        ordering.configure(settings(gate=Gate(horizon_tokens=32)))
        for name in (*names, "back"):
            ordering.track(name, priority=0, arrival_s=0.0, count=(lambda: 400) if name == "back" else int)
            ordering.put(table(name, (0, 1.0, 0.0)))
        running = [Request(name, 16, 15) for name in names]
        memory = PlainMemory(free_blocks, BLOCK)
        plan = ordering.plan(0.0, waiting=[Request("back", 1600)], running=running, memory=memory)
        assert plan.admission_limit == limit


def test_when_memory_runs_short_the_oldest_keeps_its_place() -> None:
    """The last by the index is preempted unless it arrived first; while memory is free their order is left alone."""
    ordering = Ordering(BLOCK, 1000)
    ordering.configure(settings(victims="later"))
    running = []
    for arrival, (name, index_s) in enumerate([("oldest", 90.0), ("long", 80.0), ("short", 1.0)]):
        ordering.track(name, priority=0, arrival_s=float(arrival))
        ordering.put(table(name, (0, index_s, 0.0)))
        running.append(Request(name, 101, 100))
    for free_blocks, expected in (
        (3, ["oldest", "long", "short"]),
        (2, ["oldest", "short", "long"]),
        (3, ["oldest", "short", "long"]),
    ):
        plan = ordering.plan(0.0, waiting=[], running=running, memory=PlainMemory(free_blocks, BLOCK))
        assert [r.request_id for r in plan.running] == expected
        running = plan.running


def test_the_oldest_of_the_lowest_class_only_is_spared() -> None:
    """A higher class stands before it all the same."""
    ordering = Ordering(BLOCK, 1000)
    ordering.configure(settings(victims="later"))
    running = []
    for name, priority, arrival_s, index_s in (("high", 0, 9.0, 5.0), ("old", 1, 1.0, 9.0), ("new", 1, 2.0, 1.0)):
        ordering.track(name, priority=priority, arrival_s=arrival_s)
        ordering.put(table(name, (0, index_s, 0.0)))
        running.append(Request(name, 101, 100))
    plan = ordering.plan(0.0, waiting=[], running=running, memory=PlainMemory(0, BLOCK))
    assert [r.request_id for r in plan.running] == ["high", "old", "new"]


def test_a_preempted_request_comes_back_where_its_place_lasts() -> None:
    """One that must compute 1,600 tokens again waits for free blocks beyond its own; a new one of its size does not."""
    for attained_tokens, free_blocks, limit in ((0, 103, 2), (400, 103, 1), (400, 113, 2)):
        ordering = gated("running", growth_tokens=0.0)
        ordering.track("back", priority=0, arrival_s=0.0, count=partial(int, attained_tokens))
        ordering.put(table("back", (0, 1.0, 0.0)))
        memory = PlainMemory(free_blocks, BLOCK)
        running = [Request("running", 16, 15)]
        plan = ordering.plan(0.0, waiting=[Request("back", 1600)], running=running, memory=memory)
        assert plan.admission_limit == limit


def test_between_two_pushes_the_engine_rests() -> None:
    """For ``rest_steps`` steps no request is pushed out, however low the next index is."""
    ordering, running = two_running(Preemption(token_s=0.0, rest_steps=3))
    for number in range(9):
        ordering.track(f"good{number}", priority=0, arrival_s=1.0)
        ordering.put(table(f"good{number}", (0, 1.0 + number, 0.0)))
    pushes = []
    for number in range(9):
        plan = ordering.plan(0.0, waiting=[Request(f"good{number}", 64)], running=running, memory=PlainMemory(0, BLOCK))
        pushes.append(len(plan.pushed_out))
    assert pushes == [1, 0, 0, 0, 1, 0, 0, 0, 1]


@dataclass
class HybridMemory:
    """One group of full attention and five of a sliding window of 64 tokens: whole blocks of each."""

    free_blocks: int

    def hit(self, _request: Request) -> PrefixHit:
        return NO_HIT

    def freed_blocks(self, request: Request) -> float | None:
        return self.blocks(request.num_computed_tokens)

    def blocks(self, tokens: float) -> float:
        return math.ceil(tokens / BLOCK) + 5.0 * min(math.ceil(tokens / BLOCK), 5)


@dataclass
class Waiting:
    """An engine's waiting requests by name: which hold blocks, are skipped, are crowded out, and keep these out."""

    holding: list[Request] = field(default_factory=list)
    skipped: tuple[str, ...] = ()
    crowded_out: tuple[str, ...] = ()
    keeping: tuple[str, ...] = ()
    started: list[str] = field(default_factory=list)
    paused: tuple[str, ...] = ()
    _makes_room: bool = False

    @property
    def under_way(self) -> list[Request]:
        return [request for request in self.holding if request.request_id not in self.paused]

    def readiness(self, request: Request) -> Readiness:
        if request.request_id in self.skipped:
            return "skipped"
        if self._makes_room and request.request_id in self.keeping:
            return "held_back"
        return "crowded_out" if request.request_id in self.crowded_out else "ready"

    def make_room(self, request: Request) -> None:
        assert request.request_id in self.crowded_out
        self._makes_room = True

    def start(self, request: Request) -> None:
        self.started.append(request.request_id)


def gated(*names: str, growth_tokens: float = 32.0) -> Ordering:
    """An ordering with a gate that tracks these requests, in this order."""
    ordering = Ordering(BLOCK, 8)
    ordering.configure(settings(gate=Gate(horizon_tokens=32)))
    for number, name in enumerate(names):
        ordering.track(name, priority=0, arrival_s=float(number))
        ordering.put(table(name, (0, float(number), growth_tokens)))
    return ordering


def test_growth_is_counted_by_what_each_kind_of_layer_keeps() -> None:
    """Past its window a request grows by the blocks of full attention only; before it by those of all groups."""
    long, short = Request("long", 320, 320), Request("short", 16, 16)
    for request, reserved in ((long, 2), (short, 12)):
        plan = gated(request.request_id, "next").plan(
            10.0, waiting=[Request("next", 8)], running=[request], memory=HybridMemory(100)
        )
        assert plan.reserved_blocks == reserved


def test_requests_that_hold_blocks_without_running_take_a_place_and_are_reserved_for() -> None:
    """Of 10 blocks 2 are reserved for the one that loads: two of three fit beside it, and the limit counts it."""
    loading = Waiting(holding=[Request("loading", 16, 16)])
    ordering = gated("loading", "a", "b", "c")
    queue = [Request(name, 16) for name in "abc"]
    plan = ordering.plan(10.0, waiting=queue, running=[], memory=PlainMemory(10, BLOCK), admission=loading)
    assert (plan.reserved_blocks, plan.admission_limit, loading.started) == (2, 3, ["a", "b"])


def test_an_idle_engine_starts_whoever_comes_beside_sessions_that_wait_for_their_clients() -> None:
    """A pause is as long as a client likes: nothing is reserved for it, and it keeps no engine from serving."""
    sessions = [Request(f"session {number}", 16, 16) for number in range(5)]
    waiting = Waiting(holding=sessions, paused=tuple(request.request_id for request in sessions))
    ordering = gated("large", *waiting.paused)
    plan = ordering.plan(
        10.0, waiting=[Request("large", 16 * 9)], running=[], memory=PlainMemory(10, BLOCK), admission=waiting
    )
    assert (plan.reserved_blocks, plan.admission_limit, waiting.started) == (0, 6, ["large"])


def test_requests_that_the_engine_skips_are_not_counted_and_block_nobody() -> None:
    """The head waits for its grammar: those behind are started as if it were not there, and the plan names it."""
    waiting = Waiting(skipped=("a",))
    queue = [Request(name, 16) for name in "abc"]
    plan = gated("a", "b", "c").plan(10.0, waiting=queue, running=[], memory=PlainMemory(3, BLOCK), admission=waiting)
    assert (plan.admission_limit, plan.skipped, waiting.started) == (1, 1, ["b"])


@pytest.mark.parametrize(
    ("waited_s", "late"), [(29.0, False), (31.0, True), (61.0, False), (119.0, False), (121.0, True), (241.0, False)]
)
def test_room_is_made_for_a_request_that_is_crowded_out_for_long(waited_s: float, late: bool) -> None:
    """Those that keep it out go behind all others and start no more, for a bounded time; the others start as before."""
    waiting = Waiting(crowded_out=("a",), keeping=("b", "d"))
    ordering = gated("a", "b", "c", "d", "e")
    for begins_s in (0.0, waited_s):
        waiting.started.clear()
        plan = ordering.plan(
            begins_s,
            waiting=[Request(name, 16) for name in "abcde"],
            running=[],
            memory=PlainMemory(20, BLOCK),
            admission=waiting,
        )
    assert waiting.started == (["c", "e"] if late else ["b", "c", "d", "e"])
    assert [request.request_id for request in plan.waiting] == list("acebd" if late else "abcde")
    assert (plan.admission_limit, plan.skipped) == (len(waiting.started), 1)


def test_a_request_that_can_never_be_served_stands_behind_all_others() -> None:
    """It is not started on an idle engine either, is counted until it ends, and is said once."""
    ordering = gated("giant", "b")
    assert ordering.put_last("giant")
    assert not ordering.put_last("giant")
    memory = PlainMemory(9, BLOCK)
    plan = ordering.plan(0.0, waiting=[Request("giant", 10_000), Request("b", 16)], running=[], memory=memory)
    assert [request.request_id for request in plan.waiting] == ["b", "giant"]
    assert plan.admission_limit == 1
    assert ordering.plan(0.0, waiting=[Request("giant", 10_000)], running=[], memory=memory).admission_limit == 0
    assert ordering.impossible == 1
    ordering.forget("giant")
    assert ordering.impossible == 0


def crowded(classes: int) -> tuple[Ordering, list[Request]]:
    """A full engine of two places whose requests are of class 10, and a waiting one of class 0."""
    ordering = Ordering(BLOCK, 2)
    ordering.configure(settings(gate=Gate(horizon_tokens=32)))
    for name in ("low-1", "low-2"):
        ordering.track(name, priority=classes, arrival_s=0.0)
        ordering.put(table(name, (0, 1.0, 0.0)))
    ordering.track("high", priority=0, arrival_s=5.0)
    ordering.put(table("high", (0, 1e6, 0.0)))
    return ordering, [Request("low-1", 4000, 4000), Request("low-2", 4000, 4000)]


def test_a_higher_class_gets_a_place_in_a_full_engine_by_default() -> None:
    """Without any setting of preemption one request of the lower class is pushed out; within a class nobody is."""
    for low, expected in ((10, 1), (0, 0)):
        ordering, running = crowded(low)
        plan = ordering.plan(5.0, waiting=[Request("high", 64)], running=running, memory=PlainMemory(100, BLOCK))
        assert len(plan.pushed_out) == expected
        assert plan.admission_limit == 2


def test_push_outs_by_class_cost_a_bounded_share_of_the_time() -> None:
    """With a request of the higher class in every step, what is computed again stays below the share of the time."""
    ordering, running = crowded(10)
    lost_s = 0.0
    for step in range(20_000):
        now_s = 5.0 + 0.05 * step
        plan = ordering.plan(now_s, waiting=[Request("high", 64)], running=list(running), memory=PlainMemory(0, BLOCK))
        lost_s += sum(victim.num_computed_tokens for victim in plan.pushed_out) * DEFAULT_TOKEN_S
    assert 0.5 * PUSH_OUT_SHARE * 1000.0 < lost_s < PUSH_OUT_SHARE * 1000.0 + SAVED_S + 2.0


@dataclass
class CachedPrompts:
    """KV memory in which some prompts are cached, and a count of the block hashes compared."""

    free_blocks: int
    hits: dict[str, PrefixHit]
    compared: int = 0

    def hit(self, request: Request) -> PrefixHit:
        found = self.hits.get(request.request_id, NO_HIT)
        self.compared += 1 + found.tokens // BLOCK
        return found

    def freed_blocks(self, request: Request) -> float:
        return math.ceil(request.num_computed_tokens / BLOCK)

    def blocks(self, tokens: float) -> float:
        return tokens / BLOCK


def caching(names: list[str]) -> Ordering:
    """An ordering that prices prompt tokens at a millisecond; every request has the same index."""
    ordering = Ordering(BLOCK, 1000)
    rules = EngineRules(
        gate=Gate(horizon_tokens=32), step=StepCost(base_s=0.03, prefill_token_s=1e-3, budget_tokens=8192)
    )
    ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=rules))
    for arrival, name in enumerate(names):
        ordering.track(name, priority=0, arrival_s=float(arrival))
        ordering.put(table(name, (0, 10.0, 0.0)))
    return ordering


def test_blocks_that_running_requests_hold_are_not_needed_again() -> None:
    """A prompt of 512 blocks, of which 500 are held by others, needs 12."""
    for held, expected in ((500.0, 2), (0.0, 1)):
        ordering = caching(["holder", "follower"])
        memory = CachedPrompts(20, {"follower": PrefixHit(tokens=8000, held_blocks=held)})
        running = [Request("holder", 8192, 8192)]
        plan = ordering.plan(0.0, waiting=[Request("follower", 8192)], running=running, memory=memory)
        assert plan.admission_limit == expected


def test_a_cached_prompt_goes_before_one_that_must_be_computed() -> None:
    """Of two requests with the same index the one with less to compute runs first, though it came later."""
    ordering = caching(["cold", "warm"])
    memory = CachedPrompts(0, {"warm": PrefixHit(tokens=4096)})
    requests = [Request("cold", 4200), Request("warm", 4200)]
    plan = ordering.plan(0.0, waiting=requests, running=[Request("cold", 1, 1)], memory=memory)
    assert [request.request_id for request in plan.waiting] == ["warm", "cold"]


def test_an_expected_hit_counts_once() -> None:
    """An index that leaves out the prefill of 4,096 expected tokens is raised by what was not found of them."""
    ordering = caching(["as expected", "gone"])
    for name in ("as expected", "gone"):
        ordering.put(structs.replace(table(name, (0, 10.0, 0.0)), cached_tokens=4096))
    memory = CachedPrompts(0, {"as expected": PrefixHit(tokens=4096)})
    requests = [Request("gone", 4200), Request("as expected", 4200)]
    ordering.plan(0.0, waiting=requests, running=[], memory=memory)
    assert ordering.key("as expected")[2] == 10.0
    assert ordering.key("gone")[2] == 10.0 + 4.096


def test_look_ups_have_a_bounded_price_per_step() -> None:
    """A thousand waiting prompts of ten thousand cached blocks cost a bounded number of comparisons in each step."""
    names = [f"r{number}" for number in range(1000)]
    ordering = caching(names)
    memory = CachedPrompts(0, {name: PrefixHit(tokens=160_000) for name in names})
    queue = OrderedQueue([Request(name, 160_001) for name in names])
    steps = 500
    for _ in range(steps):
        ordering.plan(0.0, waiting=queue, running=[], memory=memory)
    assert memory.compared <= (steps + SAVED_STEPS) * HASHES_PER_STEP + 10_001


def test_a_hit_is_looked_up_again_when_the_request_reaches_the_head() -> None:
    """What was cached at arrival may be gone: the head's need follows within a few steps."""
    ordering = caching(["holder", "follower"])
    memory = CachedPrompts(20, {"follower": PrefixHit(tokens=8000, held_blocks=500.0)})
    running = [Request("holder", 8192, 8192)]
    waiting = [Request("follower", 8192)]
    assert ordering.plan(0.0, waiting=waiting, running=running, memory=memory).admission_limit == 2
    memory.hits.clear()
    limits = [ordering.plan(0.0, waiting=waiting, running=running, memory=memory).admission_limit for _ in range(40)]
    assert limits[-1] == 1


def test_short_of_memory_the_only_request_of_the_lowest_class_gives_way() -> None:
    """The one that arrived first is spared among others of its class; alone in it, it stays the last in the order."""
    ordering = Ordering(BLOCK, 1000)
    ordering.configure(settings(victims="later"))
    for name, priority in (("high", 0), ("higher", 0), ("low", 1)):
        ordering.track(name, priority=priority, arrival_s=0.0)
        ordering.put(table(name, (0, 1.0, 8.0)))
    running = [Request(name, 160, 159) for name in ("low", "high", "higher")]
    plan = ordering.plan(0.0, waiting=[], running=running, memory=PlainMemory(0, BLOCK))
    assert plan.running[-1].request_id == "low"


def test_a_look_up_that_searches_the_whole_prompt_is_paid_for_by_its_prompt() -> None:
    """Also where it finds nothing: of a thousand long prompts few are looked up in a step."""
    looked: list[str] = []

    class Searching(PlainMemory):
        def hit(self, request: Any) -> PrefixHit:
            looked.append(request.request_id)
            return PrefixHit(searched_blocks=4_000)

    names = [f"{number}" for number in range(1_000)]
    ordering = gated(*names)
    queue = [Request(name, 60_000) for name in names]
    for step in range(20):
        ordering.plan(float(step), waiting=queue, running=[], memory=Searching(10_000, BLOCK))
    assert len(looked) <= 1 + (SAVED_STEPS + 20) * HASHES_PER_STEP / 4_000
