"""Targets, tenants and sessions in the order, without an engine."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from engine_adapter.ordering import running_order
from engine_adapter.ordering.indexed_requests import SESSION_UNITS
from engine_adapter.ordering.kv_memory import PlainMemory, PrefixHit
from engine_adapter.ordering.ordering import Ordering, Plan
from engine_adapter.ordering.pace import MOST_PROMPTS, Pace
from engine_adapter.ordering.running_order import Tracked
from engine_adapter.ordering.tenant_shares import MOST_ACCOUNTS, QUANTUM_ANSWERS, SHARED_ACCOUNT, TenantShares
from store.records import EngineRules, FairShares, Gate, IndexTable, Settings, StepCost, Targets

BLOCK = 16
COST = StepCost(base_s=0.03, prefill_token_s=1e-3, budget_tokens=8192)
PRIOR = IndexTable(request_id=None, attained_tokens=(0,), index_s=(1.0,), growth_tokens=(0.0,))
SOON = Targets(ttft_s=2.0)
SHARES = FairShares(kv_token_step_s=0.0, slot_step_s=0.01, prefill_token_s=0.0)


@dataclass
class Request:
    """A request as an engine has it."""

    request_id: str
    num_tokens: int = 100
    num_computed_tokens: int = 0


class Cached(PlainMemory):
    """Memory in which 90 tokens of every prompt are cached."""

    def hit(self, request: Any) -> PrefixHit:
        """The same for each."""
        return PrefixHit(tokens=90)


class Engine:
    """An ordering whose requests are named, with the clock in the test's hands."""

    def __init__(self, *, memory: type[PlainMemory] = PlainMemory, **rules: Any) -> None:
        self.ordering = Ordering(BLOCK, 1000)
        self.ordering.configure(self.settings(**rules))
        self.ordering.put(PRIOR)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.tokens: dict[str, int] = {}
        self._memory = memory
        self.shares = rules.get("shares")

    @staticmethod
    def settings(**rules: Any) -> Settings:
        """Settings with rules beside the usual ones."""
        rules = {"boost_per_s": 0.1, "step": COST, "sessions": True} | rules
        return Settings(revision=1, mode="on", lease_s=9.0, rules=EngineRules(**rules))

    def arrive(
        self,
        name: str,
        arrival_s: float,
        *,
        index_s: float = 1.0,
        session: str | None = None,
        sheds: bool = False,
        **table: Any,
    ) -> None:
        """A request comes, and its table with it."""
        self.tokens[name] = 0
        self.ordering.track(
            name,
            priority=0,
            arrival_s=arrival_s,
            count=lambda: self.tokens[name],
            prompt_tokens=100,
            session=session,
            sheds=sheds,
        )
        entries = {"attained_tokens": (0,), "index_s": (index_s,), "growth_tokens": (0.0,)} | table
        self.ordering.put(IndexTable(request_id=name, **entries))
        self.waiting.append(Request(name))

    def start(self, name: str) -> None:
        """A waiting request starts, and its prompt is computed."""
        (request,) = [request for request in self.waiting if request.request_id == name]
        self.waiting.remove(request)
        request.num_computed_tokens = 99
        self.running.append(request)

    def end(self, name: str) -> None:
        """A running request ends."""
        self.running = [request for request in self.running if request.request_id != name]
        self.ordering.forget(name)

    def plan(self, now_s: float, *, free_blocks: int = 10_000, **options: Any) -> Plan[Request]:
        """The plan of the next step."""
        memory = self._memory(free_blocks, BLOCK)
        return self.ordering.plan(now_s, waiting=self.waiting, running=self.running, memory=memory, **options)

    def order(self, now_s: float) -> list[str]:
        """The queue in order."""
        return [request.request_id for request in self.plan(now_s).waiting]


def test_who_is_about_to_miss_a_target_goes_first_and_who_has_missed_it_goes_last() -> None:
    """A request with a target of time to first token is first as long as it can be met, then last."""
    engine = Engine()
    engine.arrive("short", 0.0, index_s=0.1)
    engine.arrive("promised", 0.0, targets=Targets(ttft_s=2.0))
    engine.arrive("long", 0.0, index_s=5.0)
    assert engine.order(0.5) == ["promised", "short", "long"]
    assert engine.order(1.95) == ["short", "long", "promised"], "its prompt alone takes 0.13 s"


def test_a_request_is_shed_once_and_only_while_it_waits() -> None:
    """However often it is judged lost; one that runs is served."""
    engine = Engine()
    for name in ("waits", "runs", "stays"):
        engine.arrive(name, 0.0, targets=SOON, sheds=name != "stays")
    engine.start("runs")
    engine.plan(1.0)
    assert engine.ordering.take_shed() == []
    engine.plan(3.0)
    engine.ordering.configure(engine.settings(boost_per_s=0.2))
    engine.plan(4.0)
    assert engine.ordering.take_shed() == ["waits"]
    assert engine.ordering.take_shed() == []


def test_nothing_stands_of_targets_whose_tables_are_discarded() -> None:
    """After an error all tables go; until new ones come each request goes by the prior alone."""
    engine = Engine()
    engine.arrive("lost", 0.0, targets=SOON)
    engine.arrive("other", 1.0)
    assert engine.order(3.0) == ["other", "lost"]
    engine.ordering.start_over()
    engine.ordering.put(PRIOR)
    assert engine.order(4.0) == ["lost", "other"]


def test_a_flood_of_priors_and_rules_places_each_request_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of them counts; a step with hundreds costs no more than one."""
    engine = Engine()
    for number in range(50):
        engine.arrive(f"r{number}", float(number))
    engine.plan(60.0)
    placed: list[str] = []
    place = Ordering._place
    monkeypatch.setattr(
        Ordering, "_place", lambda self, tracked: placed.append(tracked.request_id) or place(self, tracked)
    )
    for number in range(500):
        engine.ordering.put(structs.replace(PRIOR, index_s=(1.0 + number,)))
        engine.ordering.configure(engine.settings(boost_per_s=0.1 + number / 1000))
    engine.plan(60.0)
    assert len(placed) == len(set(placed)) == 50


@pytest.mark.parametrize("call", range(3))
def test_what_an_error_left_half_done_is_made_anew(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it came up, the next plan is that of an engine in which there was none."""
    engines = [Engine(shares=SHARES, gate=Gate(horizon_tokens=64)) for _ in range(2)]
    calls = iter(range(1_000_000))

    def failing(tokens: float) -> int:
        if next(calls) == call:
            raise MemoryError
        return units(tokens)

    for engine in engines:
        for number in range(7):
            engine.arrive(f"r{number}", float(number), growth_tokens=(10.0 * number,), tenant="ab"[number % 2])
        for number in range(5):
            engine.start(f"r{number}")
        engine.plan(6.0)
        engine.end("r1")
        engine.end("r2")
        engine.start("r5")
    units = running_order._units
    monkeypatch.setattr(running_order, "_units", failing)
    with pytest.raises(MemoryError):
        engines[0].plan(7.0)
    monkeypatch.undo()
    plans = []
    for engine in engines:
        engine.ordering.start_over()
        engine.ordering.put(structs.replace(PRIOR, growth_tokens=(100.0,)))
        plans.append(engine.plan(20.0))
    assert plans[0] == plans[1]
    assert plans[0].reserved_blocks > 0


def test_a_lost_request_is_served_in_the_end() -> None:
    """It goes behind those that came within a bounded time after it, and before those that came later."""
    engine = Engine()
    engine.arrive("lost", 0.0, targets=Targets(ttft_s=0.2))
    engine.arrive("soon", 1.0)
    engine.arrive("later", 500.0)
    assert engine.order(501.0) == ["soon", "lost", "later"]


def test_a_deadline_is_judged_by_the_distribution_of_the_length() -> None:
    """With a step of 30 ms: safe until even a long answer would end late, lost when even a short one would."""
    engine = Engine()
    engine.arrive("plain", 0.0, index_s=0.1)
    engine.arrive("agent", 0.0, targets=Targets(e2e_s=30.0), early_tokens=(100,), late_tokens=(500,))
    assert engine.order(14.0) == ["plain", "agent"]
    assert engine.order(16.0) == ["agent", "plain"], "500 tokens take 15 s"
    assert engine.order(28.0) == ["plain", "agent"], "100 tokens take 3 s"


def test_without_trust_in_predictions_requests_go_by_arrival_and_their_targets() -> None:
    """The index decides nothing; who can meet a target still goes first, and who cannot last."""
    engine = Engine(by_arrival=True)
    engine.arrive("long", 0.0, index_s=9.0)
    engine.arrive("short", 1.0, index_s=0.1)
    engine.arrive("promised", 2.0, index_s=5.0, targets=SOON)
    assert engine.order(2.0) == ["promised", "long", "short"]
    assert engine.order(5.0) == ["long", "short", "promised"]


@pytest.mark.parametrize(("targets", "free_blocks", "admitted"), [(None, 8, 0), (SOON, 8, 1), (SOON, 6, 0)])
def test_who_is_about_to_miss_a_target_needs_no_room_to_grow(
    targets: Targets | None, free_blocks: int, admitted: int
) -> None:
    """Its 100 tokens take seven blocks; what runs may grow into those that are free, and would give way."""
    engine = Engine(gate=Gate(horizon_tokens=64))
    engine.arrive("runs", 0.0, growth_tokens=(64.0,))
    engine.start("runs")
    engine.arrive("waits", 0.0, targets=targets, growth_tokens=(64.0,))
    assert engine.plan(0.1, free_blocks=free_blocks).admission_limit == 1 + admitted


@pytest.mark.parametrize("boost_per_s", [None, 0.1])
def test_a_standing_weighs_more_than_any_index(boost_per_s: float | None) -> None:
    """Whether the boost or the index alone orders."""
    engine = Engine(boost_per_s=boost_per_s)
    engine.arrive("short", 0.0, index_s=0.01)
    engine.arrive("promised", 0.0, index_s=500.0, targets=SOON)
    assert engine.order(0.5) == ["promised", "short"]
    assert engine.order(3.0) == ["short", "promised"]


def test_a_far_time_to_first_token_is_urgent_only_when_it_is_near() -> None:
    """Who asks for a first token within an hour goes by its index like others, until half a minute before."""
    engine = Engine()
    engine.arrive("far", 0.0, index_s=5.0, targets=Targets(ttft_s=3_600.0))
    for number in range(3):
        engine.arrive(f"{number}", 0.0, index_s=1.0)
    assert engine.order(3_500.0)[-1] == "far"
    assert engine.order(3_599.0)[0] == "far"


def test_without_targets_the_order_is_that_of_the_index_whatever_the_time() -> None:
    """Nobody's place changes with the clock alone."""
    engine = Engine()
    for name, index_s in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        engine.arrive(name, 0.0, index_s=index_s)
    assert engine.order(0.0) == engine.order(1000.0) == ["a", "b", "c"]


def decoding(
    target_s: float,
    tokens: int,
    first_token_s: float,
    *,
    early_tokens: int = 1,
    late_tokens: int = 1000,
    prompt: Targets | None = None,
) -> Engine:
    """An engine with one request that decodes, and a long prompt that waits, with these targets."""
    engine = Engine()
    engine.arrive(
        "talks", 0.0, targets=Targets(tpot_s=target_s), late_tokens=(late_tokens,), early_tokens=(early_tokens,)
    )
    engine.start("talks")
    engine.plan(0.0)
    engine.tokens["talks"] = tokens
    engine.ordering.first_token("talks", first_token_s)
    engine.arrive("prompt", 0.0, targets=prompt)
    engine.waiting[0].num_tokens = 6000
    return engine


@pytest.mark.parametrize(("tokens", "step_tokens"), [(1, 129), (11, 1 + 905), (101, None)])
def test_a_step_is_as_long_as_the_credit_of_those_who_decode(tokens: int, step_tokens: int | None) -> None:
    """At 0.1 s a token: none ahead leaves the floor, ten ahead leave 0.95 s and ninety any prompt, beside a step of 30 ms."""
    plan = decoding(0.1, tokens, 0.0).plan(0.11)
    assert plan.step_tokens == (None if step_tokens is None else pytest.approx(step_tokens, abs=2))


def test_a_step_in_flight_takes_its_part_of_the_credit() -> None:
    """A step that follows one in flight begins when that ends, and that one generates a token too."""
    engine = decoding(0.1, 11, 0.0)
    first = engine.plan(0.11)
    second = engine.plan(0.11, steps_in_flight=1)
    assert first.step_tokens is not None
    assert second.step_tokens is not None
    taken_s = COST.base_s + COST.prefill_token_s * (first.step_tokens - 1)
    credit_s = 0.95 * 0.1 * 12 - 0.11 - taken_s
    assert second.step_tokens == pytest.approx(max(129, 1 + (credit_s - 0.03) / 1e-3), abs=2)


def test_nobody_waits_for_who_cannot_get_back_to_its_pace() -> None:
    """Three seconds behind with 20 tokens left: prompts have the whole step; with 1,000 left they have the floor."""
    assert decoding(0.1, 2, 0.0, late_tokens=22).plan(3.2).step_tokens is None
    assert decoding(0.1, 2, 0.0, late_tokens=1002).plan(3.2).step_tokens == 129


@pytest.mark.parametrize(
    ("early_tokens", "ttft_s", "others", "share", "step_tokens"),
    [
        (1000, 7.0, 0, 0.0, None),
        (200, 7.0, 0, 0.0, 1 + 3420),
        (200, 7.0, 0, 0.4, 1 + 2620),
        (200, 7.0, 0, 0.7, 129),
        (200, None, 0, 0.0, 129),
        (200, 30.0, 0, 0.0, 129),
        (200, 6.0, 0, 0.0, 129),
        (90, 7.0, 0, 0.0, 129),
        (1000, 7.0, MOST_PROMPTS, 0.0, 129),
    ],
    ids=[
        *("long answer", "shorter one", "many prompts", "prompts take all"),
        *("no target", "met anyhow", "lost anyhow", "nothing to win", "many wait"),
    ],
)
def test_a_request_falls_behind_where_it_wins_that_back_and_saves_a_prompt(
    early_tokens: int, ttft_s: float | None, others: int, share: float, step_tokens: int | None
) -> None:
    """A prompt of 6,000 tokens takes 6.0 s in steps full of it, 7.4 s beside the pace; an answer wins back 65 ms a token."""
    prompt = None if ttft_s is None else Targets(ttft_s=ttft_s)
    engine = decoding(0.1, 1, 0.0, early_tokens=early_tokens, prompt=prompt)
    for number in range(others):
        engine.arrive(f"other {number}", 0.05)
    engine.ordering._pace.observe_step(1e6, share * 1e6)
    assert engine.plan(0.11).step_tokens == (None if step_tokens is None else pytest.approx(step_tokens, abs=40))


def test_a_target_below_the_time_of_a_step_slows_nothing() -> None:
    """No budget could keep it."""
    assert decoding(0.02, 2, 0.0).plan(0.11).step_tokens is None


def serve(
    engine: Engine, backlogs: dict[str, list[float]], weights: dict[str, float], answers: int
) -> dict[str, float]:
    """Serve one request at a time; each tenant has two waiting at any time. Returns what each was served over its weight."""
    queues = {tenant: cycle(costs) for tenant, costs in backlogs.items()}
    served = dict.fromkeys(backlogs, 0.0)
    number = 0

    def arrive(tenant: str) -> None:
        nonlocal number
        number += 1
        cost_s = next(queues[tenant])
        account = {"tenant": tenant, "weight": weights[tenant]} if engine.shares else {}
        engine.arrive(f"{tenant}:{cost_s}:{number}", float(number), index_s=cost_s, **account)

    for tenant in backlogs:
        arrive(tenant)
        arrive(tenant)
    for _ in range(answers):
        first = engine.order(0.0)[0]
        tenant, cost_s, _ = first.split(":")
        engine.start(first)
        engine.plan(0.0)
        engine.tokens[first] = round(float(cost_s) / SHARES.slot_step_s)
        arrive(tenant)
        engine.end(first)
        served[tenant] += float(cost_s) / weights[tenant]
    return served


@given(
    costs=st.lists(st.sampled_from([0.1, 0.5, 2.0, 10.0]), min_size=1, max_size=4),
    others=st.lists(st.sampled_from([0.1, 0.5, 2.0, 10.0]), min_size=1, max_size=4),
    weight=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_of_two_tenants_that_always_wait_neither_is_served_a_quantum_and_a_request_more(
    costs: list[float], others: list[float], weight: float
) -> None:
    """Whatever their answers cost, long or short; the quantum may have doubled since."""
    engine = Engine(shares=SHARES)
    served = serve(engine, {"a": costs, "b": others}, {"a": weight, "b": 1.0}, 200)
    largest_s = max(costs + others) / min(weight, 1.0)
    quantum_s = 2.0 * QUANTUM_ANSWERS * max(costs + others)
    assert abs(served["a"] - served["b"]) <= quantum_s + 2.0 * largest_s


def test_a_tenants_requests_get_new_keys_once_a_step_however_often_its_round_changes() -> None:
    """Answers that end much sooner than predicted take it a round up at the start and down at the end."""
    moved: list[int] = []
    shares = TenantShares(lambda requests: moved.append(len(list(requests))))
    prices = SHARES
    waiting = [Tracked(f"w{number}", 0, 0.0, number, int) for number in range(1_000)]
    for tracked in waiting:
        shares.enter(tracked, "a", 1.0)
    shares.settle()
    moved.clear()
    for step in range(50):
        for number in range(20):
            tracked = Tracked(f"{step}.{number}", 0, 0.0, 0, int)
            tracked.index_s = 60.0
            shares.enter(tracked, "a", 1.0)
            shares.started(tracked)
            shares.leave(tracked, prices)
        shares.settle()
    assert len(moved) <= 50, "of 2,000 changes"
    assert shares.served_s("a") == 0.0, "the answers had no token"


def test_a_tenant_with_cheap_answers_does_not_starve_one_with_dear_ones() -> None:
    """The index alone would serve the cheap ones for ever."""
    alone = serve(Engine(boost_per_s=None), {"cheap": [0.1], "dear": [2.0]}, {"cheap": 1.0, "dear": 1.0}, 150)
    shared = serve(
        Engine(boost_per_s=None, shares=SHARES), {"cheap": [0.1], "dear": [2.0]}, {"cheap": 1.0, "dear": 1.0}, 600
    )
    assert alone["dear"] == 0.0
    assert shared["dear"] > 10.0


def test_idleness_earns_nothing() -> None:
    """A tenant that comes back after long is at the head of its round, not of all."""
    engine = Engine(shares=SHARES)
    serve(engine, {"busy": [1.0]}, {"busy": 1.0}, 100)
    engine.arrive("late", 1e6, index_s=50.0, tenant="idle", weight=1.0)
    assert engine.order(0.0)[-1] == "late", "its dear request goes behind the cheap ones of its round"
    assert engine.ordering.served_s("idle") == pytest.approx(engine.ordering.served_s("busy"))


def test_a_tenant_alone_has_the_order_that_it_had_without_shares() -> None:
    """Its account decides nothing."""
    costs = [3.0, 0.2, 9.0, 1.0, 0.5]
    names = []
    for shares in (None, SHARES):
        engine = Engine(shares=shares)
        for number, cost_s in enumerate(costs):
            tenant = {"tenant": "only"} if shares else {}
            engine.arrive(f"{number}", 0.0, index_s=cost_s, **tenant)
        names.append(engine.order(0.0))
    assert names[0] == names[1]


def test_a_request_whose_tenant_is_not_known_yet_has_the_place_of_the_next() -> None:
    """Until its table comes it neither overtakes the rounds of all others nor waits for their last."""
    engine = Engine(shares=SHARES, boost_per_s=None)
    serve(engine, {"a": [1.0], "b": [1.0]}, {"a": 1.0, "b": 1.0}, 100)
    waiting = engine.order(0.0)
    engine.ordering.track("new", priority=0, arrival_s=1e6, prompt_tokens=100)
    engine.waiting.append(Request("new"))
    assert engine.ordering.key("new")[1] == min(engine.ordering.key(name)[1] for name in waiting) > 0


def test_the_real_cost_is_charged_in_the_end() -> None:
    """An answer of ten times the expected length is charged ten times as much."""
    engine = Engine(shares=SHARES)
    engine.arrive("r", 0.0, index_s=1.0, tenant="a", weight=2.0)
    engine.start("r")
    engine.plan(0.0)
    assert engine.ordering.served_s("a") == 0.5
    engine.tokens["r"] = 1000
    engine.end("r")
    assert engine.ordering.served_s("a") == pytest.approx(5.0)


def test_thousands_of_tenants_have_a_bounded_number_of_accounts() -> None:
    """Idle ones are forgotten first; those that come while all accounts are in use share one."""
    engine = Engine(shares=SHARES)
    for number in range(MOST_ACCOUNTS + 50):
        engine.arrive(f"r{number}", 0.0, tenant=f"t{number}")
        engine.start(f"r{number}")
    engine.plan(0.0)
    assert engine.ordering.served_s(SHARED_ACCOUNT) == pytest.approx(50.0)
    assert engine.ordering.served_s(f"t{MOST_ACCOUNTS + 1}") == 0.0
    for number in range(MOST_ACCOUNTS + 50):
        engine.end(f"r{number}")
    engine.arrive("again", 0.0, tenant="new")
    engine.start("again")
    engine.plan(0.0)
    assert engine.ordering.served_s("new") > 0.0


def test_nothing_is_kept_of_tenants_that_are_forgotten_while_no_plan_is_made() -> None:
    """As in shadow, where tables come and no order is asked for."""
    shares = TenantShares(lambda _moved: None)
    for number in range(5 * MOST_ACCOUNTS):
        tracked = Tracked(f"{number}", 0, 0.0, number, int)
        tracked.index_s = 1.0
        shares.enter(tracked, f"t{number}", 1.0)
        shares.started(tracked)
        shares.leave(tracked, SHARES)
    assert len(shares._changed) <= len(shares._accounts) <= MOST_ACCOUNTS


def test_a_session_under_way_goes_by_its_beginning_while_its_prefix_is_cached() -> None:
    """Its next turn goes before a new request that came earlier; without a cached prefix it does not."""
    for memory, expected in ((Cached, ["turn 2", "new"]), (PlainMemory, ["new", "turn 2"])):
        engine = Engine(memory=memory, boost_per_s=0.005)
        engine.arrive("turn 1", 0.0, session="s")
        engine.start("turn 1")
        engine.plan(0.0)
        engine.end("turn 1")
        engine.arrive("new", 50.0)
        engine.arrive("turn 2", 60.0, session="s")
        assert engine.order(60.0) == expected


def test_an_old_session_overtakes_others_for_a_bounded_time_only() -> None:
    """However long ago it began, and however many of its requests come at once: who waits is served in the end."""
    engine = Engine(memory=Cached, boost_per_s=0.001)
    for number in range(5):
        engine.arrive(f"old {number}", 0.0, session="s")
    served_s: dict[str, float] = {}
    for now_s in map(float, range(1_000, 1_200)):
        engine.arrive(f"old {now_s}", now_s, session="s")
        if now_s == 1_050.0:
            engine.arrive("new", now_s)
        first = engine.order(now_s)[0]
        engine.start(first)
        engine.plan(now_s)
        engine.end(first)
        served_s[first] = now_s
    assert 5.0 < served_s["new"] - 1_050.0 <= SESSION_UNITS / 0.001 + 10.0


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize(("first_s", "more_s"), [(0.1, 0.0), (1e-9, 1e-9), (1.0, 1e-3)])
def test_what_is_kept_of_targets_does_not_grow_with_the_requests_served(
    first_s: float, more_s: float, planned: bool
) -> None:
    """Requests with far deadlines and paces of their own, also such as no step can keep, come and go without a trace.

    Without plans as well, as in shadow. The engine's request goes at once: its prompt may be long.
    """

    def tracked() -> set[Tracked]:
        gc.collect()
        return {each for each in gc.get_objects() if type(each) is Tracked}

    before = tracked()
    engine = Engine()
    for number in range(5_000):
        name = f"{number}"
        targets = Targets(ttft_s=50_000.0, tpot_s=first_s + more_s * number, e2e_s=86_400.0)
        engine.arrive(name, float(number), targets=targets, early_tokens=(10,), late_tokens=(50,))
        engine.start(name)
        if planned:
            engine.plan(float(number))
        engine.tokens[name] = 1
        engine.ordering.first_token(name, float(number))
        engine.end(name)
    engine.plan(5_000.0)
    kept = tracked() - before
    assert len(kept) < 2_000, "of 5,000"
    assert all(each.count is int for each in kept)


def test_targets_that_hardly_differ_are_one_to_a_step() -> None:
    """A thousand requests that decode, each with a pace of its own: few are looked at, and the least credit counts."""
    pace = Pace()
    for number in range(1_000):
        tracked = Tracked(f"{number}", 0, 0.0, number, lambda: 2)
        targets = Targets(tpot_s=0.1 + 1e-4 * number)
        tracked.table = IndexTable(
            request_id=f"{number}", attained_tokens=(0,), index_s=(1.0,), growth_tokens=(0.0,), targets=targets
        )
        tracked.first_token_s = 0.0
        pace.follow(tracked)
    assert len(pace._due) < 120
    assert pace.longest_step(0.0, 0.03).in_time_s == pytest.approx(2 * 0.95 * 0.1)
