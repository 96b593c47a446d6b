"""Keys of running requests that are set when they are read: the plans are those of keys that are set at once."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from engine_adapter.ordering.kv_memory import PlainMemory, PrefixHit
from engine_adapter.ordering.ordering import Ordering, Plan
from engine_adapter.ordering.running_order import Tracked
from store.records import EngineRules, FairShares, Gate, IndexTable, Preemption, Settings, StepCost, Targets, Victims

MOST_TOKENS = 3
SLOTS = 12


class SetAtOnce(Ordering):
    """Sets every key as soon as it changes."""

    def _can_wait(self, tracked: Tracked) -> bool:
        return False


@dataclass
class Request:
    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0
    output_tokens: int = 0

    def count(self) -> int:
        return self.output_tokens

    def compute(self, tokens: int) -> None:
        """Compute the prompt, or generate tokens."""
        if self.num_tokens - self.num_computed_tokens > 1:
            self.num_computed_tokens = self.num_tokens - 1
            return
        self.output_tokens += tokens
        self.num_tokens += tokens
        self.num_computed_tokens += tokens


class Cached(PlainMemory):
    """KV memory in which every prompt is cached but for its last token."""

    def hit(self, request: Request) -> PrefixHit:
        return PrefixHit(tokens=request.num_tokens - 1)


@dataclass
class Engine:
    """An engine that admits, preempts and generates at random, and two orderings that are told the same."""

    chance: random.Random
    orderings: tuple[Ordering, Ordering] = field(default_factory=lambda: (Ordering(16, SLOTS), SetAtOnce(16, SLOTS)))
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    number: int = 0

    def arrive(self) -> None:
        self.number += 1
        request = Request(f"r{self.number}", self.chance.randint(2, 60))
        priority = int(self.number > 40 and self.chance.random() < 0.2)
        self.waiting.append(request)
        session = self.chance.choice([None, "a", "b"])
        for ordering in self.orderings:
            ordering.track(
                request.request_id,
                priority=priority,
                arrival_s=float(self.number),
                count=request.count,
                prompt_tokens=request.num_tokens,
                session=session,
            )

    def send_table(self) -> None:
        named = self.chance.choice([*self.waiting, *self.running, None])
        table = self.table(None if named is None else named.request_id)
        for ordering in self.orderings:
            ordering.put(table)

    def table(self, request_id: str | None) -> IndexTable:
        entries = range(0, 60, self.chance.choice([5, 9]))
        index_s = tuple(self.chance.uniform(0.1, 9.0) for _ in entries)
        promised = request_id is not None and self.chance.random() < 0.4
        return IndexTable(
            request_id=request_id,
            attained_tokens=tuple(entries),
            index_s=index_s,
            growth_tokens=tuple(map(float, entries)),
            targets=Targets(e2e_s=self.chance.uniform(5.0, 40.0)) if promised else None,
            early_tokens=tuple(entry + 10 for entry in entries) if promised else (),
            late_tokens=tuple(entry + 40 for entry in entries) if promised else (),
            tenant=self.chance.choice([None, None, "a", "b"]) if request_id is not None and self.number > 15 else None,
        )

    def configure(self) -> None:
        victims: list[Victims] = ["last", "later", "cheapest"]
        rules = EngineRules(
            gate=Gate(horizon_tokens=32),
            boost_per_s=self.chance.choice([None, 0.1, 0.1]),
            preemption=self.chance.choice([None, None, Preemption(token_s=1e-3)]),
            victims=self.chance.choice(victims),
            step=StepCost(base_s=0.03, prefill_token_s=1e-4, budget_tokens=self.chance.choice([24, 8192, 8192])),
            shares=FairShares(kv_token_step_s=1e-6, slot_step_s=1e-3, prefill_token_s=1e-4),
            sessions=self.chance.random() < 0.3,
        )
        for ordering in self.orderings:
            ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=rules))

    def preempt(self) -> None:
        if self.running:
            victim = self.running.pop()
            victim.num_computed_tokens = 0
            self.waiting.insert(0, victim)

    def finish(self) -> None:
        if self.running:
            ended = self.running.pop(self.chance.randrange(len(self.running)))
            for ordering in self.orderings:
                ordering.forget(ended.request_id)

    def step(self, now_s: float) -> tuple[Plan[Request], Plan[Request]]:
        """Plan, admit and generate."""
        memory = Cached(5 if self.chance.random() < 0.1 else 10_000, 16)
        plan, other = (
            ordering.plan(now_s, waiting=list(self.waiting), running=list(self.running), memory=memory)
            for ordering in self.orderings
        )
        self.waiting, self.running = list(plan.waiting), list(plan.running)
        for victim in plan.pushed_out:
            victim.num_computed_tokens = 0
        while self.waiting and len(self.running) < min(SLOTS, plan.admission_limit or 0):
            self.running.append(self.waiting.pop(0))
        for request in self.running:
            request.compute(self.chance.randint(1, MOST_TOKENS))
        for ordering in self.orderings:
            ordering.advance(MOST_TOKENS)
        return plan, other


EVENTS = (Engine.arrive, Engine.send_table, Engine.configure, Engine.preempt, Engine.finish)


@pytest.mark.parametrize("seed", range(100))
def test_plans_are_those_of_keys_that_are_set_at_once(seed: int) -> None:
    """Whatever happens between two plans, both orderings make the same, and agree on every key in the end."""
    chance = random.Random(seed)
    engine = Engine(chance)
    engine.configure()
    for ordering in engine.orderings:
        ordering.put(IndexTable(request_id=None, attained_tokens=(0,), index_s=(5.0,), growth_tokens=(9.0,)))
    for number in range(80):
        for _ in range(chance.randint(0, 2)):
            chance.choices(EVENTS, weights=(6, 6, 1, 3, 2))[0](engine)
        plan, other = engine.step(0.5 * number)
        assert plan == other
    ours, theirs = engine.orderings
    for request in (*engine.waiting, *engine.running):
        assert ours.key(request.request_id) == theirs.key(request.request_id)


def test_the_key_of_a_running_request_is_not_computed_while_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step that can preempt nobody, a request that reaches another entry costs no key."""
    engine = Engine(random.Random(1))
    engine.arrive()
    ordering = engine.orderings[0]
    rules = EngineRules(gate=Gate(horizon_tokens=32), boost_per_s=0.1)
    ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=rules))
    ordering.put(IndexTable(request_id=None, attained_tokens=(0, 5), index_s=(5.0, 1.0), growth_tokens=(9.0, 8.0)))
    (request,) = engine.waiting
    memory = PlainMemory(1000, 16)
    request.num_computed_tokens = request.num_tokens - 1
    for _ in range(2):
        ordering.plan(0.0, waiting=[], running=[request], memory=memory)
    ranked: list[str] = []
    monkeypatch.setattr(ordering, "_rank", lambda tracked: ranked.append(tracked.request_id))
    request.compute(8)
    ordering.advance(8)
    plan = ordering.plan(0.0, waiting=[], running=[request], memory=memory)
    assert (plan.running, ranked) == ([request], [])
    ordering.key(request.request_id)
    assert ranked == [request.request_id]
