"""The semantic encoder: a real model with random weights, built on the spot, and what it does to predictions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from controller.config import load_config
from controller.monitoring.doctor import examine
from controller.monitoring.live_state import Live
from controller.monitoring.metrics import Metrics
from controller.prompt_encoder import Encoder, check_encoder, load_encoder
from online_learning.experts.semantic import Embedding
from store.errors import ConfigError
from store.history.reader import learning_history, open_history

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(200))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sentence-transformers model of two layers, and a tokenizer that stands for the served model's."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models")
    named = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "pad", "cls", "sep")}
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=named["unk_token"]))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **named)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=300,
    )
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    layer = Transformer(str(folder / "bert"), max_seq_length=256)
    SentenceTransformer(modules=[layer, Pooling(32)], device="cpu").save(str(folder / "encoder"))
    return folder / "encoder", folder / "tokenizer"


def _ids(*words: int) -> bytes:
    return np.array([5 + word for word in words], dtype="<u4").tobytes()


def _wait(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < until_s, "not so after a minute"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_real_model_reads_token_ids(models: tuple[Path, Path]) -> None:
    """Unit vectors of the model's size, the same for the same prompt, nearer for prompts that share words."""
    embed = load_encoder(*models)
    prompts = [_ids(1, 2, 3, 4), _ids(1, 2, 3, 4), _ids(1, 2, 3, 9), _ids(50, 60, 70, 80), b""]
    one, same, near, far, empty = embed(prompts)
    assert one.shape == (32,)
    assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(one, same, atol=1e-5)
    assert one @ near > one @ far
    assert empty.shape == (32,)


def test_prompts_come_back_as_embeddings_in_order(models: tuple[Path, Path]) -> None:
    """Over the thread, in batches, under the names that they were given; a long prompt is cut to its ends."""
    encoder = Encoder(lambda: load_encoder(*models), batch_prompts=4)
    for number in range(10):
        encoder.submit("s", f"r{number}", _ids(*range(number, number + 3)) if number else _ids(*([7] * 5_000)))
    encoder.start()
    _wait(lambda: encoder.encoded == 10)
    found = encoder.drain(6) + encoder.drain(6)
    encoder.stop()
    assert [encoded.request_id for encoded in found] == [f"r{number}" for number in range(10)]
    assert all(encoded.session_id == "s" and encoded.embedding.shape == (32,) for encoded in found)
    assert (encoder.dropped, encoder.errors) == (0, 0)


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    """A slow model holds nobody up: submitting returns at once, and the overflow is told."""
    gate = threading.Event()

    def embed(prompts: Sequence[bytes]) -> Sequence[Embedding]:
        gate.wait(30.0)
        return [np.ones(2, dtype=np.float32) for _ in prompts]

    encoder = Encoder(lambda: embed, max_waiting=8, batch_prompts=1)
    encoder.start()
    for number in range(100):
        encoder.submit("s", str(number), b"")
    assert encoder.dropped >= 90
    gate.set()
    _wait(lambda: encoder.encoded + encoder.dropped == 100)
    encoder.stop()
    metrics = Metrics(Live())
    assert "sagesched_encoder_dropped_total 0.0" in metrics.page().decode()
    metrics.watch_encoder(encoder)
    page = metrics.page().decode()
    assert f"sagesched_encoder_dropped_total {float(encoder.dropped)}" in page
    assert f"sagesched_encoder_encoded_total {float(encoder.encoded)}" in page


def test_an_encoder_that_fails_is_counted_and_goes_on() -> None:
    """One batch that fails costs its prompts their embeddings; the next one is read."""

    def embed(prompts: Sequence[bytes]) -> Sequence[Embedding]:
        if b"bad" in prompts:
            raise ArithmeticError(prompts)
        return [np.ones(2, dtype=np.float32) for _ in prompts]

    encoder = Encoder(lambda: embed, batch_prompts=1)
    for name in ("bad", "good"):
        encoder.submit("s", name, name.encode())
    encoder.start()
    _wait(lambda: encoder.encoded == 1)
    encoder.stop()
    assert [encoded.request_id for encoded in encoder.drain()] == ["good"]
    assert encoder.errors == 1


def test_a_model_that_cannot_be_loaded_ends_the_thread_alone(tmp_path: Path) -> None:
    """An empty folder is no model: counted, and nobody waits."""
    encoder = Encoder(lambda: load_encoder(tmp_path, tmp_path))
    encoder.start()
    _wait(lambda: encoder.errors == 1)
    encoder.submit("s", "r", _ids(1))
    assert encoder.drain() == []
    encoder.stop()


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    """Without a tokenizer, or with a folder that is not there, the message says what to do."""
    with pytest.raises(ConfigError, match=r"learning\.tokenizer"):
        check_encoder(tmp_path, None)
    with pytest.raises(ConfigError, match="never downloaded"):
        check_encoder(tmp_path, tmp_path / "none")


def test_the_doctor_says_whether_the_encoder_works(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Well with a real model, wrong with an empty folder; not mentioned when there is none."""

    def said(**learning: object) -> list[str]:
        config = load_config({"learning": learning, "store": {"path": tmp_path / "h"}}, environment={})
        findings = []
        for finding in examine(config, now_s=time.time()):
            if finding.name == "vLLM":
                break
            findings += [finding.state] if finding.name == "encoder" else []
            if finding.name == "encoder":
                break
        return findings

    assert said(encoder=models[0], tokenizer=models[1]) == ["ok"]
    (tmp_path / "empty").mkdir()
    assert said(encoder=tmp_path / "empty", tokenizer=models[1]) == ["wrong"]


@pytest.mark.slow
def test_a_refined_table_replaces_the_first_one(
    models: tuple[Path, Path], start_controller: Callable[..., object]
) -> None:
    """Over the real socket: every request is predicted at once, and again when it was read; history has the latter."""
    running = start_controller(learning={"encoder": models[0], "tokenizer": models[1]})
    engine = running.connect()  # type: ignore[attr-defined]
    for number in range(3):
        engine.submit(f"r{number}", output_tokens=400)
    encoder = running.service.loop._encoder  # type: ignore[attr-defined]
    engine.step_until(lambda: encoder.encoded == 3, timeout_s=90.0)
    engine.step_until(lambda: len(engine.lives) == 3, timeout_s=90.0)

    def decisions() -> list[tuple[str, int]]:
        with open_history(running.store) as history:  # type: ignore[attr-defined]
            return history.execute("SELECT reason, count(*) FROM decisions GROUP BY ALL ORDER BY ALL").fetchall()

    _wait(lambda: {"arrival", "prediction"} <= dict(decisions()).keys())
    _wait(lambda: len(list(learning_history(running.store, 10))) == 3)  # type: ignore[attr-defined]
    answers = list(learning_history(running.store, 10))  # type: ignore[attr-defined]
    with open_history(running.store) as history:  # type: ignore[attr-defined]
        [(requests,)] = history.execute("SELECT count(*) FROM requests").fetchall()
        experts = history.execute("SELECT experts FROM predictions").fetchall()
    assert requests == 3, "a second prediction makes no second request"
    assert sum("semantic" in dict(names) for (names,) in experts) == 3
    assert all(len(answer.features) > 4 * 32 for answer in answers)
