"""History again under other policies: first how well a replay reproduces what happened, then what else would have been.

Every policy serves the same requests, at their own times, on a simulated engine of the recorded sizes and the measured
step times. A run of an engine begins empty and is replayed by itself; the figures are about all runs together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import structs

from controller.core.step_time import FEWEST_SAMPLES
from controller.policy.baselines import BENCH_POLICY_NAMES, BenchContext, bench_policy
from controller.policy.policies import Schedule
from controller.policy.policy import Policy
from controller.replay.fidelity import Fit, fit_of, ratio_of, totals_of
from controller.replay.recorded_run import RecordedRun, Replayable
from controller.replay.replay_engine import replay_as_told, replay_under
from controller.reports.latency_summary import PolicyFigures, figures
from engine_adapter.virtual_time.engine import CompletedRequest, Totals
from online_learning.distribution import FloatArray
from store.errors import BadInputError
from store.http_api import Ratio

MUCH_CACHED = 0.05
FEW_PREDICTED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySpec:
    """What is to be replayed."""

    policies: tuple[str, ...]
    """Beside what happened; none only says how well that is reproduced."""
    schedule: Schedule
    """The settings of ours."""


@dataclass(frozen=True)
class Served:
    """The counted requests as they were served, really or in a replay, in one order everywhere."""

    lives: tuple[CompletedRequest, ...]

    @cached_property
    def figures(self) -> PolicyFigures:
        """What a benchmark says of a policy."""
        return figures(totals_of(self.lives))

    @cached_property
    def ttlt_s(self) -> FloatArray:
        """Each request's time to last token."""
        return np.array([life.ttlt_s for life in self.lives])


@dataclass(frozen=True)
class Replay:
    """What was found."""

    spec: ReplaySpec
    runs: tuple[Replayable, ...]
    recorded: Served
    as_told: Served
    policies: dict[str, Served]

    @cached_property
    def fit(self) -> Fit:
        """How well what happened is reproduced."""
        return fit_of(self.recorded.lives, self.as_told.lives)

    def ratio(self, policy: str) -> Ratio:
        """Mean TTLT of a policy over that of the replay of what happened: like against like."""
        return ratio_of(self.policies[policy].ttlt_s, self.as_told.ttlt_s)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know to judge the figures."""
        return tuple(_notes(self.runs))

    @property
    def modes(self) -> dict[str, float]:
        """Share of the requests by the mode that was mostly in force in their run."""
        shares: dict[str, float] = {}
        for past in self.runs:
            for mode, share in past.run.modes.items():
                shares[mode] = shares.get(mode, 0.0) + share * len(past.counted) / len(self.recorded.lives)
        return shares

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "requests": len(self.recorded.lives),
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
            "as_it_ran": asdict(self.as_told.figures),
            "policies": {
                name: {**asdict(served.figures), "ratio": structs.asdict(self.ratio(name))}
                for name, served in self.policies.items()
            },
            "notes": list(self.notes),
        }


def require_policies(spec: ReplaySpec, runs: Sequence[RecordedRun]) -> None:
    """Find out before minutes of work that a policy cannot be replayed; raises `BadInputError`."""
    if len(set(spec.policies)) < len(spec.policies):
        raise BadInputError(f"--policies is {','.join(spec.policies)!r}: name each once, such as fcfs,sage")
    context = BenchContext(schedule=spec.schedule, lengths={})
    for name in spec.policies:
        if name not in BENCH_POLICY_NAMES:
            raise BadInputError(f"unknown policy {name!r}: choose of {', '.join(BENCH_POLICY_NAMES)}")
        if not bench_policy(name, context).orders:
            continue
        for run in runs:
            if not any(request.quantiles for request in run.requests):
                raise BadInputError(
                    f"policy {name!r} needs predictions and none was recorded by engine {run.engine_id}: "
                    "let the controller run in shadow with policy sage first, or replay fcfs"
                )


def replay_length(spec: ReplaySpec, runs: Sequence[RecordedRun]) -> int:
    """Requests that `run_replay` serves in all, at most."""
    return sum(len(run.requests) for run in runs) * (1 + len(spec.policies))


def run_replay(spec: ReplaySpec, runs: Sequence[RecordedRun], progress: Callable[[], None] | None = None) -> Replay:
    """Replay what happened, then each policy; ``progress`` is told of each answer that ends."""
    require_policies(spec, runs)
    pasts = tuple(past for past in map(Replayable.of, runs) if past.counted)
    if not pasts:
        raise BadInputError("no request of the slice ended with an answer: choose another slice")
    return Replay(
        spec=spec,
        runs=pasts,
        recorded=Served(tuple(request.life() for past in pasts for request in past.counted.values())),
        as_told=_served(pasts, lambda past: replay_as_told(past, progress)),
        policies={
            name: _served(pasts, lambda past, name=name: replay_under(past, _policy(name, spec, past), progress))  # type: ignore[misc]
            for name in spec.policies
        },
    )


def counted_lives(past: Replayable, totals: Totals) -> list[CompletedRequest]:
    """The lives that figures are about, in the order of the recorded requests."""
    lives: Mapping[str, CompletedRequest] = {life.request_id: life for life in totals.completed}
    return [lives[request_id] for request_id in past.counted]


def _served(pasts: Sequence[Replayable], replay: Callable[[Replayable], Totals]) -> Served:
    return Served(tuple(life for past in pasts for life in counted_lives(past, replay(past))))


def _policy(name: str, spec: ReplaySpec, past: Replayable) -> Policy:
    lengths = {request.request_id: past.length_tokens(request) for request in past.requests}
    return bench_policy(name, BenchContext(schedule=spec.schedule, lengths=lengths))


def _notes(runs: Sequence[Replayable]) -> list[str]:
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
            "or were given up, and run for as long as was to be expected of them, or until their clients left."
        )
    if cached > MUCH_CACHED:
        notes.append(
            f"{cached:.0%} of the prompt tokens came from the prefix cache, which the replay does not have: "
            "it computes them all."
        )
    guessed = [past.run.engine_id for past in runs if len(past.run.samples) < FEWEST_SAMPLES]
    if guessed:
        notes.append(
            f"Fewer than {FEWEST_SAMPLES} snapshots tell how long the steps of {', '.join(dict.fromkeys(guessed))} take: "
            "every step takes the same, or a typical, time."
        )
    if predicted < FEW_PREDICTED:
        notes.append(f"Only {predicted:.0%} of the requests have a recorded prediction; the others go by the prior.")
    return notes


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
