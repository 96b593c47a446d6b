"""From the configuration to a policy."""

from __future__ import annotations

from controller.config import PolicySection
from controller.policies import BOOSTS_PER_S, DEFAULT_GATE, policy_named
from controller.policy import Policy
from store.records import Gate


def policy_of(section: PolicySection) -> Policy:
    """The policy that the configuration asks for; raises `ConfigError`.

    >>> policy_of(PolicySection(objective="mean", gate_horizon_tokens=16)).gate
    Gate(horizon_tokens=16, margin=1.0)
    """
    gate = Gate(
        horizon_tokens=section.gate_horizon_tokens or DEFAULT_GATE.horizon_tokens,
        margin=section.gate_margin or DEFAULT_GATE.margin,
    )
    boost_per_s = BOOSTS_PER_S[section.objective] if section.boost_per_s is None else section.boost_per_s
    return policy_named(section.name, gate=gate if section.gate else None, boost_per_s=boost_per_s or None)
