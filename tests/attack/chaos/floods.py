"""Strangers at every port: they send nonsense, or nothing, and must cost others neither answers nor order."""

from __future__ import annotations

import contextlib
import math
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import zmq

from chaos.faults import Fault
from chaos.site import ENGINE
from store.records import Arrived, Facts, Finished, Goodbye, Hello, Snapshot, encode

FLOOD_S = 4.0
CALLERS = 6


class Flood(Fault):
    """Callers that go on for a while; the probe must be answered meanwhile."""

    lasts_s = 1.0
    callers = CALLERS

    def inject(self) -> None:
        self.degraded: set[str] = set()
        until_s = time.monotonic() + FLOOD_S
        with ThreadPoolExecutor(self.callers) as pool:
            calls = [
                pool.submit(self._go_on, random.Random(self.chance.random()), until_s) for _ in range(self.callers)
            ]
            self._probed = self._probe(calls)

    def call(self, chance: random.Random) -> None:
        """One call of a stranger."""
        raise NotImplementedError

    def told(self) -> bool:
        return self._probed

    def _go_on(self, chance: random.Random, until_s: float) -> None:
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                self.call(chance)

    def _probe(self, calls: list[Future[None]]) -> bool:
        """Whether the controller was seen to be alive while the strangers called; what was amiss is kept."""
        alive = False
        while not all(call.done() for call in calls):
            answer = self.site.ask("/healthz")
            alive = alive or (answer is not None and answer.is_success)
            self.degraded |= self.site.degraded()
            time.sleep(0.2)
        return alive


class _TcpFlood(Flood):
    """Speaks raw bytes over TCP."""

    port: Callable[[Flood], int]

    def call(self, chance: random.Random) -> None:
        with socket.create_connection(("127.0.0.1", type(self).port(self)), timeout=2.0) as connection:
            connection.sendall(raw_request(chance))
            connection.recv(10_000)


class ApiFlood(_TcpFlood):
    """Strangers at the controller's API, most without the token."""

    name = "flood on the API"
    port = staticmethod(lambda flood: flood.site.port)


class DashboardFlood(_TcpFlood):
    """Strangers at the dashboard."""

    name = "flood on the dashboard"
    port = staticmethod(lambda flood: flood.site.dashboard_port)


class EndpointFlood(Flood):
    """Somebody who may connect sends the controller noise, and facts that make no sense."""

    name = "flood on the endpoint"
    callers = 2

    @property
    def possible(self) -> bool:
        return not self.site.tcp

    def told(self) -> bool:
        return self._probed and self.site.metric("sagesched_bad_frames_total") > 0 and "name_shared" in self.degraded

    def call(self, chance: random.Random) -> None:
        caller = zmq.Context.instance().socket(zmq.DEALER)
        try:
            caller.connect(self.site.endpoint)
            for frame in noise(chance):
                caller.send(frame, zmq.NOBLOCK)
            time.sleep(0.05)
        except zmq.Again:
            pass
        finally:
            caller.close(linger=50)


class SilentStrangers(Flood):
    """Strangers connect over TCP and never speak: more of them than files that a process may usually open."""

    name = "silent strangers on the endpoint"
    callers = 1
    connections = 1_500

    @property
    def possible(self) -> bool:
        return self.site.tcp

    def told(self) -> bool:
        return self._probed and "connection_flood" in self.degraded

    def call(self, chance: random.Random) -> None:
        host, port = self.site.endpoint.removeprefix("tcp://").split(":")
        with contextlib.ExitStack() as stack:
            for _ in range(self.connections):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=1.0))
            time.sleep(FLOOD_S)


def raw_request(chance: random.Random) -> bytes:
    """A request as no browser would send it."""
    path = chance.choice(
        (
            "/",
            "/metrics",
            "/api/state",
            "/api/doctor",
            "/api/explain/%00%ff",
            "/api/requests/" + "a" * 30_000,
            "/_stcore/stream",
        )
    )
    host = chance.choice(("localhost", "evil.example", "[::1", "", "127.0.0.1:1"))
    method = chance.choice(("GET", "POST", "OPTIONS", "BREW", "\x00"))
    extra = chance.choice(
        (
            "",
            "Content-Length: 99999999999\r\n",
            "Transfer-Encoding: chunked\r\n",
            "X: " + "y" * 40_000 + "\r\n",
            "Origin: null\r\n",
        )
    )
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode() + chance.randbytes(
        chance.randint(0, 200)
    )


def noise(chance: random.Random) -> Iterator[bytes]:
    """Frames of somebody who is no engine, or one that has gone mad."""
    name = chance.choice((ENGINE, "stranger", "s" * 100_000, f"stranger-{chance.randrange(50)}"))
    yield encode(hello(name, chance.randbytes(8).hex()))
    yield from (chance.randbytes(chance.randint(0, 300)) for _ in range(20))
    yield b"\x01" + bytes(100_000)
    yield encode(Facts(batch=1, facts=(arrived(math.nan), arrived(math.inf)), oldest=1))
    yield encode(Facts(batch=2, facts=(finished(-5),), oldest=1))
    yield encode(Facts(batch=2**60, facts=(arrived(1.0),), oldest=2**62))
    yield encode(snapshot(math.nan))
    yield encode(Goodbye(time_s=-math.inf))


def hello(engine_id: str, session_id: str) -> Hello:
    """The greeting of an engine that does not exist."""
    return Hello(
        engine_id=engine_id,
        session_id=session_id,
        model="\x1b[31mno model",
        engine="vllm",
        engine_version="0",
        kv_blocks=100,
        block_size_tokens=16,
        max_num_seqs=8,
        token_budget=100,
        max_model_len_tokens=100,
        prefix_caching=False,
        started_s=1.0,
    )


def arrived(temperature: float) -> Arrived:
    """A request that never was."""
    return Arrived(
        request_id="nobody",
        arrival_s=1.0,
        prompt_tokens=3,
        token_ids=bytes(12),
        max_tokens=9,
        temperature=temperature,
        priority=2**63 - 1,
        tenant="\x1b]0;owned\x07" * 1_000,
    )


def finished(tokens: int) -> Finished:
    """Its end, with a number that cannot be."""
    return Finished(
        request_id="nobody",
        time_s=2.0,
        reason="stop",
        arrival_s=1.0,
        prompt_tokens=3,
        output_tokens=tokens,
        max_tokens=9,
        cached_prompt_tokens=-1,
        preemptions=0,
        recomputed_tokens=0,
    )


def snapshot(number: float) -> Snapshot:
    """A snapshot full of this number."""
    return Snapshot(
        time_s=number,
        waiting=3,
        running=3,
        kv_blocks_used=3,
        kv_blocks=100,
        mode="on",
        steps=1,
        step_s=number,
        prefill_tokens=1,
        decode_tokens=1,
        kv_tokens_read=1,
        preemptions=0,
        recomputed_tokens=0,
        hook_s=number,
        tables_held=0,
        tables_applied=0,
        messages_dropped=0,
        policy_errors=0,
    )
