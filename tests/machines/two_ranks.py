"""Two data-parallel ranks of a real vLLM server on the virtual GPU, under one controller: ``make ranks``.

Takes a minute or two on two cores, most of it the start of two engine cores; CI runs `test_ranks` in its place.
Prints one JSON line; exit code 1 where something is not as it should be.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from controller.api.client import ApiClient
from engine_adapter.serving.processes import Children, free_port
from engine_adapter.serving.vllm_server import MODEL_NAME, VllmServer
from engine_adapter.virtual_time.profiles import PROFILES
from store.errors import SageError

REQUESTS = 80
WAIT_S = 120.0


def main() -> int:
    """Serve, look at what the controller knows of both ranks, and print it."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sagesched-ranks-") as name, Children(Path(name)) as children:
        port = free_port(0)
        endpoint = f"ipc://{name}/run/engine.sock"
        command = [
            *(sys.executable, "-m", "controller", "serve", "--mode", "on", "--store", f"{name}/history"),
            *("--endpoint", endpoint, "--port", str(port)),
        ]
        children.start("controller", command, environment={"OMP_NUM_THREADS": "1"})
        profile = PROFILES["h800-qwen3-32b-24k"]
        ranks = ("--data-parallel-size", "2")
        with VllmServer(endpoint=endpoint, profile=profile, speed=4.0, arguments=ranks, ready_s=600.0) as server:
            ready_s = time.monotonic() - began_s
            with ThreadPoolExecutor(16) as pool:
                statuses = set(pool.map(lambda number: _complete(server, number), range(REQUESTS)))
            engines = _settled(ApiClient(f"http://127.0.0.1:{port}"))
    found = {
        "ready_s": round(ready_s, 1),
        "all_s": round(time.monotonic() - began_s, 1),
        "requests": REQUESTS,
        "statuses": sorted(statuses),
        "ranks": {
            engine["engine_id"]: {
                "mode": engine["snapshot"]["mode"],
                "tables_sent": engine["tables_sent"],
                "tables_applied": engine["snapshot"]["tables_applied"],
                "policy_errors": engine["snapshot"]["policy_errors"],
            }
            for engine in engines
        },
    }
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if _as_it_should_be(found) else 1


def _complete(server: VllmServer, number: int) -> int:
    body = {
        "model": MODEL_NAME,
        "prompt": " ten" * (3 + number % 20),
        "max_tokens": 300,
        "vllm_xargs": {"true_len": str(20 + number % 50)},
    }
    return httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=WAIT_S).status_code


def _settled(api: ApiClient) -> list[dict[str, Any]]:
    """The engines, once the controller knows that all has ended."""
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            state = api.get("/api/state")
        except SageError:
            state = {"engines": [], "learner": {"completions": 0}}
        if state["learner"]["completions"] >= REQUESTS or time.monotonic() > until_s:
            engines: list[dict[str, Any]] = [engine for engine in state["engines"] if engine["snapshot"]]
            return engines
        time.sleep(0.2)


def _as_it_should_be(found: dict[str, Any]) -> bool:
    ranks = found["ranks"]
    return (
        found["statuses"] == [200]
        and set(ranks) == {"vllm", "vllm-dp1"}
        and all(rank["tables_applied"] > 0 and rank["policy_errors"] == 0 for rank in ranks.values())
    )


if __name__ == "__main__":
    sys.exit(main())
