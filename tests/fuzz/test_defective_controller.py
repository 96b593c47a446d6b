"""A controller that says anything its messages can hold: the engine serves everybody, and its scheduling code never fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from engine_adapter.agent.agent import Agent
from engine_adapter.agent.message_checks import MOST_ENTRIES, check_message
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from store.errors import ProtocolError
from store.records import (
    Acknowledged,
    Arrived,
    ControllerMessage,
    EngineMessage,
    EngineRules,
    Facts,
    FairShares,
    Gate,
    Heartbeat,
    Hello,
    IndexTable,
    Preemption,
    Settings,
    StepCost,
    Targets,
    Welcome,
    decode_controller_message,
    encode,
)

PROFILE = Profile(
    name="small",
    base_s=0.03,
    prefill_token_s=1e-4,
    decode_seq_s=1e-4,
    kv_token_s=1e-7,
    kv_tokens=3_000,
    max_num_seqs=8,
    token_budget=256,
    max_model_len_tokens=1_024,
)
ODD = (0.0, 5e-324, 1e-308, 1e-15, 1e-12, 0.3, 1.0, 7.0, 1e6, 1e12)
BEYOND = (1e16, 1e300, 1.7e308)
STEPS = 1500


class DefectiveController:
    """Answers with messages that decode and mostly pass the checks, in any order, for any request."""

    bad_frames = 0

    def __init__(self, seed: int) -> None:
        self.silent = False
        self._chance = random.Random(seed)
        self._ids = ["nobody"]
        self._batch = 0
        self._greeted = False

    def send(self, message: EngineMessage) -> bool:
        self._greeted = self._greeted or isinstance(message, Hello)
        if isinstance(message, Facts):
            self._batch = message.batch
            self._ids += [fact.request_id for fact in message.facts if isinstance(fact, Arrived)]
        return self._chance.random() < 0.9

    def receive(self) -> list[ControllerMessage]:
        if self.silent or not self._greeted:
            return []
        return [decode_controller_message(encode(self._message())) for _ in range(self._chance.randrange(6))]

    def close(self) -> None:
        pass

    def _message(self) -> ControllerMessage:
        one: Callable[[], ControllerMessage] = self._chance.choice(
            [self._welcome, self._settings, self._heartbeat, self._acknowledged, *4 * [self._table]]
        )
        return one()

    def _odd(self) -> float:
        if self._chance.random() < 0.001:
            return self._chance.choice(BEYOND)
        return self._chance.choice((*ODD, self._chance.random(), self._chance.lognormvariate(0.0, 6.0)))

    def _factor(self) -> float:
        return max(1e-12, self._odd())

    def _signed(self) -> float:
        return self._odd() * self._chance.choice((1.0, 1.0, -1.0))

    def _perhaps(self, make: Callable[[], Any]) -> Any:
        return make() if self._chance.random() < 0.5 else None

    def _tokens(self) -> int:
        return self._chance.choice((0, 1, 3, 100, 1 << 33, 1 << 53))

    def _welcome(self) -> Welcome:
        return Welcome(controller_id=self._chance.choice("ab"), durable_batch=self._chance.choice((0, self._batch)))

    def _acknowledged(self) -> Acknowledged:
        return Acknowledged(batch=self._chance.choice((-1, 0, self._batch, 1 << 60)))

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(time_s=self._odd(), read_s=self._perhaps(self._odd), settings=self._settings())

    def _settings(self) -> Settings:
        chance, odd = self._chance, self._odd
        rules = EngineRules(
            gate=self._perhaps(lambda: Gate(horizon_tokens=self._tokens(), margin=odd())),
            boost_per_s=self._perhaps(self._factor),
            preemption=self._perhaps(
                lambda: Preemption(
                    token_s=odd(), hysteresis=chance.choice((0.0, 0.5, 1.0)), rest_steps=chance.choice((0, 1, 1 << 60))
                )
            ),
            victims=chance.choice(("last", "later", "cheapest")),
            step=self._perhaps(
                lambda: StepCost(
                    base_s=odd(),
                    prefill_token_s=odd(),
                    budget_tokens=self._tokens(),
                    decode_seq_s=odd(),
                    kv_token_s=odd(),
                )
            ),
            shares=self._perhaps(lambda: FairShares(**{name: odd() for name in FairShares.__struct_fields__})),
            by_arrival=chance.random() < 0.1,
            sessions=chance.random() < 0.5,
        )
        mode = chance.choice(("on", "on", "on", "off", "shadow"))
        return Settings(
            revision=chance.randrange(-1, 9), mode=mode, lease_s=chance.choice((60.0, 1e-9, 1e15)), rules=rules
        )

    def _table(self) -> IndexTable:
        chance = self._chance
        attained = [0]
        for _ in range(chance.choice((0, 0, 1, 4, 60))):
            attained.append(attained[-1] + chance.choice((1, 1, 3, 100, 1 << 33)))
        quantiles = [tuple(self._tokens() for _ in attained) for _ in range(2)]
        targets = Targets(
            ttft_s=self._perhaps(self._target_s),
            tpot_s=self._perhaps(self._target_s),
            e2e_s=self._perhaps(self._target_s),
        )
        request_id = chance.choice((None, *3 * [chance.choice(self._ids[-40:])]))
        return IndexTable(
            request_id=request_id,
            attained_tokens=tuple(attained),
            index_s=tuple(self._signed() for _ in attained),
            growth_tokens=tuple(self._odd() for _ in attained),
            cached_tokens=self._tokens(),
            targets=None if request_id is None else targets,
            early_tokens=quantiles[0],
            late_tokens=quantiles[1],
            tenant=self._perhaps(lambda: chance.choice(("a", "b", f"t{chance.randrange(2000)}"))),
            weight=self._factor(),
        )

    def _target_s(self) -> float:
        return min(86_400.0, max(1e-9, self._odd()))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_controller_says_the_engine_serves_everybody(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers at the limits cost nobody an answer, and no sum or quotient of them is an error of the scheduling code."""
    errors: list[Exception] = []
    failed = Agent.failed

    def note(agent: Agent, now_s: float, error: Exception) -> None:
        errors.append(error)
        failed(agent, now_s, error)
        agent._error_until_s = now_s  # The pause after an error would hide the next one.

    monkeypatch.setattr(Agent, "failed", note)
    chance, controller = random.Random(seed), DefectiveController(seed)
    engine = SimulatedEngine(PROFILE, link=controller, engine_id="e", session_id="s", start_s=1.7e9)
    submitted, answered = 0, []
    for _ in range(STEPS):
        while chance.random() < 0.3 and engine.unfinished < 60:
            submitted += 1
            tokens = chance.choice((1, 5, 50, 300))
            engine.submit(
                TraceRequest(
                    request_id=f"r{submitted}",
                    arrival_s=engine.now_s,
                    token_ids=tuple(range(chance.choice((3, 100, 600)))),
                    max_tokens=tokens,
                    true_output_tokens=tokens,
                    priority=chance.choice((0, 0, 1)),
                )
            )
        answered += engine.step().finished
        engine.advance_to(engine.now_s + 0.01)
    controller.silent = True
    while engine.unfinished:
        answered += engine.step().finished
        engine.advance_to(engine.now_s + 0.01)
    assert sorted(life.request_id for life in answered) == sorted(f"r{number + 1}" for number in range(submitted))
    assert [error for error in errors if not isinstance(error, ProtocolError)] == []
    assert errors, "some of it must be beyond the checks"


def test_a_price_that_a_fit_left_of_nothing_is_taken() -> None:
    """Step times are fitted: what costs nothing comes out as a residue."""
    step = StepCost(base_s=0.012, prefill_token_s=1e-4, budget_tokens=8192, decode_seq_s=1e-300, kv_token_s=5e-21)
    check_message(Settings(revision=1, mode="on", lease_s=2.0, rules=EngineRules(step=step)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"index_s": (1e300,)}, "an index that is no number of seconds"),
        ({"growth_tokens": (1e300,)}, "a growth that is no number of tokens"),
        ({"late_tokens": (-1,), "early_tokens": (0,)}, "a length that is no number of tokens"),
        ({"weight": 1e-300}, "the weight 1e-300"),
        ({"request_id": None, "targets": Targets(ttft_s=1.0)}, "targets of no request"),
        (
            {name: tuple(range(MOST_ENTRIES + 1)) for name in ("attained_tokens", "index_s", "growth_tokens")},
            f"{MOST_ENTRIES + 1} entries",
        ),
    ],
)
def test_a_table_that_nothing_can_be_made_of_is_named(change: dict[str, Any], words: str) -> None:
    """With what is wrong with it."""
    table = {"request_id": "r", "attained_tokens": (0,), "index_s": (1.0,), "growth_tokens": (0.0,)}
    check_message(IndexTable(**table))  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=words):
        check_message(IndexTable(**(table | change)))
