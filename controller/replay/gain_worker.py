"""The worker of `controller.replay.gain_watcher`: one comparison from standard input to standard output, then it ends."""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

import msgspec

from controller.config import PolicySection
from controller.policy.from_config import policy_of
from controller.policy.policies import OVERTAKING, Objective
from controller.policy.policy import Policy
from controller.replay.gain import estimate_gain
from controller.replay.recorded_run import RecordedRun

LOWEST_PRIORITY = 19

MEMORY_BYTES = 2 << 30
"""Data that a comparison may hold; beyond it it fails, and the controller beside it does not."""


class GainTask(msgspec.Struct, frozen=True, kw_only=True):
    """Input of a comparison: the latest run of an engine, and the policy of the configuration."""

    policy: dict[str, Any]
    run: RecordedRun


def main() -> None:
    """Read a `GainTask`; write the `Gain`, or null if there is too little to compare."""
    os.nice(LOWEST_PRIORITY)
    bound_memory()
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=GainTask)
    section = PolicySection.model_validate(task.policy)
    gain = estimate_gain(task.run, policy_of(section), _objectives(section))
    sys.stdout.buffer.write(msgspec.json.encode(gain))


def bound_memory() -> None:
    """Let this process hold no more data than `MEMORY_BYTES`, or than it might before if that was less."""
    bound, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if bound == resource.RLIM_INFINITY or bound > MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, hard))


def _objectives(section: PolicySection) -> dict[Objective, Policy] | None:
    """The configured policy with each objective, for comparison; None where it has none or its settings replace it."""
    if section.name != "sage" or section.boost_per_s is not None or section.overtaking is not None:
        return None
    return {name: policy_of(section.model_copy(update={"objective": name})) for name in OVERTAKING}


if __name__ == "__main__":
    main()
