"""Makes the policy from the configuration."""

from __future__ import annotations

from controller.config import PolicySection
from controller.policy.policies import DEFAULT_GATE, Schedule, policy_named
from controller.policy.policy import DEFAULT_PREFILL_TOKEN_S, Policy
from store.records import Gate, Preemption


def policy_of(section: PolicySection) -> Policy:
    """The configured policy; raises `ConfigError` for an unknown name.

    >>> policy_of(PolicySection(objective="mean", gate_horizon_tokens=16)).rules.gate
    Gate(horizon_tokens=16, margin=1.0)
    """
    return policy_named(section.name, schedule=schedule_of(section))


def schedule_of(section: PolicySection) -> Schedule:
    """The configured settings of `sage`.

    >>> schedule_of(PolicySection(overtaking=3.0)).overtaking
    3.0
    """
    gate = Gate(
        horizon_tokens=section.gate_horizon_tokens or DEFAULT_GATE.horizon_tokens,
        margin=section.gate_margin or DEFAULT_GATE.margin,
    )
    preemption = Preemption(
        token_s=DEFAULT_PREFILL_TOKEN_S,
        hysteresis=section.preemption_hysteresis,
        rest_steps=section.preemption_rest_steps,
    )
    return Schedule(
        objective=section.objective,
        index=section.index,
        gate=gate if section.gate else None,
        tune_gate=section.gate_margin is None,
        boost_per_s=section.boost_per_s,
        preemption=preemption if section.preemption else None,
        overtaking=section.overtaking,
    )
