import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.transport.frames import (
    BYTES_PER_STEP,
    FACTS_PER_RECEIVE,
    MAX_CONTROLLER_FRAME_BYTES,
    MAX_FRAME_BYTES,
    MESSAGES_PER_STEP,
    FrameLink,
)
from engine_adapter.transport.zmq_sockets import HIGH_WATER_MARK, ZmqHub, ZmqLink, prepare_endpoint
from store.errors import ConfigError, ProtocolError
from store.records import (
    Acknowledged,
    Facts,
    FirstToken,
    Goodbye,
    decode_controller_message,
    decode_engine_message,
    encode,
)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/private/engine.sock"


@pytest.fixture
def hub(endpoint: str) -> Iterator[ZmqHub]:
    hub = ZmqHub(endpoint)
    yield hub
    hub.close()


def eventually(happens: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if happens():
            return True
        time.sleep(0.01)
    return False


def test_messages_go_both_ways(endpoint: str, hub: ZmqHub) -> None:
    """What an engine sends comes with its connection, and the answer finds the way back."""
    link = ZmqLink(endpoint)
    assert eventually(lambda: link.send(Goodbye(time_s=1.0)))
    [(connection, message)] = hub.receive(5.0)
    assert message == Goodbye(time_s=1.0)
    assert hub.send(connection, Acknowledged(batch=2)) == "sent"
    received: list[object] = []
    assert eventually(lambda: bool(received.extend(link.receive()) or received))
    assert received == [Acknowledged(batch=2)]
    link.close()
    assert eventually(lambda: hub.send(connection, Acknowledged(batch=3)) == "gone")


def test_an_engine_that_comes_back_with_thousands_of_facts_fills_no_turn(endpoint: str, hub: ZmqHub) -> None:
    """They come in parts, in order, each bounded by its facts, and none is lost."""
    link = ZmqLink(endpoint)
    batch = tuple(
        FirstToken(request_id=f"r{number}", time_s=1.0, scheduled_s=0.5, cached_prompt_tokens=0)
        for number in range(500)
    )
    for number in range(40):
        assert eventually(lambda number=number: link.send(Facts(batch=number, facts=batch, oldest=0)))  # type: ignore[misc]
    time.sleep(0.5)
    parts: list[list[int]] = []
    while sum(map(len, parts)) < 40:
        parts.append([message.batch for _, message in hub.receive(5.0) if isinstance(message, Facts)])
        assert parts[-1], "the rest never came"
    assert [number for part in parts for number in part] == list(range(40))
    assert max(map(len, parts)) * 500 < FACTS_PER_RECEIVE + 500
    link.close()


def test_a_frame_that_is_too_long_is_refused_and_counted_and_the_connection_stays(endpoint: str, hub: ZmqHub) -> None:
    """What comes behind it is read."""
    link = ZmqLink(endpoint)
    assert eventually(lambda: link.send(Goodbye(time_s=1.0)))
    assert link._frames.send(bytes(MAX_FRAME_BYTES + 1), zmq.NOBLOCK) is None
    assert link.send(Goodbye(time_s=2.0))
    received: list[object] = []
    assert eventually(lambda: len(received.extend(hub.receive(0.1)) or received) == 2)
    assert [message for _, message in received] == [Goodbye(time_s=1.0), Goodbye(time_s=2.0)]
    assert hub.bad_frames == 1
    link.close()


def test_a_flood_of_long_frames_costs_a_step_two_of_them() -> None:
    """Bytes are bounded beside messages: what is left is read between the next steps."""

    class Flood:
        frame = encode(Acknowledged(batch=1))
        length = MAX_CONTROLLER_FRAME_BYTES

        def send(self, data: bytes, flags: int) -> None: ...

        def recv(self, flags: int) -> bytes:
            return bytes(self.length) if self.length else self.frame

    flood = Flood()
    link = FrameLink(flood)
    assert link.receive() == []
    assert link.bad_frames == BYTES_PER_STEP // MAX_CONTROLLER_FRAME_BYTES
    flood.length = 0
    assert len(link.receive()) == MESSAGES_PER_STEP


def test_sending_to_nobody_neither_blocks_nor_queues(endpoint: str) -> None:
    """Without a controller every send says no at once."""
    prepare_endpoint(endpoint)
    link = ZmqLink(endpoint)
    started = time.monotonic()
    assert not any(link.send(Goodbye(time_s=1.0)) for _ in range(1000))
    assert time.monotonic() - started < 5.0
    link.close()


def test_a_controller_that_does_not_read_fills_a_bounded_queue(endpoint: str, hub: ZmqHub) -> None:
    """Beyond the high-water marks of both sides and the socket's buffer, sends say no."""
    link = ZmqLink(endpoint)
    assert eventually(lambda: link.send(Goodbye(time_s=0.0)))
    sent = 0
    while link.send(Goodbye(time_s=1.0)) and sent < 40 * HIGH_WATER_MARK:
        sent += 1
    assert sent < 40 * HIGH_WATER_MARK
    link.close()


def test_a_new_controller_at_the_same_address_is_found(endpoint: str) -> None:
    """The link connects again by itself after the controller's end was closed and opened."""
    first = ZmqHub(endpoint)
    link = ZmqLink(endpoint)
    assert eventually(lambda: link.send(Goodbye(time_s=1.0)))
    assert first.receive(5.0)
    first.close()
    second = ZmqHub(endpoint)
    assert eventually(lambda: link.send(Goodbye(time_s=2.0)) and bool(second.receive(0.2)))
    link.close()
    second.close()


def test_garbage_is_counted_and_skipped(endpoint: str, hub: ZmqHub) -> None:
    """Frames that do not decode, or are no pair of connection and frame, disturb nothing."""
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(endpoint)
    for parts in ([b""], [b"\x63x"], [b"\x01garbage"], [b"a", b"b"]):
        stranger.send_multipart(parts)
    stranger.send(encode(Goodbye(time_s=5.0)))
    messages: list[object] = []
    assert eventually(lambda: bool(messages.extend(message for _, message in hub.receive(0.1)) or messages))
    assert messages == [Goodbye(time_s=5.0)]
    assert hub.bad_frames == 4
    stranger.close(linger=0)
    context.term()


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_protocol_error(frame: bytes) -> None:
    """Whatever comes over the border is a message or a `ProtocolError`."""
    for decode in (decode_engine_message, decode_controller_message):
        for candidate in (frame, b"\x01" + frame):
            try:
                decode(candidate)
            except ProtocolError as error:
                assert str(error)


def test_an_endpoint_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """The directory of the socket must be private, and what is open to the network needs keys."""
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o777)
    with pytest.raises(ConfigError, match="can be written by others"):
        prepare_endpoint(f"ipc://{shared}/engine.sock")
    with pytest.raises(ConfigError, match="name the folder of keys"):
        prepare_endpoint("tcp://0.0.0.0:1")
    with pytest.raises(ConfigError, match="above the endpoint's can be written by everybody"):
        prepare_endpoint(f"ipc://{shared}/mine/engine.sock")
    prepare_endpoint(f"ipc://{tmp_path}/made/engine.sock")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


def test_a_second_controller_on_the_same_endpoint_is_refused(endpoint: str) -> None:
    """In one line that names the process; the first goes on, and when it ends the next one may have the endpoint."""
    hub = ZmqHub(endpoint)
    with pytest.raises(ConfigError, match=rf"is served by process {os.getpid()}: stop that controller"):
        ZmqHub(endpoint)
    link = ZmqLink(endpoint)
    assert eventually(lambda: link.send(Goodbye(time_s=1.0)) and bool(hub.receive(0.2)))
    link.close()
    hub.close()
    ZmqHub(endpoint).close()


@pytest.mark.parametrize("removed", ["socket", "socket replaced", "folder"])
def test_an_endpoint_that_was_removed_or_replaced_is_bound_anew(
    endpoint: str, hub: ZmqHub, removed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Within seconds: an engine that comes afterwards is heard, and one that was connected all along too."""
    before = ZmqLink(endpoint)
    assert eventually(lambda: before.send(Goodbye(time_s=1.0)) and bool(hub.receive(0.2)))
    file = Path(endpoint.removeprefix("ipc://"))
    if removed == "folder":
        shutil.rmtree(file.parent)
    else:
        file.unlink()
    if removed == "socket replaced":
        file.write_text("")
    assert eventually(lambda: hub.receive(0.1) == [] and "it is bound anew" in caplog.text, 5.0)
    assert hub.troubles == {}
    after = ZmqLink(endpoint)
    assert eventually(lambda: after.send(Goodbye(time_s=2.0)) and bool(hub.receive(0.2)))
    assert before.send(Goodbye(time_s=3.0))
    assert eventually(lambda: Goodbye(time_s=3.0) in [message for _, message in hub.receive(0.2)])
    before.close()
    after.close()
    with pytest.raises(ConfigError, match="is served by process"):
        ZmqHub(endpoint)


def test_a_controller_whose_endpoint_another_one_has_says_so_until_that_is_gone(endpoint: str, hub: ZmqHub) -> None:
    """The folder is removed and somebody else locks the new one: the state is named, and ends by itself."""
    file = Path(endpoint.removeprefix("ipc://"))
    shutil.rmtree(file.parent)
    other = ZmqHub(endpoint)
    assert eventually(lambda: hub.receive(0.1) == [] and "deaf_endpoint" in hub.troubles, 5.0)
    assert f"is served by process {os.getpid()}" in hub.troubles["deaf_endpoint"]
    other.close()
    assert eventually(lambda: hub.receive(0.1) == [] and hub.troubles == {}, 5.0)
    link = ZmqLink(endpoint)
    assert eventually(lambda: link.send(Goodbye(time_s=1.0)) and bool(hub.receive(0.2)))
    link.close()
