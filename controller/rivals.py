"""The policies that a benchmark knows beyond those that run live, and how each is measured at its best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.policies import POLICY_NAMES, policy_named
from controller.policy import Policy
from online_learning.mixture import MixtureLearner
from online_learning.prompt import LengthLearner
from online_learning.similarity import SimilarityLearner
from store.records import Gate

BENCH_POLICY_NAMES = POLICY_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchContext:
    """What a policy may be made from in a benchmark."""

    gate: Gate | None
    """Our admission."""
    boost_per_s: float | None
    lengths: Mapping[str, int]
    """Output tokens by request id, for those that know them."""


def is_ours(name: str) -> bool:
    """Whether a policy is one of ours, which no benchmark ever tunes."""
    return name == "sage"


def variants_of(name: str) -> tuple[str, ...]:
    """The forms in which a policy is tried; the best one stands for it."""
    return (name,)


def bench_policy(name: str, context: BenchContext) -> Policy:
    """The policy, or the variant of one, of this name."""
    return policy_named(name, gate=context.gate, boost_per_s=context.boost_per_s, lengths=context.lengths)


def bench_learner(name: str) -> LengthLearner:
    """The paper predicts by similarity, as it says; all others with what runs live, so that policies are compared."""
    return SimilarityLearner() if name.startswith("sagesched-paper") else MixtureLearner()
