"""Every fault of a controller that an engine under load can meet: its clients notice nothing but the order.

The same tests for the simulated engine and for vLLM's own API server on the virtual GPU. In every case all requests are
answered, the engine serves first come, first served within a stated time, says why, and takes orders again by itself.
"""

from __future__ import annotations

import itertools
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from msgspec import structs

from store.records import ControllerMessage, IndexTable, Settings, encode

Engine: TypeAlias = Any
"""`conftest.LoadedEngine`, which a test module cannot import."""

Controller: TypeAlias = Any
"""`conftest.Controller`."""

LEASE_S = 2.0
SLACK_S = 10.0
"""What a machine that is busy with other things may add to a stated time."""

DROPPED = "sagesched_engine_messages_dropped_total"
ERRORS = "sagesched_engine_policy_errors_total"

STARTED = 6
"""So many starts tell an order from another."""


@pytest.fixture
def ordered(site: Controller, engine: Engine) -> Iterator[Controller]:
    """A sound controller in this process, whose orders the engine takes; it goes on running."""
    if site.hub is None:
        site.start()
    engine.await_mode("on")
    engine.await_answers(STARTED)
    yield site
    site.hub.spoil, site.hub.delay_s = None, 0.0


def test_a_killed_controller(controller: Controller, engine: Engine, record_property: Callable[..., None]) -> None:
    """SIGKILL: first come, first served when the lease is over; a new one is found within a second or two."""
    controller.start_process()
    engine.await_mode("on")
    engine.await_answers()
    controller.signal(signal.SIGKILL)
    record_property("fallback_s", _falls_back(engine, "controller "))
    off_s = time.time()
    engine.await_answers()
    back_s = time.time()
    controller.stop()
    controller.start_process()
    engine.await_mode("on")
    _is_ordered(engine, controller)
    _check_fcfs(engine, controller, off_s, back_s)


def test_a_hung_controller(controller: Controller, engine: Engine, record_property: Callable[..., None]) -> None:
    """SIGSTOP is silence; after SIGCONT the same controller has the engine again, and all that happened meanwhile."""
    controller.start_process()
    engine.await_mode("on")
    engine.await_answers()
    controller.signal(signal.SIGSTOP)
    record_property("fallback_s", _falls_back(engine, "controller "))
    off_s = time.time()
    engine.await_answers()
    back_s = time.time()
    controller.signal(signal.SIGCONT)
    record_property("recovery_s", engine.await_mode("on"))
    engine.await_answers()
    _check_fcfs(engine, controller, off_s, back_s)


def test_a_slow_controller(ordered: Controller, engine: Engine, record_property: Callable[..., None]) -> None:
    """Whose heart beats while it is busy with the past: late by more than the lease counts as gone."""
    ordered.hub.delay_s = 3 * LEASE_S
    record_property("fallback_s", _falls_back(engine, "controller "))
    off_s = time.time()
    engine.await_answers()
    back_s = time.time()
    ordered.hub.delay_s = 0.0
    record_property("recovery_s", engine.await_mode("on"))
    engine.await_answers()
    _check_fcfs(engine, ordered, off_s, back_s)


def test_a_controller_that_restarts_again_and_again(
    controller: Controller, engine: Engine, record_property: Callable[..., None]
) -> None:
    """Each start is greeted anew; when the last one stays, everything is as if there had been one."""
    for _ in range(4):
        controller.start()
        engine.await_answers(2)
        controller.stop()
    controller.start()
    record_property("recovery_s", engine.await_mode("on"))
    engine.await_answers()
    assert controller.get("/api/state")["store"]["refused"] == 0


def test_a_controller_that_sends_garbage(
    ordered: Controller, engine: Engine, record_property: Callable[..., None]
) -> None:
    """Bytes without meaning are dropped and counted, and do not pass for a sign of life."""
    chance = random.Random(5)
    kinds = itertools.cycle(range(5))

    def garbage(message: ControllerMessage) -> Sequence[bytes]:
        frame = encode(message)
        match next(kinds):
            case 0:
                return [b""]
            case 1:
                return [chance.randbytes(chance.randint(1, 300))]
            case 2:
                return [b"\x01" + chance.randbytes(chance.randint(1, 300))]
            case 3:
                return [frame[: chance.randrange(len(frame))]]
            case _:
                return [b"\x01" + bytes(200_000)]

    _bears(ordered, engine, garbage, "controller ", record_property, metric=DROPPED)


@pytest.mark.parametrize("version", [0, 2])
def test_a_controller_of_another_release(
    ordered: Controller, engine: Engine, version: int, record_property: Callable[..., None]
) -> None:
    """A protocol of yesterday or of tomorrow is not guessed at."""
    _bears(
        ordered,
        engine,
        lambda message: [bytes((version,)) + encode(message)[1:]],
        "controller ",
        record_property,
        metric=DROPPED,
    )


def test_tables_for_requests_that_are_not_there(ordered: Controller, engine: Engine) -> None:
    """Unknown ones and those that have ended are ignored; the order goes on undisturbed."""
    seen: list[IndexTable] = []

    def more(message: ControllerMessage) -> Sequence[bytes]:
        frames = [encode(message)]
        if isinstance(message, IndexTable) and message.request_id is not None:
            seen.append(message)
            strange = structs.replace(message, request_id=f"nobody-{len(seen)}")
            frames += [encode(strange), encode(seen[len(seen) // 2])]
        return frames

    before = [_counted(ordered, engine, metric) for metric in (DROPPED, ERRORS)]
    ordered.hub.spoil = more
    engine.await_answers(2 * STARTED)
    assert len(seen) > STARTED
    _is_ordered(engine, ordered)
    assert [_counted(ordered, engine, metric) for metric in (DROPPED, ERRORS)] == before


def test_a_million_messages_at_once(
    controller: Controller, engine: Engine, record_property: Callable[..., None]
) -> None:
    """A flood costs each step a bounded time and the engine a bounded memory; when its source is gone, the lease ends."""
    script = Path(__file__).with_name("flood.py")
    command = [sys.executable, str(script), controller.endpoint, "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == "sent\n"
        engine.await_mode("on")
        engine.await_answers()
        flood.kill()
    record_property("fallback_s", engine.await_mode("off", "controller "))
    engine.await_answers()
    controller.start()
    record_property("recovery_s", engine.await_mode("on"))
    engine.await_answers()


def test_numbers_that_are_none(ordered: Controller, engine: Engine, record_property: Callable[..., None]) -> None:
    """Such an index or lease is an error of ours: its message is not taken over, and it is first come, first served.

    At once, and for a second that doubles with each further error.
    """
    numbers = itertools.cycle([math.nan, math.inf, -math.inf])

    def spoilt(message: ControllerMessage) -> Sequence[bytes]:
        if isinstance(message, IndexTable):
            message = structs.replace(message, index_s=tuple(next(numbers) for _ in message.index_s))
        elif isinstance(message, Settings):
            message = structs.replace(message, lease_s=math.nan)
        return [encode(message)]

    _bears(ordered, engine, spoilt, "the controller has a defect", record_property, metric=ERRORS)


def _bears(
    controller: Controller,
    engine: Engine,
    spoil: Callable[[ControllerMessage], Sequence[bytes]],
    reason: str,
    record_property: Callable[..., None],
    *,
    metric: str,
) -> None:
    """With all that is sent spoilt: fallback in time, answers in order of arrival, back by itself, and counted."""
    counted = _counted(controller, engine, metric)
    controller.hub.spoil = spoil
    record_property("fallback_s", _falls_back(engine, reason))
    off_s = time.time()
    engine.await_answers()
    back_s = time.time()
    controller.hub.spoil = None
    record_property("recovery_s", engine.await_mode("on"))
    engine.await_answers(STARTED)
    _check_fcfs(engine, controller, off_s, back_s)
    wait_until(lambda: _counted(controller, engine, metric) > counted)


def _falls_back(engine: Engine, reason: str) -> float:
    """Wait for first come, first served; the seconds it took, which are the lease's at most."""
    took_s: float = engine.await_mode("off", reason)
    assert took_s <= LEASE_S + SLACK_S
    return took_s


def _check_fcfs(engine: Engine, controller: Controller, since_s: float, until_s: float) -> None:
    """Whoever started in a time had come before whoever started after."""
    starts = engine.starts(since_s, until_s, controller.history)
    assert len(starts) >= STARTED, "enough started to tell the order"
    assert _overtakings(starts) == 0


def _is_ordered(engine: Engine, controller: Controller) -> None:
    """Sooner or later somebody starts who had come after somebody who still waits."""
    since_s = time.time()
    wait_until(lambda: _overtakings(engine.starts(since_s, time.time(), controller.history)) > 0)


def _overtakings(starts: list[tuple[float, float]]) -> int:
    """How many started right after one that had come later than they."""
    return sum(later < earlier for (_, earlier), (_, later) in itertools.pairwise(starts))


def _counted(controller: Controller, engine: Engine, metric: str) -> float:
    """What the controller's metrics say of the engine."""
    label = f'{metric}{{engine_id="{engine.name}"}} '
    return sum(float(line.split()[-1]) for line in controller.get("/metrics").splitlines() if line.startswith(label))


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what the engine's next words will bring."""
    until_s = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < until_s, "not so after a minute"
        time.sleep(0.1)
