from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine_adapter.serving.simulated_server import faster, main
from engine_adapter.transport.zmq_sockets import ZmqHub
from engine_adapter.virtual_time.profiles import PROFILES
from store.records import (
    Acknowledged,
    Arrived,
    EngineRules,
    Facts,
    Finished,
    Goodbye,
    Hello,
    IndexTable,
    Settings,
    Snapshot,
    Welcome,
)


@dataclass
class Heard:
    """All that an engine has said."""

    hello: list[Hello] = field(default_factory=list)
    facts: list[object] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    goodbye: bool = False


def attend(hub: ZmqHub, heard: Heard, *, seconds: float) -> None:
    """Play the controller for a while, or until the engine says goodbye."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not heard.goodbye:
        for connection, message in hub.receive(0.05):
            match message:
                case Hello():
                    heard.hello.append(message)
                    hub.send(connection, Welcome(controller_id="test", durable_batch=0))
                    hub.send(connection, Settings(revision=1, mode="on", lease_s=60.0, rules=EngineRules()))
                    prior = IndexTable(request_id=None, attained_tokens=(0,), index_s=(1.0,), growth_tokens=(0.0,))
                    hub.send(connection, prior)
                case Facts():
                    heard.facts.extend(message.facts)
                    hub.send(connection, Acknowledged(batch=message.batch))
                case Snapshot():
                    heard.snapshots.append(message)
                case Goodbye():
                    heard.goodbye = True


def command(endpoint: str, *more: str) -> list[str]:
    """The server at forty times real time and a known rate."""
    module = [sys.executable, "-m", "engine_adapter.serving.simulated_server"]
    return [*module, "--endpoint", endpoint, "--speed", "40", "--rate", "1", *more]


def test_it_serves_in_real_time_and_leaves_in_order(tmp_path: Path) -> None:
    """Requests come and end at real Unix times; on SIGTERM all facts are acknowledged before the goodbye."""
    endpoint = f"ipc://{tmp_path}/engine.sock"
    hub = ZmqHub(endpoint)
    heard = Heard()
    began_s = time.time()
    with subprocess.Popen(command(endpoint, "--engine-id", "e7"), stdout=subprocess.PIPE, text=True) as server:
        try:
            while len([fact for fact in heard.facts if isinstance(fact, Finished)]) < 20:
                assert time.time() < began_s + 60
                attend(hub, heard, seconds=0.2)
            server.send_signal(signal.SIGTERM)
            attend(hub, heard, seconds=30)
            said, _ = server.communicate(timeout=30)
        finally:
            server.kill()
            hub.close()
    summary = json.loads(said.splitlines()[-1])
    arrived = [fact for fact in heard.facts if isinstance(fact, Arrived)]
    # What is not acknowledged at the farewell is sent again.
    finished = list({fact.request_id: fact for fact in heard.facts if isinstance(fact, Finished)}.values())
    assert server.returncode == 0
    assert heard.goodbye
    assert heard.hello[0].engine_id == "e7"
    assert summary["facts_unacknowledged"] == 0
    assert summary["requests_submitted"] == len({fact.request_id for fact in arrived})
    assert summary["requests_finished"] == len(finished)
    assert summary["mean_ttlt_s"] == pytest.approx(
        sum(fact.time_s - fact.arrival_s for fact in finished) / len(finished)
    )
    assert all(began_s < fact.arrival_s < fact.time_s < time.time() for fact in finished)
    assert heard.snapshots[-1].mode == "on"


def test_a_duration_that_is_drained_answers_everybody(tmp_path: Path) -> None:
    """Without a controller as well: nothing waits for it but the farewell."""
    run = subprocess.run(
        command(f"ipc://{tmp_path}/nobody.sock", "--duration", "1.5", "--drain"),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    summary = json.loads(run.stdout.splitlines()[-1])
    assert summary["requests_finished"] == summary["requests_submitted"] > 0
    assert summary["facts_unacknowledged"] > 0


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--profile", "h100"], "choose one of"),
        (["--rate", "1", "--speed", "0"], "speed is 0.0: give a positive number"),
        (["--rate", "-2"], "rate is -2.0"),
        (["--rate", "1", "--duration", "nan"], "duration is nan"),
        (["--load", "0"], "load is 0.0"),
    ],
)
def test_bad_usage_names_the_value_and_the_remedy(
    arguments: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error, exit code 2."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        assert main(arguments) == 2
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    said = capsys.readouterr().err
    assert remedy in said
    assert said.count("\n") == 1


def test_a_faster_device_takes_a_share_of_the_time() -> None:
    """At speed 8 every step takes an eighth, whatever it computes."""
    profile = PROFILES["a40-llama3.1-8b"]
    work = {"prefill_tokens": 300, "decode_seqs": 20, "kv_tokens": 9000}
    assert faster(profile, 8.0).step_s(**work) == pytest.approx(profile.step_s(**work) / 8.0)
