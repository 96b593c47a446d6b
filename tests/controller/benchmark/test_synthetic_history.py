from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from controller.benchmark.synthetic_history import report_history, write_history
from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from controller.service.warm_start import rebuild
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.workloads.requests import request_stream
from online_learning.features.prompt_features import prompt_features
from online_learning.length_learner import Prompt
from online_learning.mixture.mixture import MixtureLearner
from store.history.reader import open_history
from store.records import Arrived, Facts, Hello, IndexTable

pytestmark = pytest.mark.slow

PROFILE = PROFILES["h800-qwen3-32b-24k"]
REQUESTS = list(islice(request_stream(seed=3, rate_rps=1.0), 30))


def fresh() -> tuple[MixtureLearner, InProcessController]:
    learner = MixtureLearner()
    return learner, InProcessController(learner, policy_named("sage"))


def prompt(request: TraceRequest) -> Prompt:
    token_ids = np.array(request.token_ids, np.uint32)
    return Prompt(
        token_ids=token_ids, prompt_tokens=token_ids.size, max_tokens=request.max_tokens, temperature=1.0, model="m"
    )


def decide(controller: InProcessController) -> IndexTable:
    """The table of one more request of this model."""
    hello = Hello(
        engine_id="e",
        session_id="s",
        model="m",
        engine="vllm",
        engine_version="",
        kv_blocks=PROFILE.kv_blocks,
        block_size_tokens=16,
        max_num_seqs=64,
        token_budget=8192,
        max_model_len_tokens=16_384,
        prefix_caching=False,
        started_s=0.0,
    )
    controller.handle(b"e", hello, 0.0)
    arrived = Arrived(
        request_id="r", arrival_s=0.0, prompt_tokens=4, token_ids=b"\1\0\0\0" * 4, max_tokens=500, temperature=1.0
    )
    answers = controller.handle(b"e", Facts(batch=1, facts=(arrived,), oldest=1), 0.0)
    return next(m for _, m in answers if isinstance(m, IndexTable) and m.request_id == "r")


def test_a_synthetic_history_teaches_what_its_requests_would(tmp_path: Path) -> None:
    """A controller that starts with the history has learnt what one has to which an engine reported the same requests.

    What their learners predict is equal to the last digit; what they decide but nearly, for the second also knows that
    an answer ran whenever one was learnt.
    """
    write_history(tmp_path / "h", REQUESTS, profile=PROFILE, model="m", clock=lambda: 1e9)
    with open_history(tmp_path / "h") as history:
        ends = history.execute("SELECT count(*), max(time_s) FROM completions").fetchall()[0]
    assert ends == (30, 1e9)
    (reader, rebuilt), (learner, lived), (_, ignorant) = fresh(), fresh(), fresh()
    assert rebuild(rebuilt.core, tmp_path / "h", 1000) == 30
    report_history(lived, REQUESTS, profile=PROFILE, model="m", now_s=1e9)
    for request in REQUESTS:
        features = prompt_features(prompt(request))
        again, first = reader.predict_one(features, "m"), learner.predict_one(features, "m")
        np.testing.assert_array_equal(again.distribution.mass, first.distribution.mass)
    rebuilt_table, lived_table, untaught = decide(rebuilt), decide(lived), decide(ignorant)
    assert rebuilt_table.index_s == pytest.approx(lived_table.index_s, rel=1e-3)
    assert rebuilt_table.index_s != pytest.approx(untaught.index_s, rel=1e-2)
