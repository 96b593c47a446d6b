"""The worker of `controller.gain_watch`: one comparison from standard input to standard output, then it ends."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Any

import msgspec

from controller.config import PolicySection
from controller.gain import EngineSizes, FinishedRequest, Gain, estimate_gain
from controller.policy_choice import policy_of
from controller.step_model import StepSample

LOWEST_PRIORITY = 19


class GainTask(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared: requests that finished, and the engine that served them."""

    policy: dict[str, Any]
    requests: tuple[FinishedRequest, ...]
    samples: tuple[StepSample, ...]
    kv_blocks: int
    block_size_tokens: int
    max_num_seqs: int
    token_budget: int
    max_model_len_tokens: int


def main() -> None:
    """Read a `GainTask`, write the answer of ``/api/gain``."""
    os.nice(LOWEST_PRIORITY)
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=GainTask)
    sys.stdout.buffer.write(msgspec.json.encode(answer_of(task)))


def answer_of(task: GainTask) -> dict[str, Any]:
    """Compare."""
    sizes = EngineSizes(
        kv_blocks=task.kv_blocks,
        block_size_tokens=task.block_size_tokens,
        max_num_seqs=task.max_num_seqs,
        token_budget=task.token_budget,
        max_model_len_tokens=task.max_model_len_tokens,
    )
    gain = estimate_gain(task.requests, task.samples, sizes, policy_of(PolicySection.model_validate(task.policy)))
    if gain is None:
        return {"status": "warming up", "method": "too few finished requests have a prediction", "requests": 0}
    return _answer(gain)


def _answer(gain: Gain) -> dict[str, Any]:
    return {
        "status": "ready",
        "method": gain.method,
        "requests": gain.requests,
        "actual": asdict(gain.actual),
        "fcfs": asdict(gain.fcfs),
        "modelled": asdict(gain.ours),
    }


if __name__ == "__main__":
    main()
