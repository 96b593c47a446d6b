"""The core with a learner that predicts nonsense for a while: what it serves, sends and records meanwhile."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from controller.core.in_process import IN_PROCESS, InProcessController
from controller.policy.policies import policy_named
from online_learning.calibration.calibration import CalibrationSettings
from online_learning.calibration.guard import GuardSettings
from online_learning.distribution import LengthDistribution, log_grid
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.length_learner import Drift, Features, Forecast, Observation, Prompt
from store.entries import CalibrationMeasured, DriftDetected, Prediction, SettingsChanged
from store.records import (
    Arrived,
    ControllerMessage,
    EngineMessage,
    Facts,
    Finished,
    Hello,
    IndexTable,
    RunningRequest,
    Settings,
    Snapshot,
    Targets,
)

FAMILIES = 5
GRID = log_grid()
RIPE = 100


def family(number: int) -> LengthDistribution:
    mass = np.exp(-0.5 * ((np.log(GRID) - np.log(15.0 * 3.0**number)) / 0.5) ** 2)
    return LengthDistribution(GRID, mass / mass.sum())


TRUTH = [family(number) for number in range(FAMILIES)]


class Oracle(GlobalLearner):
    """Knows each family's distribution; while ``shuffled`` it gives that of another family."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffled = False
        self.drifts: list[Drift] = []

    def features(self, prompt: Prompt) -> Features:
        return np.array([round(10 * prompt.temperature)], dtype=np.float32)

    def predict_one(self, features: Features, model: str) -> Forecast:
        cluster = int(features[0])
        predicted = TRUTH[(cluster + 2) % FAMILIES] if self.shuffled else TRUTH[cluster]
        return Forecast(distribution=predicted, cluster=cluster, evidence=99.0, experts={"oracle": 1.0})

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        super().learn_one(features, model, observation)
        drifts, self.drifts = self.drifts, []
        return drifts


def hello(name: str, model: str) -> Hello:
    return Hello(
        engine_id=name,
        session_id=name,
        model=model,
        engine="simulated",
        engine_version="1",
        kv_blocks=1000,
        block_size_tokens=16,
        max_num_seqs=64,
        token_budget=512,
        max_model_len_tokens=9000,
        prefix_caching=False,
        started_s=0.0,
    )


class World:
    """Two engines with a model each; the family of a request is its temperature in tenths."""

    def __init__(self, *, guard: bool = True, mode: str = "on") -> None:
        self.learner = Oracle()
        self.records: list[object] = []
        self.controller = InProcessController(
            self.learner,
            policy_named("sage"),
            config=replace(
                IN_PROCESS,
                mode=mode,  # type: ignore[arg-type]
                lease_s=2.0,
                calibration=CalibrationSettings(guard=GuardSettings(enabled=guard)),
            ),
            on_entries=lambda entries: self.records.extend(entry.record for entry in entries),
        )
        self.core = self.controller.core
        self.random = np.random.default_rng(3)
        self.numbers: Iterator[int] = itertools.count(1)
        self.sent: list[tuple[bytes, ControllerMessage]] = []
        self.settings: dict[bytes, list[Settings]] = {}
        for name, model in (("x", "m"), ("y", "n")):
            self.handle(name.encode(), hello(name, model), 0.0)

    def handle(self, connection: bytes, message: EngineMessage, now_s: float) -> None:
        self.core.handle(connection, message, now_s)
        self.deliver()

    def tick(self, now_s: float) -> None:
        self.core.tick(now_s)
        self.deliver()

    def deliver(self) -> None:
        for connection, message in self.controller.deliver():
            self.sent.append((connection, message))
            if isinstance(message, Settings):
                self.settings.setdefault(connection, []).append(message)

    def arrive(self, engine: bytes, cluster: int, targets: Targets | None = None) -> str:
        number = next(self.numbers)
        arrived = Arrived(
            request_id=str(number),
            arrival_s=0.0,
            prompt_tokens=8,
            token_ids=np.arange(8, dtype="<u4").tobytes(),
            max_tokens=8192,
            temperature=cluster / 10,
            targets=targets,
        )
        self.handle(engine, Facts(batch=2 * number, facts=(arrived,), oldest=2 * number), 0.1)
        return str(number)

    def finish(self, engine: bytes, request_id: str, tokens: int) -> None:
        number = next(self.numbers)
        finished = Finished(
            request_id=request_id,
            time_s=1.0,
            reason="stop",
            arrival_s=0.0,
            prompt_tokens=8,
            output_tokens=tokens,
            max_tokens=8192,
            cached_prompt_tokens=0,
            preemptions=0,
            recomputed_tokens=0,
        )
        self.handle(engine, Facts(batch=2 * number, facts=(finished,), oldest=2 * number), 0.2)

    def report(self, engine: bytes, attained: dict[str, int]) -> None:
        """Let an engine say how many tokens its running answers have."""
        snapshot = Snapshot(
            time_s=1.0,
            waiting=0,
            running=len(attained),
            kv_blocks_used=0,
            kv_blocks=1000,
            mode="on",
            steps=1,
            step_s=0.03,
            prefill_tokens=0,
            decode_tokens=0,
            kv_tokens_read=0,
            preemptions=0,
            recomputed_tokens=0,
            running_requests=tuple(RunningRequest(request_id, tokens, 1) for request_id, tokens in attained.items()),
        )
        self.handle(engine, snapshot, 0.2)

    def serve(self, answers: int, engine: bytes = b"x") -> None:
        for _ in range(answers):
            cluster = int(self.random.integers(FAMILIES))
            tokens = int(self.random.choice(GRID, p=TRUTH[cluster].mass))
            self.finish(engine, self.arrive(engine, cluster), min(tokens, 8000))

    def of_kind(self, kind: type) -> list[object]:
        return [record for record in self.records if isinstance(record, kind)]


def test_nonsense_puts_its_models_engines_back_to_fcfs_and_the_other_model_is_left_alone() -> None:
    """Within 100 answers, with the reason in the history; and forward again once predictions are right."""
    world = World()
    world.serve(RIPE)
    world.learner.shuffled = True
    world.serve(100)
    assert [settings.mode for settings in world.settings[b"x"]] == ["on", "off"]
    assert [settings.mode for settings in world.settings[b"y"]] == ["on"]
    assert world.core.settings.mode == "on", "what the operator asked for"
    _, fallen = world.of_kind(SettingsChanged)
    assert isinstance(fallen, SettingsChanged)
    assert "predictions for m" in fallen.reason
    assert "prior" in fallen.reason or "intervals" in fallen.reason
    world.learner.shuffled = False
    world.serve(400)
    assert [settings.mode for settings in world.settings[b"x"]] == ["on", "off", "on"]
    *_, back = world.of_kind(SettingsChanged)
    assert isinstance(back, SettingsChanged)
    assert "trusted again" in back.reason
    revisions = [settings.revision for settings in world.settings[b"x"]]
    assert revisions == sorted(set(revisions))


@pytest.mark.parametrize("known", ["before", "after"])
def test_nonsense_takes_no_promise_away(known: str) -> None:
    """An engine whose requests have targets keeps them, by arrival and without the gate, until predictions are right."""
    world = World()
    world.serve(RIPE)
    if known == "before":
        world.arrive(b"x", 1, Targets(ttft_s=2.0))
    world.learner.shuffled = True
    world.serve(100)
    if known == "after":
        assert world.settings[b"x"][-1].mode == "off"
        world.arrive(b"x", 1, Targets(ttft_s=2.0))
    fallen = world.settings[b"x"][-1]
    assert (fallen.mode, fallen.rules.by_arrival, fallen.rules.gate) == ("on", True, None)
    world.learner.shuffled = False
    world.serve(400)
    back = world.settings[b"x"][-1]
    assert (back.mode, back.rules.by_arrival, back.rules.gate is None) == ("on", False, False)
    assert [settings.mode for settings in world.settings[b"y"]] == ["on"]


@pytest.mark.slow
def test_short_answers_that_end_before_the_long_ones_cost_no_trust() -> None:
    """As when a controller starts under load: what still runs counts for the prediction as much as what has ended."""
    world = World()
    running: list[tuple[int, int, str]] = []
    for moment in range(1_500):
        if moment % 10 == 0:
            world.report(b"x", {request_id: moment - (end - tokens) for end, tokens, request_id in running})
        for _ in range(4):
            tokens = int(world.random.choice(GRID, p=TRUTH[2].mass))
            heapq.heappush(running, (moment + tokens, tokens, world.arrive(b"x", 2)))
        while running[0][0] <= moment:
            _, tokens, request_id = heapq.heappop(running)
            world.finish(b"x", request_id, tokens)
    assert world.core.counts.completions > 4_000
    assert [settings.mode for settings in world.settings[b"x"]] == ["on"]


@pytest.mark.slow
def test_a_distrusted_cluster_is_served_by_the_prior() -> None:
    """New predictions are the prior's and say so, waiting ones get new tables, and trust returns by being right."""
    world = World()
    world.serve(RIPE)
    world.learner.shuffled = True
    waiting = world.arrive(b"x", 4)
    world.serve(800)
    lost = [r for r in world.of_kind(CalibrationMeasured) if isinstance(r, CalibrationMeasured) and not r.trusted]
    assert {record.cluster for record in lost if record.scope == "cluster"} == set(range(FAMILIES))
    renewed = [
        message
        for connection, message in world.sent
        if connection == b"x" and isinstance(message, IndexTable) and message.request_id == waiting
    ]
    assert len(renewed) == 2
    world.records.clear()
    world.arrive(b"x", 4)
    [prediction] = world.of_kind(Prediction)
    assert isinstance(prediction, Prediction)
    assert prediction.experts == {"prior": 1.0}
    assert prediction.p50_tokens == world.learner.prior("m").cut(8192).quantile(0.5)
    world.learner.shuffled = False
    world.serve(1_500)
    world.records.clear()
    world.arrive(b"x", 4)
    [prediction] = world.of_kind(Prediction)
    assert isinstance(prediction, Prediction)
    assert prediction.experts == {"oracle": 1.0}
    assert world.settings[b"x"][-1].mode == "on"


@pytest.mark.slow
def test_served_by_the_prior_a_model_is_ordered_again() -> None:
    """Nonsense that no longer decides anything is no reason to stay with FCFS."""
    world = World()
    world.serve(RIPE)
    world.learner.shuffled = True
    world.serve(2_000)
    assert [settings.mode for settings in world.settings[b"x"]] == ["on", "off", "on"]
    assert all(not world.core.calibration.trusts_cluster("m", cluster) for cluster in range(FAMILIES))


def test_an_engine_that_connects_meanwhile_learns_that_its_model_is_not_trusted() -> None:
    """It gets FCFS with its welcome, and neither an operator's switch nor shadow mode orders it."""
    world = World()
    world.serve(RIPE)
    world.learner.shuffled = True
    world.serve(100)
    world.handle(b"z", hello("z", "m"), 1.0)
    assert world.settings[b"z"][-1].mode == "off"
    for mode, expected in (("shadow", "shadow"), ("on", "off"), ("off", "off")):
        world.core.set_mode(mode, "operator", 2.0)  # type: ignore[arg-type]
        world.deliver()
        assert world.settings[b"z"][-1].mode == expected
        assert world.settings[b"y"][-1].mode == mode


def test_in_shadow_nothing_is_switched() -> None:
    """There is no order to give up; the loss of trust is recorded all the same."""
    world = World(mode="shadow")
    world.serve(RIPE)
    world.learner.shuffled = True
    world.serve(100)
    assert [settings.mode for settings in world.settings[b"x"]] == ["shadow"]
    assert len(world.of_kind(SettingsChanged)) == 1
    assert world.core.counts.distrusts > 0


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_without_reason_or_without_guard_nothing_changes(shuffled: bool) -> None:
    """Right predictions are never doubted; with the guard off, wrong ones are not either."""
    world = World(guard=not shuffled)
    world.serve(RIPE)
    world.learner.shuffled = shuffled
    world.serve(1_500)
    assert [settings.mode for settings in world.settings[b"x"]] == ["on"]
    assert world.core.counts.distrusts == 0


def test_calibration_is_recorded_as_it_goes() -> None:
    """Rows for the model and its clusters every hundred answers or minute, none without news."""
    world = World()
    for round_number in range(10):
        world.serve(50)
        for tick in range(4):
            world.tick(30.0 * round_number + tick)
    rows = [record for record in world.of_kind(CalibrationMeasured) if isinstance(record, CalibrationMeasured)]
    of_model = [row for row in rows if row.scope == "model"]
    assert len(of_model) >= 5
    assert of_model[-1].answers >= 450
    assert 0.85 < of_model[-1].coverage_90 < 0.95
    assert of_model[-1].log_score > of_model[-1].prior_log_score
    assert {row.cluster for row in rows if row.scope == "cluster"} == set(range(FAMILIES))
    world.records.clear()
    for tick in range(10):
        world.tick(1_000.0 + tick)
    news = len(world.of_kind(CalibrationMeasured))
    for tick in range(10):
        world.tick(5_000.0 + tick)
    assert len(world.of_kind(CalibrationMeasured)) == news


def test_a_drift_says_what_changed() -> None:
    """Means before and after, what was forgotten, and how many waiting requests were predicted again."""
    world = World()
    world.serve(RIPE)
    waiting = [world.arrive(b"x", 1) for _ in range(3)]
    world.arrive(b"x", 2)
    world.learner.drifts = [
        Drift(model="m", cluster=1, before_mean_tokens=45.0, after_mean_tokens=130.0, forgotten=80.0)
    ]
    world.serve(1)
    [event] = world.of_kind(DriftDetected)
    assert isinstance(event, DriftDetected)
    assert (event.cluster, event.before_mean_tokens, event.after_mean_tokens, event.forgotten) == (1, 45.0, 130.0, 80.0)
    assert event.renewed_requests == len(waiting)
