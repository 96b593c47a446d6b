"""Compares the benchmark in virtual time with the live server: the same trace, the same device, vLLM's own client.

A trace is served four times: in virtual time by vLLM's scheduler, stock and with the plugin, and by vLLM's real API
server on the virtual GPU, stock and with the plugin and a controller process. The load comes from the client of
``vllm bench serve``. The ratio of our TTLT to stock's is compared, live against virtual.
The controller learns from a history that is prepared from the same warm-up requests.
Where requests have service classes their targets reach the live server in headers, and its client judges them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from controller.benchmark.scheduling.benchmark import run_bench
from controller.benchmark.scheduling.service_mix import in_classes, mix_named
from controller.benchmark.scheduling.spec import BenchSpec
from controller.benchmark.synthetic_history import write_history
from controller.benchmark.system.live_server_run import LiveRun, LiveServing, Stage, serve_live
from controller.policy.policies import Objective
from controller.reports.latency_summary import PolicyFigures
from engine_adapter.serving.vllm_server import MODEL_NAME
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import profile_named
from engine_adapter.workloads.arrivals import arrival_plan
from engine_adapter.workloads.requests import BenchTrace, bench_trace, planned_arrivals, with_arrivals
from store.errors import ConfigError

TOLERANCE = 0.15
"""Largest relative difference between the live ratio and the virtual one."""

COMPARED = ("mean_ttlt_s", "p99_ttlt_s")
GOODPUT = "goodput"
SIDES = ("fcfs", "sage")

Progress: TypeAlias = Callable[[str, int, int], None]
"""Receives the name of the current part, the number of its done requests, and their total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSpec:
    """Settings of a comparison; raises `ConfigError` and `BadInputError` for invalid ones."""

    workload: str = "synthetic"
    profile: str = "h800-qwen3-32b-24k"
    load: float = 1.05
    requests: int = 400
    warmup: int = 1000
    seed: int = 1
    speed: float = 2.0
    """Device seconds per real second; the host must keep up, otherwise it is measured in place of the device."""
    prefix_caching: bool = True
    objective: Objective = "balanced"
    mix: str | None = None
    """Service classes that the requests are in; None for none."""

    def __post_init__(self) -> None:
        self.bench()
        if not 0.1 <= self.speed <= 100.0:
            raise ConfigError(f"speed is {self.speed}: give 0.1 to 100 device seconds per second")

    def bench(self) -> BenchSpec:
        """The benchmark of the same trace in virtual time."""
        return BenchSpec(
            workload=self.workload,
            profile=self.profile,
            load=self.load,
            requests=self.requests,
            warmup=self.warmup,
            seeds=(self.seed,),
            policies=SIDES,
            engine="vllm",
            prefix_caching=self.prefix_caching,
            arrivals="own",
            objective=self.objective,
            mix=self.mix,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure of ours over that of stock vLLM."""

    figure: str
    virtual: float
    live: float

    @property
    def deviation(self) -> float:
        """Relative difference between the live ratio and the virtual one."""
        return self.live / self.virtual - 1.0

    @property
    def agrees(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return abs(self.deviation) <= TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveComparison:
    """What was found."""

    spec: LiveSpec
    rate_rps: float
    """Arrivals in engine seconds."""
    virtual: dict[str, PolicyFigures]
    virtual_goodput: dict[str, float]
    """Share of the requests with targets that met all of theirs; empty without service classes."""
    live: dict[str, LiveRun]

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """Ratios of ours to stock, live and virtual; of goodput where stock has any."""
        has_goodput = self.virtual_goodput and all(self.goodput(world, "fcfs") > 0.0 for world in ("virtual", "live"))
        figures = (*COMPARED, GOODPUT) if has_goodput else COMPARED
        return tuple(
            Ratio(
                figure=figure,
                virtual=self._figure("virtual", "sage", figure) / self._figure("virtual", "fcfs", figure),
                live=self._figure("live", "sage", figure) / self._figure("live", "fcfs", figure),
            )
            for figure in figures
        )

    def goodput(self, world: str, side: str) -> float:
        """Share of the requests with targets that met all of theirs; live as vLLM's client judges."""
        return self.virtual_goodput[side] if world == "virtual" else self.live[side].goodput

    def _figure(self, world: str, side: str, figure: str) -> float:
        if figure == GOODPUT:
            return self.goodput(world, side)
        runs: dict[str, Any] = {"virtual": self.virtual, "live": self.live}
        return float(getattr(runs[world][side], figure))

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            **asdict(self.spec),
            "rate_rps": self.rate_rps,
            "tolerance": TOLERANCE,
            "ratios": {
                ratio.figure: {
                    "virtual": ratio.virtual,
                    "live": ratio.live,
                    "deviation": ratio.deviation,
                    "agrees": ratio.agrees,
                }
                for ratio in self.ratios
            },
            "virtual": {side: asdict(figures) for side, figures in self.virtual.items()},
            "virtual_goodput": self.virtual_goodput,
            "live": {side: run.as_json() for side, run in self.live.items()},
        }


def run_live_comparison(
    spec: LiveSpec,
    *,
    folder: Path,
    clock: Callable[[], float],
    pause: Callable[[float], None],
    timer: Callable[[], float],
    progress: Progress,
) -> LiveComparison:
    """Serve the trace in virtual time, then live, stock and with the plugin; ``folder`` keeps logs and history.

    Raises `ConfigError` without vLLM and `EngineError` if a server, the controller or the client fails.
    """
    bench = run_bench(spec.bench(), timer=timer, progress=lambda done, total: progress("virtual time", done, total))
    (seed,) = bench.seeds
    rate_rps = spec.load * seed.capacity_rps
    trace = _trace(spec)
    measured = _timed(trace, spec, rate_rps)
    virtual = {side: seed.policies[side].best for side in SIDES}
    served = {request.request_id: (request.arrival_s, request.output_tokens) for request in virtual["fcfs"].completed}
    assert served.keys() == {request.request_id for request in measured}, "the benchmark serves this very trace"
    assert all(abs(served[request.request_id][0] - request.arrival_s) < 1e-6 for request in measured), (
        "at these very times"
    )
    serving = LiveServing(
        requests=tuple(measured),
        output_tokens={request_id: tokens for request_id, (_, tokens) in served.items()},
        profile=profile_named(spec.profile),
        speed=spec.speed,
        prefix_caching=spec.prefix_caching,
        objective=spec.objective,
    )
    stage = Stage(folder=folder, clock=clock, pause=pause)
    write_history(stage.store, trace.warmup, profile=serving.profile, model=MODEL_NAME, clock=clock)
    live = {
        side: serve_live(
            serving, stage, with_us=side == "sage", progress=partial(_report, progress, side, spec.requests)
        )
        for side in SIDES
    }
    return LiveComparison(
        spec=spec,
        rate_rps=rate_rps,
        virtual={side: run.figures for side, run in virtual.items()},
        virtual_goodput={side: run.service.goodput for side, run in virtual.items() if run.service is not None},
        live=live,
    )


def _report(progress: Progress, side: str, requests: int, done: int) -> None:
    progress(f"live, {side}", done, requests)


def _trace(spec: LiveSpec) -> BenchTrace:
    profile = profile_named(spec.profile)
    return bench_trace(
        spec.workload,
        requests=spec.requests,
        warmup=spec.warmup,
        seed=spec.seed,
        kv_tokens=min(profile.kv_tokens, profile.max_model_len_tokens),
    )


def _timed(trace: BenchTrace, spec: LiveSpec, rate_rps: float) -> list[TraceRequest]:
    arrivals_s = planned_arrivals(
        trace.measured, arrival_plan(spec.bench().arrivals), rate_rps=rate_rps, seed=spec.seed
    )
    timed = with_arrivals(trace.measured, arrivals_s)
    return timed if spec.mix is None else in_classes(timed, mix_named(spec.mix), spec.seed)
