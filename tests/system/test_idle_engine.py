"""Real processes without a request: the engine is there, with its name and mode, soon after either side has started."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

SOON_S = 3.0
NO_REQUESTS = ("--rate", "0.000001", "--engine-id", "gpu-a")


def there(site: Site) -> bool:
    """Whether the engine is connected, in mode on, and was heard within two seconds."""
    state = site.ask("/api/state")
    engines = state["engines"] if state else []
    return [engine["engine_id"] for engine in engines] == ["gpu-a"] and all(
        engine["connected"] and engine["snapshot"] and engine["snapshot"]["mode"] == "on"
        and state["controller"]["now_s"] - engine["last_seen_s"] < 2.0
        for engine in engines
    )  # fmt: skip


def found(site: Site) -> list[str]:
    """What the verdict finds."""
    now = site.ask("/api/now")
    return [each["rule"] for each in now["verdict"]["findings"]] if now else []


def took_s(holds: Callable[[], bool], eventually: Callable[..., None]) -> float:
    """Time until something holds."""
    began_s = time.monotonic()
    eventually(holds)
    return time.monotonic() - began_s


def test_an_idle_engine_is_there_within_seconds_and_stays(site: Site, eventually: Callable[..., None]) -> None:
    """After the engine's start, while nobody asks anything, and after a start of the controller anew."""
    controller = site.start_controller()
    engine = site.start_engine(*NO_REQUESTS)
    eventually(lambda: there(site))
    quiet_until_s = time.monotonic() + 6.0
    while time.monotonic() < quiet_until_s:
        assert there(site), "it beats while it is idle"
        time.sleep(0.2)
    site.kill(controller)
    site.start_controller()
    assert took_s(lambda: there(site), eventually) < SOON_S
    site.kill(engine)
    eventually(lambda: "engine_lost" in found(site))
    assert site.ask("/api/now")["verdict"]["level"] == "red"
    assert site.ask("/api/now")["events"][0]["kind"] == "engine lost"
    site.start_engine(*NO_REQUESTS)
    eventually(lambda: there(site))
    assert "engine_lost" not in found(site)
    begun = site.api.get("/api/state")["engines"]
    assert len(begun) == 1, "the one that was killed is not shown beside it"
