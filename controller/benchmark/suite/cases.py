"""The cases of the suite: workload, profile, arrivals and load, and the policies that run on each.

All workloads are made by the project itself, so that everybody can run every case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeAlias

from controller.benchmark.scheduling.run import BenchEngine
from controller.benchmark.scheduling.spec import BenchSpec
from controller.policy.baselines import PAPER, PRIORITY
from engine_adapter.virtual_time.simulated_scheduler import Scheduling
from engine_adapter.workloads.built_in import SESSIONS
from store.errors import BadInputError

OURS = {"balanced": "sage-balanced", "mean": "sage-mean", "tail": "sage-tail"}
"""Our objectives, and the policies that the benchmark runs for them; the first is the default."""
DEFAULT = OURS["balanced"]
STOCK = "fcfs"
BASELINES = (STOCK, "fcfs-gated", PAPER)

LOADS = (0.5, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 2.0)
PREFIX_LOADS = (0.9, 1.05)
CLASS_LOADS = (0.9, 1.15)
OVERLOAD = 1.3
"""From this load on a run has `OVERLOAD_REQUESTS`, so that the queue has time to grow deep."""
REQUESTS, OVERLOAD_REQUESTS, WARMUP = 1_500, 4_000, 1_500
SESSION_CALLS = 40 * SESSIONS
VLLM_LOADS = (1.05, 1.15)
"""Loads that run on vLLM's scheduler too where both engines are asked for."""
TAIL_LOAD = 1.15
"""Up to this load the objective ``tail`` has targets."""
BUDGETS = (512, 2_048)
"""Token budgets that an expert would try beside the profile's."""

PROFILES = {"24k": "h800-qwen3-32b-24k", "68k": "h800-qwen3-32b", "480k": "h800-qwen3-32b-480k"}
"""Profiles by the word that stands in a case's name."""

Kind: TypeAlias = Literal[
    "traffic", "batch", "prefix", "sessions", "long-prompts", "classes", "tenants", "backlog", "interactive"
]
"""What the traffic is made of, which decides the targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One workload on one profile at one load, over several seeds.

    >>> Case(family="bursts", place="24k", load=0.9, arrivals="gamma:3").name
    'bursts-24k@0.9'
    """

    family: str
    place: str
    """The word for the profile in the name, as in `PROFILES`."""
    load: float
    """Arrival rate over the capacity of first come, first served, which counts where requests arrive at a rate (`has_load`)."""
    workload: str = "synthetic"
    arrivals: str = "own"
    kind: Kind = "traffic"
    scheduling: Scheduling = "fcfs"
    """The engine's own order under our policies."""
    requests: int = REQUESTS
    warmup: int = WARMUP
    fair_tenants: bool = False
    """Whether tenants share the engine by equal weights under our policies."""
    objectives: bool = True
    """Whether the other objectives run beside the default."""

    @property
    def name(self) -> str:
        """Name on the command line and in reports."""
        return f"{self.group}@{self.load:g}" if self.has_load else self.group

    @property
    def has_load(self) -> bool:
        """Whether requests arrive at a rate relative to the capacity, and neither all at once nor at times of their own."""
        return self.arrivals not in {"at-once", "unscaled"}

    @property
    def group(self) -> str:
        """Name without the load."""
        return f"{self.family}-{self.place}"

    @property
    def profile(self) -> str:
        """The profile's name."""
        return PROFILES[self.place]

    @property
    def on_vllm(self) -> bool:
        """Whether it runs on vLLM's scheduler too where both engines are asked for: one load stands for the others."""
        return not self.has_load or self.load in VLLM_LOADS

    @property
    def policies(self) -> tuple[str, ...]:
        """All policies that run: baselines, the default, and the other objectives where they have targets."""
        baselines = (*BASELINES, PRIORITY) if self.scheduling == "priority" else BASELINES
        tail = self.has_load and self.load <= TAIL_LOAD
        others = [OURS["mean"], *([OURS["tail"]] if tail else [])] if self.objectives else []
        return (*baselines, DEFAULT, *others)

    def spec(self, *, seeds: tuple[int, ...], engine: BenchEngine, tuned: bool) -> BenchSpec:
        """The benchmark that measures this case."""
        return BenchSpec(
            workload=self.workload,
            profile=self.profile,
            load=self.load,
            requests=self.requests,
            warmup=self.warmup,
            seeds=seeds,
            policies=self.policies,
            engine=engine,
            arrivals=self.arrivals,
            scheduling=self.scheduling,
            fair_tenants=self.fair_tenants,
            tuned=tuned,
            budgets=BUDGETS,
        )


def _loaded(case: Case, loads: Iterable[float] = LOADS) -> list[Case]:
    """The case at each load."""
    return [replace(case, load=load, requests=OVERLOAD_REQUESTS if load >= OVERLOAD else REQUESTS) for load in loads]


def _built_in() -> list[Case]:
    plain = Case(family="plain", place="24k", load=1.0)
    heavy = replace(plain, family="heavy-tail", workload="synthetic:heavy-tail")
    batch = replace(plain, family="batch", arrivals="at-once", kind="batch")
    prefix = replace(plain, family="prefix-8k", workload="prefix-8k", kind="prefix", requests=1_000, warmup=500)
    two = replace(prefix, family="prefix-4k-two", workload="prefix-4k-two")
    own = replace(plain, place="480k", arrivals="unscaled")
    classes = replace(plain, family="classes", workload="classes", kind="classes", scheduling="priority")
    shared = replace(own, place="68k", fair_tenants=True, objectives=False)
    return [
        *_loaded(plain),
        *_loaded(replace(plain, place="68k")),
        *_loaded(heavy),
        *_loaded(replace(heavy, place="68k")),
        *_loaded(replace(plain, family="no-signal", workload="synthetic:no-signal")),
        *_loaded(replace(plain, family="drift", workload="synthetic:drift")),
        *_loaded(replace(plain, family="bursts", arrivals="gamma:3")),
        batch,
        replace(batch, family="heavy-batch", workload="synthetic:heavy-tail"),
        *(
            replace(case, place=place, load=load)
            for case in (prefix, two)
            for place in ("24k", "68k")
            for load in PREFIX_LOADS
        ),
        replace(own, family="sessions", workload="sessions", kind="sessions", requests=SESSION_CALLS, warmup=300),
        replace(own, family="long-prompts", workload="long-prompts", kind="long-prompts", warmup=600),
        *(replace(classes, load=load) for load in CLASS_LOADS),
        replace(shared, family="tenants", workload="tenants", kind="tenants", requests=900, warmup=300),
        replace(
            shared,
            family="tenants-backlog",
            workload="tenants-backlog",
            kind="backlog",
            arrivals="at-once",
            requests=720,
            warmup=300,
        ),
        replace(
            own,
            place="68k",
            family="batch-interactive",
            workload="batch-interactive",
            kind="interactive",
            scheduling="priority",
            requests=1_500,
            warmup=300,
            objectives=False,
        ),
    ]


CASES = tuple(_built_in())
"""Every case, in the order in which they are reported."""

SHORT_SEEDS = (1,)
SHORT_CASES = tuple(
    replace(case, requests=700, warmup=700, objectives=False)
    for case in CASES
    if case.name
    in {
        "plain-24k@0.9",
        "plain-24k@1.15",
        "plain-68k@1",
        "heavy-tail-24k@1",
        "no-signal-24k@1",
        "drift-24k@1.15",
        "bursts-24k@0.9",
        "batch-24k",
        "prefix-8k-24k@0.9",
        "classes-24k@1.15",
    }
)
"""The short form: small runs of the default on the kinds of traffic that went wrong at some time."""


def cases_of_file(workload: str) -> tuple[Case, ...]:
    """The cases of somebody's own workload: every load on both profiles.

    >>> [case.name for case in cases_of_file("logs/mix.parquet:drift")][-1]
    'mix-drift-68k@2'
    """
    path, _, variant = workload.partition(":")
    family = f"{Path(path).stem}-{variant}" if variant else Path(path).stem
    return tuple(
        case
        for place in ("24k", "68k")
        for case in _loaded(Case(family=family, place=place, load=1.0, workload=workload))
    )


def selected(cases: Sequence[Case], names: Sequence[str], loads: Sequence[float] = ()) -> tuple[Case, ...]:
    """The cases of these names, at these loads where any are given.

    Args:
        cases: what there is.
        names: names of cases (``plain-24k@0.9``), of groups (``plain-24k``) or of families (``plain``); none for all.
        loads: loads; none for all.

    Raises:
        BadInputError: a name stands for no case, or no case is left.

    >>> [case.name for case in selected(CASES, ["bursts", "batch-24k"], [0.5, 1.0])]
    ['bursts-24k@0.5', 'bursts-24k@1', 'batch-24k']
    """
    known = {name for case in cases for name in (case.name, case.group, case.family)}
    for name in names:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=3, cutoff=0.0)
            raise BadInputError(f"unknown case {name!r}: give one such as {', '.join(near)} (--list has all)")
    chosen = tuple(
        case
        for case in cases
        if (not names or {case.name, case.group, case.family} & set(names)) and (not loads or case.load in loads)
    )
    if not chosen:
        raise BadInputError(f"no case has the load {', '.join(f'{load:g}' for load in loads)}: --list has all")
    return chosen
