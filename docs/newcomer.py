"""A newcomer's path, timed: ``make newcomer`` clones, starts the demo, and starts everything beside a `vllm serve`.

The first part is the README's: ``git clone``, ``make demo``, until a browser shows requests being served.
The second runs the three commands of docs/operating.md's "Start" as they stand there, in the clone's environment, with
other folders and ports; `vllm serve` computes a tiny random model on the CPU, so that no GPU and no download is needed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect, sync_playwright

from engine_adapter.serving.processes import free_port
from engine_adapter.serving.tiny_model import VOCABULARY_TOKENS, make_tiny_model
from engine_adapter.serving.vllm_server import server_environment

ROOT = Path(__file__).parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SHOWN_MS = 300_000
READY_S = 600.0
MODEL_LEN_TOKENS = 2048
SERVER = ["-m", "vllm.entrypoints.openai.api_server"]
TINY = ["--load-format", "dummy", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
REQUESTS = 200


def main() -> None:
    """Walk both paths and print how long each stage took."""
    with tempfile.TemporaryDirectory(prefix="sagesched-newcomer-") as folder, _browser() as page:
        clone = Path(folder, "sagesched")
        for stage, taken_s in chain(_demo(clone, page), _beside_vllm(clone, Path(folder), page)):
            sys.stdout.write(f"{stage:<58}{taken_s:8.1f} s\n")
            sys.stdout.flush()


def _demo(clone: Path, page: Page) -> Iterator[tuple[str, float]]:
    """``git clone`` and ``make demo``, until the first requests are on the screen."""
    started_s = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    yield "git clone", time.monotonic() - started_s
    started_s = time.monotonic()
    with _running(["make", "demo"], clone, dict(os.environ), subprocess.PIPE) as demo:
        assert demo.stdout is not None
        address = next(found[1] for line in demo.stdout if (found := re.match(r"dashboard\s+(\S+)", line)))
        yield "make demo: environment and start, until the address is told", time.monotonic() - started_s
        _see_requests(page, address)
        yield "make demo: until a browser shows requests being served", time.monotonic() - started_s


def _beside_vllm(clone: Path, folder: Path, page: Page) -> Iterator[tuple[str, float]]:
    """The three commands of the operator's page, until requests to vLLM's own server are on the screen."""
    started_s = time.monotonic()
    subprocess.run(["make", "setup"], cwd=clone, check=True)
    yield "make setup: the environment with vLLM", time.monotonic() - started_s
    serve, vllm, dashboard = _start_commands(clone, folder / "history")
    api_port, vllm_port, dashboard_port = (free_port(0) for _ in range(3))
    environment = {
        **server_environment(os.environ),
        "PATH": f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "SAGESCHED_HTTP__PORT": str(api_port),
    }
    model = make_tiny_model(
        folder / "model", max_model_len_tokens=MODEL_LEN_TOKENS, vocabulary_tokens=VOCABULARY_TOKENS
    )
    # The build for CPUs is no package named vllm, which the command ``vllm`` asks for: its module is the same server.
    if vllm[:3] != ["vllm", "serve", "MODEL"]:
        raise SystemExit(f"docs/operating.md serves with {shlex.join(vllm)}: begin with vllm serve MODEL")
    vllm = [str(clone / ".venv" / "bin" / "python"), *SERVER, "--model", str(model), *vllm[3:]]
    vllm += [*TINY, "--served-model-name", "tiny", "--max-model-len", str(MODEL_LEN_TOKENS), "--port", str(vllm_port)]
    started_s = time.monotonic()
    with (
        _running(serve, clone, environment),
        _running(vllm, clone, environment),
        _running([*dashboard, "--port", str(dashboard_port)], clone, environment),
        ThreadPoolExecutor(16) as clients,
    ):
        _wait(f"http://127.0.0.1:{vllm_port}/health")
        yield "beside vllm serve: until vLLM is ready", time.monotonic() - started_s
        _wait(f"http://127.0.0.1:{dashboard_port}/_stcore/health")
        # A request that is refused is told here, and not by a browser that waits for it.
        _ask(f"http://127.0.0.1:{vllm_port}", tokens=1)
        asked = [clients.submit(_ask, f"http://127.0.0.1:{vllm_port}") for _ in range(REQUESTS)]
        _see_requests(page, f"http://127.0.0.1:{dashboard_port}")
        yield "beside vllm serve: until a browser shows its requests", time.monotonic() - started_s
        for answer in asked:
            answer.cancel()


def _start_commands(clone: Path, history: Path) -> list[list[str]]:
    """The documented commands, in their order."""
    text = (clone / "docs" / "operating.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^## Start\n+```sh\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line.replace("/var/lib/sagesched", str(history))) for line in block.splitlines()]
    if len(commands) != 3:
        raise SystemExit(f"docs/operating.md promises three commands and has {len(commands)}")
    return commands


def _ask(address: str, tokens: int = 1000) -> None:
    body = {"model": "tiny", "prompt": "How long will this take?", "max_tokens": tokens, "ignore_eos": True}
    httpx.post(f"{address}/v1/completions", json=body, timeout=READY_S).raise_for_status()


def _see_requests(page: Page, address: str) -> None:
    """Wait until the first page says that requests run."""
    page.goto(address)
    running = page.get_by_test_id("stMetric").filter(has_text="Running").get_by_test_id("stMetricValue")
    expect(running.first).to_have_text(re.compile(r"^[1-9]"), timeout=SHOWN_MS)


def _wait(address: str) -> None:
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s:
        try:
            if httpx.get(address, timeout=2.0).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit(f"{address} did not answer within {READY_S:g} s")


@contextmanager
def _running(
    command: list[str], folder: Path, environment: dict[str, str], stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[str]]:
    """A command in a group of its own, which is interrupted as by Ctrl-C in the end."""
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, text=True, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


@contextmanager
def _browser() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser.new_page()
        browser.close()


if __name__ == "__main__":
    main()
