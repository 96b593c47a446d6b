"""A controller that is too slow for its engine: what is put off or left out does not bend what it believes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from controller.core.in_process import IN_PROCESS, InProcessController
from controller.policy.policies import policy_named
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from online_learning.evaluation.global_learner import GlobalLearner

PROFILE = replace(PROFILES["h800-qwen3-32b-24k"], max_num_seqs=64)
SHORT_TOKENS, LONG_TOKENS = 40, 1_200
EVERY_LONG = 4
"""One in four answers is long."""


def _requests(count: int, rate_rps: float) -> Iterator[TraceRequest]:
    generator = np.random.default_rng(5)
    for number in range(count):
        yield TraceRequest(
            request_id=f"r{number}",
            arrival_s=number / rate_rps,
            token_ids=tuple(generator.integers(0, 9_000, 30).tolist()),
            max_tokens=2_000,
            true_output_tokens=LONG_TOKENS if number % EVERY_LONG == 0 else SHORT_TOKENS,
        )


class SlowController:
    """Does a piece of deferred work only every so many steps, and puts arrivals off up to a time."""

    def __init__(self, *, backlog: int, steps_per_work: int, put_off_until_s: float = 0.0) -> None:
        self.controller = InProcessController(
            GlobalLearner(), policy_named("sage"), config=replace(IN_PROCESS, backlog=backlog)
        )
        self.core = self.controller.core
        self.engine = SimulatedEngine(PROFILE, link=self.controller.link(lambda: self.engine.now_s))
        self.steps_per_work = steps_per_work
        self.put_off_until_s = put_off_until_s
        self.steps = 0

    def serve(self, requests: Iterator[TraceRequest], until_s: float) -> None:
        """Serve what comes, up to a time."""
        waiting = list(requests)
        while self.engine.now_s < until_s:
            while waiting and waiting[0].arrival_s <= self.engine.now_s:
                self.engine.submit(waiting.pop(0))
            self.core.arrivals.overloaded = self.engine.now_s < self.put_off_until_s
            before_s = self.engine.now_s
            self.engine.step()
            if self.engine.now_s == before_s:
                self.engine.advance_to(waiting[0].arrival_s if waiting else until_s)
            self.steps += 1
            if self.steps % self.steps_per_work == 0:
                self.core.work(self.engine.now_s)
                self.controller.deliver()

    def long_share(self) -> float:
        """Predicted probability that the next answer is a long one."""
        predictor = self.core._state.predictor
        features = np.zeros(512, dtype=np.float32)
        return predictor._forecasts([features], PROFILE.name)[0][0].distribution.survival(2 * SHORT_TOKENS)


@pytest.mark.parametrize("backlog", [5_000, 20])
def test_what_is_not_learnt_yet_or_never_makes_no_survivors(backlog: int) -> None:
    """Five in six ends wait to be learnt, or are left out; a quarter of the answers is long and is predicted so."""
    slow = SlowController(backlog=backlog, steps_per_work=12)
    slow.serve(_requests(600, 4.0), 120.0)
    counts = slow.core.counts
    assert max(slow.core.backlog, counts.not_learnt) > 0.4 * counts.completions
    assert 0.18 < slow.long_share() < 0.34
    assert counts.drift_events == counts.distrusts == 0


def test_a_cold_start_into_a_batch_does_not_predict_too_long() -> None:
    """Hundreds of short answers have ended and wait to be learnt; taken for survivors they made four in five long."""
    slow = SlowController(backlog=5_000, steps_per_work=40)
    slow.serve(_requests(800, 1_000.0), 10.0)
    assert slow.core.backlog > 10 * slow.core.counts.completions
    assert 0.18 < slow.long_share() < 0.34
    slow.serve(iter(()), 40.0)
    assert 0.18 < slow.long_share() < 0.34


def test_arrivals_that_were_put_off_leave_no_mark() -> None:
    """Nothing is learnt from their answers, and nothing believed of them once there is time again."""
    slow = SlowController(backlog=5_000, steps_per_work=2, put_off_until_s=30.0)
    slow.serve(_requests(600, 4.0), 120.0)
    counts = slow.core.counts
    assert counts.deferred > 100
    assert 0.18 < slow.long_share() < 0.34
    assert counts.drift_events == counts.distrusts == 0
