"""A hub that waits for messages is woken by another thread."""

import threading
import time
from pathlib import Path

from engine_adapter.transport.waker import Waker
from engine_adapter.transport.zmq_sockets import ZmqHub, ZmqLink
from store.records import Goodbye

LONG_S = 20.0


def test_a_waiting_hub_returns_when_it_is_woken(tmp_path: Path) -> None:
    """At once and without a message; the next wait is one again."""
    hub = ZmqHub(f"ipc://{tmp_path}/run/engine.sock")
    timer = threading.Timer(0.2, hub.wake)
    timer.start()
    started_s = time.monotonic()
    assert hub.receive(LONG_S) == []
    assert time.monotonic() - started_s < LONG_S / 2
    timer.join()
    started_s = time.monotonic()
    assert hub.receive(0.1) == []
    assert time.monotonic() - started_s > 0.05
    hub.wake()
    assert hub.receive(LONG_S) == []
    hub.close()


def test_messages_still_end_the_wait(tmp_path: Path) -> None:
    """They are received as before."""
    endpoint = f"ipc://{tmp_path}/run/engine.sock"
    hub = ZmqHub(endpoint)
    link = ZmqLink(endpoint)
    until_s = time.monotonic() + LONG_S
    while not link.send(Goodbye(time_s=1.0)):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    ((_, message),) = hub.receive(LONG_S)
    assert message == Goodbye(time_s=1.0)
    link.close()
    hub.close()


def test_a_waker_takes_any_number_of_calls_and_none_fails_after_it_was_closed() -> None:
    """A flood fills the sockets, which is no error; nor is a late caller."""
    waker = Waker()
    for _ in range(100_000):
        waker.wake()
    waker.calm()
    waker.close()
    waker.wake()
