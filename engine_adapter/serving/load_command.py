"""The load generator's command line: progress on standard error, one JSON object as the last line of standard output."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np

from engine_adapter.serving.load_generator import Target, run_load, served_models
from engine_adapter.serving.load_results import Served, summarise
from engine_adapter.workloads.arrivals import Wave
from engine_adapter.workloads.requests import SYNTHETIC, BenchTrace, bench_trace, with_arrivals
from store.errors import BadInputError, SageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Send a load; 0 when any request was answered, 1 when none was, 2 for bad usage or input."""
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_run(options))
    except SageError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, BadInputError) else 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine_adapter.serving.load_generator",
        description="Send a workload to an OpenAI-compatible server and measure the answers. "
        "The key of a protected server is read from OPENAI_API_KEY.",
    )
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000", help="the server (default %(default)s)")
    add("--model", help="name of the model; default: the first that the server serves")
    add("--workload", default="synthetic", help=f"a workload file, or one of {', '.join(SYNTHETIC)}")
    add("--requests", type=int, default=100, help="how many to send (default %(default)s)")
    add("--rate", type=float, help="mean requests per engine second; default: the workload's own times, or all at once")
    add("--cv", type=float, help="coefficient of variation of the gaps between arrivals; 1 is Poisson")
    add("--wave-depth", type=float, default=0.0, help="swing of the rate, as a share of it (default none)")
    add("--wave-period", type=float, default=120.0, help="real seconds from crest to crest (default %(default)s)")
    add("--seed", type=int, default=0, help="of choice and arrivals (default %(default)s)")
    add("--speed", type=float, default=1.0, help="engine seconds per second, for a virtual GPU (default %(default)s)")
    add("--max-tokens", type=int, default=1024, help="limit of requests that bring none (default %(default)s)")
    add("--max-open-requests", type=int, default=1024, help="bound on requests under way (default %(default)s)")
    add("--timeout", type=float, default=600.0, help="longest silence of the server in seconds (default %(default)s)")
    add("--vocabulary-size", type=int, default=32_000, help="token ids stay below it (default %(default)s)")
    add("--text", action="store_true", help="send prompts as text where the workload has it, not as token ids")
    add("--send-priority", action="store_true", help="send the requests' priority classes")
    add("--send-tenant", action="store_true", help="send the requests' tenants")
    add("--tell-true-length", action="store_true", help="tell a virtual GPU where to end each answer")
    add("--rows", type=Path, metavar="FILE", help="write one JSON line for each request there")
    return parser


async def _run(options: argparse.Namespace) -> int:
    works = bench_trace(
        options.workload,
        requests=options.requests,
        warmup=0,
        seed=options.seed,
        rate_rps=options.rate,
        cv=options.cv,
        max_tokens=options.max_tokens,
        vocabulary_size=options.vocabulary_size,
    )
    wave = Wave(period_s=options.wave_period * options.speed, depth=options.wave_depth)
    arrivals_s = wave.bend(np.array([work.arrival_s for work in works.measured]))
    target = await _target(options)
    progress = _ProgressLine(len(works.measured))
    served = await run_load(
        with_arrivals(works.measured, arrivals_s),
        target,
        texts=_texts(works) if options.text else None,
        on_served=progress.count,
    )
    if options.rows is not None:
        _write_rows(options.rows, served)
    summary = summarise(served)
    settings = {name: getattr(options, name) for name in ("workload", "rate", "cv", "wave_depth", "seed", "speed")}
    result = {**settings, "base_url": target.base_url, "model": target.model, **asdict(summary)}
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return 0 if summary.failed < summary.requests else 1


async def _target(options: argparse.Namespace) -> Target:
    api_key = os.environ.get("OPENAI_API_KEY")
    models = {model.name: model for model in await served_models(options.base_url, api_key=api_key)}
    name = options.model or next(iter(models), None)
    if name not in models:
        served = ", ".join(models) or "no model"
        raise BadInputError(f"model is {name}, and the server at {options.base_url} serves {served}: name one of those")
    return Target(
        base_url=options.base_url,
        model=name,
        max_model_len_tokens=models[name].max_model_len_tokens,
        api_key=api_key,
        speed=options.speed,
        max_open_requests=options.max_open_requests,
        timeout_s=options.timeout,
        send_priority=options.send_priority,
        send_tenant=options.send_tenant,
        tell_true_length=options.tell_true_length,
    )


def _texts(works: BenchTrace) -> dict[str, str]:
    pairs = zip(works.measured, works.measured_rows, strict=True)
    return {work.request_id: row.prompt for work, row in pairs if row.prompt is not None}


def _write_rows(path: Path, served: Sequence[Served]) -> None:
    try:
        path.write_bytes(b"".join(msgspec.json.encode(asdict(one)) + b"\n" for one in served))
    except OSError as error:
        raise BadInputError(f"cannot write {path} ({error.strerror}): give a path that can be written") from error


class _ProgressLine:
    """Says on standard error how far a load is, about twenty times in all."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._ended = 0
        self._failed = 0

    def count(self, served: Served) -> None:
        """One more request has ended."""
        self._ended += 1
        self._failed += served.error is not None
        if self._ended % max(1, self._requests // 20) == 0 or self._ended == self._requests:
            sys.stderr.write(f"{self._ended} of {self._requests} requests ended, {self._failed} failed\n")
