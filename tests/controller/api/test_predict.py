"""``POST /api/predict``: what an endpoint picker is told of a request's output length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_adapter.routing.client import RouteClient
from engine_adapter.virtual_time.engine import TraceRequest
from store.errors import EngineError
from store.http_routing import PredictOrder

Start = Callable[..., Any]
MODEL = "h800-qwen3-32b-24k"
WORDS = ("[UNK]", "how", "long", "short")
ANSWERS = 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tmp_path_factory.mktemp("model")
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = Whitespace()
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def taught(start_controller: Start, tokenizer: Path) -> Iterator[tuple[Any, RouteClient]]:
    """A controller that has learnt: clients expect twice the length, and a session's answers have 300 tokens."""
    running = start_controller(learning={"tokenizer": tokenizer})
    engine = running.connect()
    for number in range(ANSWERS):
        in_session = number % 3 == 0
        length = 300 if in_session else 20 + number % 30
        engine.engine.submit(
            TraceRequest(
                request_id=f"r{number}",
                arrival_s=engine.engine.now_s,
                token_ids=tuple(range(100 * number, 100 * number + 50)),
                max_tokens=500,
                true_output_tokens=length,
                session="long" if in_session else None,
                expected_output_tokens=None if in_session else 2 * length,
            )
        )
    engine.step_until(lambda: len(engine.lives) == ANSWERS, timeout_s=60.0)
    client = RouteClient(str(running.client.base_url), token=None, timeout_s=20.0, connections=1)
    engine.step_until(lambda: _completed(running) == ANSWERS, timeout_s=60.0)
    yield running, client
    client.close()


def _completed(running: Any) -> int:
    """Number of answers that were learnt."""
    learner = running.client.get("/api/state").json()["learner"]
    return int(learner["completions"]) if learner["backlog"] == 0 else 0


@pytest.mark.slow
def test_a_picker_is_told_what_is_predicted(taught: tuple[Any, RouteClient]) -> None:
    """By the prompt, and by what the request says beside it; asking leaves no trace."""
    running, client = taught
    before = running.client.get("/api/state").json()["learner"]
    plain = PredictOrder(model=MODEL, max_tokens=500, token_ids=tuple(range(50)))
    forecast = client.predict(plain)
    assert 1 <= forecast.q50_tokens <= forecast.q90_tokens <= 500
    assert 1.0 <= forecast.mean_tokens <= 500.0
    told = client.predict(PredictOrder(model=MODEL, max_tokens=500, prompt_tokens=50, expected_output_tokens=60))
    assert told.q50_tokens == pytest.approx(30, rel=0.35)
    in_session = client.predict(PredictOrder(model=MODEL, max_tokens=500, prompt_tokens=50, session="long"))
    assert in_session.q50_tokens == pytest.approx(300, rel=0.25)
    assert client.predict(PredictOrder(model=MODEL, max_tokens=9, token_ids=(1,))).q90_tokens <= 9
    assert client.predict(plain) == forecast
    assert running.client.get("/api/state").json()["learner"] == before
    assert running.client.get("/api/queue").json()["rows"] == []


@pytest.mark.slow
def test_text_is_read_by_the_tokenizer_of_the_model(taught: tuple[Any, RouteClient]) -> None:
    """As its token ids are."""
    _, client = taught
    ids = client.predict(PredictOrder(model=MODEL, max_tokens=500, token_ids=(1, 2, 3, 0)))
    assert client.predict(PredictOrder(model=MODEL, max_tokens=500, text="how long short other")) == ids


@pytest.mark.slow
def test_an_unknown_model_is_not_taken_for_another(taught: tuple[Any, RouteClient]) -> None:
    """404 with the names that there are."""
    running, client = taught
    answer = running.client.post("/api/predict", json={"model": "other", "max_tokens": 9, "prompt_tokens": 1})
    assert answer.status_code == 404
    assert "'other'" in answer.json()["error"]
    assert MODEL in answer.json()["remedy"]
    with pytest.raises(EngineError, match="answers 404"):
        client.predict(PredictOrder(model="other", max_tokens=9, prompt_tokens=1))


SENSELESS: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "model"),
    ({"model": MODEL, "prompt_tokens": 9}, "max_tokens"),
    ({"model": MODEL, "max_tokens": 9}, "no prompt is given"),
    ({"model": MODEL, "max_tokens": 0, "prompt_tokens": 9}, "max_tokens"),
    ({"model": MODEL, "max_tokens": 9, "token_ids": [1], "text": "a"}, "give one of them"),
    ({"model": MODEL, "max_tokens": 9, "token_ids": [1, 2], "prompt_tokens": 1}, "head and tail"),
    ({"model": MODEL, "max_tokens": 9, "token_ids": [-1]}, "token_ids"),
    ({"model": MODEL, "max_tokens": 9, "token_ids": [0] * 8193}, "token_ids"),
    ({"model": MODEL, "max_tokens": 9, "text": ""}, "text"),
    ({"model": MODEL, "max_tokens": 9, "prompt_tokens": 1, "expected_output_tokens": 0}, "expected_output_tokens"),
    ({"model": MODEL, "max_tokens": 9, "prompt_tokens": 1, "engines": ["a"]}, "engines"),
)


def test_an_order_that_makes_no_sense_is_refused(start_controller: Start) -> None:
    """422 with a line that names what is wrong."""
    client = start_controller().client
    for body, named in SENSELESS:
        answer = client.post("/api/predict", json=body)
        assert answer.status_code == 422, body
        assert named in answer.json()["error"], body


def test_text_without_a_tokenizer_is_refused_with_what_to_do(start_controller: Start, tmp_path: Path) -> None:
    """400 where none is configured, 503 where it cannot be read; token ids are served on."""
    body = {"model": MODEL, "max_tokens": 9, "text": "how long"}
    running = start_controller()
    answer = running.client.post("/api/predict", json=body)
    assert answer.status_code == 400
    assert "learning.tokenizer" in answer.json()["remedy"]
    running.connect().step_until(lambda: running.client.get("/api/state").json()["engines"] != [])
    ids = running.client.post("/api/predict", json={"model": MODEL, "max_tokens": 9, "token_ids": [1]})
    assert ids.status_code == 200
    assert ids.json()["evidence"] == 0.0


def test_a_tokenizer_that_cannot_be_read_is_named(start_controller: Start, tmp_path: Path) -> None:
    """The setting, the file, and what to do instead."""
    running = start_controller(learning={"tokenizer": tmp_path / "nothing"})
    answer = running.client.post("/api/predict", json={"model": MODEL, "max_tokens": 9, "text": "how long"})
    assert answer.status_code == 503
    assert str(tmp_path / "nothing" / "tokenizer.json") in answer.json()["error"]
    assert "token_ids" in answer.json()["remedy"]
