"""What a scheduling policy is: a pure function from a request and its predicted distribution to an index table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from online_learning.distribution import LengthDistribution
from store.records import EngineRules, IndexTable

IndexRule: TypeAlias = Literal["mean", "gittins"]
"""What of the remaining cost orders requests: its mean, or its Gittins index."""

INDEX_ALONE = EngineRules()
"""The index orders, the engine admits and preempts by itself."""

DEFAULT_STEP_S = 0.03
"""Assumed seconds of an engine step before any was measured."""
DEFAULT_PREFILL_TOKEN_S = 1.5e-4
"""Assumed seconds that a prompt token adds to a step before a step model is fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What a policy may know of a request."""

    request_id: str | None
    """None for the prior."""
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a policy may know of the engine: sizes, and how long its steps take."""

    kv_tokens: int
    block_size_tokens: int
    max_num_seqs: int
    base_s: float
    """Mean seconds of a step lately."""
    prefill_token_s: float
    """Seconds that a prompt token adds to a step."""
    decode_seq_s: float = 0.0
    """Seconds that a decoding sequence adds to a step."""
    kv_token_s: float = 0.0
    """Seconds that a KV token, read once, adds to a step."""
    kv_weight: float = 1.0
    """Price of KV memory, 1 where it is what runs out."""
    slot_weight: float = 1.0
    """Price of slots, 1 where they are what runs out."""
    service_s: float | None = None
    """Mean seconds that an answer runs; None while too few have ended."""
    tail_s: float | None = None
    """99th percentile of the time from arrival to end lately; None while too few have ended."""
    queue_s: float = 0.0
    """Seconds for which first come, first served would keep the next arrival waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What of a policy is adapted to each engine while it serves."""

    gate_exchange: float | None
    """Recompute tax that a share of idle KV memory is worth; None leaves the gate's reserve as it is."""
    boost_scale: float | None
    """γ times the mean seconds that an answer runs; None leaves γ as it is."""
    boost_per_s: float | None = None
    """γ until that is known."""
    preempts: bool = False
    """Whether the price of lost tokens follows the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """A policy's verdict: the table for the engine, and the expected cost for the record."""

    table: IndexTable
    cost_s: float


class Policy(Protocol):
    """Order and admission; has no state, reads no clock."""

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
        """What its engines apply beside its index tables."""
        ...

    @property
    def tuning(self) -> Tuning | None:
        """What is adapted to each engine; None for nothing."""
        ...

    def assess(self, request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> Assessment:
        """Index and growth of a request by its attained tokens; ``predicted`` is cut at max_tokens already."""
        ...
