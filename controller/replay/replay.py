"""Replays of history: first the error of reproducing the recorded runs, then the figures under other policies.

Every policy serves the same requests, at their recorded times, on a simulated engine of the recorded sizes and the
measured step times. Each run of an engine is replayed separately from an empty engine; the figures cover all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from msgspec import structs

from controller.core.step_time import FEWEST_SAMPLES
from controller.policy.baselines import BENCH_POLICY_NAMES, BenchContext, bench_policy, knows_service
from controller.policy.policies import Schedule
from controller.policy.policy import Policy
from controller.replay.fidelity import Fit, fit_of, ratio_of, totals_of
from controller.replay.recorded_run import RecordedRun, Replayable
from controller.replay.replay_engine import replay_as_recorded, replay_under
from controller.replay.window import cut_at
from controller.reports.latency_summary import PolicyFigures, figures
from controller.reports.service_figures import ServedRequest, ServiceFigures, service_figures
from engine_adapter.virtual_time.engine import CompletedRequest, Totals
from online_learning.distribution import FloatArray
from store.errors import BadInputError
from store.http_api import Ratio
from store.service_levels import DEFAULT_TARGETS, NOT_CONFIGURED

MUCH_CACHED = 0.05
FEW_PREDICTED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySpec:
    """What to replay."""

    policies: tuple[str, ...]
    """Policies to replay; without any, only the reproduction is reported."""
    schedule: Schedule
    """The settings of `sage`."""
    slo: bool = False
    """Whether service levels are reported, and the default targets are in force for requests without any."""


@dataclass(frozen=True)
class Served:
    """The counted requests as they were served, really or in a replay, always in the same order."""

    completed: tuple[CompletedRequest, ...]

    @cached_property
    def figures(self) -> PolicyFigures:
        """The figures that a benchmark reports of a policy."""
        return figures(totals_of(self.completed))

    @cached_property
    def ttlt_s(self) -> FloatArray:
        """Each request's time to last token."""
        return np.array([request.ttlt_s for request in self.completed])


@dataclass(frozen=True)
class Replay:
    """The result of a replay."""

    spec: ReplaySpec
    runs: tuple[Replayable, ...]
    recorded: Served
    reproduced: Served
    policies: dict[str, Served]

    @cached_property
    def fit(self) -> Fit:
        """The errors of the reproduction."""
        return fit_of(self.recorded.completed, self.reproduced.completed)

    def service(self, served: Served) -> ServiceFigures:
        """How many of the counted requests met their targets, or the default ones, as they were served."""
        requests = (request for past in self.runs for request in past.counted.values())
        return service_figures(
            [
                ServedRequest(one, level.service_class, level.targets)
                for one, request in zip(served.completed, requests, strict=True)
                for level in [request.level]
            ]
        )

    @property
    def assumed(self) -> int:
        """Number of counted requests with the default targets."""
        levels = (request.level for past in self.runs for request in past.counted.values())
        return sum(level.service_class == NOT_CONFIGURED for level in levels)

    def ratio(self, policy: str) -> Ratio:
        """Mean TTLT of a policy over that of the reproduction."""
        return ratio_of(self.policies[policy].ttlt_s, self.reproduced.ttlt_s)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that a reader needs to judge the figures."""
        return (*notes_of(self.runs), *(_assumed_notes(self) if self.spec.slo else ()))

    @property
    def modes(self) -> dict[str, float]:
        """Share of the requests under each mode."""
        shares: dict[str, float] = {}
        for past in self.runs:
            for mode, share in past.run.modes.items():
                shares[mode] = shares.get(mode, 0.0) + share * len(past.counted) / len(self.recorded.completed)
        return shares

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "requests": len(self.recorded.completed),
            "modes": self.modes,
            "runs": [_run_json(past) for past in self.runs],
            "reproduction": {
                **{
                    figure.name.replace(" ", "_").lower(): {
                        "recorded_s": figure.recorded_s,
                        "replayed_s": figure.replayed_s,
                        "error": figure.error,
                    }
                    for figure in self.fit.figures
                },
                "request_error_s": self.fit.request_error_s,
                "poor": list(self.fit.poor),
            },
            "recorded": asdict(self.recorded.figures),
            "as_it_ran": asdict(self.reproduced.figures),
            "policies": {
                name: {**asdict(served.figures), "ratio": structs.asdict(self.ratio(name))}
                for name, served in self.policies.items()
            },
            **({"service": self._service_json()} if self.spec.slo else {}),
            "notes": list(self.notes),
        }

    def _service_json(self) -> dict[str, Any]:
        return {
            "assumed": self.assumed,
            "recorded": asdict(self.service(self.recorded)),
            "as_it_ran": asdict(self.service(self.reproduced)),
            "policies": {name: asdict(self.service(served)) for name, served in self.policies.items()},
        }


def require_policies(spec: ReplaySpec, runs: Sequence[RecordedRun]) -> None:
    """Raise `BadInputError` if a policy cannot be replayed, before minutes of work."""
    if len(set(spec.policies)) < len(spec.policies):
        raise BadInputError(f"--policies is {','.join(spec.policies)!r}: name each once, such as fcfs,sage")
    require_predictions(spec.policies, spec.schedule, runs)


def require_predictions(policies: Sequence[str], schedule: Schedule, runs: Sequence[RecordedRun]) -> None:
    """Raise `BadInputError` if a policy is not known, or needs predictions and none was recorded."""
    context = BenchContext(schedule=schedule, lengths={})
    for name in policies:
        if name not in BENCH_POLICY_NAMES:
            raise BadInputError(f"unknown policy {name!r}: choose one of {', '.join(BENCH_POLICY_NAMES)}")
        if not bench_policy(name, context).orders:
            continue
        for run in runs:
            if not any(request.quantiles for request in run.requests):
                raise BadInputError(
                    f"policy {name!r} needs predictions and none was recorded by engine {run.engine_id}: "
                    "let the controller run in shadow with policy sage first, or replay fcfs"
                )


def replay_length(spec: ReplaySpec, runs: Sequence[RecordedRun]) -> int:
    """Upper bound of the number of requests that `run_replay` serves."""
    return sum(len(run.requests) for run in runs) * (1 + len(spec.policies))


def run_replay(spec: ReplaySpec, runs: Sequence[RecordedRun], progress: Callable[[], None] | None = None) -> Replay:
    """Reproduce the recorded runs, then replay each policy; ``progress`` is called for each answer that ends."""
    require_policies(spec, runs)
    wanted = (run.with_default_targets() for run in runs) if spec.slo else runs
    pasts = tuple(past.seen_to_its_end() for past in map(Replayable.of, wanted) if past.counted)
    if not pasts:
        raise BadInputError("no request of the slice ended with an answer: choose another slice")
    return Replay(
        spec=spec,
        runs=pasts,
        recorded=Served(tuple(request for past in pasts for request in past.recorded)),
        reproduced=_served(pasts, lambda past: replay_as_recorded(past, progress)),
        policies={name: _served(pasts, partial(_replay_named, name, spec, progress)) for name in spec.policies},
    )


def counted_requests(past: Replayable, totals: Totals) -> list[CompletedRequest]:
    """The completed requests that figures count, in the order of the recorded requests."""
    completed: Mapping[str, CompletedRequest] = {request.request_id: request for request in totals.completed}
    return [cut_at(completed[request_id], past.horizon_s) for request_id in past.counted]


def _served(pasts: Sequence[Replayable], replay: Callable[[Replayable], Totals]) -> Served:
    return Served(tuple(request for past in pasts for request in counted_requests(past, replay(past))))


def _replay_named(name: str, spec: ReplaySpec, progress: Callable[[], None] | None, past: Replayable) -> Totals:
    return replay_under(past, _policy(name, spec, past), progress, targets=knows_service(name))


def _policy(name: str, spec: ReplaySpec, past: Replayable) -> Policy:
    lengths = {request.request_id: past.length_tokens(request) for request in past.requests}
    return bench_policy(name, BenchContext(schedule=spec.schedule, lengths=lengths))


def notes_of(runs: Sequence[Replayable]) -> list[str]:
    """Notes that a reader needs to judge replays of these runs."""
    requests = [request for past in runs for request in past.requests]
    cached = sum(request.cached_prompt_tokens for request in requests) / sum(r.prompt_tokens for r in requests)
    counted = [request for past in runs for request in past.counted.values()]
    predicted = sum(bool(request.quantiles) for request in counted) / len(counted)
    censored = sum(request.censored for request in requests)
    beside = len(requests) - len(counted)
    notes = []
    if beside:
        notes.append(
            f"{beside} more requests took room beside these and are replayed too; {censored} of them had not ended "
            "or were given up; they run for their expected length, or until their clients left."
        )
    if cached > MUCH_CACHED:
        notes.append(
            f"{cached:.0%} of the prompt tokens came from the prefix cache, which the replay does not have: "
            "it computes them all."
        )
    guessed = [past.run.engine_id for past in runs if len(past.run.samples) < FEWEST_SAMPLES]
    if guessed:
        notes.append(
            f"Fewer than {FEWEST_SAMPLES} snapshots measure the steps of {', '.join(dict.fromkeys(guessed))}: "
            "every step takes the same, or a typical, time."
        )
    if predicted < FEW_PREDICTED:
        notes.append(f"Only {predicted:.0%} of the requests have a recorded prediction; the others use the prior.")
    return notes


def _assumed_notes(replay: Replay) -> list[str]:
    if not replay.assumed:
        return []
    targets = f"TTFT {DEFAULT_TARGETS.ttft_s:g} s and TPOT {DEFAULT_TARGETS.tpot_s:g} s"
    had = f"{replay.assumed} of the requests had no class and no targets"
    return [f"{had}: for them {targets} are assumed, and told to policies that keep targets."]


def _run_json(past: Replayable) -> dict[str, Any]:
    run = past.run
    return {
        "engine_id": run.engine_id,
        "session_id": run.session_id,
        "model": run.model,
        "requests": len(past.counted),
        "first_arrival_s": min(request.arrival_s for request in past.counted.values()),
        "last_arrival_s": max(request.arrival_s for request in past.counted.values()),
        "modes": run.modes,
        "step_model": asdict(past.step_model),
    }
