"""A recorded run of an engine in the form in which it can be replayed.

Arrivals, lengths and sizes are recorded facts; predicted distributions are built from the recorded quantiles of each
prediction; step times are fitted to the snapshots.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import numpy as np
from msgspec import structs

from controller.core.step_time import StepModel, StepSample, fit_step_model
from engine_adapter.virtual_time.engine import CompletedRequest, TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from online_learning.distribution import LengthDistribution, log_grid
from store.entries import Promised
from store.records import EngineRules, IndexTable, Mode, Settings, Targets
from store.service_levels import ServiceLevel, level_of

PRIOR_PREDICTIONS = 200
"""Number of recorded predictions that are averaged into the prior of a replay."""
STEPS_BELOW = 3


class RecordedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it was recorded."""

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    """Generated tokens; those known so far if the request is unfinished."""
    max_tokens: int
    priority: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    """None while it is unfinished: its length is only known to be more than ``output_tokens``."""
    left: bool = False
    """Its client went away at ``finished_s``, or it failed then: ``output_tokens`` is a lower bound of its length."""
    attained_tokens: int = 0
    """Output tokens that it had when the replay begins."""
    running: bool = False
    """Whether it was running then."""
    cached_prompt_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    quantiles: tuple[tuple[float, int], ...] = ()
    """The recorded prediction as pairs of probability and tokens, both rising; empty when there is none."""
    cluster: int | None = None
    """Prompt cluster of its prediction."""
    service_class: str | None = None
    """The class that it was in."""
    targets: Targets | None = None
    """The targets that were in force for it."""
    counted: bool = True
    """Whether figures count it; other requests are replayed because they took room beside the counted ones."""

    @property
    def censored(self) -> bool:
        """Whether only a lower bound of its length is known."""
        return self.left or self.finished_s is None

    @property
    def level(self) -> ServiceLevel:
        """What was promised to it, with defaults where that is nothing."""
        promised = Promised(
            request_id=self.request_id,
            time_s=self.arrival_s,
            service_class=self.service_class,
            targets=self.targets,
        )
        return level_of(promised)

    def completed(self, seen_s: float | None = None) -> CompletedRequest:
        """The recorded request as a completed one; if it had not ended, as if it did when it was last seen."""
        finished_s = seen_s if self.finished_s is None else self.finished_s
        assert finished_s is not None, "the request must have ended"
        first_token_s = finished_s if self.first_token_s is None else self.first_token_s
        return CompletedRequest(
            request_id=self.request_id,
            arrival_s=self.arrival_s,
            scheduled_s=first_token_s if self.scheduled_s is None else self.scheduled_s,
            first_token_s=first_token_s,
            finished_s=finished_s,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            reason="stop",
            preemptions=self.preemptions,
            recomputed_tokens=self.recomputed_tokens,
        )


class EngineSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of the engine that served the run."""

    kv_blocks: int
    block_size_tokens: int
    max_num_seqs: int
    token_budget: int
    max_model_len_tokens: int


class BusyPart(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over a part of the run in which the engine was never idle."""

    time_s: float
    """When the part ends."""
    elapsed_s: float
    steps: int
    step_s: float
    prefill_tokens: int
    decode_tokens: int
    kv_tokens_read: int

    def late_s(self, model: StepModel) -> float:
        """Seconds that a step took longer than the model says, the time until the next one included."""
        expected_s = (
            self.steps * model.base_s
            + self.prefill_tokens * model.prefill_token_s
            + self.decode_tokens * model.decode_seq_s
            + self.kv_tokens_read * model.kv_token_s
        )
        return max(0.0, self.elapsed_s - expected_s) / self.steps


class RecordedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that the controller sent to the engine."""

    time_s: float
    message: IndexTable | Settings


class RecordedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A span of one run of one engine."""

    engine_id: str
    session_id: str
    model: str
    sizes: EngineSizes
    requests: tuple[RecordedRequest, ...]
    samples: tuple[StepSample, ...]
    since_s: float | None = None
    """When the replay begins, with the requests that were in the engine; None begins with the first arrival, and none."""
    last_s: float | None = None
    """Until when the record goes; None if everything had ended."""
    rules: EngineRules | None = None
    """The rules in force when the replay begins, as they were adapted to the engine; None if that is not known."""
    gap_s: float = 0.0
    """Mean seconds between two steps while requests ran: the time of the host beside the device."""
    pace: tuple[BusyPart, ...] = ()
    """How fast the engine was by time, as far as that is known: its host may have had other work for a while."""
    modes: dict[Mode, float]
    """Share of the snapshots in each mode."""
    messages: tuple[RecordedMessage, ...] = ()
    """Settings and index tables in the order in which the engine received them; empty if not known."""

    def with_default_targets(self) -> RecordedRun:
        """The run with the default targets for each request that was in no class and had none."""
        requests = tuple(
            structs.replace(request, service_class=level.service_class, targets=level.targets)
            for request in self.requests
            for level in [request.level]
        )
        return structs.replace(self, requests=requests)

    @property
    def mode(self) -> Mode:
        """The mode that was mostly in force."""
        return max(self.modes, key=lambda mode: self.modes[mode], default="off")


@dataclass(frozen=True)
class Replayable:
    """A run prepared for replays: an engine, its requests, and their predictions."""

    run: RecordedRun
    step_model: StepModel
    """Seconds of a step on the device."""
    profile: Profile
    requests: tuple[RecordedRequest, ...]
    """The requests that the engine can serve, by arrival."""
    horizon_s: float = math.inf
    """Counted requests that had not ended by then count with their time until then."""

    @classmethod
    def of(cls, run: RecordedRun) -> Replayable:
        """Fit the step times and drop the requests that cannot be served.

        Of several requests with one name (reported unfinished and completed, or reused by another client) the last stays.
        """
        model = fit_step_model(run.samples)
        profile = _profile(run.sizes, model)
        latest_last = sorted(run.requests, key=lambda request: (request.finished_s is not None, request.arrival_s))
        fitting = {
            request.request_id: request
            for request in latest_last
            if 0 < request.prompt_tokens < profile.max_model_len_tokens
            and (request.output_tokens > 0 or request.censored)
        }
        return cls(run, model, profile, tuple(sorted(fitting.values(), key=lambda request: request.arrival_s)))

    @property
    def start_s(self) -> float:
        """When the replay begins."""
        return max(self.requests[0].arrival_s, -math.inf if self.run.since_s is None else self.run.since_s)

    def seen_to_its_end(self) -> Replayable:
        """The run with figures that count all of its requests alike, also those that had not ended at its end.

        The others that arrived beside these were served fast. A replay serves others of them fast, so that the mean over
        those that had ended would be off though nothing else is. What arrived in the last quarter is not counted.
        """
        ended_s = sorted(request.arrival_s for request in self.counted.values())
        if self.run.last_s is None or not ended_s:
            return self
        unfinished_s = [request.arrival_s for request in self.requests if request.finished_s is None]
        open_s = min((arrival_s for arrival_s in unfinished_s if arrival_s >= ended_s[0]), default=math.inf)
        until_s = min(max(open_s, ended_s[3 * len(ended_s) // 4]), ended_s[-1])
        requests = tuple(
            structs.replace(request, counted=ended_s[0] <= request.arrival_s <= until_s and not request.left)
            if request.counted or request.finished_s is None
            else request
            for request in self.requests
        )
        return replace(self, requests=requests, horizon_s=self.run.last_s)

    @cached_property
    def counted(self) -> dict[str, RecordedRequest]:
        """The requests that figures count, by their names."""
        open_count = self.horizon_s < math.inf
        return {
            request.request_id: request
            for request in self.requests
            if request.counted and (not request.censored or (open_count and not request.left))
        }

    @property
    def recorded(self) -> list[CompletedRequest]:
        """The counted requests as they were recorded."""
        return [request.completed(self.horizon_s) for request in self.counted.values()]

    @cached_property
    def predictions(self) -> dict[str, LengthDistribution]:
        """The recorded prediction of each request that has one."""
        return {
            request.request_id: distribution_from_quantiles(request.quantiles, request.max_tokens)
            for request in self.requests
            if request.quantiles
        }

    def late_s(self, time_s: float) -> float:
        """Seconds by which the host made a step longer at a time of the run."""
        times_s, late_s = self._late
        at = bisect_left(times_s, time_s)
        return late_s[at] if at < len(late_s) else self.run.gap_s

    @cached_property
    def _late(self) -> tuple[list[float], list[float]]:
        pace = self.run.pace
        return [part.time_s for part in pace], [part.late_s(self.step_model) for part in pace]

    @cached_property
    def prior(self) -> LengthDistribution:
        """The prediction of a request without a recorded one: the mean of the others."""
        predictions = list(self.predictions.values())
        chosen = predictions[:: max(1, len(predictions) // PRIOR_PREDICTIONS)]
        lengths, position = np.unique(np.concatenate([predicted.lengths for predicted in chosen]), return_inverse=True)
        mass = np.bincount(position, weights=np.concatenate([predicted.mass for predicted in chosen]))
        return LengthDistribution(lengths, mass / mass.sum())

    def trace(self, *, targets: bool) -> Iterator[TraceRequest]:
        """The requests at their recorded arrival times, with their targets or without.

        Without prefix caching their token ids do not matter: a range takes no memory, however long the prompt.
        """
        for request in self.requests:
            yield TraceRequest(
                request_id=request.request_id,
                arrival_s=request.arrival_s,
                token_ids=range(request.prompt_tokens),
                max_tokens=max(1, min(request.max_tokens, self.profile.max_model_len_tokens)),
                true_output_tokens=self.length_tokens(request),
                priority=request.priority,
                targets=request.targets if targets else None,
                attained_tokens=request.attained_tokens,
                running=request.running,
                leaves_s=request.finished_s if request.left else None,
            )

    def length_tokens(self, request: RecordedRequest) -> int:
        """Length of its answer; the expected length if only a lower bound is recorded."""
        if not request.censored:
            return request.output_tokens
        predicted = self.predictions.get(request.request_id)
        attained = max(request.output_tokens, request.attained_tokens)
        if predicted is None or predicted.survival(attained) <= 0.0:
            return min(request.max_tokens, 2 * attained + 1)
        return max(attained + 1, round(predicted.given(attained).mean_tokens))


def distribution_from_quantiles(quantiles: Sequence[tuple[float, int]], max_tokens: int) -> LengthDistribution:
    """A distribution with these quantiles: log-linear between them, the rest spread up to twice the last.

    The part below the first quantile decides the index of a new request. It reaches three further steps of the size
    from the second to the first quantile, which reproduced the recorded index tables best.

    >>> predicted = distribution_from_quantiles([(0.1, 10), (0.5, 100), (0.9, 1000)], 4096)
    >>> predicted.quantile(0.45) < 100 <= predicted.quantile(0.5) < 120, predicted.survival(2010)
    (True, 0.0)
    """
    probability = np.array([0.0, *(probability for probability, _ in quantiles), 1.0])
    known = [max(1, tokens) for _, tokens in quantiles]
    step = known[0] / known[min(1, len(known) - 1)]
    shortest = max(0.5, min(known[0] * step**STEPS_BELOW, known[0] - 0.5))
    tokens = np.array([shortest, *known, 2.0 * known[-1]])
    tokens = np.maximum.accumulate(tokens + 1e-9 * np.arange(tokens.size))
    edges = log_grid(int(tokens[-1]))
    below = np.interp(np.log(edges), np.log(tokens), probability)
    mass = np.diff(below, prepend=0.0)
    return LengthDistribution(edges, mass / mass.sum()).cut(max_tokens)


def _profile(sizes: EngineSizes, model: StepModel) -> Profile:
    kv_tokens = sizes.kv_blocks * sizes.block_size_tokens
    return Profile(
        name="measured",
        base_s=model.base_s,
        prefill_token_s=model.prefill_token_s,
        decode_seq_s=model.decode_seq_s,
        kv_token_s=model.kv_token_s,
        kv_tokens=kv_tokens,
        block_size_tokens=sizes.block_size_tokens,
        max_num_seqs=sizes.max_num_seqs,
        token_budget=sizes.token_budget,
        max_model_len_tokens=min(sizes.max_model_len_tokens, kv_tokens),
    )
