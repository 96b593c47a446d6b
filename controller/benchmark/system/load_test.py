"""Load test of a controller: many simulated engines load it from other processes and over real sockets.

The controller is a separate `serve` with its own history; the engines are fleets (`engine_adapter.serving.fleet`).
Latency is measured in the engine, from the arrival of a request to the arrival of its index table.
All figures are measured in windows, so that a long run shows what grows.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from controller.api.client import ApiClient
from controller.benchmark.system.controller_process import start_controller
from controller.benchmark.system.process_samples import Sample, Watcher, sample_process
from engine_adapter.serving.latency_histogram import Latencies
from engine_adapter.serving.processes import Child, Children
from store.errors import ConfigError, EngineError

Clock: TypeAlias = Callable[[], float]
Pause: TypeAlias = Callable[[float], object]
Progress: TypeAlias = Callable[[int], None]

CONNECT_S = 4.0
"""Seconds between the start of the fleets and the first request, in which their interpreters start."""

FAREWELL_S = 30.0

PAUSE_S = 0.005
"""A pause of the control loop that is longer counts; a bound of the histogram's buckets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """Settings of a load test; raises `ConfigError` for invalid ones."""

    engines: int = 64
    rate_rps: float = 8.0
    """Requests per second and engine."""
    burst: str | None = None
    """``REQUESTS/RATE/SECONDS`` in place of the rate, in the format of `engine_adapter.serving.fleet`."""
    seconds: float = 60.0
    """Measured time."""
    warmup_s: float = 30.0
    """Seconds before the measurement, in which the first requests end and predictions form."""
    window_s: float = 5.0
    fleets: int = 2
    """Number of processes that run the engines."""
    token_s: float = 0.03
    max_running: int = 256
    retention_gb: float = 20.0
    watch: bool = False
    """Whether a dashboard's requests are sent in every other window."""
    seed: int = 1

    def __post_init__(self) -> None:
        for name, number in (("engines", self.engines), ("fleets", self.fleets)):
            if not 1 <= number <= 1024:
                raise ConfigError(f"{name} is {number}: give 1 to 1024")
        for name, value in (("rate", self.rate_rps), ("seconds", self.seconds), ("window", self.window_s)):
            if not 0.0 < value < math.inf:
                raise ConfigError(f"{name} is {value}: give a positive number")
        if not 0.0 <= self.warmup_s < math.inf:
            raise ConfigError(f"warmup is {self.warmup_s}: give 0 or more seconds")
        if self.seconds < 2 * self.window_s:
            raise ConfigError(f"seconds is {self.seconds:g}: give two windows of {self.window_s:g} s or more")

    @property
    def windows(self) -> int:
        """Number of windows, including those of the warm-up."""
        return round((self.warmup_s + self.seconds) / self.window_s)

    @property
    def warmup_windows(self) -> int:
        """Number of windows of the warm-up, which figures leave out."""
        return round(self.warmup_s / self.window_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The figures of one window."""

    time_s: float
    """Seconds from the first request to the end of the window."""
    arrivals: int
    p50_s: float | None
    p99_s: float | None
    longest_s: float
    cpu_share: float
    """CPU time of the controller's process per second; 1 is a core."""
    helpers_share: float
    """CPU time per second of its child processes, which run at the lowest priority."""
    host_share: float
    """Share of all cores' time that the whole machine used."""
    rss_bytes: int
    store_bytes: int
    dropped: int
    """Messages that engines have dropped since the start."""
    without_table: int
    """Unfinished requests without a table."""
    watched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """How long the control loop was held up, by one cause, since the controller started."""

    count: int
    longer_share: float
    """Share of those that were longer than `PAUSE_S`."""
    p999_s: float
    """99.9% of them were at most as long; the upper bound of the histogram's bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """The result of a load test."""

    spec: LoadSpec
    windows: tuple[Window, ...]
    """All windows, those of the warm-up first."""
    requests: int
    tables: int
    dropped: int
    unacknowledged: int
    """Facts that were not durable at the end."""
    p50_s: float | None
    p99_s: float | None
    p999_s: float | None
    longest_s: float
    late_p99_s: float
    """Delay of the load behind its plan; if it is large, the figures mean nothing."""
    predict_s: float
    """Mean time of a prediction, as the controller measured it."""
    turn_s: float
    """Mean time of a turn of the controller's loop."""
    pauses: Mapping[str, Pauses]
    """By cause, as in `controller.monitoring.loop_pauses`."""

    @property
    def measured(self) -> tuple[Window, ...]:
        """The windows after the warm-up."""
        return self.windows[self.spec.warmup_windows :]

    def mean(self, name: str, *, watched: bool | None = None) -> float:
        """Mean of a figure over the windows after the warm-up, optionally only those with or without dashboard."""
        taken = [getattr(window, name) for window in self.measured if watched in {None, window.watched}]
        return math.fsum(taken) / len(taken) if taken else math.nan

    def slope_per_hour(self, name: str) -> float:
        """Growth of a figure per hour by a least-squares line through the windows after the warm-up."""
        points = [(window.time_s / 3600.0, getattr(window, name)) for window in self.measured]
        known = [(hours, value) for hours, value in points if value is not None]
        mean_h = math.fsum(hours for hours, _ in known) / max(1, len(known))
        scatter = math.fsum((hours - mean_h) ** 2 for hours, _ in known)
        return math.fsum((hours - mean_h) * value for hours, value in known) / scatter if scatter else 0.0

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        whole = asdict(self) | {
            "cpu_share": self.mean("cpu_share"),
            "helpers_share": self.mean("helpers_share"),
            "host_share": self.mean("host_share"),
            "rss_bytes": self.measured[-1].rss_bytes,
            "store_bytes": self.measured[-1].store_bytes,
            "rss_bytes_per_hour": self.slope_per_hour("rss_bytes"),
            "p50_s_per_hour": self.slope_per_hour("p50_s"),
            "cpu_share_per_hour": self.slope_per_hour("cpu_share"),
        }
        if self.spec.watch:
            whole["dashboard_share"] = self.mean("cpu_share", watched=True) - self.mean("cpu_share", watched=False)
        return whole


def run_load_test(spec: LoadSpec, *, folder: Path, clock: Clock, pause: Pause, progress: Progress) -> LoadResult:
    """Start a controller and its engines, sample them, and stop them; ``folder`` keeps history and logs.

    ``progress`` receives the number of windows that are over, of ``spec.windows``.
    """
    with Children(folder) as children:
        controller, api = start_controller(
            children,
            store=folder / "history",
            endpoint=_endpoint(folder),
            clock=clock,
            pause=pause,
            environment={"SAGESCHED_STORE__RETENTION_GB": str(spec.retention_gb)},
        )
        start_s = clock() + CONNECT_S
        fleets = [_start_fleet(spec, number, folder, children, start_s) for number in range(spec.fleets)]
        with _watcher(spec, api) as watcher:
            samples = list(_look_on(spec, controller, start_s, folder, children, watcher, clock, pause, progress))
        reports = [_reports(fleet, clock=clock, pause=pause) for fleet in fleets if fleet is not None]
        own = _own_figures(api)
        api.close()
    return _result(spec, start_s, samples, reports, own)


# --- the processes --------------------------------------------------------------------------------


def _start_fleet(spec: LoadSpec, number: int, folder: Path, children: Children, start_s: float) -> Child | None:
    """Start one process with its share of the engines; None if there are fewer engines than processes."""
    first, last = (spec.engines * place // spec.fleets for place in (number, number + 1))
    if first == last:
        return None
    command = [
        *(sys.executable, "-P", "-m", "engine_adapter.serving.fleet", "--endpoint", _endpoint(folder)),
        *("--engines", str(last - first), "--first", str(first), "--rate", str(spec.rate_rps)),
        *("--token-s", str(spec.token_s), "--max-running", str(spec.max_running), "--seed", str(spec.seed)),
        *("--start", repr(start_s), "--window", str(spec.window_s)),
        # Half a window more, so that the last window is whole.
        *("--duration", str((spec.windows + 0.5) * spec.window_s)),
        *(("--burst", spec.burst) if spec.burst is not None else ()),
    ]
    return children.start(f"fleet-{number}", command, environment={"OMP_NUM_THREADS": "1"})


def _endpoint(folder: Path) -> str:
    return f"ipc://{folder}/run/engine.sock"


@contextmanager
def _watcher(spec: LoadSpec, api: ApiClient) -> Iterator[Watcher | None]:
    if not spec.watch:
        yield None
        return
    watcher = Watcher(api.base_url)
    try:
        yield watcher
    finally:
        watcher.stop()


def _look_on(  # noqa: PLR0917 - what is looked at, and the outside world
    spec: LoadSpec,
    controller: Child,
    start_s: float,
    folder: Path,
    children: Children,
    watcher: Watcher | None,
    clock: Clock,
    pause: Pause,
    progress: Progress,
) -> Iterator[Sample]:
    """Sample the controller at the start and at the end of every window."""
    for number in range(spec.windows + 1):
        pause(max(0.0, start_s + number * spec.window_s - clock()))
        if number:
            children.check()
        yield sample_process(controller.process.pid, folder / "history", clock())
        progress(number)
        if watcher is not None:
            watcher.asks = number % 2 == 0


def _reports(fleet: Child, *, clock: Clock, pause: Pause) -> list[dict[str, Any]]:
    """The report lines of a fleet, once it has ended."""
    until_s = clock() + FAREWELL_S
    while fleet.running and clock() < until_s:
        pause(0.1)
    lines = fleet.log_path.read_text().splitlines()
    reports = [json.loads(line) for line in lines if line.startswith("{")]
    if not reports or "whole" not in reports[-1]:
        raise EngineError(f"{fleet.name} did not end in order: see {fleet.log_path}\n{fleet.last_lines()}")
    return reports


def _own_figures(api: ApiClient) -> dict[str, Any]:
    """What the controller measured of itself since its start."""
    families = {family.name: family.samples for family in text_string_to_metric_families(api.text("/metrics"))}

    def mean(name: str) -> float:
        total = {sample.name.rpartition("_")[2]: sample.value for sample in families[name]}
        return total["sum"] / max(1.0, total["count"])

    pauses: dict[str, list[tuple[float, float]]] = {}
    for sample in families["sagesched_loop_pause_seconds"]:
        if sample.name.endswith("_bucket"):
            pauses.setdefault(sample.labels["cause"], []).append((float(sample.labels["le"]), sample.value))
    return {
        "predict_s": mean("sagesched_predict_seconds"),
        "turn_s": mean("sagesched_tick_seconds"),
        "pauses": {cause: _pauses(buckets) for cause, buckets in sorted(pauses.items())},
    }


def _pauses(buckets: list[tuple[float, float]]) -> Pauses:
    """What the buckets of a histogram, by upper bound and cumulative count, say of pauses."""
    count = buckets[-1][1]
    within = dict(buckets).get(PAUSE_S, 0.0)
    p999_s = next(bound_s for bound_s, reached in buckets if reached >= 0.999 * count)
    return Pauses(count=int(count), longer_share=(count - within) / max(1.0, count), p999_s=p999_s)


# --- the figures ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reported:
    """Sums over the reports of all fleets on one window."""

    latencies: Latencies = field(default_factory=Latencies)
    dropped: int = 0
    without_table: int = 0

    def add(self, line: dict[str, Any]) -> None:
        self.latencies.merge({int(place): count for place, count in line["counts"].items()}, line["longest_s"])
        self.dropped += line["dropped"]
        self.without_table += line["without_table"]


def _result(
    spec: LoadSpec,
    start_s: float,
    samples: Sequence[Sample],
    reports: Sequence[list[dict[str, Any]]],
    own: dict[str, Any],
) -> LoadResult:
    reported = [_Reported() for _ in range(spec.windows)]
    for lines in reports:
        for line, window in zip(lines, reported, strict=False):
            window.add(line)
    counted = Latencies()
    for window in reported[spec.warmup_windows :]:
        counted.merge(window.latencies.counts, window.latencies.longest_s)
    wholes = [lines[-1] for lines in reports]
    return LoadResult(
        spec=spec,
        windows=tuple(
            _window(number, start_s, before, after, window, spec)
            for number, (before, after, window) in enumerate(zip(samples, samples[1:], reported, strict=False))
        ),
        requests=sum(whole["submitted"] for whole in wholes),
        tables=sum(whole["tables"] for whole in wholes),
        dropped=sum(whole["dropped"] for whole in wholes),
        unacknowledged=sum(whole["unacknowledged"] for whole in wholes),
        p50_s=counted.quantile_s(0.5),
        p99_s=counted.quantile_s(0.99),
        p999_s=counted.quantile_s(0.999),
        longest_s=counted.longest_s,
        late_p99_s=max(whole["late_p99_s"] or 0.0 for whole in wholes),
        **own,
    )


def _window(  # noqa: PLR0917 - its samples and what was reported of it
    number: int, start_s: float, before: Sample, after: Sample, reported: _Reported, spec: LoadSpec
) -> Window:
    seconds = after.time_s - before.time_s
    return Window(
        time_s=after.time_s - start_s,
        arrivals=reported.latencies.count,
        p50_s=reported.latencies.quantile_s(0.5),
        p99_s=reported.latencies.quantile_s(0.99),
        longest_s=reported.latencies.longest_s,
        cpu_share=(after.cpu_s - before.cpu_s) / seconds,
        helpers_share=(after.helpers_s - before.helpers_s) / seconds,
        host_share=(after.host_busy_s - before.host_busy_s) / max(1e-9, after.host_s - before.host_s),
        rss_bytes=after.rss_bytes,
        store_bytes=after.store_bytes,
        dropped=reported.dropped,
        without_table=reported.without_table,
        watched=spec.watch and number % 2 == 0,
    )
