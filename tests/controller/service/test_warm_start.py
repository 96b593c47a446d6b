"""A core that was restarted against one that never stopped, through the real store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from controller.core.core import Core
from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from controller.service.warm_start import rebuild
from engine_adapter.workloads.synthetic import synthetic_stream
from engine_adapter.workloads.token_ids import token_ids
from online_learning.clustering.clusters import ClusterSettings
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.length_learner import Drift, Features, LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings, solo_learners
from online_learning.mixture.settings import LearnerSettings
from store.history.reader import learning_history, open_history
from store.history.writer import HistoryWriter
from store.records import Arrived, Facts, Finished, FinishReason, Hello

pytestmark = pytest.mark.slow

ANSWERS = 1_500
MODELS = ("m", "n", "o")


def hello(model: str) -> Hello:
    return Hello(
        engine_id=f"e-{model}",
        session_id=f"s-{model}",
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


SMALL = LearnerSettings(clusters=ClusterSettings(clusters=16, seed_prompts=400))


def fresh() -> LengthLearner:
    return solo_learners(MixtureSettings(common=SMALL))["cluster"]


def fresh_mixture() -> LengthLearner:
    """The learner that runs live."""
    return MixtureLearner(MixtureSettings(common=SMALL))


def a_core(learner: LengthLearner) -> Core:
    return InProcessController(learner, policy_named("sage")).core


def prompts(count: int, *, seed: int = 1) -> list[Prompt]:
    rows = synthetic_stream(seed)
    return [
        Prompt(
            token_ids=np.asarray(token_ids(row.prompt or "", row.prompt_len_tokens)[:300], dtype=np.uint32),
            prompt_tokens=row.prompt_len_tokens,
            max_tokens=4096,
            temperature=1.0,
            model=MODELS[number % len(MODELS)],
            session=f"session {number // 12}" if number % 4 == 0 else None,
            expected_output_tokens=300 if number % 5 == 0 else None,
        )
        for number, row in zip(range(count), rows, strict=False)
    ]


class CompletedRequest:
    """Engines with clocks of their own, whose answers end in another order than they began and by every reason."""

    def __init__(self, core: Core, writer: HistoryWriter) -> None:
        self.core = core
        self.writer = writer
        self.random = np.random.default_rng(5)
        self.batches = dict.fromkeys(MODELS, 0)
        for model in MODELS:
            core.handle(model.encode(), hello(model), 0.0)

    def serve(self, served: list[Prompt], first: int = 0) -> None:
        for start in range(0, len(served), 30):
            wave = list(enumerate(served[start : start + 30], start=first + start))
            for number, prompt in wave:
                self._tell(prompt.model, self._arrived(number, prompt))
            for place in self.random.permutation(len(wave)):
                number, prompt = wave[place]
                self._tell(prompt.model, self._finished(number, prompt))
            self.writer.append(self.core.drain_entries())

    def _tell(self, model: str, fact: Arrived | Finished) -> None:
        self.batches[model] += 1
        self.core.handle(
            model.encode(), Facts(batch=self.batches[model], facts=(fact,), oldest=self.batches[model]), 1.0
        )

    def _arrived(self, number: int, prompt: Prompt) -> Arrived:
        return Arrived(
            request_id=f"r{number}",
            arrival_s=self.random.uniform(0.0, 1e6),
            prompt_tokens=prompt.prompt_tokens,
            token_ids=prompt.token_ids.astype("<u4").tobytes(),
            max_tokens=prompt.max_tokens,
            temperature=1.0,
            session=prompt.session,
            expected_output_tokens=prompt.expected_output_tokens,
        )

    def _finished(self, number: int, prompt: Prompt) -> Finished:
        reasons: tuple[FinishReason, ...] = ("stop", "stop", "stop", "length", "abort")
        return Finished(
            request_id=f"r{number}",
            time_s=self.random.uniform(0.0, 1e6),
            arrival_s=0.0,
            reason=reasons[int(self.random.integers(len(reasons)))],
            prompt_tokens=prompt.prompt_tokens,
            output_tokens=int(self.random.integers(1, 2_000)),
            max_tokens=prompt.max_tokens,
            cached_prompt_tokens=0,
            preemptions=0,
            recomputed_tokens=0,
        )


def assert_same(one: LengthLearner, other: LengthLearner) -> None:
    """The same distribution, weights, cluster and evidence for prompts seen and unseen, of known and unknown models."""
    for prompt in (*prompts(50), *prompts(50, seed=2)):
        features = one.features(prompt)
        for model in (*MODELS, "unknown"):
            mine, theirs = one.predict_one(features, model), other.predict_one(features, model)
            np.testing.assert_array_equal(mine.distribution.mass, theirs.distribution.mass)
            assert (mine.cluster, mine.evidence, mine.experts) == (theirs.cluster, theirs.evidence, theirs.experts)
    for model in MODELS:
        np.testing.assert_array_equal(one.prior(model).mass, other.prior(model).mass)


@pytest.mark.parametrize("new", [fresh, fresh_mixture])
def test_predictions_after_a_restart_are_those_of_a_process_that_never_stopped(
    tmp_path: Path, new: Callable[[], LengthLearner]
) -> None:
    """Bit for bit, though the engines' clocks disagree with the order of teaching and a third of answers was cut."""
    living = new()
    with HistoryWriter(tmp_path) as writer:
        CompletedRequest(a_core(living), writer).serve(prompts(ANSWERS))
    again = new()
    core = a_core(again)
    core.drain_entries()
    assert rebuild(core, tmp_path, 100_000) == ANSWERS
    assert_same(living, again)
    assert core.drain_entries() == [], "what was recorded before is not recorded again"


def test_clusters_that_come_and_go_are_recorded(tmp_path: Path) -> None:
    """Those that were formed for the time being are there for a while, and gone once those for good are formed."""
    with HistoryWriter(tmp_path) as writer:
        CompletedRequest(a_core(fresh_mixture()), writer).serve(prompts(450))
    with open_history(tmp_path) as history:
        retired, kinds, sessions = history.execute(
            "SELECT count(*) FILTER (kind = 'retired' AND other_cluster IS NULL), list(DISTINCT kind),"
            " list(DISTINCT session_id) FROM cluster_changes"
        ).fetchall()[0]
    assert retired > 10
    assert set(kinds) <= {"born", "split", "merged", "retired"}
    assert set(sessions) <= {hello(model).session_id for model in MODELS}


def test_a_second_restart_goes_on_where_the_first_left_off(tmp_path: Path) -> None:
    """Numbers of answers continue, so that the order over restarts is the order of teaching."""
    served = prompts(900)
    living = fresh()
    with HistoryWriter(tmp_path) as writer:
        CompletedRequest(a_core(living), writer).serve(served[:300])
    for half in (1, 2):
        living = fresh()
        with HistoryWriter(tmp_path) as writer:
            core = a_core(living)
            rebuild(core, tmp_path, 100_000)
            CompletedRequest(core, writer).serve(served[300 * half : 300 * (half + 1)], first=300 * half)
    assert [answer.answer for answer in learning_history(tmp_path, 10_000)] == list(range(900))
    again = fresh()
    rebuild(a_core(again), tmp_path, 100_000)
    assert_same(living, again)


def test_calibration_goes_on_after_a_restart(tmp_path: Path) -> None:
    """The last answers were predicted again, so that windows are not empty and the guard knows of them."""
    with HistoryWriter(tmp_path) as writer:
        CompletedRequest(a_core(fresh()), writer).serve(prompts(600))
    core = a_core(fresh())
    rebuild(core, tmp_path, 100_000)
    core.calibration.due(0.0)
    measured = core.calibration.latest()
    assert {measurement.scope.model for measurement in measured} == set(MODELS)
    assert sum(measurement.answers for measurement in measured if measurement.scope.kind == "model") == 600


def test_answers_with_features_of_another_release_are_left_out(tmp_path: Path) -> None:
    """They cannot be compared; the rest is taught."""

    class Other(GlobalLearner):
        def features(self, prompt: Prompt) -> Features:
            return np.zeros(7, dtype=np.float32)

    with HistoryWriter(tmp_path) as writer:
        CompletedRequest(a_core(Other()), writer).serve(prompts(60))
    with HistoryWriter(tmp_path) as writer:
        core = a_core(fresh())
        assert rebuild(core, tmp_path, 100) == 0
        CompletedRequest(core, writer).serve(prompts(30), first=1_000)
    assert rebuild(a_core(fresh()), tmp_path, 100) == 30


class _Forgetful(GlobalLearner):
    """Fails on every tenth answer that it is taught."""

    lessons = 0

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        self.lessons += 1
        if self.lessons % 10 == 0:
            raise ArithmeticError
        return super().learn_one(features, model, observation)


def test_an_answer_that_cannot_be_learnt_again_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The controller starts without it, says so once, and numbers its answers behind those that the history has."""
    with HistoryWriter(tmp_path) as writer:
        CompletedRequest(a_core(fresh()), writer).serve(prompts(30))
    with HistoryWriter(tmp_path) as writer:
        core = a_core(_Forgetful())
        assert rebuild(core, tmp_path, 100) == 27
        CompletedRequest(core, writer).serve(prompts(9, seed=3), first=30)
    assert sum("a recorded answer cannot be learned" in record.message for record in caplog.records) == 1
    assert [answer.answer for answer in learning_history(tmp_path, 100)] == list(range(39))


def test_answers_that_are_not_learnt_again_keep_their_numbers(tmp_path: Path) -> None:
    """Also where nothing of the past is learnt again the next answers are numbered behind it."""
    with HistoryWriter(tmp_path) as writer:
        CompletedRequest(a_core(fresh()), writer).serve(prompts(5))
    with HistoryWriter(tmp_path) as writer:
        core = a_core(fresh())
        assert rebuild(core, tmp_path, 0) == 0
        CompletedRequest(core, writer).serve(prompts(3, seed=3), first=5)
    assert [answer.answer for answer in learning_history(tmp_path, 100)] == list(range(8))
