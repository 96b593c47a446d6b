"""A GPU that only keeps time, under vLLM's whole API server, engine core, scheduler and KV manager.

``--distributed-executor-backend engine_adapter.vllm.virtual_gpu.VirtualGpu`` selects it in vLLM.
A step takes the profile's time divided by the speed; steps queue, as on a device.
Each answer ends with the end-of-sequence token at the request's true length, which only the device reads:
``"vllm_xargs": {"true_len": "315"}``. A request without one runs to its max_tokens.
Equal prompts get equal tokens, as of a model that does not sample.
With ``"report": PATH`` in its settings the device writes to that file, as one JSON object, how long it computed and how
long it waited for a late host (`DeviceTime`).
Guided decoding, log probabilities and LoRA weights are not supported: there is no model.
"""

from __future__ import annotations

import json
import logging
import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

from engine_adapter.virtual_time.profiles import Profile, profile_named
from engine_adapter.vllm.releases import prompt_tokens
from store.errors import ConfigError

log = logging.getLogger("vllm.sagesched.virtual_gpu")

REPORT_INTERVAL_S = 0.5
"""Interval between reports while it computes; vLLM may kill its engine core without warning."""

FIRST_PLAIN_TOKEN_ID = 16
"""Lower ids are reserved for a tokenizer's special tokens."""


@dataclass(frozen=True, slots=True)
class VirtualGpuSettings:
    """The device's profile, its speed relative to real time, and the path of its report."""

    profile: Profile
    speed: float
    report: Path | None = None


def virtual_gpu_settings(additional_config: object, environment: Mapping[str, str]) -> VirtualGpuSettings:
    """Read ``--additional-config '{"virtual_gpu": {...}}'``, then the environment; raises `ConfigError`.

    >>> virtual_gpu_settings({"virtual_gpu": {"profile": "h800-qwen3-32b", "speed": 8}}, {}).speed
    8.0
    >>> virtual_gpu_settings({}, {"SAGESCHED_VIRTUAL_GPU_SPEED": "0"})
    Traceback (most recent call last):
    store.errors.ConfigError: virtual GPU speed '0' is no positive number: give how many times faster than real it goes
    """
    given = additional_config.get("virtual_gpu", {}) if isinstance(additional_config, dict) else {}
    if not isinstance(given, dict) or given.keys() - {"profile", "speed", "report"}:
        raise ConfigError(f'additional config "virtual_gpu" is {given!r}: give an object of profile, speed and report')
    profile = given.get("profile") or environment.get("SAGESCHED_VIRTUAL_GPU_PROFILE") or "h800-qwen3-32b-24k"
    speed = given.get("speed") or environment.get("SAGESCHED_VIRTUAL_GPU_SPEED") or 1.0
    report = given.get("report")
    return VirtualGpuSettings(profile_named(str(profile)), _positive(speed), Path(str(report)) if report else None)


def _positive(speed: object) -> float:
    try:
        value = float(speed)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ConfigError(
            f"virtual GPU speed {speed!r} is no positive number: give how many times faster than real it goes"
        )
    return value


@dataclass(slots=True)
class DeviceTime:
    """How a device spent its time, in device seconds, of which ``speed`` pass in a real second."""

    steps: int = 0
    busy_s: float = 0.0
    """Time of computation by the profile, as intended."""
    starved_s: float = 0.0
    """Idle time with unfinished requests, because the host was late with the next step."""


@dataclass(slots=True)
class _Sequence:
    """A request on the device."""

    prompt_tokens: int
    true_output_tokens: int | None
    end_token_id: int | None
    seed: int
    """What the tokens are made from: a checksum of the prompt."""


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """The load of one step and the tokens that it generates."""

    prefill_tokens: int
    decode_seqs: int
    kv_tokens: int
    token_ids: dict[str, list[int]]
    """New tokens of each scheduled request; none for one whose prompt is not complete."""


class Device:
    """A device's state of each request, from which a step's load and tokens follow; without a clock."""

    def __init__(self, vocabulary_tokens: int) -> None:
        self._plain_tokens = max(1, vocabulary_tokens - FIRST_PLAIN_TOKEN_ID)
        self._sequences: dict[str, _Sequence] = {}

    def step(self, output: SchedulerOutput) -> DeviceStep:
        """Compute a scheduled step."""
        for request_id in output.finished_req_ids:
            self._sequences.pop(request_id, None)
        prefill_tokens = decode_seqs = kv_tokens = 0
        token_ids: dict[str, list[int]] = {}
        for request_id, computed_tokens, output_tokens in self._scheduled(output):
            scheduled_tokens = output.num_scheduled_tokens[request_id]
            sequence = self._sequences[request_id]
            reached_tokens = computed_tokens + scheduled_tokens
            complete = reached_tokens >= sequence.prompt_tokens + output_tokens
            kv_tokens += reached_tokens
            if complete and output_tokens and scheduled_tokens == 1:
                decode_seqs += 1
            else:
                prefill_tokens += scheduled_tokens
            token_ids[request_id] = [self._token_id(sequence, output_tokens + 1)] if complete else []
        return DeviceStep(prefill_tokens, decode_seqs, kv_tokens, token_ids)

    def _scheduled(self, output: SchedulerOutput) -> Iterator[tuple[str, int, int]]:
        """Request id, computed tokens and output tokens before the step, in flight ones included."""
        for new in output.scheduled_new_reqs:
            sequence = self._sequences[new.req_id] = _sequence(new)
            known_tokens = sequence.prompt_tokens if new.prefill_token_ids is None else len(new.prefill_token_ids)
            yield new.req_id, new.num_computed_tokens, known_tokens - sequence.prompt_tokens
        cached = output.scheduled_cached_reqs
        yield from zip(cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True)

    def _token_id(self, sequence: _Sequence, position: int) -> int:
        if position == sequence.true_output_tokens and sequence.end_token_id is not None:
            return sequence.end_token_id
        token_id = FIRST_PLAIN_TOKEN_ID + crc32(b"%d/%d" % (sequence.seed, position)) % self._plain_tokens
        return token_id if token_id != sequence.end_token_id else token_id - 1


class VirtualGpu(Executor):  # type: ignore[misc]
    """vLLM's executor over a `Device` whose steps take the profile's time."""

    def _init_executor(self) -> None:
        config: VllmConfig = self.vllm_config
        settings = virtual_gpu_settings(config.additional_config, os.environ)
        self._profile = settings.profile
        self._speed = settings.speed
        self._device = Device(config.model_config.get_vocab_size())
        self._clock = ThreadPoolExecutor(max_workers=1, thread_name_prefix="virtual-gpu")
        self._free_s = 0.0
        self._time = DeviceTime()
        self._report = settings.report
        self._next_report_s = 0.0
        self._unsampled: deque[Future[ModelRunnerOutput]] = deque()

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """Steps may be queued ahead, as on a real device."""
        return True

    def collective_rpc(
        self,
        method: str | Callable[..., object],
        timeout: float | None = None,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Answer in place of the one worker, which does not exist."""
        answers = self._answer(method)
        if not non_block:
            return answers
        return _done(answers)

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """Queue a step on the device; `sample_tokens` returns its tokens."""
        step = self._device.step(scheduler_output)
        if not step.token_ids:
            return _done(EMPTY_MODEL_RUNNER_OUTPUT) if non_block else EMPTY_MODEL_RUNNER_OUTPUT
        duration_s = self._profile.step_s(
            prefill_tokens=step.prefill_tokens, decode_seqs=step.decode_seqs, kv_tokens=step.kv_tokens
        )
        now_s = time.monotonic()
        goes_on = bool(scheduler_output.scheduled_cached_reqs.req_ids)
        self._count(duration_s, starved_s=max(0.0, now_s - self._free_s) * self._speed if goes_on else 0.0)
        if now_s >= self._next_report_s:
            self._next_report_s = now_s + REPORT_INTERVAL_S
            self._write_report()
        self._free_s = max(now_s, self._free_s) + duration_s / self._speed
        self._unsampled.append(self._clock.submit(_at, self._free_s, _runner_output(step.token_ids)))
        return _done(None) if non_block else None

    def sample_tokens(self, grammar_output: object, non_block: bool = False) -> Any:
        """Return the tokens of the oldest unsampled step, once the device has finished it."""
        future = self._unsampled.popleft()
        return future if non_block else future.result()

    def check_health(self) -> None:
        """Always healthy."""

    def shutdown(self) -> None:
        """Wait for the steps under way."""
        self._clock.shutdown(wait=True)
        self._write_report()

    def _count(self, duration_s: float, *, starved_s: float) -> None:
        self._time.steps += 1
        self._time.busy_s += duration_s
        self._time.starved_s += starved_s

    def _write_report(self) -> None:
        if self._report is not None:
            self._report.write_text(json.dumps(asdict(self._time)), encoding="utf-8")

    def _answer(self, method: str | Callable[..., object]) -> list[Any]:
        match method:
            case "get_kv_cache_spec":
                return [{"layer": self._kv_cache_spec()}]
            case "determine_available_memory":
                # One more block than requests can use, because vLLM reserves the null block.
                return [self._kv_cache_spec().page_size_bytes * (self._kv_blocks() + 1)]
            case "get_supported_kv_cache_layouts":
                return [["LBHNC"]]
            case "get_supported_tasks":
                return [("generate",)]
            case "compile_or_warm_up_model":
                return []
            case _:
                return [None]

    def _kv_cache_spec(self) -> FullAttentionSpec:
        return FullAttentionSpec(
            block_size=self.cache_config.block_size, num_kv_heads=1, head_size=16, dtype=torch.float32
        )

    def _kv_blocks(self) -> int:
        return self._profile.kv_tokens // int(self.cache_config.block_size)


def _sequence(new: NewRequestData) -> _Sequence:
    sampling: SamplingParams | None = new.sampling_params
    extra = (sampling.extra_args if sampling else None) or {}
    return _Sequence(
        prompt_tokens(new),
        _whole(extra.get("true_len"), new.req_id),
        sampling.eos_token_id if sampling else None,
        _seed(new),
    )


def _seed(new: NewRequestData) -> int:
    """A checksum of the prompt; of the request's id where the prompt is no token ids."""
    if new.prompt_token_ids is None:
        return crc32(new.req_id.encode())
    return crc32(array("q", new.prompt_token_ids))


def _whole(true_len: object, request_id: str) -> int | None:
    """Parse a true length; an invalid one counts as none, because a client's error must not stop the device."""
    try:
        return None if true_len is None else max(1, int(str(true_len)))
    except ValueError:
        log.warning("request %r has true_len %r, which is no whole number: ignored", request_id, true_len)
        return None


def _runner_output(token_ids: dict[str, list[int]]) -> ModelRunnerOutput:
    return ModelRunnerOutput(
        req_ids=list(token_ids),
        req_id_to_index={request_id: place for place, request_id in enumerate(token_ids)},
        sampled_token_ids=list(token_ids.values()),
    )


def _at(moment_s: float, output: ModelRunnerOutput) -> ModelRunnerOutput:
    time.sleep(max(0.0, moment_s - time.monotonic()))
    return output


def _done(result: object) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
