import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controller.monitoring.health import WARNINGS_KEPT, recent_warnings


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
        for number in range(WARNINGS_KEPT + 5):
            log.warning("number %d", number)
        try:
            raise ValueError("no good")  # noqa: TRY301 - to be caught with its words
        except ValueError:
            log.exception("it failed")
        log.info("not worth it")
    log.warning("too late")
    kept = warnings.latest()
    assert len(kept) == WARNINGS_KEPT
    assert kept[0].text == "it failed: ValueError: no good"
    assert kept[1].text == f"number {WARNINGS_KEPT + 4}"
