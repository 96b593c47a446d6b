"""Engine replicas that come and go under one controller: what they share, what is remembered of them, and for how long."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from msgspec import structs

from controller.api.json_views import engine_view
from controller.benchmark.scheduling.routers import ROUTERS, RouterSpec, run_routers
from controller.benchmark.synthetic_history import synthetic_facts, synthetic_hello
from controller.core.in_process import IN_PROCESS, InProcessController
from controller.monitoring.live_state import Live
from controller.monitoring.wait_forecast import Outlooks
from controller.policy.policies import policy_named
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from online_learning.mixture.mixture import MixtureLearner
from store.errors import ConfigError
from store.history.writer import WriterStats
from store.records import Arrived, Fact, Facts, Goodbye

PROFILE = PROFILES["h800-qwen3-32b-24k"]
FORGET_S = 60.0


class Fleet:
    """A core, and engines that are a connection and a session each."""

    def __init__(self, *, max_sessions: int = 8) -> None:
        self.now_s = 0.0
        config = replace(IN_PROCESS, forget_lost_s=FORGET_S, max_sessions=max_sessions)
        self.controller = InProcessController(MixtureLearner(), policy_named("sage"), config=config)
        self.core = self.controller.core
        self._chance = random.Random(1)
        self._batches: dict[bytes, int] = {}

    def join(self, engine_id: str, session_id: str, connection: bytes, model: str = "m") -> bool:
        """Say hello; whether the controller answered."""
        hello = structs.replace(synthetic_hello(PROFILE, model, self.now_s), engine_id=engine_id, session_id=session_id)
        return bool(self.controller.handle(connection, hello, self.now_s))

    def answer(self, connection: bytes, *, output_tokens: int, prompt: int = 100) -> None:
        """A request lives on an engine, from its arrival to its end."""
        self._tell(connection, *synthetic_facts(_work(self._chance.random(), output_tokens, prompt), PROFILE))

    def begin(self, connection: bytes, count: int) -> None:
        """So many requests arrive and stay."""
        for _ in range(count):
            self._tell(connection, synthetic_facts(_work(self._chance.random(), 10, 100), PROFILE)[0])

    def expected(self, model: str) -> float:
        """Mean answer length that is expected of a prompt of the usual kind."""
        engines = self.core.predict_on(model, synthetic_facts(_work(0.0, 10, 100), PROFILE)[0])
        (mean,) = {round(engine.mean_tokens, 6) for engine in engines.values()}
        return mean

    def sessions(self) -> dict[str, bool]:
        """Engines that are remembered, and whether they are connected."""
        return {session.hello.engine_id: session.connected for session in self.core.sessions}

    def _tell(self, connection: bytes, *facts: Fact) -> None:
        self._batches[connection] = self._batches.get(connection, 0) + 1
        batch = self._batches[connection]
        self.controller.handle(connection, Facts(batch=batch, facts=facts, oldest=batch), self.now_s)


def _work(name: float, output_tokens: int, prompt: int) -> TraceRequest:
    return TraceRequest(
        request_id=f"r{name}",
        arrival_s=0.0,
        token_ids=tuple(range(prompt)),
        max_tokens=8_000,
        true_output_tokens=output_tokens,
    )


def test_what_one_engine_taught_changes_what_its_replica_is_told() -> None:
    """Same model: learnt on A, expected on B, which never served. Another model keeps to what its own answers say.

    Before it has any of its own, a model is expected to answer as the others do.
    """
    fleet = Fleet()
    for engine_id, model in (("a", "m"), ("b", "m"), ("c", "other")):
        assert fleet.join(engine_id, f"{engine_id}1", engine_id.encode(), model)
    before = fleet.expected("m")
    for _ in range(100):
        fleet.answer(b"c", output_tokens=60)
    own = fleet.expected("other")
    for _ in range(200):
        fleet.answer(b"a", output_tokens=1500)
    after = fleet.expected("m")
    assert abs(after - 1500) < 0.5 * abs(before - 1500), "on both engines alike"
    assert own < 120
    assert fleet.expected("other") < 2 * own < after / 4


def test_memory_of_engines_that_come_and_go_is_freed() -> None:
    """A thousand starts of one engine, each killed with requests unfinished: no more is kept than of the last minute."""
    fleet = Fleet(max_sessions=32)
    for start in range(1_000):
        connection = f"c{start}".encode()
        assert fleet.join("a", f"a{start}", connection), "there is room again"
        fleet.begin(connection, 3)
        fleet.core.lost(connection, fleet.now_s)
        fleet.now_s += 5.0
        fleet.core.tick(fleet.now_s)
        fleet.core.drain_entries()
    assert len(fleet.core.sessions) <= FORGET_S / 5.0 + 1
    assert sum(len(session.requests) for session in fleet.core.sessions) <= 3 * (FORGET_S / 5.0 + 1)
    fleet.now_s += 2 * FORGET_S
    fleet.core.tick(fleet.now_s)
    assert fleet.core.sessions == []


def test_an_engine_that_returns_is_known_by_its_session() -> None:
    """The same session over another connection keeps its requests; a new session of the same name starts with none."""
    fleet = Fleet()
    fleet.join("a", "a1", b"1")
    fleet.begin(b"1", 5)
    fleet.core.lost(b"1", fleet.now_s)
    assert fleet.sessions() == {"a": False}
    fleet.join("a", "a1", b"2")
    assert [len(session.requests) for session in fleet.core.sessions] == [5]
    fleet.core.lost(b"2", fleet.now_s)
    fleet.join("a", "a2", b"3")
    assert {session.hello.session_id: len(session.requests) for session in fleet.core.sessions} == {"a1": 5, "a2": 0}
    fleet.now_s += FORGET_S + 1.0
    fleet.core.tick(fleet.now_s)
    assert [session.hello.session_id for session in fleet.core.sessions] == ["a2"]


def test_more_engines_than_there_is_room_for_are_counted_and_get_in_later() -> None:
    """Beyond the bound an engine serves by itself; when another is forgotten it gets in with its next greeting."""
    fleet = Fleet(max_sessions=2)
    assert [fleet.join(name, name, name.encode()) for name in "abc"] == [True, True, False]
    assert fleet.core.counts.unknown_connections == 1
    fleet.controller.handle(b"a", Goodbye(time_s=0.0), fleet.now_s)
    fleet.now_s += FORGET_S + 1.0
    fleet.core.tick(fleet.now_s)
    assert fleet.join("c", "c", b"c")


def test_the_live_state_shows_who_is_lost_and_routers_are_not_told_of_it() -> None:
    """`/api/state`, which the dashboard shows, has both engines; a forecast has only the one that is connected."""
    fleet = Fleet()
    fleet.join("a", "a1", b"a")
    fleet.join("b", "b1", b"b")
    fleet.core.lost(b"b", fleet.now_s)
    live = Live()
    live.publish(fleet.core, store=WriterStats(), loop={}, now_s=fleet.now_s)
    assert live.live_snapshot is not None
    shown = [engine_view(engine) for engine in live.live_snapshot.engines]
    assert {view.engine_id: view.connected for view in shown} == {"a": True, "b": False}
    arrived: Arrived = synthetic_facts(_work(0.0, 10, 100), PROFILE)[0]
    forecast = Outlooks().forecast(live.live_snapshot, fleet.core.predict_on("m", arrived), 100)
    assert [engine.engine_id for engine in forecast.engines] == ["a"]
    assert fleet.core.predict_on("unknown", arrived) == {}


def test_every_router_serves_all_and_the_predicted_one_sees_a_slow_engine() -> None:
    """In virtual time, one engine ten times as slow: by turns it gets half, by predicted cost next to nothing."""
    spec = RouterSpec(speeds=(1.0, 0.1), requests=40, warmup=60, seeds=(1,), load=0.8)
    runs = {run.router: run for run in run_routers(spec)}
    assert set(runs) == set(ROUTERS)
    assert runs["round-robin"].shares == (0.5, 0.5)
    assert runs["predicted"].shares[1] < 0.2
    assert runs["predicted"].figures.mean_ttlt_s < runs["round-robin"].figures.mean_ttlt_s
    assert {len(run.shares) for run in runs.values()} == {2}


@pytest.mark.parametrize(
    ("setting", "value"), [("routers", ("random",)), ("speeds", (1.0,)), ("speeds", (1.0, 0.0)), ("load", 0.0)]
)
def test_a_comparison_that_makes_no_sense_is_refused(setting: str, value: object) -> None:
    """One line that names it."""
    with pytest.raises(ConfigError):
        replace(RouterSpec(), **{setting: value})  # type: ignore[arg-type]
