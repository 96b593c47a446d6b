import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controller.monitoring.health import COMPLAINTS_KEPT, kept_complaints


def test_configuration_versions_and_warnings_are_told_without_secrets(start_controller: Callable[..., Any]) -> None:
    """Over HTTP, in one answer."""
    running = start_controller()
    logging.getLogger("controller.elsewhere").warning("something %s", "odd")
    view = running.client.get("/api/health").json()
    settings = {row["key"]: row["value"] for row in view["configuration"]}
    assert Path(settings["store.path"]).is_dir()
    assert settings["http.token"] in {"None", "**********"}
    assert view["versions"]["sagesched-controller"]
    assert view["complaints"][0]["text"] == "something odd"
    assert view["complaints"][0]["logger"] == "controller.elsewhere"


def test_only_the_last_complaints_are_kept_and_nothing_after_the_end() -> None:
    """Newest first, with the error that was caught."""
    log = logging.getLogger("controller.test")
    with kept_complaints() as recent_warnings:
        for number in range(COMPLAINTS_KEPT + 5):
            log.warning("number %d", number)
        try:
            raise ValueError("no good")  # noqa: TRY301 - to be caught with its words
        except ValueError:
            log.exception("it failed")
        log.info("not worth it")
    log.warning("too late")
    kept = recent_warnings.latest()
    assert len(kept) == COMPLAINTS_KEPT
    assert kept[0]["text"] == "it failed: ValueError: no good"
    assert kept[1]["text"] == f"number {COMPLAINTS_KEPT + 4}"
