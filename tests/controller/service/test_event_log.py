"""Events that an operator looks for: each is a line of the log and stands on *Now*."""

from __future__ import annotations

import logging

import pytest
from msgspec import structs

from controller.service.event_log import KEPT, EventLog
from store.entries import DriftDetected, EngineSeen, Entry, SettingsChanged, StoreRecord
from store.records import EngineRules, Hello, Settings, Snapshot

HELLO = Hello(
    engine_id="a",
    session_id="s",
    model="m",
    engine="vllm",
    engine_version="0.32.0",
    kv_blocks=9,
    block_size_tokens=16,
    max_num_seqs=8,
    token_budget=2048,
    max_model_len_tokens=4096,
    prefix_caching=False,
    started_s=0.0,
)
SAID = Snapshot(
    time_s=3.0,
    waiting=0,
    running=0,
    kv_blocks_used=0,
    kv_blocks=9,
    mode="on",
    steps=0,
    step_s=0.0,
    prefill_tokens=0,
    decode_tokens=0,
    kv_tokens_read=0,
    preemptions=0,
    recomputed_tokens=0,
)
ON = Settings(revision=1, mode="on", lease_s=2.0, rules=EngineRules())


def entry(record: StoreRecord, session: str = "s") -> Entry:
    return Entry(engine_id="a" if session else "", session_id=session, batch=None, record=record)


def test_what_happens_is_logged_and_kept_once_the_latest_first(caplog: pytest.LogCaptureFixture) -> None:
    """Engines that come and go, fallbacks and their ends, modes, drift; what changes nothing is no event."""
    log = EventLog()
    off = structs.replace(ON, mode="off", revision=2)
    drift = DriftDetected(
        time_s=6.0,
        model="m",
        cluster=4,
        before_mean_tokens=90.0,
        after_mean_tokens=300.0,
        forgotten=9.0,
        renewed_requests=2,
    )
    with caplog.at_level(logging.INFO):
        for each in (
            entry(EngineSeen(time_s=1.0, event="connected", hello=HELLO)),
            entry(SettingsChanged(time_s=1.0, reason="start", settings=ON), ""),
            entry(SettingsChanged(time_s=2.0, reason="fallback: KeyError", settings=off), ""),
            *(entry(structs.replace(SAID, fallback="no prior")) for _ in range(3)),
            entry(structs.replace(SAID, time_s=4.0)),
            entry(SettingsChanged(time_s=5.0, reason="no failure for a while", settings=ON), ""),
            entry(SettingsChanged(time_s=5.5, reason="gate", settings=ON)),
            entry(drift, ""),
            entry(EngineSeen(time_s=7.0, event="lost", hello=HELLO)),
            entry(EngineSeen(time_s=8.0, event="reconnected", hello=HELLO)),
            entry(EngineSeen(time_s=9.0, event="left", hello=HELLO)),
        ):
            log.observe(each)
    assert [(event.kind, event.level, event.time_s) for event in reversed(log.latest())] == [
        ("engine up", "green", 1.0),
        ("mode", "amber", 2.0),
        ("fallback", "amber", 3.0),
        ("order back", "green", 4.0),
        ("mode", "info", 5.0),
        ("drift", "info", 6.0),
        ("engine lost", "red", 7.0),
        ("engine up", "green", 8.0),
        ("engine left", "info", 9.0),
    ]
    assert [record.getMessage() for record in caplog.records] == [event.text for event in reversed(log.latest())]


def test_the_number_of_events_is_bounded() -> None:
    """An engine that comes and goes for ever takes no memory."""
    log = EventLog()
    for number in range(2 * KEPT):
        log.observe(entry(EngineSeen(time_s=float(number), event="reconnected", hello=HELLO)))
    assert len(log.latest()) == KEPT
    assert log.latest()[0].time_s == 2 * KEPT - 1.0
