"""What an idle controller does, counted: turns, rows, sealings and readings of the history, not seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.api.commands import Commands, SetMode
from controller.config import PolicySection
from controller.core.in_process import InProcessController
from controller.monitoring.live_state import Live
from controller.monitoring.metrics import Metrics
from controller.policy.policies import policy_named
from controller.replay.gain_watcher import GainLimits, GainWatch
from controller.service.control_loop import ControlLoop
from engine_adapter.transport.frames import FrameHub
from engine_adapter.transport.link import Delivery
from engine_adapter.transport.zmq_sockets import ZmqHub
from online_learning.evaluation.global_learner import GlobalLearner
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.reading.load import read_load
from store.reading.scope import Scope
from store.records import ControllerMessage, EngineMessage, Hello, Snapshot

HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="m",
    engine="simulated",
    engine_version="1",
    kv_blocks=1000,
    block_size_tokens=16,
    max_num_seqs=64,
    token_budget=512,
    max_model_len_tokens=4096,
    prefix_caching=False,
    started_s=0.0,
)
START_S = 1_700_000_000.0


def snapshot(time_s: float, *, running: int = 0, steps: int = 0, dropped: int = 0, detailed: bool = True) -> Snapshot:
    return Snapshot(
        time_s=time_s,
        waiting=0,
        running=running,
        kv_blocks_used=3 * running,
        kv_blocks=1000,
        mode="on",
        steps=steps,
        step_s=0.01 * steps,
        prefill_tokens=0,
        decode_tokens=steps,
        kv_tokens_read=0,
        preemptions=0,
        recomputed_tokens=0,
        detailed=detailed,
        messages_dropped=dropped,
    )


def recorded(sent: list[Snapshot]) -> list[Snapshot]:
    """The snapshots of these that the history is given."""
    controller = InProcessController(GlobalLearner(), policy_named("sage"))
    controller.core.handle(b"e", HELLO, 0.0)
    for each in sent:
        controller.core.handle(b"e", each, each.time_s)
    return [entry.record for entry in controller.core.drain_entries() if isinstance(entry.record, Snapshot)]


def test_of_an_idle_engine_one_snapshot_in_ten_seconds_is_recorded() -> None:
    """Whatever it says of details; one that says anything else is recorded at once, and so is the return to idleness."""
    idle = [snapshot(0.5 * number, detailed=number % 3 == 0) for number in range(121)]
    assert [each.time_s for each in recorded(idle)] == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    news = [snapshot(61.0, running=1), snapshot(61.1, running=1), snapshot(61.2, steps=1), snapshot(61.3)]
    assert recorded([*idle, *news, snapshot(61.4)])[-4:] == news
    lost = snapshot(60.5, dropped=1)
    assert recorded([*idle, lost, snapshot(60.6, dropped=1)])[-1] is lost
    back = snapshot(3.0)
    assert recorded([*idle, back])[-1] is back, "its clock was set back"


def test_levels_of_an_idle_engine_have_no_gaps(tmp_path: Path) -> None:
    """Between two of its recorded snapshots it is still there, and still idle; a silent one is gone after seconds."""
    controller = InProcessController(GlobalLearner(), policy_named("sage"))
    with HistoryWriter(tmp_path, clock=lambda: START_S) as writer:
        controller.core.handle(b"e", HELLO, START_S)
        for number in range(120):
            controller.core.handle(b"e", snapshot(START_S + 0.5 * number), START_S + 0.5 * number)
        writer.append(controller.core.drain_entries())
    with open_history(tmp_path) as history:
        points = read_load(history, Scope(), START_S, 1.0).points
    assert len(points) > 40
    assert {(point.waiting, point.running) for point in points} == {(0.0, 0.0)}


def test_an_idle_engine_makes_few_sealings_and_anything_else_is_sealed_at_once(tmp_path: Path) -> None:
    """Five minutes of it: rows go into segments once a minute; what happens is in SQL within the interval."""
    now_s = 0.0
    writer = HistoryWriter(tmp_path, seal_interval_s=5.0, clock=lambda: START_S + now_s, timer=lambda: now_s)
    writer.open()
    core = InProcessController(GlobalLearner(), policy_named("sage")).core
    core.handle(b"e", HELLO, START_S)

    def live(seconds: int, first: Callable[[int], Snapshot]) -> int:
        """Live for some seconds; returns how often the catalog was made anew."""
        nonlocal now_s
        catalogs = set()
        for second in range(seconds):
            now_s += 1.0
            core.handle(b"e", first(second), START_S + now_s)
            writer.append(core.drain_entries())
            assert writer.turn()
            catalogs.add((tmp_path / "catalog.duckdb").stat().st_mtime_ns)  # An inode may come again.
        return len(catalogs) - 1

    live(10, lambda _: snapshot(START_S + now_s))
    assert live(300, lambda _: snapshot(START_S + now_s)) <= 5
    assert live(30, lambda _: snapshot(START_S + now_s, running=1)) >= 5
    live(6, lambda _: snapshot(START_S + now_s))
    with open_history(tmp_path) as history:
        (busy,) = history.execute("SELECT count(*) FROM snapshots WHERE running = 1").fetchall()[0]
    assert busy == 30
    assert writer.turn(closing=True)
    writer._finish()


class CountingHub(FrameHub):
    """Nobody says anything; time passes while it is waited for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []
        self.bad_frames = 0

    def receive(self, timeout_s: float) -> list[tuple[bytes, EngineMessage]]:
        self.waits.append(timeout_s)
        self.now_s += max(timeout_s, 0.001)
        return []

    def send(self, connection: bytes, message: ControllerMessage) -> Delivery:
        return "sent"


@contextmanager
def a_loop(hub: CountingHub, store: Path) -> Iterator[ControlLoop]:
    live = Live()
    core = InProcessController(GlobalLearner(), policy_named("sage")).core
    core.handle(b"e", HELLO, 0.0)
    with HistoryWriter(store) as history:
        yield ControlLoop(
            core=core,
            hub=hub,  # type: ignore[arg-type]
            history=history,
            live=live,
            metrics=Metrics(live),
            commands=Commands(),
            clock=lambda: hub.now_s,
        )


def test_an_idle_loop_turns_when_something_is_due(tmp_path: Path) -> None:
    """A few times a second, for heartbeats and for what it publishes; it was fifty times."""
    hub = CountingHub()
    with a_loop(hub, tmp_path) as loop:
        loop.startup()
        until_s = time.monotonic() + 30.0
        while loop._unacknowledged:
            assert time.monotonic() < until_s, "what was recorded at the start is durable soon"
            loop.turn()
        hub.waits.clear()
        began_s, published = hub.now_s, set()
        while hub.now_s < began_s + 60.0:
            loop.turn()
            published.add(loop._next_publish_s)
    assert len(hub.waits) <= 60 * 7
    assert 50 <= len(published) <= 75, "readers see a state of this second"


def test_messages_and_commands_end_the_wait(tmp_path: Path) -> None:
    """A command of another thread does not wait for the next heartbeat, also one that came just before the wait."""
    hub = ZmqHub(f"ipc://{tmp_path}/run/e.sock")
    try:
        commands = Commands(hub.wake)
        hub.wake()
        assert hub.receive(60.0) == []
        timer = threading.Timer(
            0.2,
            lambda: commands.offer(SetMode(mode="off", reason="r", credential="token", address="127.0.0.1")),
        )
        timer.start()
        assert hub.receive(60.0) == []
        timer.join()
        assert [command.mode for command in commands.drain()] == ["off"]
        assert hub.receive(0.05) == []
    finally:
        hub.close()
    hub.wake()


class CountingRows:
    """Counts how often the history is read."""

    opened = 0

    @contextmanager
    def open(self, *_: object) -> Iterator[object]:
        self.opened += 1
        yield None


def test_what_the_order_brings_is_not_asked_again_while_no_answer_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and replaying the history of an idle fleet every half minute would bring the same again."""
    monkeypatch.setattr("controller.replay.gain_watcher.read_latest_run", lambda *_a, **_k: None)
    rows, written, looks = CountingRows(), 0, 0

    def count() -> int:
        nonlocal looks
        looks += 1
        return written

    watch = GainWatch(
        rows,  # type: ignore[arg-type]
        PolicySection(),
        lambda: 0.0,
        GainLimits(first_after_s=0.01, interval_s=0.01),
        written=count,
    )
    watch.start()
    try:
        wait_until(lambda: looks > 5)
        assert rows.opened == 1
        written = 1
        wait_until(lambda: rows.opened == 2)
        before = looks
        wait_until(lambda: looks > before + 5)
        assert rows.opened == 2
    finally:
        watch.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 30.0
    while not holds():
        assert time.monotonic() < until_s, "not so after 30 s"
        time.sleep(0.005)
