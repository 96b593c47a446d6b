"""The learner's state over a restart: used where it is whole and its own, left alone otherwise; the history fills the rest."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from controller.core.core import Core
from controller.core.in_process import IN_PROCESS, InProcessController
from controller.policy.policies import policy_named
from controller.service import memory as memory_module
from controller.service.learner_file import FILE, Manifest, UnusableStateError, manifest_of, packed, unpacked
from controller.service.memory import Memory, open_memory
from controller.service.warm_start import rebuild
from engine_adapter.workloads.synthetic import synthetic_stream
from engine_adapter.workloads.token_ids import token_ids
from online_learning.clustering.clusters import ClusterSettings
from online_learning.length_learner import Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings
from online_learning.mixture.settings import LearnerSettings
from store.history.writer import HistoryWriter
from store.records import Arrived, Facts, Finished, Hello

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SETTINGS = MixtureSettings(common=LearnerSettings(clusters=ClusterSettings(clusters=8, seed_prompts=100)))
OURS = manifest_of(b"key", "settings")
ANSWERS = 150


def new_core() -> Core:
    config = replace(IN_PROCESS, backlog=5_000)
    return InProcessController(MixtureLearner(SETTINGS), policy_named("sage"), config=config).core


PROMPTS = [
    Prompt(
        token_ids=np.asarray(token_ids(row.prompt or "", row.prompt_len_tokens)[:200], dtype=np.uint32),
        prompt_tokens=row.prompt_len_tokens,
        max_tokens=4096,
        temperature=1.0,
        model="m",
    )
    for row, _ in zip(synthetic_stream(1), range(3 * ANSWERS), strict=False)
]


def serve(core: Core, writer: HistoryWriter, first: int, count: int) -> None:
    """An engine whose requests end as soon as they have arrived."""
    core.handle(b"e", HELLO, 0.0)
    for number in range(first, first + count):
        prompt, chance = PROMPTS[number], np.random.default_rng(number)
        arrived = Arrived(
            request_id=f"r{number}",
            arrival_s=float(number),
            prompt_tokens=prompt.prompt_tokens,
            token_ids=prompt.token_ids.astype("<u4").tobytes(),
            max_tokens=prompt.max_tokens,
            temperature=1.0,
        )
        finished = Finished(
            request_id=f"r{number}",
            time_s=float(number),
            arrival_s=float(number),
            reason="stop",
            prompt_tokens=prompt.prompt_tokens,
            output_tokens=int(chance.integers(1, 900)),
            max_tokens=prompt.max_tokens,
            cached_prompt_tokens=0,
            preemptions=0,
            recomputed_tokens=0,
        )
        core.handle(b"e", Facts(batch=number + 1, facts=(arrived, finished), oldest=number + 1), float(number))
        while core.backlog:
            core.work(float(number))
        writer.append(core.drain_entries())


HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="m",
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


def opened(store: Path, writer: HistoryWriter, *, ours: Manifest = OURS, limit: int = 10_000) -> tuple[Core, Memory]:
    """A controller's core and memory, once all of the past is learned."""
    core, memory = open_memory(new_core, store, ours, limit=limit, history=writer, verify_s=60.0)
    learn_all(memory)
    return core, memory


def learn_all(memory: Memory) -> None:
    until_s = time.monotonic() + 60.0
    while list(memory.states()):
        assert time.monotonic() < until_s, "the past is over soon"
        if memory.can_go_on:
            memory.learn(0.0)


def assert_same(one: Core, other: Core) -> None:
    mine, theirs = (core._state.predictor._learner for core in (one, other))
    for prompt in PROMPTS[-60:]:
        features = mine.features(prompt)
        ours, others = mine.predict_one(features, "m"), theirs.predict_one(features, "m")
        np.testing.assert_array_equal(ours.distribution.mass, others.distribution.mass)
        assert (ours.cluster, ours.evidence, ours.experts) == (others.cluster, others.evidence, others.experts)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few answers are worth a file."""
    monkeypatch.setattr(memory_module, "WORTH_ANSWERS", 1)
    monkeypatch.setattr(memory_module, "MANY_ANSWERS", 50)


@pytest.fixture
def kept(tmp_path: Path, eager: None) -> tuple[Path, Core]:
    """A history with its learner's file, and the core that wrote them."""
    with HistoryWriter(tmp_path) as writer:
        core, memory = opened(tmp_path, writer)
        serve(core, writer, 0, ANSWERS)
    memory.finish(writer)
    return tmp_path, core


def test_a_restart_knows_what_the_file_holds_and_learns_the_rest(
    kept: tuple[Path, Core], caplog: pytest.LogCaptureFixture
) -> None:
    """To the last digit what the process knew that wrote them, and numbers of answers go on."""
    store, _ = kept
    with HistoryWriter(store) as writer:
        living, _ = opened(store, writer)
        serve(living, writer, ANSWERS, 40)  # Its file is not written: it is killed.
    caplog.set_level(logging.INFO)
    caplog.clear()
    with HistoryWriter(store) as writer:
        again, _ = opened(store, writer)
    assert f"the learner knows the first {ANSWERS} answers" in caplog.text
    assert "learned from 40 recorded answers" in caplog.text
    assert_same(living, again)
    assert again.past.next_answer == living.past.next_answer == ANSWERS + 40
    from_history = new_core()
    rebuild(from_history, store, 10_000)
    assert_same(living, from_history)


def test_calibration_and_trust_come_back(kept: tuple[Path, Core]) -> None:
    """The windows go on as they were, and a model that was not trusted is served first come, first served at once."""
    store, living = kept
    with HistoryWriter(store) as writer:
        again, _ = opened(store, writer)
    assert again.calibration.due(1e9) == living.calibration.due(1e9)
    doubting = new_core()
    window = living.calibration._of_model("m")
    window.guard.trusted = False
    doubting.past.restore(living.past.written())
    assert doubting._state.modes.of_model("m").mode == "off"


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "empty": b"",
        "half": content[:middle],
        "all but a byte": content[:-1],
        "longer": content + b"\0",
        "a bit of the state": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "a bit of the manifest": content[:100] + bytes([content[100] ^ 1]) + content[101:],
        "a bit of the checksum": bytes([content[0] ^ 1]) + content[1:],
        "something else": b"PAR1" * 1000,
        "a pickle": pickle.dumps({"a": 1}),
    }


@pytest.mark.parametrize("kind", damaged(bytes(200)))
def test_a_damaged_file_is_not_used_and_stops_nothing(
    kept: tuple[Path, Core], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says why, the history is learned again, and the next file is good."""
    store, living = kept
    (store / FILE).write_bytes(damaged((store / FILE).read_bytes())[kind])
    with HistoryWriter(store) as writer:
        again, memory = opened(store, writer)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "checksum" in warnings[0]
    assert_same(living, again)
    memory.finish(writer)
    unpacked((store / FILE).read_bytes(), structs.replace(OURS, next_answer=ANSWERS))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"history": "another"}, "another history"),
        ({"settings": "others"}, "other settings"),
        ({"code": "other"}, "another release"),
        ({"versions": {"river": "0.1"}}, "other versions"),
        ({"format": 0}, "another format"),
        ({"next_answer": ANSWERS - 1}, "the history does not hold"),
    ],
)
def test_a_state_that_is_not_its_own_is_not_used(kept: tuple[Path, Core], changed: dict[str, Any], reason: str) -> None:
    """Of another history, an older or newer release, other settings or libraries, or ahead of a history put back."""
    store, _ = kept
    content = (store / FILE).read_bytes()
    ours = structs.replace(OURS, next_answer=ANSWERS)
    unpacked(content, ours)
    with pytest.raises(UnusableStateError, match=reason):
        unpacked(content, structs.replace(ours, **changed))


def test_a_file_that_does_not_fit_leaves_the_history_to_be_learned(
    kept: tuple[Path, Core], caplog: pytest.LogCaptureFixture
) -> None:
    """Whole and signed as its own, with things in it that this learner does not have."""
    store, living = kept
    for state in (b"", b"\xc1", b"\x01", packed(OURS, b"x")):
        caplog.clear()
        (store / FILE).write_bytes(packed(structs.replace(OURS, next_answer=ANSWERS), state))
        with HistoryWriter(store) as writer:
            again, _ = opened(store, writer)
        assert sum("is not used, its history is learned again" in r.getMessage() for r in caplog.records) == 1
        assert_same(living, again)


def test_a_history_that_was_put_back_wins(kept: tuple[Path, Core], caplog: pytest.LogCaptureFixture) -> None:
    """The file knows answers that this history does not hold."""
    store, _ = kept
    other = store / "other"
    with HistoryWriter(other) as writer:
        core, _ = opened(other, writer)
        serve(core, writer, 0, 30)
    (other / FILE).write_bytes((store / FILE).read_bytes())
    with HistoryWriter(other) as writer:
        again, _ = opened(other, writer)
    assert f"it knows {ANSWERS - 30} answers that the history does not hold" in caplog.text
    assert again.past.next_answer == 30
    assert_same(core, again)


def test_nothing_of_the_past_is_learned_where_none_is_wanted(kept: tuple[Path, Core]) -> None:
    """Not from the file either; answers go on being numbered behind the history's."""
    store, _ = kept
    with HistoryWriter(store) as writer:
        core, _ = opened(store, writer, limit=0)
    assert core._state.predictor.taught("m") == 0
    assert core.past.next_answer == ANSWERS


def await_child(memory: Memory, position: int, now_s: float, durable: Callable[[], int]) -> None:
    until_s = time.monotonic() + 60.0
    while memory._writing is not None or memory._finished is not None:
        assert time.monotonic() < until_s, "the child ends soon"
        memory.keep(position, durable(), now_s)
        if memory._writing is None and memory._finished is not None and durable() < position:
            return
        time.sleep(0.01)


def test_the_file_is_written_beside_the_loop_and_only_when_the_history_has_it_all(tmp_path: Path, eager: None) -> None:
    """A child writes what was known when it began; what is learned meanwhile is for the next one."""
    with HistoryWriter(tmp_path) as writer:
        core, memory = opened(tmp_path, writer)
        memory.keep(0, 0, 0.0)
        serve(core, writer, 0, 60)
        twin = new_core()
        twin.past.restore(core.past.written())
        memory.keep(1_000, 0, 59.0)
        assert memory._writing is None, "the last one was not long ago"
        memory.keep(1_000, 0, 61.0)
        assert memory._writing is not None
        serve(core, writer, 60, 20)
        await_child(memory, 1_000, 62.0, lambda: 999)
        assert not (tmp_path / FILE).exists(), "the history lacks what it knows"
        await_child(memory, 1_000, 62.0, lambda: 1_000)
        manifest, state = unpacked((tmp_path / FILE).read_bytes(), structs.replace(OURS, next_answer=80))
        assert manifest.next_answer == 60
        assert state == twin.past.written()
        memory.keep(2_000, 2_000, 200.0)
        assert memory._writing is None, "20 answers are learned again in no time"
        assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_child_that_fails_or_hangs_is_nobodys_trouble(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is killed after a time, said once, and the next one is tried when it is time again."""
    with HistoryWriter(tmp_path) as writer:
        core, memory = opened(tmp_path, writer)
        memory.keep(0, 0, 0.0)
        serve(core, writer, 0, 60)
        with monkeypatch.context() as broken:
            broken.setattr(Memory, "_write", lambda *_: time.sleep(600.0))
            memory.keep(1, 1, 61.0)
        assert memory._writing is not None
        child = memory._writing.child
        memory.keep(1, 1, 100.0)
        os.kill(child, 0)
        await_child(memory, 1, 61.0 + memory_module.LONGEST_WRITING_S + 1.0, lambda: 1)
        assert "could not be written" in caplog.text
        assert not (tmp_path / FILE).exists()
        with monkeypatch.context() as broken:
            broken.setattr(memory_module, "replace_file", lambda *_a, **_k: 1 / 0)
            memory.keep(1, 1, 300.0)
        await_child(memory, 1, 301.0, lambda: 1)
        memory.keep(1, 1, 400.0)
        await_child(memory, 1, 401.0, lambda: 1)
        assert (tmp_path / FILE).exists()


def test_the_present_waits_for_the_past_and_loses_nothing(kept: tuple[Path, Core]) -> None:
    """Answers that end while the past is still being learned are learned behind it, in their order."""
    store, _ = kept
    (store / FILE).unlink()
    with HistoryWriter(store) as writer:
        core, memory = open_memory(new_core, store, OURS, limit=10_000, history=writer, verify_s=60.0)
        assert [state.kind for state in memory.states()] == ["learning_past"]
        serve(core, writer, ANSWERS, 20)
        assert core._state.predictor.taught("m") == 0
        learn_all(memory)
        assert core._state.predictor.taught("m") == ANSWERS
        while core.backlog:
            core.work(0.0)
        writer.append(core.drain_entries())
    assert core.past.next_answer == ANSWERS + 20
    again = new_core()
    assert rebuild(again, store, 10_000) == ANSWERS + 20
    assert_same(core, again)


def test_a_past_that_was_left_half_way_is_not_kept(kept: tuple[Path, Core]) -> None:
    """A stop while it is being learned: answers of now are learned and numbered, and the file stays away."""
    store, _ = kept
    (store / FILE).unlink()
    with HistoryWriter(store) as writer:
        core, memory = open_memory(new_core, store, OURS, limit=10_000, history=writer, verify_s=60.0)
        serve(core, writer, ANSWERS, 5)
        memory.stop()
        assert not memory.can_go_on
        while core.backlog:
            core.work(0.0)
        writer.append(core.drain_entries())
    memory.finish(writer)
    assert core.past.next_answer == ANSWERS + 5
    assert not (store / FILE).exists()
