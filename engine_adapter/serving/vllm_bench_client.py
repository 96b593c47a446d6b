"""VLLM's own benchmark client, ``vllm bench serve``, on a trace of this project.

Its command line has no dataset whose requests have token ids, arrival times and extra fields; the Python function
behind it accepts them, so this module passes the trace to that function.
The client needs no GPU, sends over HTTP and measures by itself; nothing here changes its figures.

Run it as ``python -m engine_adapter.serving.vllm_bench_client --base-url URL --model NAME --trace FILE --speed X --result FILE``.
The trace has one JSON line for each request, as `TraceLine`; the result is JSON of what the client says: the start, the
time to first token and the latency of each request in the order of the trace, and how many met their targets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from engine_adapter.agent.hints import extra_args
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from store.records import Targets

_HEADERS = {"ttft": "x-llm-d-slo-ttft-ms", "tpot": "x-llm-d-slo-tpot-ms", "e2el": "x-sagesched-slo-e2e-ms"}
"""The headers that tell a server the targets of ``--goodput``."""

_OF_EACH_REQUEST = ("output_lens", "ttfts", "latencies", "start_times", "errors")


class TraceLine(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace."""

    request_id: str
    arrival_s: float
    """Since the trace's first arrival, in engine seconds."""
    token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    true_output_tokens: int
    """For the virtual GPU only, which ends the answer there."""
    tenant: str | None = None
    session: str | None = None
    service_class: str | None = None
    targets: Targets | None = None
    sheds: bool = False


def trace_lines(requests: Iterable[TraceRequest], profile: Profile) -> list[TraceLine]:
    """Convert requests in order of arrival to a trace whose time begins with the first of them.

    Limits are lowered to the room in the profile's context, as vLLM requires.
    """
    ordered = list(requests)
    return [_traced(request, ordered[0].arrival_s, profile) for request in ordered]


def write_trace(trace: Iterable[TraceLine], path: Path) -> None:
    """Write a trace for `main`."""
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in trace))


def main(arguments: Sequence[str] | None = None) -> int:
    """Send the trace and write the result; return 1 when any request failed."""
    options = _parser().parse_args(arguments)
    lines = options.trace.read_bytes().splitlines()
    trace = [msgspec.json.decode(line, type=TraceLine) for line in lines]
    result = asyncio.run(
        send_trace(trace, base_url=options.base_url, model=options.model, speed=options.speed, show_progress=True)
    )
    options.result.write_text(json.dumps(result), encoding="utf-8")
    failed = len(trace) - result["completed"]
    if failed:
        sys.stderr.write(f"{failed} of {len(trace)} requests failed\n")
    return 1 if failed else 0


def load_client() -> None:
    """Import the client before `send_trace`: the import takes seconds."""
    import_module("vllm.benchmarks.datasets")
    import_module("vllm.benchmarks.serve")


async def send_trace(
    trace: Sequence[TraceLine], *, base_url: str, model: str, speed: float, show_progress: bool = False
) -> dict[str, Any]:
    """Send every request at its arrival, ``speed`` engine seconds per second, and wait for all answers.

    Targets are told in headers, as `engine_adapter.http_hints` reads them, in the server's own time. The client judges
    all requests of a run by the same targets, so that it runs once for each set of them, at the same time.

    Returns:
        Of the client's own result what it says of each request, in the order of the trace, where ``errors`` has a text
        for each; ``completed``, the number of answers; ``asked``, the number of requests with targets, and ``good``, how
        many of these met them all as the client judges. A failing request does not stop the others.
    """
    groups: dict[Targets | None, list[int]] = {}
    for number, line in enumerate(trace):
        groups.setdefault(line.targets, []).append(number)
    send = partial(_send, base_url=base_url, model=model, speed=speed, show_progress=show_progress)
    results = await asyncio.gather(
        *(send([trace[number] for number in one], targets) for targets, one in groups.items())
    )
    asked = sum(len(numbers) for targets, numbers in groups.items() if targets is not None)
    return {
        **_in_order(list(groups.values()), results),
        "completed": sum(result["completed"] for result in results),
        "asked": asked,
        "good": sum(round((result["request_goodput"] or 0.0) * result["duration"]) for result in results),
    }


async def _send(
    trace: Sequence[TraceLine],
    targets: Targets | None,
    *,
    base_url: str,
    model: str,
    speed: float,
    show_progress: bool,
) -> dict[str, Any]:
    """Run the client on requests that have the same targets."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    requests = [
        SampleRequest(
            prompt=list(request.token_ids),
            prompt_len=len(request.token_ids),
            expected_output_len=request.max_tokens,
            request_id=request.request_id,
            timestamp=request.arrival_s / speed,
            request_overrides=_fields(request),
        )
        for request in trace
    ]
    limits_ms = target_limits_ms(targets, speed)
    result: dict[str, Any] = await benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type="openai",
        api_url=f"{base_url}/v1/completions",
        base_url=base_url,
        model_id=model,
        model_name=model,
        tokenizer=None,
        input_requests=requests,
        logprobs=None,
        request_rate=float("inf"),
        burstiness=1.0,
        disable_tqdm=not show_progress,
        num_warmups=0,
        profile=False,
        selected_percentile_metrics=["ttft", "e2el"],
        selected_percentiles=[50.0, 90.0, 99.0],
        ignore_eos=False,
        goodput_config_dict=limits_ms,
        max_concurrency=None,
        lora_modules=None,
        extra_headers={_HEADERS[name]: repr(limit_ms) for name, limit_ms in limits_ms.items()},
        extra_body={},
        ready_check_timeout_sec=0,
        self_timed=True,
    )
    return result


def target_limits_ms(targets: Targets | None, speed: float) -> dict[str, float]:
    """Targets in milliseconds of the server's own time, under the names of ``--goodput``.

    >>> target_limits_ms(Targets(ttft_s=2.0, tpot_s=0.08), speed=4.0)
    {'ttft': 500.0, 'tpot': 20.0}
    """
    targets = targets or Targets()
    limits_s = {"ttft": targets.ttft_s, "tpot": targets.tpot_s, "e2el": targets.e2e_s}
    return {name: 1000.0 * limit_s / speed for name, limit_s in limits_s.items() if limit_s is not None}


def _in_order(groups: Sequence[Sequence[int]], results: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Put what several runs of the client say of each request into the order of the trace."""
    numbers = list(chain.from_iterable(groups))
    ordered: dict[str, list[Any]] = {}
    for name in _OF_EACH_REQUEST:
        of_number = dict(zip(numbers, chain.from_iterable(result[name] for result in results), strict=True))
        ordered[name] = [of_number[number] for number in range(len(numbers))]
    return ordered


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine_adapter.serving.vllm_bench_client", description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--speed", type=float, default=1.0, help="engine seconds per second")
    return parser


def _fields(request: TraceLine) -> dict[str, object]:
    """Return what a request says in its body: all but its targets."""
    extra = {"true_len": str(request.true_output_tokens), **extra_args(msgspec.structs.replace(request, targets=None))}
    return {"temperature": request.temperature, "vllm_xargs": extra}


def _traced(request: TraceRequest, start_s: float, profile: Profile) -> TraceLine:
    room_tokens = profile.max_model_len_tokens - len(request.token_ids)
    return TraceLine(
        request_id=request.request_id,
        arrival_s=request.arrival_s - start_s,
        token_ids=tuple(request.token_ids),
        max_tokens=max(1, min(request.max_tokens, room_tokens)),
        temperature=request.temperature,
        true_output_tokens=request.true_output_tokens,
        tenant=request.tenant,
        session=request.session,
        service_class=request.service_class,
        targets=request.targets,
        sheds=request.sheds,
    )


if __name__ == "__main__":
    raise SystemExit(main())
