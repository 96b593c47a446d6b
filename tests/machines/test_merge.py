"""Histories of several controllers as one: everything once, also what an engine told a second controller again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from controller.benchmark.synthetic_history import synthetic_facts, synthetic_hello
from controller.cli.main import run
from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from controller.service.warm_start import rebuild
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.workloads.requests import bench_trace
from online_learning.evaluation.global_learner import GlobalLearner
from store.entries import ClusterChanged, Entry
from store.errors import BadInputError, StoreSchemaError
from store.history.merge import CLUSTERS_APART, merge_histories
from store.history.reader import learning_history, open_history
from store.history.writer import HistoryWriter
from store.reading.sandbox import run_sql
from store.records import Facts

PROFILE = PROFILES["h800-qwen3-32b-24k"]
WORKS = bench_trace("synthetic", requests=12, warmup=0, seed=1).measured
DAY_S = 86_400.0
START_S = 1_800_000_000.0


class Controller:
    """A controller with a history, which is sent batches of an engine's session."""

    def __init__(self, store: Path, now_s: float = START_S) -> None:
        self.now_s = now_s
        self.writer = HistoryWriter(store, clock=lambda: self.now_s, retention_days=1e6).start()
        self.controller = InProcessController(
            GlobalLearner(),
            policy_named("sage"),
            now_s=now_s,
            durable_batches=self.writer.last_batches,
            on_entries=self.writer.append,
        )
        self.core = self.controller.core
        self._greeted: set[str] = set()

    def receive(self, session_id: str, batch: int) -> None:
        """An engine's batch: one request from arrival to end; what the core records of it goes to the history."""
        connection = session_id.encode()
        if session_id not in self._greeted:
            self._greeted.add(session_id)
            hello = structs.replace(
                synthetic_hello(PROFILE, "m", START_S), session_id=session_id, engine_id=session_id[:1]
            )
            self.controller.handle(connection, hello, self.now_s)
        facts = synthetic_facts(WORKS[batch % len(WORKS)], PROFILE)
        self.controller.handle(connection, Facts(batch=batch, facts=facts, oldest=batch), self.now_s)
        self.now_s += 1.0

    def close(self) -> None:
        self.writer.close()


def tell(store: Path, batches: Iterable[tuple[str, int]], now_s: float = START_S) -> None:
    """A history of a controller that heard these batches."""
    controller = Controller(store, now_s)
    for session_id, batch in batches:
        controller.receive(session_id, batch)
    controller.close()


def count(store: Path, what: str) -> tuple[int, ...]:
    with open_history(store) as history:
        found: tuple[int, ...] = history.execute(f"SELECT {what}").fetchall()[0]
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two histories, ``a`` and ``b``; tests that change them take a copy."""
    folder = tmp_path_factory.mktemp("pair")
    tell(folder / "a", [("a1", 1), ("shared", 1)])
    tell(folder / "b", [("b1", 1), ("shared", 1)])
    return folder


batches_of_a_session = st.lists(st.integers(1, 6), max_size=6, unique=True).map(sorted)
heard = st.dictionaries(st.sampled_from(["a1", "a2", "b1"]), batches_of_a_session, max_size=3)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=heard, second=heard)
def test_every_batch_and_every_outcome_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, list[int]], second: dict[str, list[int]]
) -> None:
    """Whatever two controllers heard, apart or both: the merged history has the union, each request's life once."""
    folder = tmp_path_factory.mktemp("merge")
    expected = {(session, batch) for told in (first, second) for session in told for batch in told[session]}
    for name, told in (("first", first), ("second", second)):
        tell(folder / name, [(session, batch) for session in told for batch in told[session]])
    merged = merge_histories([folder / "first", folder / "second"], folder / "both", now_s=START_S)
    with open_history(folder / "both") as history:
        assert set(history.execute("SELECT session_id, batch FROM batches").fetchall()) == expected
        for table in ("batches", "arrivals", "first_tokens", "completions", "outcomes", "requests"):
            (rows,) = history.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
            assert rows == len(expected), table
        answers = [answer for (answer,) in history.execute("SELECT answer FROM outcomes ORDER BY 1").fetchall()]
        last = dict(history.execute("SELECT session_id, batch FROM sealed_batches").fetchall())
    assert answers == list(range(len(expected)))
    assert last == {session: max(batch for s, batch in expected if s == session) for session, _ in expected}
    assert merged.rows["completions"] == len(expected)


def test_a_merged_history_teaches_a_controller_all_that_was_learnt(tmp_path: Path) -> None:
    """`serve --store` on it: the answers of both, in the order of their time, and a session goes on where it was."""
    tell(tmp_path / "a", [("a1", batch) for batch in range(1, 7)], START_S)
    tell(tmp_path / "b", [("b1", batch) for batch in range(1, 4)], START_S + 2.5)
    merge_histories([tmp_path / "a", tmp_path / "b"], tmp_path / "both", now_s=START_S)
    controller = Controller(tmp_path / "both", START_S + 100.0)
    assert rebuild(controller.core, tmp_path / "both", 1_000) == 9
    assert [answer.answer for answer in learning_history(tmp_path / "both", 100)] == list(range(9))
    controller.receive("a1", 6)
    assert controller.core.counts.duplicate_batches == 1, "what the first controller had is known"
    controller.receive("a1", 7)
    controller.close()
    assert count(tmp_path / "both", "count(*), max(answer) FROM outcomes") == (10, 9)


def test_retention_still_takes_days_one_by_one(tmp_path: Path) -> None:
    """A merged history is sealed by day, so that what is old goes and what is young stays."""
    tell(tmp_path / "a", [("a1", 1), ("a1", 2)], START_S)
    tell(tmp_path / "b", [("b1", 1)], START_S + 20 * DAY_S)
    merge_histories([tmp_path / "a", tmp_path / "b"], tmp_path / "both", now_s=START_S)
    now_s = START_S + 21 * DAY_S
    HistoryWriter(tmp_path / "both", clock=lambda: now_s, retention_days=10.0).start().close()
    assert count(tmp_path / "both", "count(*), count(DISTINCT session_id) FROM completions") == (1, 1)


def test_clusters_of_different_learners_are_kept_apart(tmp_path: Path) -> None:
    """Each learner numbers its clusters for itself; equal numbers of two sources do not become one cluster."""
    for name in ("a", "b"):
        with HistoryWriter(tmp_path / name, clock=lambda: START_S) as writer:
            born = ClusterChanged(time_s=START_S, kind="split", cluster=3, other_cluster=2)
            writer.append([Entry(engine_id="", session_id=name, batch=None, record=born)])
    merge_histories([tmp_path / "a", tmp_path / "b"], tmp_path / "both", now_s=START_S)
    with open_history(tmp_path / "both") as history:
        found = history.execute("SELECT cluster, other_cluster FROM cluster_changes ORDER BY 1").fetchall()
    assert found == [(3, 2), (CLUSTERS_APART + 3, CLUSTERS_APART + 2)]


def test_a_copy_of_a_source_adds_nothing(pair: Path, tmp_path: Path) -> None:
    """A backup of a history, at another place: no row of it is counted a second time."""
    shutil.copytree(pair / "a", tmp_path / "backup")
    merged = merge_histories([pair / "a", tmp_path / "backup"], tmp_path / "both", now_s=START_S)
    assert {table: rows for table, rows in merged.rows.items() if rows} == {
        "arrivals": 2,
        "first_tokens": 2,
        "completions": 2,
        "outcomes": 2,
        "predictions": 2,
        "decisions": 2,
        "engines": 2,
        "settings_history": 1,
        "batches": 2,
    }


def test_a_running_controller_is_merged_without_being_disturbed(tmp_path: Path) -> None:
    """What it has sealed is in the merged history, it is named as running, and it goes on writing."""
    controller = Controller(tmp_path / "a")
    controller.receive("a1", 1)
    tell(tmp_path / "b", [("b1", 1)])
    merged = merge_histories([tmp_path / "a", tmp_path / "b"], tmp_path / "both", now_s=START_S)
    assert merged.running == ((tmp_path / "a").resolve(),)
    controller.receive("a1", 2)
    controller.close()
    assert count(tmp_path / "a", "count(*) FROM completions") == (2,)
    assert count(tmp_path / "both", "count(*) FROM completions WHERE session_id = 'b1'") == (1,)


def test_the_sandbox_reaches_a_merged_history_alone(pair: Path, tmp_path: Path) -> None:
    """The copies lie under the merged folder: `sql` reads it after its sources, here moved away, are gone."""
    for name in ("a", "b"):
        shutil.copytree(pair / name, tmp_path / name)
    merge_histories([tmp_path / "a", tmp_path / "b"], tmp_path / "both", now_s=START_S)
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    answer = run_sql(tmp_path / "both", "SELECT engine_id, count(*) AS n FROM requests GROUP BY ALL ORDER BY 1")
    assert answer.to_pylist() == [{"engine_id": name, "n": 1} for name in ("a", "b", "s")]


@pytest.mark.parametrize(
    ("sources", "target", "complaint"),
    [
        (["a"], "new", "only one history was given"),
        (["a", "a"], "new", "was given twice"),
        (["a", "none"], "new", "no such folder"),
        (["a", "b"], "full", "not an empty folder"),
        (["a", "b"], "a", "not an empty folder"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    pair: Path, tmp_path: Path, sources: list[str], target: str, complaint: str
) -> None:
    """One line that names what is wrong; no folder appears."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    goal = pair / "a" if target == "a" else tmp_path / target
    with pytest.raises(BadInputError, match=complaint):
        merge_histories([pair / name for name in sources], goal, now_s=START_S)
    assert not (tmp_path / "new").exists()
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["file"]


def test_a_history_of_a_newer_release_is_refused_untouched(pair: Path, tmp_path: Path) -> None:
    """Its tables may mean something else: nothing is written, neither there nor here."""
    shutil.copytree(pair / "b", tmp_path / "b")
    with duckdb.connect(tmp_path / "b" / "live.duckdb") as live:
        live.execute("INSERT INTO schema_version VALUES (1000, 0.0)")
    before = (tmp_path / "b" / "catalog.duckdb").read_bytes()
    with pytest.raises(StoreSchemaError, match="1000"):
        merge_histories([pair / "a", tmp_path / "b"], tmp_path / "both", now_s=START_S)
    assert not (tmp_path / "both").exists()
    assert (tmp_path / "b" / "catalog.duckdb").read_bytes() == before


def test_the_command_says_what_it_did(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`merge A B --into C`: code 0 and a line; code 2 and a line where it cannot."""
    command = ["merge", str(pair / "a"), str(pair / "b"), "--into", str(tmp_path / "both")]
    assert run(command) == 0
    said = capsys.readouterr().out
    assert "3 requests" in said
    assert str(tmp_path / "both") in said
    assert run(command) == 2
    assert "not an empty folder" in capsys.readouterr().err
