"""The interface of scheduling policies: pure functions from a request and its predicted distribution to an index table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from online_learning.distribution import LengthDistribution
from store.records import EngineRules, IndexTable, Targets

IndexRule: TypeAlias = Literal["mean", "gittins"]
"""The functional of the remaining cost that orders requests: its mean, or its Gittins index."""

INDEX_ALONE = EngineRules()
"""Rules under which the index only orders: the engine admits and preempts as by default."""

DEFAULT_STEP_S = 0.03
"""Assumed seconds of an engine step before any was measured."""
DEFAULT_PREFILL_TOKEN_S = 1.5e-4
"""Assumed seconds that a prompt token adds to a step before a step model is fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """The facts about a request that a policy may use."""

    request_id: str | None
    """None for the table of requests without one of their own."""
    prompt_tokens: int
    max_tokens: int
    """Upper bound of the output length in tokens."""
    cached_tokens: int = 0
    """Prompt tokens that are expected in the engine's prefix cache, which need not be computed."""
    targets: Targets | None = None
    """What the engine is to keep; None for nothing."""
    account: str | None = None
    """Tenant whose share it is charged to; None where no shares are kept."""
    weight: float = 1.0
    """Weight of that tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The facts about an engine that a policy may use: its sizes and step times."""

    kv_tokens: int
    """Capacity of the KV cache."""
    block_size_tokens: int
    max_num_seqs: int
    """Largest number of requests that the engine runs at once."""
    base_s: float
    """Running mean of the seconds of a step."""
    prefill_token_s: float
    """Seconds that a prompt token adds to a step."""
    decode_seq_s: float = 0.0
    """Seconds that a decoding sequence adds to a step."""
    kv_token_s: float = 0.0
    """Seconds that a KV token, read once, adds to a step."""
    kv_weight: float = 1.0
    """Price of KV memory from 0 to 1; 1 if it is the scarcer resource."""
    slot_weight: float = 1.0
    """Price of slots from 0 to 1; 1 if they are the scarcer resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Parts of a policy that are adapted to each engine while it serves (`controller.core.engine_tuning`)."""

    gate_exchange: float | None
    """Ratio of recompute tax to idle share of KV memory that the gate's reserve aims at; None keeps the reserve."""
    boost_scale: float | None
    """γ times the mean seconds from arrival to end, without unit; None keeps γ."""
    boost_per_s: float | None = None
    """γ in 1/s until that mean is known."""
    shapes: bool = False
    """Whether engines learn their step times, by which they bound the prefill of a step."""
    preempts: bool = False
    """Whether the price of lost tokens follows the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The result of a policy: the index table for the engine, and the expected cost for the history."""

    table: IndexTable
    cost_s: float
    """Expected cost of the whole request in engine-seconds."""


class Policy(Protocol):
    """Order and admission: without state, and independent of the clock."""

    @property
    def name(self) -> str:
        """Its name in configuration, records and reports."""
        ...

    @property
    def orders(self) -> bool:
        """False for the engine's own order: no tables are needed and the mode stays off."""
        ...

    @property
    def rules(self) -> EngineRules:
        """The rules that its engines apply in addition to its index tables."""
        ...

    @property
    def tuning(self) -> Tuning | None:
        """The parts that are adapted to each engine; None for none."""
        ...

    def assess(self, request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> Assessment:
        """Compute the index table of a request.

        Args:
            request: the request, or the prior's stand-in for requests without a prediction.
            predicted: distribution of its output length in tokens, already cut at ``request.max_tokens``.
            engine: the engine that serves it.

        Returns:
            A table with index and expected growth by attained tokens, and the expected cost in engine-seconds.
        """
        ...


Case: TypeAlias = tuple[RequestFacts, LengthDistribution, EngineFacts]
"""A request, the predicted distribution of its output length, and its engine: the arguments of `Policy.assess`."""


@runtime_checkable
class AssessesMany(Protocol):
    """A policy for which several requests together cost less than one by one."""

    def assess_many(self, cases: Sequence[Case]) -> list[Assessment]:
        """What `Policy.assess` gives for each, to the last digit."""
        ...


def assess_all(policy: Policy, cases: Sequence[Case]) -> list[Assessment]:
    """The index tables of several requests, together where the policy can."""
    if isinstance(policy, AssessesMany):
        return policy.assess_many(cases)
    return [policy.assess(*case) for case in cases]
