"""Requests that arrive together are predicted together, and get the tables that they would get one after the other."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.benchmark.synthetic_history import synthetic_facts, synthetic_hello
from controller.core.arrivals import MOST_TOGETHER
from controller.core.in_process import IN_PROCESS, InProcessController
from controller.core.pause import PauseLimits
from controller.policy.policies import policy_named
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.request_progress import RequestProgress
from engine_adapter.workloads.requests import request_stream
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.length_learner import Features, Forecast, LengthLearner
from online_learning.mixture.mixture import MixtureLearner
from store.records import Arrived, Fact, Facts, IndexTable

PROFILE = PROFILES["h800-qwen3-32b"]
REQUESTS = list(islice(request_stream(seed=4, rate_rps=10.0), 600))
NOW_S = 1e9
ENGINES = 3
LIMITS = PauseLimits(first_s=5.0, limit_s=300.0)


def arrived(request: TraceRequest) -> Arrived:
    return RequestProgress(replace(request, arrival_s=NOW_S)).arrived()


class World:
    """A core that defers learning, as the control loop's does, with engines that only report."""

    def __init__(self, learner: LengthLearner | None = None) -> None:
        config = replace(IN_PROCESS, backlog=10_000)
        controller = InProcessController(learner or MixtureLearner(), policy_named("sage"), config=config, now_s=NOW_S)
        self.core = controller.core
        self.batches = 0
        self.tables: dict[str, IndexTable] = {}
        for engine in range(ENGINES):
            hello = synthetic_hello(PROFILE, f"model {engine % 2}", NOW_S)
            named = {"engine_id": f"e{engine}", "session_id": f"s{engine}"}
            controller.handle(b"%d" % engine, type(hello)(**{**_fields(hello), **named}), NOW_S)

    def report(self, engine: int, *facts: Fact, more: bool = False) -> None:
        self.batches += 1
        message = Facts(batch=self.batches, facts=facts, oldest=self.batches)
        self.core.handle(b"%d" % engine, message, NOW_S, more=more)

    def settle(self) -> None:
        """Predict what waits, learn what has ended, and take in the tables."""
        self.core.proceed(NOW_S)
        while self.core.backlog:
            self.core.work(NOW_S)
        for _, message in self.core.drain_messages():
            if isinstance(message, IndexTable) and message.request_id is not None:
                self.tables[message.request_id] = message


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.tuples(st.integers(1, 2 * MOST_TOGETHER), st.integers(0, 40)), min_size=4, max_size=12))
def test_the_tables_are_those_of_one_request_after_the_other(cuts: list[tuple[int, int]]) -> None:
    """To the last digit: whatever arrives together, over engines of two models, with answers learnt in between."""
    together, apart = World(), World()
    requests = iter(REQUESTS)
    unfinished: list[tuple[int, TraceRequest]] = []
    for arrivals, ends in cuts:
        some = [(number % ENGINES, request) for number, request in enumerate(islice(requests, arrivals))]
        for engine, request in some:
            together.report(engine, arrived(request), more=True)
            apart.report(engine, arrived(request))
        together.settle()
        apart.settle()
        unfinished += some
        for engine, request in unfinished[:ends]:
            for world in (together, apart):
                world.report(engine, synthetic_facts(request, PROFILE)[-1])
                world.settle()
        del unfinished[:ends]
    assert together.tables == apart.tables
    assert together.core.counts == apart.core.counts


def test_a_fact_of_a_request_that_waits_finds_it_predicted() -> None:
    """First tokens and ends count although they come with the arrivals; a second arrival sends the table again."""
    world = World()
    first, second = REQUESTS[:2]
    world.report(0, arrived(first), arrived(second), *synthetic_facts(first, PROFILE)[1:], more=True)
    assert world.core.counts.predictions == 2
    world.settle()
    assert world.core.counts.completions == 1
    world.report(0, arrived(second), arrived(REQUESTS[2]), arrived(REQUESTS[2]), more=True)
    world.settle()
    assert world.core.counts.predictions == 3
    assert world.core.counts.tables_sent == 5


class _FailsOnce(GlobalLearner):
    """Fails on one prompt, whoever it comes with."""

    def __init__(self, poison: Features) -> None:
        super().__init__()
        self._poison = poison

    def predict_one(self, features: Features, model: str) -> Forecast:
        if np.array_equal(features, self._poison):
            raise ZeroDivisionError
        return super().predict_one(features, model)


def test_one_request_that_cannot_be_predicted_costs_no_other_its_table() -> None:
    """Those that were to be predicted with it are predicted alone, and its engine alone is charged with it."""
    healthy = World()
    healthy.report(0, arrived(REQUESTS[3]))
    features = healthy.core.sessions[0].requests[REQUESTS[3].request_id].features
    world = World(_FailsOnce(features))
    for number, request in enumerate(REQUESTS[:8]):
        world.report(number % ENGINES, arrived(request), more=True)
    charged = []
    with pytest.raises(ZeroDivisionError):
        world.core.proceed(NOW_S)
    while world.core.unhandled:
        assert world.core.charge_engine(ZeroDivisionError(), LIMITS, NOW_S)
        charged.append([session.trouble.errors for session in world.core.sessions])
        with contextlib.suppress(ZeroDivisionError):
            world.core.proceed(NOW_S)
    assert world.core.charge_engine(ZeroDivisionError(), LIMITS, NOW_S) is (len(charged) == 1)
    world.settle()
    assert [session.trouble.errors for session in world.core.sessions] == [
        int(s == 3 % ENGINES) for s in range(ENGINES)
    ]
    assert world.tables.keys() == {request.request_id for request in REQUESTS[:8]} - {REQUESTS[3].request_id}


def test_a_request_holds_nothing_of_those_that_it_was_predicted_with() -> None:
    """One that runs for long keeps its own arrays alone; one that has ended and waits to be learnt, no evidence either."""
    world = World()
    for request in REQUESTS[:400]:
        world.report(0, arrived(request), synthetic_facts(request, PROFILE)[-1])
        world.settle()
    world.report(0, *(arrived(request) for request in REQUESTS[400:420]), more=True)
    world.core.proceed(NOW_S)
    requests = [world.core.sessions[0].requests[request.request_id] for request in REQUESTS[400:420]]
    for request in requests:
        assert request.forecast.distribution.mass.base is None
        assert request.features.base is None
    world.report(0, *(synthetic_facts(request, PROFILE)[-1] for request in REQUESTS[400:420]))
    assert world.core.backlog == 20
    assert [request.surprises is not None and request.watch is None for request in requests] == [True] * 20
