"""`doctor`: checks that everything is there that the controller needs, with a remedy for each failure."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from controller.config import Config, EngineSection
from controller.own_packages import NAMES, complaint
from controller.prompt_encoder import check_encoder, load_encoder
from engine_adapter.transport.zmq_sockets import prepare_endpoint
from store.errors import SageError
from store.history.files import Folder, WriterLock, folder_problem
from store.http_api import Finding

ENOUGH_DISK_BYTES = 1 << 30
CHECK_S = 120.0
"""Timeout in seconds of the check of vLLM, which takes long to import."""
EARLIEST_S = 1_735_689_600.0
"""The first of January 2025: a clock before that is not set."""

VLLM_REMEDY = "install a release that docs/compatibility.md names; with any other vLLM serves in its own order"

CONTROLLER_MODULES = ("duckdb", "fastapi", "numpy", "prometheus_client", "pyarrow", "river", "sklearn", "uvicorn")
DASHBOARD_MODULES = ("plotly", "streamlit")


def examine(config: Config, *, now_s: float) -> Iterator[Finding]:
    """Carry out every check but that of vLLM."""
    yield _python()
    yield _names()
    yield _modules("controller packages", CONTROLLER_MODULES, "controller", needed=True)
    yield _modules("dashboard packages", DASHBOARD_MODULES, "dashboard", needed=False)
    yield _clock(config.store.path, now_s)
    yield _store(config.store.path)
    yield _disk(config.store.path)
    yield _endpoint(config.engine)
    yield _port(config.http.host, config.http.port)
    if config.learning.encoder is not None:
        yield _encoder(config.learning.encoder, config.learning.tokenizer)


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    release = importlib.metadata.version("sagesched-controller")
    return Finding(name="installation", state="ok", text=f"sagesched-controller {release}, Python {version}")


def _names() -> Finding:
    problem = complaint()
    if problem is None:
        return Finding(name="import names", state="ok", text=", ".join(NAMES))
    what, remedy = problem.split("; ", 1)
    return Finding(name="import names", state="wrong", text=what, remedy=remedy)


def _modules(name: str, modules: tuple[str, ...], extra: str, *, needed: bool) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return Finding(name=name, state="ok", text=", ".join(modules))
    return Finding(
        name=name,
        state="wrong" if needed else "note",
        text=f"missing {', '.join(missing)}",
        remedy=f'install "sagesched-controller[{extra}]"',
    )


def _clock(store: Path, now_s: float) -> Finding:
    if now_s < EARLIEST_S:
        return Finding(name="clock", state="wrong", text=f"stands at {now_s:.0f} s", remedy="set the system's clock")
    catalog = Folder(store).catalog
    ahead_s = catalog.stat().st_mtime - now_s if catalog.exists() else 0.0
    if ahead_s > 60.0:
        return Finding(
            name="clock",
            state="wrong",
            text=f"the history was written {ahead_s:.0f} s in the future",
            remedy="check that time synchronisation runs",
        )
    return Finding(name="clock", state="ok", text=f"{datetime.fromtimestamp(now_s, UTC):%Y-%m-%d %H:%M:%S} UTC")


def _store(store: Path) -> Finding:
    folder = Folder(store)
    if not store.exists():
        parent = next(path for path in store.absolute().parents if path.exists())
        if parent.is_dir() and os.access(parent, os.W_OK):
            return Finding(name="history", state="ok", text=f"{store} will be made at the first start")
        return Finding(
            name="history",
            state="wrong",
            text=f"{store} cannot be made in {parent}",
            remedy="choose a folder of your own with --store",
        )
    problem = folder_problem(store)
    if problem is None and not os.access(store, os.R_OK | os.W_OK | os.X_OK):
        problem = f"{store} is not readable and writable for this user: choose a folder of your own with --store"
    if problem is not None:
        text, remedy = problem.split(": ", 1)
        return Finding(name="history", state="wrong", text=text, remedy=remedy)
    if not folder.lock.exists():
        return Finding(name="history", state="ok", text=f"{store}, nobody has written there")
    try:
        WriterLock(folder).release()
    except SageError as error:
        return Finding(name="history", state="note", text=str(error))
    return Finding(name="history", state="ok", text=f"{store}, no controller is writing")


def _disk(store: Path) -> Finding:
    parent = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    text = f"{free / 2**30:.1f} GiB free at {parent}"
    if free < ENOUGH_DISK_BYTES:
        return Finding(
            name="disk", state="wrong", text=text, remedy="make room, or lower store.retention_gb (1 GiB is needed)"
        )
    return Finding(name="disk", state="ok", text=text)


def _endpoint(engine: EngineSection) -> Finding:
    try:
        prepare_endpoint(engine.endpoint, engine.keys, engine.socket_group)
    except (SageError, OSError) as error:
        return Finding(name="endpoint", state="wrong", text=str(error), remedy="set engine.endpoint, engine.keys")
    return Finding(name="endpoint", state="ok", text=engine.endpoint)


def _port(host: str, port: int) -> Finding:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(
                name="port",
                state="note",
                text=f"{host}:{port}: {error.strerror}",
                remedy="a controller may be running there already; if not, choose another with --port",
            )
    return Finding(name="port", state="ok", text=f"{host}:{port} is free")


def _encoder(encoder: Path, tokenizer: Path | None) -> Finding:
    """Load the encoder and let it read a prompt."""
    try:
        check_encoder(encoder, tokenizer)
        assert tokenizer is not None, "it was checked"
        [embedding] = load_encoder(encoder, tokenizer)([b"\0\0\0\0"])
    except SageError as error:
        return Finding(name="encoder", state="wrong", text=str(error), remedy="see the settings of [learning]")
    except Exception as error:  # noqa: BLE001 - a model may fail in any way, and the other checks are to go on
        text = f"{encoder}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        return Finding(name="encoder", state="wrong", text=text, remedy="give another model, or leave it out")
    return Finding(name="encoder", state="ok", text=f"{encoder} reads prompts, {embedding.size} dimensions")


def examine_vllm() -> Finding:
    """Check vLLM in a separate process, because the controller must not import it; that takes seconds."""
    if importlib.util.find_spec("vllm") is None:
        return Finding(
            name="vLLM",
            state="note",
            text="not in this environment",
            remedy="fine if vLLM runs in another one: install sagesched-controller there and run `doctor` there too",
        )
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "engine_adapter.vllm.probe"],
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            check=False,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
        )
    except subprocess.TimeoutExpired:
        return Finding(name="vLLM", state="wrong", text=f"no answer within {CHECK_S:g} s", remedy="try again")
    lines = answer.stdout.strip().splitlines() or answer.stderr.strip().splitlines() or ["the check said nothing"]
    if answer.returncode == 0:
        return Finding(name="vLLM", state="ok", text=lines[-1])
    return Finding(
        name="vLLM",
        state="wrong",
        text=lines[-1],
        remedy=VLLM_REMEDY,
    )
