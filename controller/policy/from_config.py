"""Makes the policy, and what is promised to requests, from the configuration."""

from __future__ import annotations

from controller.config import Config, PolicySection, ServiceClassSection
from controller.policy.policies import DEFAULT_GATE, Schedule, policy_named
from controller.policy.policy import DEFAULT_PREFILL_TOKEN_S, Policy
from controller.policy.service_levels import ServiceClass, ServiceLevels, Tenants
from store.records import Gate, Preemption, Targets


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


def service_levels_of(config: Config) -> ServiceLevels:
    """The configured service classes and tenants."""
    tenants = config.tenants
    return ServiceLevels(
        classes={name: _service_class(section) for name, section in config.classes.items()},
        tenants=Tenants(fair=tenants.fair, weights=tenants.weights, default_weight=tenants.default_weight),
    )


def _service_class(section: ServiceClassSection) -> ServiceClass:
    return ServiceClass(
        targets=Targets(ttft_s=section.ttft_s, tpot_s=section.tpot_s, e2e_s=section.e2e_s),
        objective=section.objective,
        aliases=frozenset(section.aliases),
        tenants=frozenset(section.tenants),
        models=frozenset(section.models),
        priorities=frozenset(section.priorities),
    )
