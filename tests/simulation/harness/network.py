"""A simulated ZeroMQ: sockets that never block, and frames that are late, lost, doubled, out of order or broken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

import msgspec
import zmq
from harness.faults import Faults
from harness.timeline import Timeline

HIGH_WATER_MARK = 200
USUAL_DELAY_S = 0.0005
LONGEST_DELAY_S = 1.5


class EngineEnd:
    """The DEALER of one engine process; it connects again by itself and has a new address at the controller then."""

    def __init__(self, network: Network, session_id: str) -> None:
        self._network = network
        self.session_id = session_id
        self.address: bytes | None = None
        self.open = True
        self.inbox: deque[bytes] = deque()
        self.under_way = 0
        self.damaged: set[int] = set()
        """Batches in which the engine reports something impossible, however often it sends them."""

    def send(self, data: bytes, flags: int) -> None:
        """As of ZeroMQ with ``IMMEDIATE``: only to a controller that is there."""
        assert flags == zmq.NOBLOCK, "the engine never waits"
        if self.address is None or self.under_way >= HIGH_WATER_MARK or self._network.faults.strikes("buffer full"):
            raise zmq.Again
        self._network.to_controller(self, data)

    def recv(self, flags: int) -> bytes:
        """The next frame."""
        assert flags == zmq.NOBLOCK, "the engine never waits"
        if not self.inbox:
            raise zmq.Again
        return self.inbox.popleft()

    def close(self) -> None:
        """Nothing more is taken or given."""
        self.open = False
        self.address = None
        self._network.leave(self)


class ControllerEnd:
    """The ROUTER of one controller process."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.inbox: deque[tuple[bytes, bytes]] = deque()
        self.engines: dict[bytes, EngineEnd] = {}
        self.sent: Callable[[str, bytes], None] = lambda _session_id, _frame: None

    def poll(self, timeout_ms: int) -> int:
        """Whether there is a frame."""
        return bool(self.inbox)

    def recv_multipart(self, flags: int) -> list[bytes]:
        """The next frame behind its address."""
        assert flags == zmq.NOBLOCK, "the loop never waits here"
        if not self.inbox:
            raise zmq.Again
        self._network.faults.effect()
        address, frame = self.inbox.popleft()
        engine = self.engines.get(address)
        if engine is not None:
            engine.under_way -= 1
        return [address, frame]

    def send_multipart(self, msg_parts: Sequence[bytes], flags: int) -> None:
        """Hand an address and a frame over."""
        assert flags == zmq.NOBLOCK, "the loop never waits here"
        self._network.faults.effect()
        address, frame = msg_parts
        engine = self.engines.get(address)
        if engine is None or engine.address != address:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        self.sent(engine.session_id, frame)
        if len(engine.inbox) >= HIGH_WATER_MARK or self._network.faults.strikes("buffer full"):
            raise zmq.Again
        self._network.to_engine(engine, frame)


class Network:
    """Carries frames between the one controller and its engines; within a connection in order, unless a fault strikes."""

    def __init__(self, timeline: Timeline, faults: Faults) -> None:
        self.timeline = timeline
        self.faults = faults
        self._chance = faults.stream("network")
        self._numbers = count(1)
        self.controller: ControllerEnd | None = None
        self.engines: list[EngineEnd] = []
        self._last_s: dict[object, float] = {}

    def listen(self) -> ControllerEnd:
        """A controller binds; engines find it after a moment."""
        assert self.controller is None, "one controller at a time"
        self.controller = ControllerEnd(self)
        for engine in self.engines:
            self._reconnect(engine)
        return self.controller

    def hang_up(self) -> None:
        """The controller's process is gone, with what it had not read."""
        self.controller = None
        for engine in self.engines:
            self._cut(engine)

    def connect(self, session_id: str) -> EngineEnd:
        """An engine starts."""
        engine = EngineEnd(self, session_id)
        self.engines.append(engine)
        self._reconnect(engine)
        return engine

    def leave(self, engine: EngineEnd) -> None:
        """An engine's process is gone."""
        self.engines.remove(engine)

    def cut(self) -> None:
        """A connection breaks, with all that is under way, and is made again."""
        if self.engines:
            engine = self._chance.choice(self.engines)
            self._cut(engine)
            self._reconnect(engine)

    def to_controller(self, engine: EngineEnd, frame: bytes) -> None:
        """A frame leaves an engine."""
        controller, address = self.controller, engine.address
        assert controller is not None, "a connected engine has a controller"
        assert address is not None
        if self.faults.strikes("fact damaged"):
            engine.damaged.update(_batch_of(frame))
        if engine.damaged.intersection(_batch_of(frame)):
            frame = _damaged(frame)

        def arrive(frame: bytes) -> None:
            if self.controller is controller and engine.address == address:
                controller.inbox.append((address, frame))
                engine.under_way += 1

        self._carry((address, "up"), frame, arrive)

    def to_engine(self, engine: EngineEnd, frame: bytes) -> None:
        """A frame leaves the controller."""
        address = engine.address

        def arrive(frame: bytes) -> None:
            if engine.open and engine.address == address:
                engine.inbox.append(frame)

        self._carry((address, "down"), frame, arrive)

    def throw_at_controller(self, frame: bytes) -> None:
        """Somebody who is no engine of ours, or one of another release, sends something."""
        if self.controller is not None:
            known = [engine.address for engine in self.engines if engine.address is not None]
            address = self._chance.choice([*known, b"stranger"])
            self.controller.inbox.append((address, frame))

    def throw_at_engine(self, frame: bytes) -> None:
        """A broken controller sends something."""
        if self.engines:
            self._chance.choice(self.engines).inbox.append(frame)

    def _carry(self, way: object, frame: bytes, arrive: Callable[[bytes], None]) -> None:
        faults, now_s = self.faults, self.timeline.now_s
        if faults.strikes("frame dropped"):
            return
        time_s = now_s + USUAL_DELAY_S
        if faults.strikes("frame delayed"):
            time_s += self._chance.choice([0.01, 0.1, 1.0]) * self._chance.random()
        if not faults.strikes("frame reordered"):
            time_s = max(time_s, self._last_s.get(way, 0.0))
            self._last_s[way] = time_s
        else:
            time_s += 0.2 * self._chance.random()
        if faults.strikes("frame garbled"):
            frame = self._garbled(frame)
        self.timeline.at(time_s, lambda: arrive(frame))
        if faults.strikes("frame duplicated"):
            self.timeline.at(time_s + 0.3 * self._chance.random(), lambda: arrive(frame))

    def _garbled(self, frame: bytes) -> bytes:
        """A part of a frame, or another version's; a checksum below keeps single bits from changing unseen."""
        chance = self._chance
        if chance.random() < 0.5:
            return frame[: chance.randrange(len(frame))]
        return bytes((chance.choice([0, 2, 99, 255]),)) + frame[1:]

    def _reconnect(self, engine: EngineEnd) -> None:
        def connect() -> None:
            if engine.open and engine.address is None and self.controller is not None:
                engine.address = b"%d" % next(self._numbers)
                self.controller.engines[engine.address] = engine

        self.timeline.after(0.1 * self._chance.random(), connect)

    def _cut(self, engine: EngineEnd) -> None:
        if self.controller is not None and engine.address is not None:
            self.controller.engines.pop(engine.address, None)
        engine.address = None
        engine.under_way = 0


def _batch_of(frame: bytes) -> tuple[int, ...]:
    """The number of a batch of facts in a frame; nothing for any other message."""
    batch = msgspec.msgpack.decode(frame[1:]).get("batch")
    return () if batch is None else (batch,)


def _damaged(frame: bytes) -> bytes:
    """The frame of an engine that reports a number of tokens below zero, as one with a broken connector may."""
    message = msgspec.msgpack.decode(frame[1:])
    for fact in message["facts"]:
        if "cached_prompt_tokens" in fact:
            fact["cached_prompt_tokens"] = -7
            break
    return frame[:1] + msgspec.msgpack.encode(message)
