"""What is known of a request when it arrives, and what of its answer when it ends: the learner's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_learning.distribution import LengthDistribution

Features = NDArray[np.float32]
"""One prompt's features, a unit-free vector; `online_learning.features.prompt_features` says what lies where in it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """A request as the learner sees it; ``token_ids`` may be the head and tail of a longer prompt."""

    token_ids: NDArray[np.uint32]
    prompt_tokens: int
    max_tokens: int
    temperature: float
    model: str
    tenant: str | None = None
    lora: str | None = None
    session: str | None = None
    """Conversation or agent's program that the request belongs to; None when unknown."""
    expected_output_tokens: int | None = None
    """Length that the client expects of the answer; None when it says nothing."""


@dataclass(frozen=True, slots=True)
class Observation:
    """An answer's length; ``censored`` when it is only known to be at least this many tokens."""

    output_tokens: int
    censored: bool
    surprises: tuple[float, float] | None = None
    """By how much the answers of the model, and of the prompt's cluster, have turned out longer than predicted since one of
    them last ended, those that still run included, as differences of logarithms; None where that is not known. They have
    mean zero in whatever order answers end, as long as predictions are right, and tell a drift from a change of order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AtRisk:
    """Learnt answers behind predicted hazards, by bin: what they are weighed with beside running ones."""

    learnt: float
    """Effective number of the model's answers."""
    model: NDArray[np.float64]
    """The model's answers that reached each bin, with the weight of what they are shrunk to; shape (bins,)."""
    cluster: NDArray[np.float64] | None = None
    """The prompt cluster's own that did; shape (bins,)."""
    drawn: NDArray[np.float64] | None = None
    """Weight of the model's distribution in the cluster's, in answers; shape (bins,)."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """A predicted distribution and where it comes from; ``distribution`` is not yet cut at the request's max_tokens."""

    distribution: LengthDistribution
    cluster: int | None
    evidence: float
    """Effective number of past answers behind it."""
    experts: dict[str, float] = msgspec.field(default_factory=dict)
    """Weight of each expert in the mixture."""
    at_risk: AtRisk | None = None
    """What running answers are weighed against; None where the learner leaves them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A cluster's lengths moved and part of its past was forgotten."""

    model: str
    cluster: int
    before_mean_tokens: float
    after_mean_tokens: float
    forgotten: float


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """What became of a prompt cluster."""

    kind: Literal["born", "split", "merged", "retired"]
    cluster: int
    """The cluster that came or went."""
    other: int | None = None
    """The one that it was split from, or merged into."""


@runtime_checkable
class HasClusters(Protocol):
    """A learner whose prompt clusters come and go."""

    on_cluster_changed: Callable[[ClusterChange], None]
    """Called with each change, in the course of learning."""


class LengthLearner(Protocol):
    """Learns output lengths online; one instance serves all models and engines of a controller."""

    def features(self, prompt: Prompt) -> Features:
        """Turn a prompt into a vector; depends on nothing that was learnt, so that it can be stored."""
        ...

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The predicted distribution of the answer's length; changes nothing."""
        ...

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Learn from an answer; returns the drifts that it revealed."""
        ...

    def prior(self, model: str) -> LengthDistribution:
        """The distribution for a prompt that nothing is known of."""
        ...


@runtime_checkable
class PredictsMany(Protocol):
    """A learner for which several predictions together cost less than one by one."""

    def predict_many(self, features: Sequence[Features], model: str) -> list[Forecast]:
        """What `LengthLearner.predict_one` gives for each, to the last digit; changes nothing."""
        ...


def predict_all(learner: LengthLearner, features: Sequence[Features], model: str) -> list[Forecast]:
    """The predicted distributions of several answers of one model, together where the learner can."""
    if isinstance(learner, PredictsMany):
        return learner.predict_many(features, model)
    return [learner.predict_one(prompt, model) for prompt in features]
