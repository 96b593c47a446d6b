"""The simulated engine as a process in real time: the engine of a demo without a GPU and vLLM.

It generates its traffic from the synthetic workload and connects to the controller over ZeroMQ, like the plugin.
At ``--speed 8`` an H800 runs eight times faster than real time: steps take an eighth of the profile's time and requests
arrive eight times as often. All recorded times are real Unix seconds.
The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from engine_adapter.agent.clock import steady_clock
from engine_adapter.agent.farewell import hand_over
from engine_adapter.serving.traffic_pace import TrafficPace
from engine_adapter.transport.keys import EngineKey, load_engine_key
from engine_adapter.transport.link import NoLink
from engine_adapter.transport.zmq_sockets import ZmqLink, default_endpoint
from engine_adapter.virtual_time.engine import CompletedRequest, Step, TraceRequest, capacity_rps, serve
from engine_adapter.virtual_time.profiles import PROFILES, Profile, profile_named
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from engine_adapter.workloads.arrivals import Wave
from engine_adapter.workloads.requests import request_stream
from engine_adapter.workloads.synthetic import SyntheticOptions
from store.errors import BadInputError, ConfigError, SageError

OPTIONS = SyntheticOptions(tenants=3)
IDLE_PAUSE_S = 0.02
"""Interval at which an idle engine polls its controller."""

FAREWELL_S = 5.0
"""Time for which a stopping engine waits for its facts to be durable."""

CAPACITY_REQUESTS = 2400
"""Answers are heavy-tailed: fewer requests would make the capacity estimate noisy."""


@dataclass(frozen=True, slots=True)
class RealTime:
    """Clock and waiting functions of the server."""

    clock: Callable[[], float]
    """Unix seconds that never jump."""
    sleep: Callable[[float], object]
    pause: Callable[[float], object]
    """Sleeps for a number of seconds, or less when the server is asked to stop."""
    stopping: Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """The server's device, traffic and duration; raises `ConfigError` for invalid values."""

    profile: Profile
    endpoint: str
    engine_id: str = "simulated"
    key: EngineKey | None = None
    """Authenticates this engine over TCP."""
    speed: float = 1.0
    rate_rps: float
    """Mean requests per engine second."""
    cv: float = 1.0
    """Coefficient of variation of the gaps between arrivals; 1 is Poisson, more is bursty."""
    wave: Wave | None = None
    """Swing of the rate around its mean, in engine seconds."""
    seed: int = 0
    duration_s: float | None = None
    """Real seconds during which requests arrive; None for ever."""
    drain: bool = False
    """Whether requests that are unfinished after the duration are still answered."""
    keep_pace: bool = False
    """Whether traffic waits for a late host, and the speed is lowered on one that is too slow for it."""

    def __post_init__(self) -> None:
        for name, value in (
            ("speed", self.speed),
            ("rate", self.rate_rps),
            ("cv", self.cv),
            ("duration", self.duration_s or 1.0),
        ):
            if not 0.0 < value < math.inf:
                raise ConfigError(f"{name} is {value}: give a positive number")


@dataclass(slots=True)
class Tally:
    """Counts of what has been served."""

    submitted: int = 0
    steps: int = 0
    preemptions: int = 0
    unacknowledged: int = 0
    completed: list[CompletedRequest] = field(default_factory=list)

    def count(self, step: Step) -> None:
        """Add a step."""
        self.steps += bool(step.scheduled_tokens)
        self.preemptions += len(step.preempted)
        self.completed.extend(step.finished)

    def summary(self, spec: ServerSpec) -> dict[str, object]:
        """Return the JSON object of the last line, in real seconds."""
        return {
            "engine": "simulated",
            "profile": spec.profile.name,
            "speed": spec.speed,
            "rate_rps": spec.rate_rps,
            "requests_submitted": self.submitted,
            "requests_finished": len(self.completed),
            "mean_ttlt_s": _mean([request.ttlt_s for request in self.completed]),
            "mean_ttft_s": _mean([request.ttft_s for request in self.completed]),
            "steps": self.steps,
            "preemptions": self.preemptions,
            "facts_unacknowledged": self.unacknowledged,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the duration is over or a signal comes; return 2 for bad usage or input."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        spec = _spec(_parser().parse_args(arguments))
        real_time = RealTime(steady_clock(), time.sleep, stopping.wait, stopping.is_set)
        tally = run_server(spec, real_time, session_id=uuid.uuid4().hex)
    except SageError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, BadInputError) else 1
    sys.stdout.write(json.dumps(tally.summary(spec)) + "\n")
    return 0


def run_server(spec: ServerSpec, real_time: RealTime, *, session_id: str) -> Tally:
    """Serve, disconnect in order, and return what was served."""
    engine = SimulatedEngine(
        faster(spec.profile, spec.speed),
        link=ZmqLink(spec.endpoint, spec.key),
        engine_id=spec.engine_id,
        session_id=session_id,
        start_s=real_time.clock(),
    )
    tally = Tally()
    try:
        _serve(spec, engine, tally, real_time)
        hand_over(engine.agent, clock=real_time.clock, sleep=real_time.sleep, wait_s=FAREWELL_S)
    finally:
        tally.unacknowledged = engine.agent.unacknowledged
        engine.advance_to(real_time.clock())
        engine.close()
    return tally


def faster(profile: Profile, speed: float) -> Profile:
    """Return the profile with every step's time divided by ``speed``."""
    return replace(
        profile,
        base_s=profile.base_s / speed,
        prefill_token_s=profile.prefill_token_s / speed,
        decode_seq_s=profile.decode_seq_s / speed,
        kv_token_s=profile.kv_token_s / speed,
    )


def synthetic_capacity_rps(profile: Profile, *, seed: int) -> float:
    """Return the requests per engine second that FCFS completes while its queue is never empty."""
    requests = [
        replace(request, arrival_s=0.0)
        for request in islice(request_stream(seed=seed, rate_rps=1.0, options=OPTIONS), CAPACITY_REQUESTS)
    ]
    return capacity_rps(serve(SimulatedEngine(profile, link=NoLink()), requests).completed)


def _traffic(spec: ServerSpec) -> Iterator[TraceRequest]:
    return request_stream(seed=spec.seed, rate_rps=spec.rate_rps, cv=spec.cv, wave=spec.wave, options=OPTIONS)


def _serve(spec: ServerSpec, engine: SimulatedEngine, tally: Tally, real_time: RealTime) -> None:
    """Run steps in real time: each is scheduled when it begins and carried out when the device would end it."""
    start_s = engine.now_s
    until_s = math.inf if spec.duration_s is None else start_s + spec.duration_s
    traffic = _traffic(spec)
    following = next(traffic)
    pace = TrafficPace(speed=spec.speed, start_s=start_s)
    while not real_time.stopping() and (real_time.clock() < until_s or (spec.drain and engine.unfinished)):
        engine.advance_to(real_time.clock())
        while (arrival_s := pace.moment(following.arrival_s)) <= min(engine.now_s, until_s):
            engine.submit(replace(following, arrival_s=arrival_s))
            tally.submitted += 1
            following = next(traffic)
        began_s, done_s = engine.now_s, engine.begin_step()
        if done_s > began_s:
            real_time.pause(max(0.0, done_s - real_time.clock()))
        else:
            real_time.pause(min(IDLE_PAUSE_S, max(0.0, arrival_s - real_time.clock())))
        tally.count(engine.end_step())
        if spec.keep_pace and done_s > began_s:
            _keep_pace(spec, engine, pace, began_s=began_s, done_s=done_s, now_s=real_time.clock())


def _keep_pace(
    spec: ServerSpec, engine: SimulatedEngine, pace: TrafficPace, *, began_s: float, done_s: float, now_s: float
) -> None:
    """Let the traffic wait for a late host; say so where the speed is lowered, one JSON object on a line."""
    asked = pace.speed
    lowered = pace.stepped(now_s=now_s, device_s=done_s - began_s, busy_s=max(done_s, now_s) - began_s)
    if lowered is not None:
        engine.retime(faster(spec.profile, lowered))
        sys.stdout.write(json.dumps({"speed": asked, "lowered_to": lowered}) + "\n")
        sys.stdout.flush()


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine_adapter.serving.simulated_server",
        description="A simulated engine in real time under synthetic load, for a controller at the given endpoint.",
    )
    add = parser.add_argument
    add("--endpoint", help="where the controller listens (default: the user's runtime directory)")
    add("--profile", default="h800-qwen3-32b-24k", help=f"one of {', '.join(PROFILES)} (default %(default)s)")
    add("--speed", type=float, default=1.0, help="engine seconds per second (default %(default)s)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--load", type=float, default=1.05, help="share of the capacity (default %(default)s)")
    rate.add_argument("--rate", type=float, help="mean requests per engine second instead")
    add("--cv", type=float, default=1.0, help="burstiness: variation of the gaps between arrivals (default Poisson, 1)")
    add("--wave-depth", type=float, default=0.0, help="swing of the rate, as a share of it (default none)")
    add("--wave-period", type=float, default=120.0, help="seconds from crest to crest (default %(default)s)")
    add("--duration", type=float, help="seconds during which requests arrive (default: until stopped)")
    add("--drain", action="store_true", help="answer the unfinished requests when the duration is over")
    add("--keep-pace", action="store_true", help="let traffic wait for a slow host, and lower the speed on one")
    add("--seed", type=int, default=0, help="of the traffic (default %(default)s)")
    add("--engine-id", help="name of this engine (default: the one of its key, or simulated)")
    add("--key-file", type=Path, help="this engine's key, needed for a tcp:// endpoint")
    return parser


def _spec(options: argparse.Namespace) -> ServerSpec:
    profile = profile_named(options.profile)
    key = load_engine_key(options.key_file) if options.key_file else None
    rate_rps = options.rate
    if rate_rps is None:
        if not 0.0 < options.load < math.inf:
            raise ConfigError(f"load is {options.load}: give a share of capacity above 0, such as 1.05")
        rate_rps = options.load * synthetic_capacity_rps(profile, seed=options.seed)
    return ServerSpec(
        profile=profile,
        endpoint=options.endpoint or default_endpoint(),
        engine_id=options.engine_id or (key.engine_id if key else "simulated"),
        key=key,
        speed=options.speed,
        rate_rps=rate_rps,
        cv=options.cv,
        wave=Wave(period_s=options.wave_period * options.speed, depth=options.wave_depth)
        if options.wave_depth
        else None,
        seed=options.seed,
        duration_s=options.duration,
        drain=options.drain,
        keep_pace=options.keep_pace,
    )


if __name__ == "__main__":
    sys.exit(main())
