"""`evaluate --upkeep`: what a restart costs, from history and from the learner's file, and whether predictions are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from rich.table import Table

from controller.benchmark.prediction.study import MAX_TOKENS, task_prompts
from controller.benchmark.synthetic_history import synthetic_facts, synthetic_hello
from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from controller.reports.tables import text_table
from controller.service.warm_start import rebuild
from engine_adapter.virtual_time.profiles import profile_named
from engine_adapter.workloads.requests import bench_trace, to_requests
from online_learning.evaluation.memory import held_bytes
from online_learning.length_learner import Prompt
from online_learning.mixture.mixture import MixtureLearner
from store.entries import Entry
from store.history.writer import HistoryWriter
from store.records import Facts

COMPARED_PROMPTS = 200
"""Number of prompts whose predictions before and after the restart are compared."""

_MODEL = "served"
_PROFILE = "h800-qwen3-32b-24k"
_SAMPLE = 8_000
"""Number of requests taken from the workload; they are served repeatedly if more answers are asked for."""

_AT_ONCE = 500
_CONNECTION = b"upkeep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What a restart costs."""

    answers: int
    rebuild_s: float
    rebuild_cpu_s: float
    memory_bytes: int
    """Size of the learner after all answers."""
    state_bytes: int
    """Of its file."""
    write_s: float
    read_s: float
    """Time to turn what was learnt into the file's content, and that back."""
    largest_difference: float
    """Largest difference of a probability in any compared prediction before and after the restart."""


def measure_upkeep(
    workload: str,
    store: Path,
    *,
    answers: int,
    seed: int,
    clock: Callable[[], float],
    cpu_clock: Callable[[], float],
    progress: Callable[[int], None],
) -> Upkeep:
    """Serve ``answers`` requests with a history in ``store``, an empty folder, and rebuild a learner from it."""
    lived = MixtureLearner()
    _serve(lived, workload, store, answers=answers, seed=seed, progress=progress)
    again = MixtureLearner()
    started_s, cpu_s = clock(), cpu_clock()
    core = _controller(again).core
    taught = rebuild(core, store, answers)
    rebuild_s, rebuild_cpu_s = clock() - started_s, cpu_clock() - cpu_s
    read, started_s = MixtureLearner(), clock()
    state = core.past.written()
    written_s = clock()
    _controller(read).core.past.restore(state)
    read_s = clock()
    prompts = [prompt for _, prompt, _ in task_prompts(workload, requests=COMPARED_PROMPTS, seed=seed)]
    return Upkeep(
        answers=taught,
        rebuild_s=rebuild_s,
        rebuild_cpu_s=rebuild_cpu_s,
        memory_bytes=held_bytes(again),
        state_bytes=len(state),
        write_s=written_s - started_s,
        read_s=read_s - written_s,
        largest_difference=max(_largest_difference(lived, other, prompts) for other in (again, read)),
    )


def upkeep_table(upkeep: Upkeep) -> Table:
    """One row."""
    headings = (
        "answers",
        "rebuilt in s",
        "CPU s",
        "µs each",
        "learner MB",
        "state MB",
        "written in s",
        "read in s",
        "largest difference",
    )
    row = (
        str(upkeep.answers),
        f"{upkeep.rebuild_s:.1f}",
        f"{upkeep.rebuild_cpu_s:.1f}",
        f"{1e6 * upkeep.rebuild_cpu_s / max(1, upkeep.answers):.0f}",
        f"{upkeep.memory_bytes / 1e6:.1f}",
        f"{upkeep.state_bytes / 1e6:.1f}",
        f"{upkeep.write_s:.2f}",
        f"{upkeep.read_s:.2f}",
        f"{upkeep.largest_difference:g}",
    )
    return text_table("A restart", headings, [row])


def _serve(
    learner: MixtureLearner, workload: str, store: Path, *, answers: int, seed: int, progress: Callable[[int], None]
) -> None:
    sample = bench_trace(workload, requests=min(answers, _SAMPLE), warmup=0, seed=seed, max_tokens=MAX_TOKENS)
    rows = tuple(islice(cycle(sample.measured_rows), answers))
    requests = to_requests(rows, [float(number) for number in range(answers)], seed=seed, max_tokens=MAX_TOKENS)
    profile = profile_named(_PROFILE)
    with HistoryWriter(store) as writer:
        controller = _controller(learner, writer.append)
        controller.handle(_CONNECTION, synthetic_hello(profile, _MODEL, 0.0), 0.0)
        for number, request in enumerate(requests, start=1):
            facts = Facts(batch=number, facts=synthetic_facts(request, profile), oldest=number)
            controller.handle(_CONNECTION, facts, request.arrival_s)
            if number % _AT_ONCE == 0 or number == answers:
                progress(number)


def _controller(
    learner: MixtureLearner, on_entries: Callable[[list[Entry]], object] = lambda _entries: None
) -> InProcessController:
    return InProcessController(learner, policy_named("sage"), on_entries=on_entries)


def _largest_difference(one: MixtureLearner, other: MixtureLearner, prompts: list[Prompt]) -> float:
    differences = [0.0]
    for prompt in prompts:
        features = one.features(prompt)
        mine, theirs = (learner.predict_one(features, _MODEL).distribution.mass for learner in (one, other))
        differences.append(float(np.abs(mine - theirs).max()))
    return max(differences)
