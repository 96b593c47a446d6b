"""What the order gains: the last finished requests replayed first come, first served, and in our order.

Both replays run on the simulated engine with this engine's sizes and its measured step times,
so that they differ in the order alone; the measured figures stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from controller.policy import EngineFacts, Policy, RequestFacts
from controller.step_model import StepModel, StepSample, fit_step_model
from engine_adapter.engine import Work, serve
from engine_adapter.link import DirectLink, EngineLink, NoLink
from engine_adapter.profiles import Profile
from engine_adapter.simulated_engine import SimulatedEngine
from online_learning.distribution import LengthDistribution, log_grid
from store.records import Acknowledged, Arrived, ControllerMessage, EngineMessage, Facts, Hello, Settings, Welcome

FEWEST_REQUESTS = 20
"""Below this a comparison says nothing."""
LEASE_S = 1e9
PRIOR_BELIEFS = 200
"""Recorded beliefs that make up the prior of a replay."""

METHOD = (
    "Replay, not measurement: {requests} finished requests ({predicted} with the prediction recorded when they arrived) "
    "through the simulated engine with this engine's KV cache and limits and its measured step time "
    "({base_ms:.1f} ms + {prefill_us:.0f} us per prefill token + {decode_us:.0f} us per decoding sequence "
    "+ {kv_ns:.0f} ns per KV token), once first come, first served and once under policy {policy}. "
    "The engine starts empty and finds no cached prefixes in either; requests that had not finished are left out."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """One request as the history has it."""

    request_id: str
    arrival_s: float
    finished_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    priority: int = 0
    quantiles: tuple[tuple[float, int], ...] = ()
    """The recorded prediction as pairs of probability and tokens, both rising; empty when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSizes:
    """Sizes of the engine that served them."""

    kv_blocks: int
    block_size_tokens: int
    max_num_seqs: int
    token_budget: int
    max_model_len_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """TTLT over the same requests."""

    mean_ttlt_s: float
    p50_ttlt_s: float
    p90_ttlt_s: float
    p99_ttlt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """The comparison; ``fcfs`` and ``ours`` are replayed, ``actual`` is what was measured."""

    requests: int
    fcfs: Latency
    ours: Latency
    actual: Latency
    step_model: StepModel
    method: str
    """What these figures are, in words for whoever reads them."""


def estimate_gain(
    requests: Sequence[FinishedRequest], samples: Sequence[StepSample], sizes: EngineSizes, policy: Policy
) -> Gain | None:
    """Replay the requests under both orders; takes seconds, so run it in a process of its own.

    None when there are too few requests, or none has a recorded prediction to order by.
    """
    model = fit_step_model(samples)
    profile = _profile(sizes, model)
    fitting = [request for request in requests if _fits(request, profile)]
    beliefs = {request.request_id: _belief(request) for request in fitting if request.quantiles}
    if len(fitting) < FEWEST_REQUESTS or not beliefs:
        return None
    works = list(_works(fitting, profile))
    decide = _Recorded(policy, profile, beliefs)
    return Gain(
        requests=len(fitting),
        fcfs=_replay(profile, works, NoLink()),
        ours=_replay(profile, works, DirectLink(decide.answer) if policy.orders else NoLink()),
        actual=_latency([request.finished_s - request.arrival_s for request in fitting]),
        step_model=model,
        method=METHOD.format(
            requests=len(fitting),
            predicted=len(beliefs),
            base_ms=1e3 * model.base_s,
            prefill_us=1e6 * model.prefill_token_s,
            decode_us=1e6 * model.decode_seq_s,
            kv_ns=1e9 * model.kv_token_s,
            policy=policy.name,
        ),
    )


def belief_from_quantiles(quantiles: Sequence[tuple[float, int]], max_tokens: int) -> LengthDistribution:
    """A distribution with these quantiles: log-linear between them, the rest spread up to twice the last.

    >>> belief = belief_from_quantiles([(0.1, 10), (0.5, 100), (0.9, 1000)], 4096)
    >>> belief.quantile(0.45) < 100 <= belief.quantile(0.5) < 120, belief.survival(2010)
    (True, 0.0)
    """
    probability = np.array([0.0, *(probability for probability, _ in quantiles), 1.0])
    tokens = np.array([0.5, *(max(1, tokens) for _, tokens in quantiles), 2.0 * max(1, quantiles[-1][1])])
    tokens = np.maximum.accumulate(tokens + 1e-9 * np.arange(tokens.size))
    edges = log_grid(int(tokens[-1]))
    below = np.interp(np.log(edges), np.log(tokens), probability)
    mass = np.diff(below, prepend=0.0)
    return LengthDistribution(edges, mass / mass.sum()).cut(max_tokens)


class _Recorded:
    """A controller that decides by the recorded beliefs, as it did when the requests arrived."""

    def __init__(self, policy: Policy, profile: Profile, beliefs: Mapping[str, LengthDistribution]) -> None:
        self._policy = policy
        self._beliefs = beliefs
        self._max_tokens = profile.max_model_len_tokens
        self._engine = EngineFacts(
            kv_tokens=profile.kv_tokens,
            block_size_tokens=profile.block_size_tokens,
            max_num_seqs=profile.max_num_seqs,
            base_s=profile.base_s,
            prefill_token_s=profile.prefill_token_s,
        )

    def answer(self, message: EngineMessage) -> Iterator[ControllerMessage]:
        """Tables for what arrives, at once; nothing to learn."""
        match message:
            case Hello():
                yield Welcome(controller_id="replay", durable_batch=0)
                yield Settings(
                    revision=1,
                    mode="on",
                    gate=self._policy.gate,
                    boost_per_s=self._policy.boost_per_s,
                    lease_s=LEASE_S,
                    preemption=self._policy.preemption,
                    promotion=self._policy.promotion,
                    victims=self._policy.victims,
                )
                prior = RequestFacts(request_id=None, prompt_tokens=256, max_tokens=self._max_tokens)
                yield self._policy.assess(prior, _mixture(list(self._beliefs.values())), self._engine).table
            case Facts(batch=batch, facts=facts):
                for fact in facts:
                    if isinstance(fact, Arrived) and fact.request_id in self._beliefs:
                        yield self._policy.assess(
                            RequestFacts(
                                request_id=fact.request_id, prompt_tokens=fact.prompt_tokens, max_tokens=fact.max_tokens
                            ),
                            self._beliefs[fact.request_id],
                            self._engine,
                        ).table
                yield Acknowledged(batch=batch)


def _mixture(beliefs: Sequence[LengthDistribution]) -> LengthDistribution:
    """What is believed of a request that nothing is known of: the mean of the beliefs about others."""
    chosen = beliefs[:: max(1, len(beliefs) // PRIOR_BELIEFS)]
    lengths, position = np.unique(np.concatenate([belief.lengths for belief in chosen]), return_inverse=True)
    mass = np.bincount(position, weights=np.concatenate([belief.mass for belief in chosen]))
    return LengthDistribution(lengths, mass / mass.sum())


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


def _fits(request: FinishedRequest, profile: Profile) -> bool:
    return request.output_tokens > 0 and 0 < request.prompt_tokens < profile.max_model_len_tokens


def _belief(request: FinishedRequest) -> LengthDistribution:
    return belief_from_quantiles(request.quantiles, request.max_tokens)


def _works(requests: Sequence[FinishedRequest], profile: Profile) -> Iterator[Work]:
    """The requests from time zero on; without prefix caching the token ids do not matter."""
    start_s = min(request.arrival_s for request in requests)
    for request in requests:
        yield Work(
            request_id=request.request_id,
            arrival_s=request.arrival_s - start_s,
            token_ids=(0,) * request.prompt_tokens,
            max_tokens=max(1, min(request.max_tokens, profile.max_model_len_tokens)),
            true_output_tokens=request.output_tokens,
            priority=request.priority,
        )


def _replay(profile: Profile, works: Sequence[Work], link: EngineLink) -> Latency:
    totals = serve(SimulatedEngine(profile, link=link), works)
    return _latency([life.ttlt_s for life in totals.lives])


def _latency(ttlt_s: Sequence[float]) -> Latency:
    p50, p90, p99 = np.percentile(ttlt_s, (50, 90, 99)).tolist()
    return Latency(mean_ttlt_s=float(np.mean(ttlt_s)), p50_ttlt_s=p50, p90_ttlt_s=p90, p99_ttlt_s=p99)
