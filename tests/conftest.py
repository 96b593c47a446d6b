"""What tests of several packages share: a small run of the simulated engine with everything that is recorded of it."""

from __future__ import annotations

import importlib.util
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, islice
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import pytest

from controller.core.in_process import IN_PROCESS, InProcessController
from controller.explain.lookup import recorded_timeline
from controller.policy.policies import policy_named
from controller.policy.service_levels import ServiceLevels
from engine_adapter.agent.agent import AgentLimits
from engine_adapter.virtual_time.engine import CompletedRequest, Step, TraceRequest, serve
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.length_learner import Observation, Prompt
from store.entries import Entry
from store.history.writer import HistoryWriter
from store.http_requests import RequestTimeline
from store.records import Arrived, Mode, Snapshot

# How long an example takes is the machine's affair: a test fails for what it finds.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

WAITING_FIRST = ("attack", "system", "faults", "machines", "real_engine", "simulation")
"""Folders whose tests wait for servers most of their time: begun first, none of them is left over at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the order within a file stays."""
    places = {name: place for place, name in enumerate(WAITING_FIRST)}
    items.sort(key=lambda item: min((places.get(part, len(places)) for part in item.path.parts), default=len(places)))


@pytest.fixture(scope="session")
def docs_script() -> Callable[[str], ModuleType]:
    """Load a script of docs/, which is in no package, by its name."""
    return _docs_script


@cache
def _docs_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[1] / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = Profile(
    name="small",
    base_s=0.03,
    prefill_token_s=1e-4,
    decode_seq_s=1e-4,
    kv_token_s=1e-7,
    kv_tokens=4_000,
    max_num_seqs=12,
    token_budget=1_024,
    max_model_len_tokens=2_048,
)
REQUESTS = 150


@dataclass(frozen=True)
class SmallRun:
    """A run, by what the engine knows and by what the history has."""

    lives: dict[str, CompletedRequest]
    store: Path
    entries: list[Entry]
    """All that the controller had to record."""

    def recorded(self, request_id: str) -> RequestTimeline:
        return _recorded(self.store, request_id)

    @property
    def snapshots(self) -> list[Snapshot]:
        return [entry.record for entry in self.entries if isinstance(entry.record, Snapshot)]


_recorded = cache(recorded_timeline)


def _requests(start_s: float, seed: int) -> list[TraceRequest]:
    """More than the engine can hold, with two classes and a client that leaves."""
    chance = random.Random(seed)
    return [
        TraceRequest(
            request_id=f"r{number}",
            arrival_s=start_s + 0.04 * number,
            token_ids=tuple(range(chance.randint(20, 600))),
            max_tokens=chance.choice([50, 200, 800]),
            true_output_tokens=min(800, round(chance.lognormvariate(4.0, 1.2)) + 1),
            priority=0 if number % 10 else -1,
            tenant="t",
            abort_after_tokens=5 if number == 40 else None,
        )
        for number in range(REQUESTS)
    ]


def _told_s(entry: Entry) -> float:
    record = entry.record
    return record.arrival_s if isinstance(record, Arrived) else record.time_s


class _LateHost(SimulatedEngine):
    """An engine whose next step begins a while after the one before has ended."""

    host_s = 0.0

    def step(self) -> Step:
        step = super().step()
        if step.scheduled_tokens:
            self.advance_to(self.now_s + self.host_s)
        return step


def _learner(taught: int) -> GlobalLearner:
    """A learner with so many answers of other seeds behind it."""
    learner = GlobalLearner()
    prompt = Prompt(token_ids=np.arange(9, dtype=np.uint32), prompt_tokens=9, max_tokens=800, temperature=1.0, model="")
    for request in islice((request for seed in count(100) for request in _requests(0.0, seed)), taught):
        answer = Observation(request.true_output_tokens, censored=False)
        learner.learn_one(learner.features(prompt), prompt.model, answer)
    return learner


def _serve_small(
    path: Path,
    *,
    mode: Mode = "on",
    start_s: float = 0.0,
    policy: str = "sage",
    switch: tuple[float, Mode] | None = None,
    host_s: float = 0.0,
    known_until_s: float = math.inf,
    seed: int = 4,
    service: ServiceLevels | None = None,
    taught: int = 0,
) -> SmallRun:
    """Serve it under a policy in virtual time, and record it all in ``path``.

    ``switch`` says when to which mode, ``host_s`` how long the host takes between two steps.
    What happens after ``known_until_s`` is not recorded. The learner has ``taught`` such answers behind it.
    """
    entries: list[Entry] = []
    controller = InProcessController(
        _learner(taught),
        policy_named(policy),
        config=replace(IN_PROCESS, mode=mode, service=service or ServiceLevels()),
        now_s=start_s,
        on_entries=entries.extend,
    )

    def switch_mode(_step: Step) -> None:
        if switch is not None and engine.now_s >= start_s + switch[0]:
            controller.core.set_mode(switch[1], "asked for", engine.now_s)
            controller.deliver()

    limits = AgentLimits(snapshot_interval_s=0.05)
    link = controller.link(lambda: engine.now_s)
    engine = _LateHost(SMALL, link=link, limits=limits, start_s=start_s)
    engine.host_s = host_s
    totals = serve(engine, _requests(start_s, seed), on_step=switch_mode)
    assert totals.preemptions > 0, "the run must have something to tell"
    with HistoryWriter(path) as writer:
        writer.append([entry for entry in entries if _told_s(entry) <= known_until_s])
    return SmallRun({life.request_id: life for life in totals.completed}, path, entries)


@pytest.fixture(scope="session")
def serve_small() -> Callable[..., SmallRun]:
    return _serve_small
