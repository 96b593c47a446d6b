"""Small histories for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.entries import CalibrationMeasured, EngineSeen, Entry, Outcome, Prediction, StoreRecord
from store.history.files import Folder
from store.history.live_file import Chunk, LiveFile
from store.history.retention import Retention
from store.history.rows import row_of
from store.history.tables import TABLE_OF
from store.records import Arrived, Finished, FirstToken, Hello


def _entry(record: StoreRecord, batch: int | None = None, session_id: str = "s1") -> Entry:
    return Entry(engine_id="e1", session_id=session_id, batch=batch, record=record)


def _arrived(name: str, arrival_s: float = 100.0, *, resent: bool = False) -> Arrived:
    return Arrived(
        request_id=name,
        arrival_s=arrival_s,
        prompt_tokens=7,
        token_ids=b"\x01\x00\x00\x00",
        max_tokens=50,
        temperature=0.5,
        priority=1,
        tenant="t",
        resent=resent,
    )


def _first_token(name: str, time_s: float = 101.0) -> FirstToken:
    return FirstToken(request_id=name, time_s=time_s, scheduled_s=time_s - 0.5, cached_prompt_tokens=2)


def _finished(name: str, arrival_s: float = 100.0, time_s: float = 110.0, output_tokens: int = 10) -> Finished:
    return Finished(
        request_id=name,
        time_s=time_s,
        reason="stop",
        arrival_s=arrival_s,
        prompt_tokens=7,
        output_tokens=output_tokens,
        max_tokens=50,
        cached_prompt_tokens=2,
        preemptions=1,
        recomputed_tokens=9,
        scheduled_s=arrival_s + 0.5,
        first_token_s=arrival_s + 1.0,
        expected_cached_tokens=3,
    )


def _prediction(name: str, p50_tokens: int = 20) -> Prediction:
    return Prediction(
        request_id=name,
        time_s=100.0,
        cluster=3,
        features=name.encode(),
        prompt_hash="h",
        mean_tokens=21.0,
        p10_tokens=5,
        p25_tokens=10,
        p50_tokens=p50_tokens,
        p75_tokens=30,
        p90_tokens=40,
        p95_tokens=45,
        p99_tokens=50,
        evidence=12.0,
        experts={"global": 1.0},
        predict_s=1e-4,
    )


def _outcome(name: str, time_s: float = 110.0, output_tokens: int = 10, answer: int = 0) -> Outcome:
    return Outcome(
        request_id=name,
        time_s=time_s,
        output_tokens=output_tokens,
        censored=False,
        cluster=3,
        pit=0.3,
        crps_tokens=4.0,
        log_score=2.0,
        within_50=True,
        within_90=True,
        answer=answer,
    )


def _calibration(time_s: float = 120.0, *, cluster: int | None = None, reason: str = "due") -> CalibrationMeasured:
    return CalibrationMeasured(
        time_s=time_s,
        model="m",
        scope="model" if cluster is None else "cluster",
        cluster=cluster,
        answers=100,
        censored=3,
        coverage_50=0.5,
        coverage_90=0.9,
        crps_tokens=40.0,
        log_score=-3.0,
        prior_log_score=-3.5,
        pinball_tokens=20.0,
        kendall_tau=0.4,
        pit_histogram=(0.1,) * 10,
        trusted=reason in {"due", "trusted again"},
        reason=reason,
    )


def _engine(session_id: str = "s1", model: str = "m") -> EngineSeen:
    hello = Hello(
        engine_id="e1",
        session_id=session_id,
        model=model,
        engine="simulated",
        engine_version="1",
        kv_blocks=100,
        block_size_tokens=16,
        max_num_seqs=8,
        token_budget=512,
        max_model_len_tokens=4096,
        prefix_caching=True,
        started_s=1.0,
    )
    return EngineSeen(time_s=2.0, event="connected", hello=hello)


class Make:
    """Records with few words."""

    entry = staticmethod(_entry)
    arrived = staticmethod(_arrived)
    first_token = staticmethod(_first_token)
    finished = staticmethod(_finished)
    prediction = staticmethod(_prediction)
    outcome = staticmethod(_outcome)
    calibration = staticmethod(_calibration)
    engine = staticmethod(_engine)


class Hands:
    """A live file worked by hand, at whatever time the test says."""

    def __init__(self, path: Path, *, days: float = 30.0, limit_bytes: int = 1 << 40, grace_s: float = 60.0) -> None:
        self.folder = Folder(path)
        self.folder.create()
        self._retention = Retention(days=days, bytes=limit_bytes, grace_s=grace_s)
        self._position = 0
        self._file: LiveFile | None = None

    def open(self, now_s: float, *, writer: str = "w") -> LiveFile:
        """Open, as after a crash if it was not closed."""
        self._file = LiveFile(self.folder, writer, self._retention, now_s)
        self._position = self._file.position
        return self._file

    def write(self, now_s: float, *entries: Entry) -> None:
        """Commit entries without sealing them."""
        assert self._file is not None
        rows: dict[str, list[tuple[object, ...]]] = {}
        for entry in entries:
            rows.setdefault(TABLE_OF[type(entry.record)], []).append(row_of(entry, now_s, store_prompts=False))
            if entry.batch is not None and (entry.session_id, entry.batch, now_s) not in rows.get("batches", []):
                rows.setdefault("batches", []).append((entry.session_id, entry.batch, now_s))
        self._position += len(entries)
        self._file.commit(Chunk(self._position, rows))

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


@pytest.fixture
def make() -> type[Make]:
    """Records with few words."""
    return Make


@pytest.fixture
def hands(tmp_path: Path) -> Iterator[Callable[..., Hands]]:
    """Makes histories that are worked by hand, and closes them."""
    made: list[Hands] = []

    def _make(folder: str = "history", **options: float) -> Hands:
        made.append(Hands(tmp_path / folder, **options))
        return made[-1]

    yield _make
    for each in made:
        each.close()
