"""A separate controller for a measurement: a child process and a client of its API."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from controller.api.client import ApiClient, client_of_child
from engine_adapter.serving.processes import Child, Children, free_port

READY_S = 120.0


def start_controller(
    children: Children,
    *,
    store: Path,
    endpoint: str,
    clock: Callable[[], float],
    pause: Callable[[float], object],
    flags: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[Child, ApiClient]:
    """Start a controller in mode on and wait until it has learned what is in its store; raises `EngineError` if it does not.

    ``flags`` and ``environment`` are added to those of ``serve``.
    """
    port = free_port(0)
    command = [
        *(sys.executable, "-P", "-m", "controller", "serve", "--mode", "on", *flags),
        *("--store", str(store), "--endpoint", endpoint, "--port", str(port)),
    ]
    controller = children.start("controller", command, environment={"OMP_NUM_THREADS": "1", **(environment or {})})
    api = client_of_child(f"http://127.0.0.1:{port}")
    children.await_ready(controller, partial(_has_learned, api), timeout_s=READY_S, clock=clock, pause=pause)
    return controller, api


def _has_learned(api: ApiClient) -> bool:
    return api.answers("/readyz") and "learning_past" not in api.get("/readyz")["degraded"]
