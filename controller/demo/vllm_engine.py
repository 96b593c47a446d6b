"""The demo's real engine: vLLM's server on a virtual GPU, loaded over HTTP by vLLM's benchmark client."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

from engine_adapter.serving.simulated_server import OPTIONS, synthetic_capacity_rps
from engine_adapter.serving.tiny_model import VOCABULARY_TOKENS
from engine_adapter.serving.vllm_bench_client import TraceLine, load_client, send_trace, trace_lines
from engine_adapter.serving.vllm_server import MODEL_NAME, VllmServer
from engine_adapter.virtual_time.profiles import Profile, profile_named
from engine_adapter.workloads.arrivals import Wave
from engine_adapter.workloads.requests import request_stream
from store.errors import EngineError

REQUESTS_PER_TRACE = 5000
"""Requests of one trace that the client sends; the next trace follows when all its answers have ended."""
POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _serve(options, profile_named(options.profile))
    except KeyboardInterrupt:
        return 130
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _serve(options: argparse.Namespace, profile: Profile) -> None:
    server = VllmServer(
        endpoint=options.endpoint,
        engine_id="vllm",
        profile=profile,
        speed=options.speed,
        log_path=options.log_folder / "vllm.log",
    )
    with ThreadPoolExecutor(1) as pool:
        traces = pool.submit(_prepared_traces, options, profile)
        with server:
            asyncio.run(_keep_busy(server, traces.result(), speed=options.speed))


def _prepared_traces(options: argparse.Namespace, profile: Profile) -> Iterator[list[TraceLine]]:
    """Prepare the traces while the server starts, because it takes seconds."""
    load_client()
    traces = _traces(options, profile)
    return chain([next(traces)], traces)


async def _keep_busy(server: VllmServer, traces: Iterator[list[TraceLine]], *, speed: float) -> None:
    """Send one trace after the other; raises `EngineError` if the server ends or answers no request."""
    load = asyncio.create_task(_send_all(server, traces, speed=speed))
    while not load.done():
        await asyncio.wait([load], timeout=POLL_S)
        if not server.alive:
            load.cancel()
            raise EngineError(f"vLLM ended by itself: see {server.log_path}")
    load.result()


async def _send_all(server: VllmServer, traces: Iterator[list[TraceLine]], *, speed: float) -> None:
    for trace in traces:
        result = await send_trace(trace, base_url=server.base_url, model=MODEL_NAME, speed=speed)
        if not result["completed"]:
            raise EngineError(f"none of {len(trace)} requests was answered: {result['errors'][0]}")


def _traces(options: argparse.Namespace, profile: Profile) -> Iterator[list[TraceLine]]:
    """The endless synthetic load in pieces, each of which begins with its first arrival."""
    stream = request_stream(
        seed=options.seed,
        rate_rps=options.load * synthetic_capacity_rps(profile, seed=options.seed),
        cv=options.cv,
        wave=Wave(period_s=options.wave_period * options.speed, depth=options.wave_depth),
        options=OPTIONS,
        vocabulary_size=VOCABULARY_TOKENS,
    )
    while True:
        yield trace_lines(islice(stream, REQUESTS_PER_TRACE), profile)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m controller.demo.vllm_engine", description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--log-folder", type=Path, required=True)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--load", type=float, required=True)
    parser.add_argument("--cv", type=float, required=True)
    parser.add_argument("--wave-depth", type=float, required=True)
    parser.add_argument("--wave-period", type=float, default=120.0, help="seconds from crest to crest")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
