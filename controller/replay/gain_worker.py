"""The worker of `controller.replay.gain_watcher`: one comparison from standard input to standard output, then it ends."""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from controller.config import PolicySection
from controller.policy.from_config import policy_of
from controller.replay.gain import estimate_gain
from controller.replay.recorded_run import RecordedRun

LOWEST_PRIORITY = 19


class GainTask(msgspec.Struct, frozen=True, kw_only=True):
    """Input of a comparison: the latest run of an engine, and the policy of the configuration."""

    policy: dict[str, Any]
    run: RecordedRun


def main() -> None:
    """Read a `GainTask`; write the `Gain`, or null if there is too little to compare."""
    os.nice(LOWEST_PRIORITY)
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=GainTask)
    gain = estimate_gain(task.run, policy_of(PolicySection.model_validate(task.policy)))
    sys.stdout.buffer.write(msgspec.json.encode(gain))


if __name__ == "__main__":
    main()
