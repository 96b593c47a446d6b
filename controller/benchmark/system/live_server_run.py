"""One live run: a real vLLM server on the virtual GPU and its load, with or without a controller."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controller.api.client import ApiClient
from controller.benchmark.system.controller_process import start_controller
from controller.policy.policies import Objective
from engine_adapter.serving.processes import Child, Children
from engine_adapter.serving.vllm_bench_client import trace_lines, write_trace
from engine_adapter.serving.vllm_server import MODEL_NAME, VllmServer
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.workloads.token_ids import VOCABULARY_SIZE
from store.errors import EngineError

POLL_S = 0.5
TABLES_SHARE = 0.8
"""Share of the requests for which the engine must have used a table, in a run with the plugin."""
STREAM_INTERVAL_TOKENS = 16
"""Tokens that the server sends at a time after the first one, which saves host time; the last are sent at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveServing:
    """Requests and profile of a live run."""

    requests: tuple[TraceRequest, ...]
    output_tokens: Mapping[str, int]
    """The length of each answer in tokens, by request id; every server ends it there."""
    profile: Profile
    speed: float
    prefix_caching: bool
    objective: Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Folder, addresses and clocks of a live run."""

    folder: Path
    clock: Callable[[], float]
    pause: Callable[[float], None]

    @property
    def store(self) -> Path:
        """The controller's history."""
        return self.folder / "history"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """The figures that vLLM's client measured, in engine seconds, and the pace of host and device."""

    mean_ttlt_s: float
    p50_ttlt_s: float
    p90_ttlt_s: float
    p99_ttlt_s: float
    mean_ttft_s: float
    p99_ttft_s: float
    makespan_s: float
    client_mean_e2el_ms: float
    """In real time and from sending in place of the intended arrival, as the client counts."""
    client_p99_e2el_ms: float
    asked: int
    """Requests that have a target."""
    good: int
    """How many of these met all of theirs, as the client judges, from sending."""
    late_s: float
    """Longest time by which the client sent a request after its arrival time."""
    device_steps: int
    device_busy_s: float
    """Device time according to the profile."""
    device_starved_s: float
    """Device time lost because the host was late with the next step."""
    tables_applied: int
    """Index tables that the engine used; 0 for stock vLLM."""

    @property
    def distortion(self) -> float:
        """Device time measured over device time intended, minus one."""
        return self.device_starved_s / self.device_busy_s

    @property
    def goodput(self) -> float:
        """Share of the requests with targets that met all of theirs; 1 where there is none."""
        return self.good / self.asked if self.asked else 1.0

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {**asdict(self), "distortion": self.distortion, "goodput": self.goodput}


def serve_live(serving: LiveServing, stage: Stage, *, with_us: bool, progress: Callable[[int], None]) -> LiveRun:
    """Start the server and the controller, send the load, and stop all processes."""
    name = "sage" if with_us else "fcfs"
    endpoint = f"ipc://{stage.folder}/run/engine.sock"
    report = stage.folder / f"device-{name}.json"
    server = VllmServer(
        endpoint=endpoint,
        profile=serving.profile,
        speed=serving.speed,
        plugin=with_us,
        prefix_caching=serving.prefix_caching,
        vocabulary_tokens=VOCABULARY_SIZE,
        device_report=report,
        arguments=("--stream-interval", str(STREAM_INTERVAL_TOKENS)),
        log_path=stage.folder / f"vllm-{name}.log",
    )
    with Children(stage.folder) as children:
        api = None
        if with_us:
            _, api = start_controller(
                children,
                store=stage.store,
                endpoint=endpoint,
                clock=stage.clock,
                pause=stage.pause,
                flags=("--objective", serving.objective),
            )
        with server:
            result = _send_load(serving, stage, children, server, name, progress)
            tables_applied = _tables_applied(api, len(serving.requests)) if api else 0
        device = json.loads(report.read_text(encoding="utf-8"))
    return _run(serving, result, device, tables_applied)


def _send_load(  # noqa: PLR0917 - what is sent, whence, whither, and who looks on
    serving: LiveServing,
    stage: Stage,
    children: Children,
    server: VllmServer,
    name: str,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    trace, result = stage.folder / "trace.jsonl", stage.folder / f"client-{name}.json"
    write_trace(trace_lines(serving.requests, serving.profile), trace)
    command = [
        *(sys.executable, "-P", "-m", "engine_adapter.serving.vllm_bench_client", "--base-url", server.base_url),
        *("--model", MODEL_NAME, "--trace", str(trace), "--result", str(result), "--speed", str(serving.speed)),
    ]
    client = children.start(f"client-{name}", command)
    while client.running:
        if not server.alive:
            raise EngineError(f"vLLM ended by itself: see {server.log_path}")
        progress(_done(client))
        stage.pause(POLL_S)
    children.children.remove(client)
    if client.process.returncode:
        raise EngineError(f"the benchmark client ended with {client.process.returncode}:\n{client.last_lines()}")
    progress(len(serving.requests))
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _done(client: Child) -> int:
    """Number of done requests on the client's progress bars, which are told apart by their totals."""
    shown = re.findall(r"(\d+)/(\d+) \[", client.log_path.read_text(encoding="utf-8", errors="replace")[-2000:])
    return sum({total: int(done) for done, total in shown}.values())


def _tables_applied(api: ApiClient, requests: int) -> int:
    """Number of tables that the engine used; raises `EngineError` if too few requests were ordered by the plugin.

    A few answers end before their table comes.
    """
    (engine,) = (engine for engine in api.get("/api/state")["engines"] if engine["connected"])
    snapshot = engine["snapshot"]
    if snapshot["mode"] != "on" or snapshot["policy_errors"] or snapshot["tables_applied"] < TABLES_SHARE * requests:
        raise EngineError(f"the engine did not serve all requests in our order: {snapshot}")
    return int(snapshot["tables_applied"])


def _run(serving: LiveServing, result: dict[str, Any], device: dict[str, Any], tables_applied: int) -> LiveRun:
    requests, speed = serving.requests, serving.speed
    expected = [serving.output_tokens[request.request_id] for request in requests]
    if result["output_lens"] != expected:
        wrong = sum(got != true for got, true in zip(result["output_lens"], expected, strict=True))
        raise EngineError(f"{wrong} of {len(requests)} answers did not end at their true length")
    arrival_s = np.array([request.arrival_s for request in requests])
    sent_s = np.array(result["start_times"]) * speed
    late_s = sent_s - sent_s[0] - (arrival_s - arrival_s[0])
    late_s -= late_s.min()
    ttlt_s = late_s + np.array(result["latencies"]) * speed
    ttft_s = late_s + np.array(result["ttfts"]) * speed
    p50_s, p90_s, p99_s = np.percentile(ttlt_s, (50, 90, 99)).tolist()
    client_e2el_ms = 1e3 * np.array(result["latencies"])
    return LiveRun(
        mean_ttlt_s=float(ttlt_s.mean()),
        p50_ttlt_s=p50_s,
        p90_ttlt_s=p90_s,
        p99_ttlt_s=p99_s,
        mean_ttft_s=float(ttft_s.mean()),
        p99_ttft_s=float(np.percentile(ttft_s, 99)),
        makespan_s=float((arrival_s + ttlt_s).max() - arrival_s.min()),
        client_mean_e2el_ms=float(client_e2el_ms.mean()),
        client_p99_e2el_ms=float(np.percentile(client_e2el_ms, 99)),
        asked=result["asked"],
        good=result["good"],
        late_s=float(late_s.max()),
        device_steps=device["steps"],
        device_busy_s=device["busy_s"],
        device_starved_s=device["starved_s"],
        tables_applied=tables_applied,
    )
