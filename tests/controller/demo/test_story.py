"""What a demo says and does while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.api.client import client_of_child
from controller.demo.demo import DemoSpec
from controller.demo.story import Story

Start = Callable[..., Any]


@pytest.mark.slow
def test_it_switches_on_once_and_says_when_the_machine_is_too_slow(start_controller: Start, tmp_path: Path) -> None:
    """The switch is one of the controller's own, with its reason on record; a half-written line waits."""
    running = start_controller(mode="shadow")
    said: list[str] = []
    log = tmp_path / "engine.log"
    client = client_of_child(str(running.client.base_url))
    story = Story(client=client, engine_log=log, say=said.append, switch_s=40.0)
    story.step(39.0)
    assert said == []
    log.write_text("hello\n" + json.dumps({"speed": 6.0, "lowered_to": 4.1}) + "\n" + '{"speed": 4.1, "low')
    story.step(40.0)
    story.step(41.0)
    assert [line.split()[0] for line in said] == ["mode", "speed"]
    assert "too slow for 6 times real time: lowered to 4.1" in said[1]
    assert story.switched_s == 40.0
    until_s = time.monotonic() + 20.0
    while client.get("/api/state")["controller"]["mode"] != "on":
        assert time.monotonic() < until_s, "not on after 20 s"
        time.sleep(0.05)
    client.close()


def test_a_short_demo_opens_with_a_third_of_its_time_and_none_is_on_at_once() -> None:
    """So that both orders are seen."""
    assert DemoSpec().opening_s == 40.0
    assert DemoSpec(duration_s=15.0).opening_s == 5.0
    assert DemoSpec(duration_s=15.0, fcfs_s=0.0).opening_s == 0.0
