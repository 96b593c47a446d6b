import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.config import load_config
from controller.monitoring.health import (
    FINDINGS_KEPT_S,
    KINDS_KEPT,
    OF_A_KIND,
    TEXT_KEPT,
    WARNINGS_SHOWN,
    Health,
    recent_warnings,
)
from store.http_api import Finding


@pytest.fixture(autouse=True)
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examining it takes seconds, and says nothing of who waits for whom."""
    monkeypatch.setattr(
        "controller.monitoring.health.examine_vllm", lambda: Finding(name="vLLM", state="ok", text="not looked at")
    )


def test_configuration_versions_and_warnings_are_told_without_secrets(start_controller: Callable[..., Any]) -> None:
    """Over HTTP, in one answer."""
    running = start_controller()
    logging.getLogger("controller.elsewhere").warning("something %s", "odd")
    view = running.client.get("/api/health").json()
    settings = {row["key"]: row["value"] for row in view["configuration"]}
    assert Path(settings["store.path"]).is_dir()
    assert settings["http.token"] in {"None", "**********"}
    assert view["versions"]["sagesched-controller"]
    assert view["recent_warnings"][0]["text"] == "something odd"
    assert view["recent_warnings"][0]["logger"] == "controller.elsewhere"


def test_only_the_latest_warnings_are_kept_and_none_after_the_end() -> None:
    """Newest first, with the error that was caught."""
    log = logging.getLogger("controller.test")
    with recent_warnings() as warnings:
        for number in range(OF_A_KIND + 5):
            log.warning("number %d", number)
        try:
            raise ValueError("no good")  # noqa: TRY301 - to be caught with its words
        except ValueError:
            log.exception("it failed")
        log.info("not worth it")
    log.warning("too late")
    kept = warnings.latest()
    assert len(kept) == OF_A_KIND + 1
    assert kept[0].text == "it failed: ValueError: no good"
    assert kept[1].text == f"number {OF_A_KIND + 4}"


def test_a_flood_of_one_kind_pushes_out_no_other() -> None:
    """Neither thousands of one message, nor many kinds of one logger, nor long texts; what is kept is bounded."""
    loud, quiet = logging.getLogger("somebody.loud"), logging.getLogger("somebody.quiet")
    with recent_warnings() as warnings:
        quiet.error("the disk is full: %s", "/var")
        for number in range(5_000):
            loud.warning("refused %s", f"{number}" * 1000)
        assert "the disk is full: /var" in {view.text for view in warnings.latest()}
        for number in range(5 * KINDS_KEPT):
            loud.warning(f"kind {number}")
        kept = warnings.latest()
    assert len(kept) == WARNINGS_SHOWN
    assert max(len(view.text) for view in kept) <= TEXT_KEPT
    assert len(warnings._kinds) == KINDS_KEPT
    assert ("somebody.quiet", "ERROR", "the disk is full: %s NoneType") in warnings._kinds


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_there_is_one_examination_at_a_time_and_nobody_waits_for_it_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs others get the last findings at once, or nothing; it is stamped when it ends, however long it took."""
    clock, begun, release, runs = Clock(), threading.Event(), threading.Event(), []

    def examined(_config: object, *, now_s: float) -> Iterator[Finding]:
        runs.append(now_s)
        begun.set()
        assert release.wait(20.0)
        clock.now_s += 10 * FINDINGS_KEPT_S
        yield Finding(name=f"run {len(runs)}", state="ok", text="")

    monkeypatch.setattr("controller.monitoring.health.examine", examined)
    with recent_warnings() as warnings:
        health = Health(load_config(environment={}), warnings, clock)
    first = health.examined()
    assert first is not None
    assert begun.wait(20.0)
    assert health.examined() is None
    release.set()
    assert first.result(20.0).findings[0].name == "run 1"
    assert first.result().time_s == clock.now_s, (
        "a check that takes longer than findings are kept is not run by each caller"
    )
    kept = health.examined()
    assert kept is not None
    assert kept.result(0.0) is first.result()
    clock.now_s += FINDINGS_KEPT_S + 1.0
    release.clear()
    begun.clear()
    second = health.examined()
    assert second is not None
    assert begun.wait(20.0)
    meanwhile = health.examined()
    assert meanwhile is not None
    assert meanwhile.result(0.0) is first.result(), "the last findings, while new ones are made"
    release.set()
    assert second.result(20.0).findings[0].name == "run 2"
    assert len(runs) == 2


def test_an_examination_that_fails_is_told_and_another_can_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller gets the error; it does not count as running for ever."""
    monkeypatch.setattr("controller.monitoring.health.examine", lambda *_, **__: (1 / 0 for _ in range(1)))
    with recent_warnings() as warnings:
        health = Health(load_config(environment={}), warnings, Clock())
    for _ in range(2):
        failed = health.examined()
        assert failed is not None
        assert isinstance(failed.exception(20.0), ZeroDivisionError)
        while health._examining:
            pass


def test_an_examination_holds_up_no_other_answer(
    start_controller: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty callers at once: one waits, the others are told 503 with Retry-After, and everything else is answered."""
    begun, release = threading.Event(), threading.Event()

    def examined(_config: object, *, now_s: float) -> Iterator[Finding]:
        begun.set()
        assert release.wait(60.0)
        yield Finding(name="slow", state="ok", text="")

    monkeypatch.setattr("controller.monitoring.health.examine", examined)
    client = start_controller().client
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(client.get("/api/doctor", timeout=60.0)))
    first.start()
    try:
        assert begun.wait(20.0)
        for _ in range(60):
            refused = client.get("/api/doctor", timeout=5.0)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert client.get("/healthz", timeout=5.0).is_success
        assert client.post("/api/mode", json={"mode": "shadow"}, timeout=5.0).is_success
    finally:
        release.set()
        first.join(30.0)
    assert answers[0].json()["findings"][0]["name"] == "slow"
    assert client.get("/api/doctor", timeout=5.0).json() == answers[0].json()
