"""The worker of `controller.replay.gain_watcher`: one comparison from standard input to standard output, then it ends."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Any

import msgspec

from controller.config import PolicySection
from controller.policy.from_config import policy_of
from controller.replay.gain import Gain, estimate_gain
from controller.replay.recorded_run import RecordedRun

LOWEST_PRIORITY = 19


class GainTask(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared: what happened on an engine lately, under the policy of the configuration."""

    policy: dict[str, Any]
    run: RecordedRun
    clusters: dict[str, int] = {}
    """Prompt cluster of the requests where it is known."""


def main() -> None:
    """Read a `GainTask`, write the answer of ``/api/gain``."""
    os.nice(LOWEST_PRIORITY)
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=GainTask)
    sys.stdout.buffer.write(msgspec.json.encode(answer_of(task)))


def answer_of(task: GainTask) -> dict[str, Any]:
    """Compare."""
    gain = estimate_gain(task.run, policy_of(PolicySection.model_validate(task.policy)), task.clusters)
    if gain is None:
        return {"status": "warming up", "method": "too few finished requests have a prediction", "requests": 0}
    return _answer(gain)


def _answer(gain: Gain) -> dict[str, Any]:
    fit = gain.fit
    return {
        "status": "ready",
        "method": gain.method,
        "requests": gain.requests,
        "actual": asdict(gain.actual),
        "fcfs": asdict(gain.fcfs),
        "modelled": asdict(gain.ours),
        "ratio": asdict(gain.ratio),
        "parts": [asdict(part) for part in gain.parts],
        "fcfs_tax": asdict(gain.fcfs_tax),
        "tax": asdict(gain.tax),
        "waiting": asdict(gain.waiting),
        "reproduction": {
            "mode": gain.mode,
            "mean_ttlt_error": fit.mean_ttlt.error,
            "p99_ttlt_error": fit.p99_ttlt.error,
            "request_error_s": fit.request_error_s,
            "poor": list(fit.poor),
        },
    }


if __name__ == "__main__":
    main()
