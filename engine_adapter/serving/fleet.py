"""Many simulated engines in one process, in real time, as a load test of a controller.

``python -m engine_adapter.serving.fleet --engines 32 --rate 8`` connects 32 engines, each with its own socket, the same
agent as vLLM's plugin and its own synthetic traffic.
It prints one JSON line with the results of each window, and a last one with those of the whole run.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import zmq

from engine_adapter.agent.clock import steady_clock
from engine_adapter.serving.fleet_engine import Device, Due, FleetEngine, TimedLink
from engine_adapter.serving.latency_histogram import Latencies
from engine_adapter.transport.zmq_sockets import ZmqLink, default_endpoint
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.workloads.requests import request_stream
from engine_adapter.workloads.synthetic import SyntheticOptions
from store.errors import BadInputError, ConfigError, SageError

SNAPSHOT_S = 0.1
FAREWELL_S = 10.0
"""Time for which a fleet that has stopped waits for its facts to be durable."""

LISTEN_MS = 50

OPTIONS = SyntheticOptions(model="fleet", tenants=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Arrivals in bursts of ``requests`` requests at ``rate_rps``, one burst every ``every_s`` seconds."""

    requests: int
    rate_rps: float
    every_s: float

    def arrivals_s(self) -> Iterator[float]:
        """Yield the arrival times from the start, without end.

        >>> times = Bursts(requests=2, rate_rps=10.0, every_s=1.0).arrivals_s()
        >>> [next(times) for _ in range(4)]
        [0.0, 0.1, 1.0, 1.1]
        """
        for burst in count():
            for number in range(self.requests):
                yield burst * self.every_s + number / self.rate_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """A fleet's engines and load; raises `ConfigError` for invalid values."""

    endpoint: str
    engines: int = 32
    first: int = 0
    """Number of the first engine; distinguishes the engines of several processes."""
    rate_rps: float = 8.0
    """Requests per second and engine."""
    bursts: Bursts | None = None
    device: Device = field(default_factory=Device)
    start_s: float | None = None
    """Time of the first request, Unix seconds, so that several fleets start together; None for at once."""
    duration_s: float = 60.0
    window_s: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (
            ("engines", self.engines),
            ("rate", self.rate_rps),
            ("duration", self.duration_s),
            ("window", self.window_s),
            ("token time", self.device.token_s),
            ("max running", self.device.max_running),
        ):
            if not 0.0 < value < math.inf:
                raise ConfigError(f"{name} is {value}: give a positive number")


class Fleet:
    """All engines of a process and one queue of their due events.

    Args:
        spec: The engines and their load.
        clock: Returns Unix seconds that never jump.
        say: Receives each JSON object of results.
        stopping: Whether the fleet is asked to stop.
    """

    def __init__(
        self,
        spec: FleetSpec,
        *,
        clock: Callable[[], float],
        say: Callable[[dict[str, object]], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._say = say
        self._stopping = stopping
        self._latencies = Latencies()
        self._total = Latencies()
        self._serial = count()
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._poller = zmq.Poller()
        self._engines: list[FleetEngine] = []
        self._by_socket: dict[zmq.Socket[bytes], FleetEngine] = {}
        for number in range(spec.first, spec.first + spec.engines):
            self._add(number)

    def run(self) -> None:
        """Serve until the duration is over, then disconnect once all facts are durable."""
        now_s = self._clock()
        start_s = now_s if self._spec.start_s is None else max(now_s, self._spec.start_s)
        for place, engine in enumerate(self._engines):
            # The engines' steps are staggered, as those of real ones are.
            offset_s = SNAPSHOT_S * place / len(self._engines)
            engine.begin(start_s + offset_s)
            self._at(now_s + offset_s, self._reporting(engine))
            self._at(engine.next_arrival_s(), self._arriving(engine))
        self._at(start_s + self._spec.window_s, self._report_window)
        self._serve_until(start_s + self._spec.duration_s, done=self._stopping)
        self._await_durable()
        self._say(self._summary())
        for engine in self._engines:
            engine.close(self._clock())

    def _add(self, number: int) -> None:
        link = ZmqLink(self._spec.endpoint)
        engine = FleetEngine(
            name=f"engine-{number:03d}",
            session_id=uuid.uuid4().hex,
            link=TimedLink(link, self._clock, self._latencies),
            requests=_traffic(self._spec, number),
            device=self._spec.device,
        )
        self._engines.append(engine)
        self._poller.register(link.socket, zmq.POLLIN)
        self._by_socket[link.socket] = engine

    def _at(self, when_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (when_s, next(self._serial), action))

    def _serve_until(self, until_s: float, *, done: Callable[[], bool]) -> None:
        while (now_s := self._clock()) < until_s and not done():
            wait_s = min(until_s, self._due[0][0] if self._due else until_s) - now_s
            for socket, _ in self._poller.poll(max(0, math.ceil(1e3 * wait_s))):
                self._by_socket[socket].listen(self._clock())
            while self._due and self._due[0][0] <= (now_s := self._clock()):
                heapq.heappop(self._due)[2](now_s)

    def _await_durable(self) -> None:
        """Give the controller time to acknowledge the remaining facts."""
        until_s = self._clock() + FAREWELL_S
        while any(engine.unacknowledged for engine in self._engines) and self._clock() < until_s:
            self._poller.poll(LISTEN_MS)
            for engine in self._engines:
                engine.listen(self._clock())

    # --- due events ---------------------------------------------------------------------------------

    def _arriving(self, engine: FleetEngine) -> Callable[[float], None]:
        def arrive(now_s: float) -> None:
            self._follow(engine, engine.arrive(now_s))
            self._at(engine.next_arrival_s(), arrive)

        return arrive

    def _reporting(self, engine: FleetEngine) -> Callable[[float], None]:
        def report(now_s: float) -> None:
            engine.report(now_s)
            self._at(now_s + SNAPSHOT_S, report)

        return report

    def _follow(self, engine: FleetEngine, due: Due | None) -> None:
        """Schedule the first token and the end of a request that has begun to run."""
        if due is None:
            return
        self._at(due.first_token_s, lambda now_s: engine.first_token(due.request_id, now_s))
        self._at(due.end_s, lambda now_s: self._follow(engine, engine.end(due.request_id, now_s)))

    def _report_window(self, now_s: float) -> None:
        """Report a window, and start the next."""
        self._say({"time_s": now_s, **_counted(self._latencies), **self._standing()})
        self._total.merge(self._latencies.counts, self._latencies.longest_s)
        self._latencies.clear()
        self._at(now_s + self._spec.window_s, self._report_window)

    def _standing(self) -> dict[str, object]:
        """Return sums over all engines."""
        names = ("submitted", "finished", "waiting", "running", "without_table", "unacknowledged", "tables", "dropped")
        return {name: sum(getattr(engine, name) for engine in self._engines) for name in names}

    def _summary(self) -> dict[str, object]:
        """Return the last line: the results of the whole run."""
        self._total.merge(self._latencies.counts, self._latencies.longest_s)
        late = Latencies()
        for engine in self._engines:
            late.merge(engine.late.counts, engine.late.longest_s)
        whole = {"whole": True, "engines": len(self._engines), "late_p99_s": late.quantile_s(0.99)}
        return {**whole, **_counted(self._total), **self._standing()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the duration is over or a signal comes; return 2 for bad usage or input."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        spec = _spec(_parser().parse_args(arguments))
        fleet = Fleet(spec, clock=steady_clock(), say=_say, stopping=stopping.is_set)
        fleet.run()
    except SageError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, BadInputError) else 1
    return 0


def _counted(latencies: Latencies) -> dict[str, object]:
    return {"counts": dict(latencies.counts), "longest_s": latencies.longest_s}


def _traffic(spec: FleetSpec, number: int) -> Iterator[TraceRequest]:
    """Yield one engine's requests, without end."""
    requests = request_stream(seed=1_000 * spec.seed + number, rate_rps=spec.rate_rps, options=OPTIONS)
    if spec.bursts is None:
        return requests
    return (replace(request, arrival_s=at_s) for request, at_s in zip(requests, spec.bursts.arrivals_s(), strict=False))


def _say(said: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine_adapter.serving.fleet",
        description="Many simulated engines in real time, each with its own socket and synthetic traffic.",
    )
    add = parser.add_argument
    add("--endpoint", help="where the controller listens (default: the user's runtime directory)")
    add("--engines", type=int, default=32, help="how many (default %(default)s)")
    add("--first", type=int, default=0, help="number of the first (default %(default)s)")
    add("--rate", type=float, default=8.0, help="requests per second and engine (default %(default)s)")
    add("--burst", metavar="REQUESTS/RATE/SECONDS", help="bursts instead: their requests, rate and spacing")
    add("--token-s", type=float, default=0.03, help="seconds for an output token (default %(default)s)")
    add("--max-running", type=int, default=256, help="slots of an engine (default %(default)s)")
    add("--start", type=float, help="Unix seconds of the first request (default: at once)")
    add("--duration", type=float, default=60.0, help="seconds during which requests arrive (default %(default)s)")
    add("--window", type=float, default=5.0, help="seconds between two lines (default %(default)s)")
    add("--seed", type=int, default=0, help="of the traffic (default %(default)s)")
    return parser


def _spec(options: argparse.Namespace) -> FleetSpec:
    return FleetSpec(
        endpoint=options.endpoint or default_endpoint(),
        engines=options.engines,
        first=options.first,
        rate_rps=options.rate,
        bursts=None if options.burst is None else bursts_of(options.burst),
        device=Device(token_s=options.token_s, max_running=options.max_running),
        start_s=options.start,
        duration_s=options.duration,
        window_s=options.window,
        seed=options.seed,
    )


def bursts_of(text: str) -> Bursts:
    """Parse bursts from ``REQUESTS/RATE/SECONDS``; raise `BadInputError` for anything else.

    >>> bursts_of("1000/2000/5")
    Bursts(requests=1000, rate_rps=2000.0, every_s=5.0)
    """
    try:
        requests, rate_rps, every_s = (float(part) for part in text.split("/"))
        sound = requests >= 1 and rate_rps > 0.0 and requests / rate_rps <= every_s < math.inf
    except ValueError:
        sound = False
    if not sound:
        raise BadInputError(
            f"burst is {text!r}: give REQUESTS/RATE/SECONDS, such as 1000/2000/5, "
            "where the requests at that rate take no longer than the seconds"
        )
    return Bursts(requests=int(requests), rate_rps=rate_rps, every_s=every_s)


if __name__ == "__main__":
    sys.exit(main())
