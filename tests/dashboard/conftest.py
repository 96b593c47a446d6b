import json
import math
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from fastapi import FastAPI, Response

from dashboard.access import sessions
from dashboard.access.settings import AccessSettings
from engine_adapter.serving.processes import free_port
from store.entries import (
    ClusterChanged,
    DriftDetected,
    EngineSeen,
    Entry,
    ModeSwitched,
    Outcome,
    Prediction,
    SettingsChanged,
)
from store.history.writer import HistoryWriter
from store.http_api import DoctorView, GainView, HealthView, ModeView, QueueView, StateView, View
from store.http_now import Finding, NowView, verdict_of
from store.http_service import (
    AttainmentPoint,
    ClassAttainment,
    Group,
    Misses,
    ServiceView,
    TargetAttainment,
    TenantService,
)
from store.records import Arrived, EngineRules, Finished, Gate, Hello, Settings, Snapshot

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def _own_main() -> Iterator[None]:
    """Streamlit puts a page in the place of ``__main__`` and leaves it there, where a spawned process looks for itself."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@contextmanager
def _run_dashboard(
    api: str,
    store: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    port: int | None = None,
    log: Path,
) -> Iterator[str]:
    port = port or free_port(0)
    command = [sys.executable, "-m", "dashboard", "--api", api, "--store", str(store), "--port", str(port), *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SAGESCHED_")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=clean | (environment or {}), stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_served(f"{url}/_stcore/health", process)
        yield url
    finally:
        process.terminate()
        process.wait(20.0)


def _wait_until_served(url: str, process: "subprocess.Popen[bytes]") -> None:
    until_s = time.monotonic() + 60.0
    while time.monotonic() < until_s:
        assert process.poll() is None, "the dashboard ended at once"
        try:
            if httpx.get(url, timeout=2.0).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    pytest.fail(f"nothing answers at {url}")


@pytest.fixture(scope="session")
def run_dashboard(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[str]]:
    """Run a dashboard in a process of its own, over an API and a history; gives its address."""
    return partial(_run_dashboard, log=tmp_path_factory.mktemp("dashboard") / "log")


@pytest.fixture(autouse=True)
def _open_to_all() -> Iterator[None]:
    """Pages that a test runs itself stand behind no gate and need no login, unless the test says otherwise."""
    sessions.install(sessions.Sessions(AccessSettings(), time.time))
    yield
    sessions.install(None)


SETTINGS: Json = {
    "revision": 3,
    "mode": "on",
    "lease_s": 2.0,
    "rules": {"gate": {"horizon_tokens": 256, "margin": 1.0}, "boost_per_s": 0.02, "victims": "last"},
}


def snapshot(now_s: float, waiting: int, **changes: object) -> Json:
    used = 900 + round(300 * math.sin(now_s / 9))
    return {
        "time_s": now_s,
        "waiting": waiting,
        "running": 48,
        "kv_blocks_used": used,
        "kv_blocks": 1500,
        "mode": "on",
        "fallback": None,
        "reserved_blocks": 140,
        "admission_limit": 52,
        "steps": 4,
        "step_s": 0.1,
        "prefill_tokens": 160,
        "decode_tokens": 190 + round(40 * math.sin(now_s / 5)),
        "kv_tokens_read": 9_000,
        "preemptions": 0,
        "recomputed_tokens": 0,
        "tables_held": 60,
        "tables_applied": 400,
        "messages_dropped": 0,
        "policy_errors": 0,
        "hook_s": 0.0001,
        "queue": [],
        "running_requests": [],
        "step_tokens": None,
        "chunk_tokens": None,
        "impossible": 0,
    } | changes


def engine(now_s: float, waiting: int = 137, **changes: object) -> Json:
    return {
        "engine_id": "engine-0",
        "session_id": "s",
        "model": "qwen3-32b",
        "engine": "simulated",
        "engine_version": "0.2.0",
        "contract": "all names and 15 behaviours hold",
        "connected": True,
        "last_seen_s": now_s - 0.05,
        "kv_blocks": 1500,
        "block_size_tokens": 16,
        "max_num_seqs": 256,
        "unfinished": waiting + 48,
        "tables_sent": 420,
        "snapshot": snapshot(now_s, waiting),
    } | changes


def state(now_s: float, engines: list[Json], **learner: object) -> Json:
    return {
        "controller": {
            "controller_id": "c",
            "version": "0.2.0",
            "started_s": now_s - 754,
            "now_s": now_s,
            "mode": "on",
            "policy": "sage",
            "store_path": None,
            "loop": {},
            "settings": SETTINGS,
        },
        "store": {"queued": 0, "rows": {"completions": 12_000}},
        "learner": {
            "predictions": 2431,
            "completions": 2290,
            "censored": 23,
            "not_learnt": 0,
            "not_predicted": 0,
            "backlog": 0,
            "clusters": 12,
            "coverage_50": 0.51,
            "coverage_90": 0.88,
            "crps_tokens": 112.4,
            "log_score": 1.2,
            "pit_histogram": None,
            "drift_events": 1,
            "drifts": [],
            "models": [],
            "distrusted_clusters": [],
        }
        | learner,
        "engines": engines,
    }


def latency_now(now_s: float, p50_s: float) -> Json:
    points = [
        {"time_s": now_s - 15.0 * back, "p50_s": p50_s * (1.0 + back / 60), "p99_s": 9.0 * p50_s}
        for back in reversed(range(60))
    ]
    return {"requests": 840, "p50_s": p50_s, "p99_s": 9.0 * p50_s, "before_p50_s": 1.5 * p50_s, "points": points}


def engine_now(each: Json) -> Json:
    """An engine of the state as *Now* shows it."""
    said = each["snapshot"] if each["connected"] else None
    state = "lost" if said is None else "fallback" if said["fallback"] else said["mode"]
    return {name: each[name] for name in ("engine_id", "model", "last_seen_s")} | {
        "version": f"{each['engine']} {each['engine_version']}",
        "state": state,
        "mode": said and said["mode"],
        "waiting": said and said["waiting"],
        "running": said and said["running"],
        "kv_share": said and said["kv_blocks_used"] / said["kv_blocks"],
        "output_tokens_per_s": 3000.0,
        "ttft_p50_s": 0.3,
        "ttft_p99_s": 2.7,
        "preemptions_per_minute": 4.0,
    }


def present(now_s: float, engines: list[Json], findings: list[Json]) -> Json:
    """All is well, or what the findings say."""
    found = [msgspec.convert(each, Finding) for each in findings]
    waiting = sum(each["snapshot"]["waiting"] for each in engines if each["connected"])
    return {
        "time_s": now_s,
        "span_s": 60.0,
        "verdict": msgspec.to_builtins(verdict_of(found)),
        "ttft": latency_now(now_s, 0.3),
        "ttlt": latency_now(now_s, 1.1),
        "attained": [{"service_class": "chat", "objective": 0.95, "judged": 900, "missed": 54}],
        "demand": {
            "arrived_per_s": 14.2,
            "ended_per_s": 13.9,
            "waiting": waiting,
            "grown_per_minute": 0.0,
            "ratio": 1.0,
            "text": f"The queue of {waiting:,} does not grow.",
        },
        "engines": [engine_now(each) for each in engines],
        "events": [
            {
                "time_s": now_s - 40.0,
                "kind": "mode",
                "level": "info",
                "engine_id": "",
                "text": "mode of all engines: on (asked for)",
            },
            {
                "time_s": now_s - 700.0,
                "kind": "engine up",
                "level": "green",
                "engine_id": "engine-0",
                "text": "engine engine-0 connected (simulated 0.2.0, model qwen3-32b)",
            },
        ],
    }


SERVED_CLASS = {"service_class": "chat", "targets": {"ttft_s": 2.0, "tpot_s": 0.1}}


def queue(now_s: float, waiting: int, limit: int) -> Json:
    rng = random.Random(5)
    rows = []
    for number in range(min(waiting + 48, limit)):
        p50 = math.exp(rng.gauss(5.5, 1.0))
        is_running = number < 48
        rows.append(
            {
                "position": number if is_running else number - 48,
                "request_id": f"cmpl-{number:04x}-{rng.getrandbits(40):010x}",
                "engine_id": "engine-0",
                "state": "running" if is_running else "waiting",
                "priority": 0,
                "age_s": now_s % 60 + rng.random() * 20,
                "prompt_tokens": rng.randint(20, 3000),
                "attained_tokens": rng.randint(1, 900) if is_running else 0,
                "index_s": 0.002 * p50 * (1 + number / 99),
                "expected_remaining_tokens": p50 * 1.3,
                "p50_tokens": round(p50),
                "p90_tokens": round(p50 * 3.2),
                "cluster": rng.randint(0, 11),
                "starts_in_s": None if is_running else number - 47.5,
                "ends_in_s": 0.02 * p50 + (0.0 if is_running else number - 47.5),
                "because": None if is_running else "short" if p50 < 250 else "waited",
            }
            | (SERVED_CLASS if number % 3 else {})
        )
    return {"time_s": now_s, "rows": rows}


def load(now_s: float, seconds: float, bins: int, waiting: int) -> Json:
    """The load of one engine up to the last whole bin."""
    width_s = seconds / bins
    last = math.floor(now_s / width_s)
    points = [snapshot((last - back) * width_s, max(0, waiting - back)) for back in reversed(range(bins))]
    return {
        "points": [
            {
                **{name: point[name] for name in ("time_s", "waiting", "running", "reserved_blocks")},
                "used_blocks": point["kv_blocks_used"],
                "peak_blocks": point["kv_blocks_used"] + 10,
                "total_blocks": point["kv_blocks"],
                "decode_tokens_per_s": 5.0 * point["decode_tokens"],
                "prefill_tokens_per_s": 5.0 * point["prefill_tokens"],
                "recomputed_tokens_per_s": 0.0,
            }
            for point in points
        ],
        "steps": 4 * bins,
        "step_s": 0.1 * bins,
    }


def finished(now_s: float, seconds: float) -> list[Json]:
    rng = random.Random(7)
    finished = []
    for number in range(900):
        p50 = math.exp(rng.gauss(5.5, 1.0))
        tokens = max(1, round(p50 * math.exp(rng.gauss(0, 0.8))))
        finished.append(
            {
                "request_id": f"cmpl-{number:04x}",
                "engine_id": "engine-0",
                "time_s": now_s - seconds * rng.random(),
                "ttft_s": rng.lognormvariate(0.5, 0.8),
                "ttlt_s": rng.lognormvariate(2.5, 0.8),
                "output_tokens": tokens,
                "reason": rng.choices(["stop", "length", "abort"], [90, 6, 4])[0],
                "cluster": rng.randint(0, 11),
                "prompt_tokens": 100,
                "max_tokens": 512,
                "queue_s": 0.1,
                "priority": number % 3 % 2,
                "tenant": f"t{number % 2}",
                "p10_tokens": p50 * 0.36,
                "p50_tokens": p50,
                "p90_tokens": p50 * 2.8,
                "pit": rng.random(),
            }
        )
    return sorted(finished, key=lambda point: point["time_s"])


def latency(now_s: float, seconds: float, bins: int, points: list[Json], part: str | None) -> Json:
    """Latencies of these requests, or of those of one class or tenant among them; percentiles are made up."""
    by, _, name = (part or "").partition(":")
    kinds = {"class": "priority", "tenant": "tenant"}
    whole = [point for point in points if point["reason"] != "abort"]
    mine = [point for point in whole if part is None or str(point.get(kinds[by])) == name]
    width_s = seconds / bins
    starts_s = [(math.floor(now_s / width_s) - back) * width_s for back in reversed(range(bins))] if mine else []
    percentiles = [{"time_s": at_s, "requests": 3, "p50_s": 1.0, "p90_s": 2.0, "p99_s": 4.0} for at_s in starts_s]
    heat = [{"time_s": at_s, "band": band, "requests": 1} for at_s in starts_s for band in range(3)]
    parts = [
        ("class", "0"),
        ("class", "1"),
        ("tenant", "t0"),
        ("tenant", "t1"),
        ("model", "qwen3-32b"),
        ("cluster", "3"),
    ]
    return {
        "newest_s": now_s,
        "bucket_s": width_s,
        "since_s": now_s - seconds,
        "until_s": now_s,
        "totals": dict.fromkeys(("ttft", "ttlt", "tpot"), percentiles[0]) if mine else {},
        **dict.fromkeys(("ttft", "ttlt", "tpot"), percentiles),
        **{f"{name}_heat": heat for name in ("ttft", "ttlt", "tpot")},
        "phases": [{"time_s": at_s, "queue_s": 0.5, "prefill_s": 0.1, "decode_s": 3.0} for at_s in starts_s],
        "parts": [
            {
                "by": by, "name": name, "requests": 100, "p50_ttft_s": 1.0, "mean_ttlt_s": 3.0, "p50_ttlt_s": 2.0,
                "p99_ttlt_s": 9.0, "mean_output_tokens": 200.0,
            }
            for by, name in parts
        ],
        "whole": len(mine),
        "cut": len(points) - len(whole),
    }  # fmt: skip


def service(now_s: float, seconds: float, bins: int) -> ServiceView:
    """Two classes, of which one misses its objective because its requests queue, and two tenants of unequal weight."""
    width_s = seconds / bins
    starts_s = [(math.floor(now_s / width_s) - back) * width_s for back in reversed(range(bins))]
    curves: tuple[tuple[Group, str, int], ...] = (
        ("class", "chat", 80), ("class", "batch", 99), ("tenant", "t0", 98), ("tenant", "t1", 81),
    )  # fmt: skip
    return ServiceView(
        newest_s=now_s,
        bucket_s=width_s,
        since_s=now_s - seconds,
        until_s=now_s,
        recent_s=seconds / 12,
        requests=6000,
        classes=(
            ClassAttainment(
                name="chat", objective=0.99, requests=3100, judged=3000, met=2400, recent_judged=250, recent_met=150,
                targets=(
                    TargetAttainment(target="ttft", shortest_s=2.0, longest_s=2.0, judged=3000, met=2430),
                    TargetAttainment(target="tpot", shortest_s=0.08, longest_s=0.1, judged=2990, met=2950),
                ),
            ),
            ClassAttainment(
                name="batch", objective=0.9, requests=2900, judged=2900, met=2870, recent_judged=240, recent_met=240,
                targets=(TargetAttainment(target="e2e", shortest_s=3600.0, longest_s=3600.0, judged=2900, met=2870),),
            ),
        ),
        tenants=tuple(
            TenantService(
                name=name, weight=weight, requests=3000, judged=2950, met=met, service_s=used_s, share=used_s / 400.0,
                fair_share=weight / 4.0, mean_queue_s=1.5, mean_ttlt_s=9.0,
            )
            for name, weight, met, used_s in (("t0", 3.0, 2900, 280.0), ("t1", 1.0, 2370, 120.0))
        ),
        tenants_active=2,
        jain_index=0.98,
        points=tuple(
            AttainmentPoint(by=by, name=name, time_s=at_s, judged=100, met=min(100, met + round(9 * math.sin(at_s / 60))))
            for by, name, met in curves
            for at_s in starts_s
        ),
        misses=(
            Misses(service_class="chat", tenant="t1", cause="queued", requests=540, ttft=540, tpot=10, e2e=0),
            Misses(service_class="chat", tenant="t0", cause="paced", requests=60, ttft=0, tpot=60, e2e=0),
            Misses(service_class="batch", tenant="t1", cause="too_long", requests=30, ttft=0, tpot=0, e2e=30),
        ),
    )  # fmt: skip


def explained(now_s: float, request_id: str, **facts: object) -> Json:
    """One request that waits behind others and lost its place once, as the controller explains it."""
    arrival_s = now_s - 30.0
    moments = [
        {
            "time_s": arrival_s + step / 2,
            "waiting": 40,
            "running": 12,
            "kv_blocks_used": 1400,
            "kv_blocks": 1500,
            "admission_limit": 12,
            "reserved_blocks": 90,
            "mode": "on",
            "fallback": None,
            "ahead": 30 - step // 2 if step < 20 else 3 if 40 <= step < 50 else None,
            "head_prompt_tokens": 90,
            "attained_tokens": None if step < 20 or 40 <= step < 50 else step * 4,
        }
        for step in range(60)
    ]
    competing = [
        {
            "request_id": f"cmpl-r{number}",
            "arrival_s": arrival_s + number,
            "scheduled_s": arrival_s + number + 1,
            "prompt_tokens": 50,
            "priority": 0,
            "index_s": 0.1,
        }
        for number in range(1, 6)
    ]
    return {
        "explanation": {
            "request_id": request_id,
            "engine_id": "engine-0",
            "session_id": "s",
            "state": "running",
            "known_until_s": now_s,
            "sentences": [
                {"about": "arrival", "text": "It arrived at noon with a prompt of 70 tokens."},
                {"about": "queue", "text": "Before it, 5 requests that arrived later started."},
                {"about": "queue", "text": "All of these because their index put them first."},
            ],
            "overtakers": [other | {"own_index_s": 0.25, "why": "index"} for other in competing],
            "waits": [
                {"cause": "gate", "behind": True, "span_s": 8.5},
                {"cause": "memory", "behind": False, "span_s": 1.5},
            ],
        },
        "facts": {
            "request_id": request_id,
            "engine_id": "engine-0",
            "session_id": "s",
            "known_until_s": now_s,
            "arrival_s": arrival_s,
            "prompt_tokens": 70,
            "max_tokens": 1024,
            "model": "qwen3-32b",
            "priority": 0,
            "scheduled_s": arrival_s + 10.0,
            "first_token_s": arrival_s + 10.5,
            "predicted": {
                "time_s": arrival_s,
                "cluster": 3,
                "mean_tokens": 160.0,
                "p10_tokens": 20,
                "p25_tokens": 60,
                "p50_tokens": 120,
                "p75_tokens": 200,
                "p90_tokens": 350,
                "p95_tokens": 500,
                "p99_tokens": 900,
                "evidence": 412.0,
                "experts": {"cluster": 0.7, "global": 0.3},
            },
            "choices": [
                {
                    "time_s": arrival_s,
                    "policy": "sage",
                    "reason": "arrival",
                    "cost_s": 0.6,
                    "index_s": 0.25,
                    "attained_tokens": [0, 50, 200],
                    "table_index_s": [0.25, 0.1, 0.6],
                }
            ],
            "losses": [{"time_s": arrival_s + 20.0, "lost_tokens": 230, "attained_tokens": 160, "cause": "memory"}],
            "moments": moments,
            "competing": competing,
            "orders": [],
            "shifts": [],
        }
        | facts,
    }


GAIN: Json = {
    "method": "replay of finished requests through the simulated engine",
    "requests": 1200,
    "actual": {"mean_ttlt_s": 14.1, "p50_ttlt_s": 9.8, "p90_ttlt_s": 31.0, "p99_ttlt_s": 88.0},
    "modelled": {"mean_ttlt_s": 13.8, "p50_ttlt_s": 9.5, "p90_ttlt_s": 30.2, "p99_ttlt_s": 86.5},
    "fcfs": {"mean_ttlt_s": 20.9, "p50_ttlt_s": 18.6, "p90_ttlt_s": 39.5, "p99_ttlt_s": 74.0},
    "ratio": {"mean": 0.66, "low": 0.61, "high": 0.72},
    "reproduction": {
        "mode": "on",
        "mean_ttlt_error": -0.02,
        "p99_ttlt_error": -0.017,
        "request_error_s": 1.2,
        "poor": [],
    },
    "parts": [
        {
            "by": by,
            "name": name,
            "requests": requests,
            "fcfs_mean_ttlt_s": 20.0,
            "mean_ttlt_s": 20.0 * mean,
            "ratio": {"mean": mean, "low": mean - 0.06, "high": mean + 0.07},
        }
        for by, name, requests, mean in (
            ("class", "0", 1100, 0.65),
            ("class", "5", 100, 0.97),
            ("length", "16 to 63", 300, 0.3),
            ("length", "64 to 255", 500, 0.5),
            ("length", "1,024 to 4,095", 200, 1.2),
            ("cluster", "3", 90, 0.8),
        )
    ],
    "fcfs_tax": {"preemptions": 210, "recomputed_tokens": 52_000, "share": 0.12},
    "tax": {"preemptions": 12, "recomputed_tokens": 1_900, "share": 0.004},
    "objectives": [
        {
            "objective": objective,
            "in_use": objective == "balanced",
            "latency": {"mean_ttlt_s": mean, "p50_ttlt_s": 5.0, "p90_ttlt_s": 30.0, "p99_ttlt_s": tail},
            "p99_ttft_s": 9.0,
            "max_ttlt_s": longest,
        }
        for objective, mean, tail, longest in (
            ("mean", 8.0, 90.8, 171.7),
            ("balanced", 13.8, 86.5, 101.0),
            ("tail", 15.0, 80.0, 95.0),
        )
    ],
    "per_request": {"faster": 0.7, "slower": 0.12, "fcfs_max_ttlt_s": 90.0, "max_ttlt_s": 101.0},
}
HEALTH: Json = {
    "configuration": [
        {"key": "mode", "value": "on", "meaning": "off, shadow or on"},
        {"key": "http.token", "value": "**********", "meaning": "bearer token"},
    ],
    "versions": {"Python": "3.11.2", "sagesched-controller": "0.2.0", "vllm": "not installed"},
    "recent_warnings": [
        {
            "time_s": 1.767e9,
            "level": "ERROR",
            "logger": "controller.service.control_loop",
            "text": "tick failed: [x](y)",
        }
    ],
    "encoder": None,
}
DOCTOR = {
    "time_s": 1.767e9,
    "findings": [
        {"name": "clock", "state": "ok", "text": "fine", "remedy": ""},
        {"name": "disk", "state": "wrong", "text": "0.1 GiB free", "remedy": "make room"},
    ],
}


@dataclass
class World:
    """What the stand-in for the controller says; tests change it while it runs."""

    waiting: int = 137
    engines: Callable[[float, int], list[Json]] = lambda now_s, waiting: [engine(now_s, waiting)]
    findings: list[Json] = field(default_factory=list)
    """What is amiss."""
    learner: Json = field(default_factory=dict)
    pit: Callable[[int], float] | None = None
    """Where the outcomes lie in their predictions, by the request's number; None: as calibrated ones."""
    gain: Json = field(default_factory=lambda: deepcopy(GAIN))
    no_gain: Json | None = None
    """The answer while there is no comparison."""
    empty: bool = False
    disk_error: str | None = None
    """Why the history cannot be written."""
    facts: Json = field(default_factory=dict)
    mode: str = "on"
    store_path: Path | None = None
    orders: list[Json] = field(default_factory=list)
    health: Json = field(default_factory=lambda: deepcopy(HEALTH))

    def measured(self, model: str, **changes: object) -> Json:
        """How the predictions for a model compare with the outcomes."""
        return {
            "model": model,
            "scope": "model",
            "cluster": None,
            "answers": 1000,
            "censored": 7,
            "coverage_50": 0.49,
            "coverage_90": 0.91,
            "crps_tokens": 51.0,
            "log_score": -3.2,
            "prior_log_score": -3.6,
            "pinball_tokens": 20.0,
            "kendall_tau": 0.4,
            "pit_histogram": [0.1] * 10,
            "trusted": True,
            "reason": "due",
        } | changes


def answer(kind: type[View], value: Json) -> Response:
    """An answer of the controller's own kind: what it has no field for, or another type, is an error of the test."""
    return Response(msgspec.json.encode(msgspec.convert(value, kind)), media_type="application/json")


def add_health(app: FastAPI, world: World) -> None:
    """Configuration, doctor and the switch of modes."""

    @app.get("/api/health")
    def get_health() -> Response:
        return answer(HealthView, world.health)

    @app.get("/api/doctor")
    def get_doctor() -> Response:
        return answer(DoctorView, DOCTOR)

    @app.post("/api/mode")
    def set_mode(order: Json) -> Response:
        world.orders.append(order)
        world.mode = order["mode"]
        return answer(ModeView, {"settings": SETTINGS | {"mode": world.mode}})


def add_recent_past(app: FastAPI, world: World) -> None:
    """What is read from the history: nothing while it cannot be written."""

    def answer(view: Callable[[], Json]) -> Response:
        if world.disk_error is not None:
            problem = {"error": world.disk_error, "remedy": "try again in a few seconds"}
            return Response(json.dumps(problem), status_code=503)
        return Response(json.dumps({} if world.empty else view()), media_type="application/json")

    @app.get("/api/load")
    def get_load(seconds: float, bins: int) -> Response:
        return answer(lambda: load(time.time(), seconds, bins, world.waiting))

    @app.get("/api/latency")
    def get_latency(seconds: float, bins: int, part: str | None = None) -> Response:
        now_s = time.time()
        return answer(lambda: latency(now_s, seconds, bins, finished(now_s, seconds), part))

    @app.get("/api/service")
    def get_service(seconds: float, bins: int) -> Response:
        if world.empty:
            return Response(msgspec.json.encode(ServiceView(newest_s=None, bucket_s=seconds / bins)))
        return answer(lambda: msgspec.to_builtins(service(time.time(), seconds, bins)))

    @app.get("/api/finished")
    def get_finished(seconds: float, limit: int) -> Response:
        points = finished(time.time(), seconds)[-limit:]
        if world.pit is not None:
            points = [point | {"pit": world.pit(number)} for number, point in enumerate(points)]
        return answer(lambda: {"finished": points})


def add_strangers(app: FastAPI) -> None:
    """Addresses at which something else than a controller of this release answers."""

    @app.get("/bad/api/state")
    def get_garbled() -> Response:
        return Response("<html>something else lives here</html>", media_type="text/html")

    @app.get("/old/api/state")
    def get_old() -> Json:
        view = state(time.time(), [])
        del view["learner"]["backlog"]
        return view

    @app.get("/locked/api/state")
    def get_locked() -> Response:
        return Response("no", status_code=401)

    @app.get("/slow/api/state")
    def get_slow() -> Json:
        time.sleep(1.0)
        return {}


def application(world: World) -> FastAPI:
    """Serve the shape of the controller's API from ``world``; time is the real one, so numbers change."""
    app = FastAPI()
    add_health(app, world)
    add_strangers(app)

    @app.get("/api/state")
    def get_state() -> Response:
        now_s = time.time()
        view = state(now_s, world.engines(now_s, world.waiting), **world.learner)
        store_path = None if world.store_path is None else str(world.store_path)
        view["controller"] |= {"mode": world.mode, "store_path": store_path}
        return answer(StateView, view)

    @app.get("/api/now")
    def get_now(engine_id: str | None = None, model: str | None = None) -> Response:
        now_s = time.time()
        engines = [
            each
            for each in world.engines(now_s, world.waiting)
            if engine_id in {None, each["engine_id"]} and model in {None, each["model"]}
        ]
        return answer(NowView, present(now_s, engines, world.findings))

    @app.get("/api/queue")
    def get_queue(engine_id: str | None = None, limit: int = 500) -> Response:
        now_s = time.time()
        return answer(QueueView, {"time_s": now_s, "rows": []} if world.empty else queue(now_s, world.waiting, limit))

    add_recent_past(app, world)

    @app.get("/api/gain")
    def get_gain() -> Response:
        return answer(GainView, world.no_gain or {"status": "ready", "computed_s": 0.0, "gain": world.gain})

    @app.get("/api/explain/{request_id:path}")
    def get_explanation(request_id: str) -> Response:
        if not request_id.startswith("cmpl-"):
            return Response('{"error": "no such request", "remedy": "ask for another"}', status_code=404)
        return Response(json.dumps(explained(time.time(), request_id, **world.facts)), media_type="application/json")

    return app


class Standing:
    """A real HTTP server that stands for the controller; may go away and come back on the same port."""

    def __init__(self) -> None:
        self.world = World()
        self.port = free_port(0)
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(application(self.world), port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        deadline_s = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline_s, "the stand-in for the controller did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()


def life(number: int, end_s: float) -> list[Entry]:
    """One request's arrival, prediction, end and outcome."""
    name, arrival_s = f"cmpl-{number}", end_s - 2.0 - number % 7
    facts = [
        Arrived(
            request_id=name, arrival_s=arrival_s, prompt_tokens=100, token_ids=b"", max_tokens=512, temperature=1.0
        ),
        Finished(
            request_id=name,
            time_s=end_s,
            reason="stop",
            arrival_s=arrival_s,
            prompt_tokens=100,
            output_tokens=40,
            max_tokens=512,
            cached_prompt_tokens=0,
            preemptions=0,
            recomputed_tokens=0,
            scheduled_s=arrival_s + 0.5,
            first_token_s=arrival_s + 1.0,
        ),
    ]
    predictions = [
        Prediction(
            request_id=name,
            time_s=arrival_s,
            cluster=1,
            features=struct.pack("<4f", 0.1, 0.2, 0.3, 0.4),
            prompt_hash="h",
            mean_tokens=50.0,
            p10_tokens=10,
            p25_tokens=20,
            p50_tokens=40,
            p75_tokens=60,
            p90_tokens=90,
            p95_tokens=100,
            p99_tokens=200,
            evidence=9.0,
            experts={"cluster": 0.7, "global": 0.3},
            predict_s=0.001,
        ),
        Outcome(
            request_id=name,
            time_s=end_s,
            output_tokens=40,
            censored=False,
            cluster=1,
            pit=0.5,
            crps_tokens=3.0,
            log_score=1.0,
            within_50=number % 2 == 0,
            within_90=True,
            answer=number,
        ),
    ]
    engine_id, session_id = ("engine-1", "t") if number % 10 == 9 else ("engine-0", "s")
    return [
        *(Entry(engine_id=engine_id, session_id=session_id, batch=number + 1, record=fact) for fact in facts),
        *(Entry(engine_id=engine_id, session_id=session_id, batch=None, record=predicted) for predicted in predictions),
    ]


def about_engines(time_s: float) -> list[Entry]:
    """Two engines of two models that connected, a drift, clusters that were merged, and settings that were tuned."""
    entries = []
    for engine_id, session_id, model in (("engine-0", "s", "qwen3-32b"), ("engine-1", "t", "small")):
        hello = Hello(
            engine_id=engine_id,
            session_id=session_id,
            model=model,
            engine="simulated",
            engine_version="1",
            kv_blocks=9,
            block_size_tokens=16,
            max_num_seqs=8,
            token_budget=99,
            max_model_len_tokens=99,
            prefix_caching=False,
            started_s=time_s,
        )
        seen = EngineSeen(time_s=time_s, event="connected", hello=hello)
        rules = EngineRules(gate=Gate(horizon_tokens=256, margin=1.15), boost_per_s=0.02)
        settings = Settings(revision=2, mode="on", lease_s=2.0, rules=rules)
        tuned = SettingsChanged(time_s=time_s, settings=settings, reason=f"reserve more on {engine_id}")
        entries += [
            Entry(engine_id=engine_id, session_id=session_id, batch=None, record=fact) for fact in (seen, tuned)
        ]
    drift = DriftDetected(
        time_s=time_s + 900.0,
        model="qwen3-32b",
        cluster=1,
        before_mean_tokens=90.0,
        after_mean_tokens=40.0,
        forgotten=12.0,
        renewed_requests=3,
    )
    merged = ClusterChanged(time_s=time_s + 950.0, kind="merged", cluster=4, other_cluster=1)
    return [
        *entries,
        *(Entry(engine_id="engine-0", session_id="s", batch=None, record=fact) for fact in (drift, merged)),
    ]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A history of 300 requests, one ended every 5 seconds up to 2026-01-01 00:00 UTC; one in ten by a second engine."""
    path = tmp_path / "recorded"
    writer = HistoryWriter(path).start()
    writer.append(about_engines(1_767_225_600.0 - 1500.0))
    for number in range(300):
        writer.append(life(number, 1_767_225_600.0 - 5 * number))
    writer.close()
    return path


@pytest.fixture
def of_one_model(tmp_path: Path) -> Path:
    """A history of 30 requests of one model, all of the same cluster."""
    path = tmp_path / "of_one_model"
    writer = HistoryWriter(path).start()
    writer.append(about_engines(1_767_225_600.0 - 1500.0))
    for number in range(0, 300, 10):
        writer.append(life(number, 1_767_225_600.0 - 5 * number))
    writer.close()
    return path


@pytest.fixture
def left_behind(recorded: Path) -> Path:
    """The same, where one engine reported until the end: its mode was switched, and it fell back in the last second."""
    end_s = 1_767_225_600.0
    reports = [snapshot(end_s - 120.0 + 10.0 * number, 137) for number in range(12)]
    reports.append(snapshot(end_s - 1.0, 7, fallback="no heartbeat", mode="off"))
    switched = ModeSwitched(
        time_s=end_s - 60.0, before="shadow", mode="on", reason="trial", who=None, credential="token", address="a"
    )
    writer = HistoryWriter(recorded).start()
    for report in reports:
        fact = msgspec.convert(report, Snapshot)
        writer.append([Entry(engine_id="engine-0", session_id="s", batch=None, record=fact)])
    writer.append([Entry(engine_id="", session_id="", batch=None, record=switched)])
    writer.close()
    return recorded


@pytest.fixture
def empty_history(tmp_path: Path) -> Path:
    """A history that was opened and holds nothing."""
    path = tmp_path / "empty"
    HistoryWriter(path).start().close()
    return path


@pytest.fixture(scope="module")
def lasting() -> Iterator[Standing]:
    """One stand-in for the controller for a whole module."""
    server = Standing()
    yield server
    if server._thread.is_alive():
        server.stop()


@pytest.fixture
def standing() -> Iterator[Standing]:
    server = Standing()
    yield server
    if server._thread.is_alive():
        server.stop()
