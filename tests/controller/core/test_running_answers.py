"""A young system whose long answers still run: what it believes of the next answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from online_learning.clustering.clusters import ClusterSettings
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.paper_predictor import SimilarityLearner
from online_learning.features.prompt_features import DIMENSIONS
from online_learning.length_learner import LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings, solo_learners
from online_learning.mixture.settings import LearnerSettings
from store.records import Arrived, Fact, Facts, Finished, Hello, RunningRequest, Snapshot

SHORT_TOKENS, LONG_TOKENS = 60, 1_500
REQUESTS, EVERY = 300, 3
"""So many requests, one in so many moments, every other of them with a long answer."""
YOUNG = 900
"""The moment at which all have come, the short answers have ended, and none of the long ones."""
OVER = 2_400
SMALL = LearnerSettings(clusters=ClusterSettings(clusters=4, early_seed_prompts=(40,), seed_prompts=60))

OURS: dict[str, Callable[[], LengthLearner]] = {
    "global": GlobalLearner,
    "cluster": lambda: solo_learners(MixtureSettings(common=SMALL))["cluster"],
    "mixture": lambda: MixtureLearner(MixtureSettings(common=SMALL)),
}
our_learner = pytest.mark.parametrize("create", OURS.values(), ids=OURS.keys())


class System:
    """A controller and an engine that serves whatever comes; every other answer is long."""

    def __init__(self, learner: LengthLearner, *, snapshots: bool = True, requests: int = REQUESTS) -> None:
        self.controller = InProcessController(learner, policy_named("sage"))
        self.core = self.controller.core
        self.snapshots = snapshots
        self.requests = requests
        self.batch = 0
        self.controller.handle(b"e", _hello("s"), 0.0)

    def serve(self, until: int) -> None:
        """Tell what comes, grows by a token a moment, and ends, up to a moment."""
        for moment in range(0, until + 1, EVERY):
            attained = {
                number: moment - EVERY * number for number in range(min(moment // EVERY, self.requests - 1) + 1)
            }
            for number in [number for number in attained if attained[number] == 0]:
                self.tell(_arrived(number))
            for number in [number for number in attained if attained[number] == _length(number)]:
                self.tell(_finished(number))
            if self.snapshots and moment % (5 * EVERY) == 0:
                running = {number: tokens for number, tokens in attained.items() if tokens < _length(number)}
                self.controller.handle(b"e", _snapshot(running), 1.0)

    def tell(self, *facts: Fact) -> None:
        self.batch += 1
        self.controller.handle(b"e", Facts(batch=self.batch, facts=facts, oldest=self.batch), 1.0)

    def survival(self, tokens: int, number: int = 10_000) -> float:
        """Predicted probability that the answer to a new prompt is longer."""
        self.tell(_arrived(number))
        request = self.core.sessions[0].requests[f"r{number}"]
        self.tell(_finished(number, output_tokens=0, reason="abort"))
        return request.predicted.survival(tokens)


def _length(number: int) -> int:
    return LONG_TOKENS if number % 2 else SHORT_TOKENS


def _hello(session: str) -> Hello:
    return Hello(
        engine_id="e",
        session_id=session,
        model="m",
        engine="simulated",
        engine_version="1",
        kv_blocks=100_000,
        block_size_tokens=16,
        max_num_seqs=512,
        token_budget=512,
        max_model_len_tokens=9_000,
        prefix_caching=False,
        started_s=0.0,
    )


def _arrived(number: int, attained_tokens: int = 0) -> Arrived:
    ids = np.random.default_rng(number).integers(0, 500, 30, dtype=np.uint32)
    return Arrived(
        request_id=f"r{number}",
        arrival_s=0.0,
        prompt_tokens=30,
        token_ids=ids.tobytes(),
        max_tokens=4_000,
        temperature=1.0,
        resent=attained_tokens > 0,
        attained_tokens=attained_tokens,
    )


def _prompt(arrived: Arrived) -> Prompt:
    return Prompt(
        token_ids=np.frombuffer(arrived.token_ids, dtype="<u4"),
        prompt_tokens=arrived.prompt_tokens,
        max_tokens=arrived.max_tokens,
        temperature=arrived.temperature,
        model="m",
    )


def _finished(number: int, output_tokens: int | None = None, reason: str = "stop") -> Finished:
    tokens = _length(number) if output_tokens is None else output_tokens
    return Finished(
        request_id=f"r{number}",
        time_s=1.0,
        reason=reason,
        arrival_s=0.0,
        prompt_tokens=30,  # type: ignore[arg-type]
        output_tokens=tokens,
        max_tokens=4_000,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
    )


def _snapshot(running: dict[int, int]) -> Snapshot:
    return Snapshot(
        time_s=1.0,
        waiting=0,
        running=len(running),
        kv_blocks_used=0,
        kv_blocks=100_000,
        mode="on",
        steps=1,
        step_s=0.03,
        prefill_tokens=0,
        decode_tokens=0,
        kv_tokens_read=0,
        preemptions=0,
        recomputed_tokens=0,
        running_requests=tuple(RunningRequest(f"r{number}", tokens, 1) for number, tokens in running.items()),
    )


@pytest.mark.slow
@our_learner
def test_long_answers_that_still_run_keep_predictions_from_being_short(create: Callable[[], LengthLearner]) -> None:
    """Half the answers are long and run; who hears only of those that ended believes nearly all answers short."""
    dropped, counted = System(create(), snapshots=False), System(create())
    dropped.serve(YOUNG)
    counted.serve(YOUNG)
    assert dropped.survival(100) < 0.2
    assert 0.4 < counted.survival(100) < 0.6
    assert 0.3 < counted.survival(600) < 0.6


@pytest.mark.slow
@our_learner
def test_an_answer_that_has_ended_counts_once(create: Callable[[], LengthLearner]) -> None:
    """When all have ended predictions are those of a controller that was taught the same answers and never saw one run.

    Short answers that are followed by long ones are no drift, for they began together.
    """
    taught, counted = System(create()), System(create())
    counted.serve(OVER)
    assert counted.core.counts.drift_events == 0
    for number in sorted(range(REQUESTS), key=lambda number: EVERY * number + _length(number)):
        features = taught.core._state.predictor._learner.features(_prompt(_arrived(number)))
        taught.core.teach(features, "m", Observation(_length(number), censored=False, surprises=(0.0, 0.0)))
    for tokens in (30, 100, 1_000, 2_000):
        assert counted.survival(tokens) == pytest.approx(taught.survival(tokens), abs=0.05)


def test_a_drained_batch_of_both_kinds_leaves_the_shares_of_both() -> None:
    """Half of the answers are long, although the latest 150 all are."""
    system = System(GlobalLearner())
    system.serve(OVER)
    assert system.survival(100) == pytest.approx(0.5, abs=0.05)
    assert system.survival(1_000) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
@our_learner
def test_in_a_busy_system_predictions_stay_right(create: Callable[[], LengthLearner]) -> None:
    """Where answers of both kinds have long been ending, half are predicted long, with 250 long ones running."""
    system = System(create(), requests=900)
    system.serve(2_700)
    assert 0.4 < system.survival(100) < 0.62


def test_the_prior_of_a_new_engine_knows_what_runs_on_the_others() -> None:
    """The table for requests without one of their own has a higher index where long answers run."""
    indexes = []
    for snapshots in (False, True):
        system = System(GlobalLearner(), snapshots=snapshots)
        system.serve(YOUNG)
        [prior] = [
            message for _, message in system.controller.handle(b"f", _hello("t"), 2.0) if hasattr(message, "index_s")
        ]
        indexes.append(prior.index_s[0])
    assert indexes[1] > 1.2 * indexes[0]


def test_after_a_restart_what_still_runs_is_counted_again() -> None:
    """What ended is taught again, what runs is reported again; predictions are as before, and later those that ended count once."""
    before = System(GlobalLearner())
    before.serve(YOUNG)
    after = System(GlobalLearner())
    for number in range(0, REQUESTS, 2):
        after.core.teach(np.zeros(DIMENSIONS, np.float32), "m", Observation(_length(number), censored=False))
    for number in range(1, REQUESTS, 2):
        after.tell(_arrived(number, attained_tokens=YOUNG - EVERY * number))
    for tokens in (30, 100, 350):
        assert after.survival(tokens) == pytest.approx(before.survival(tokens), abs=0.03)
    for moment in range(YOUNG, OVER, EVERY):
        attained = {number: moment - EVERY * number for number in range(1, REQUESTS, 2)}
        for system in (before, after):
            for number in [number for number, tokens in attained.items() if tokens == LONG_TOKENS]:
                system.tell(_finished(number))
            system.controller.handle(
                b"e", _snapshot({number: tokens for number, tokens in attained.items() if tokens < LONG_TOKENS}), 1.0
            )
    for tokens in (30, 100, 1_000, 2_000):
        assert after.survival(tokens) == pytest.approx(before.survival(tokens), abs=0.03)


def test_requests_of_an_engine_that_is_gone_count_no_longer() -> None:
    """An engine whose connection broke is forgotten after a while, with what ran there."""
    system = System(GlobalLearner())
    system.serve(YOUNG)
    counted = system.survival(100)
    system.controller.handle(b"f", _hello("t"), 2.0)
    system.core.lost(b"e", 2.0)
    system.core.tick(1_000.0)
    system.controller.handle(b"g", _hello("u"), 1_000.0)
    system.controller.handle(b"g", Facts(batch=1, facts=(_arrived(777),), oldest=1), 1_000.0)
    [request] = [s.requests["r777"] for s in system.core.sessions if s.connection == b"g"]
    assert request.predicted.survival(100) < 0.5 * counted


def test_the_published_predictor_stays_as_published() -> None:
    """It drops what has not ended, and is not helped."""
    for snapshots in (False, True):
        system = System(SimilarityLearner(), snapshots=snapshots)
        system.serve(YOUNG)
        assert system.survival(100) < 0.2
