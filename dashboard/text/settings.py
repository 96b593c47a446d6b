"""Settings in words for people; nothing here knows Streamlit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from store.http_api import EngineView, SettingView, StateView

NOT_SET = "not set"


def configured(value: str) -> str:
    """Write a configured value.

    >>> configured("None"), configured("0.5")
    ('not set', '0.5')
    """
    return NOT_SET if value == "None" else value


def in_force(setting: SettingView, state: StateView | None) -> str:
    """Write what holds now for a setting: what was switched, tuned or is the policy's own replaces what is configured.

    Args:
        setting: as configured.
        state: None where the controller gives none; then the configured value is all that is known.
    """
    if state is None:
        return configured(setting.value)
    rules = state.controller.settings.rules
    gate = rules.gate
    found = {
        "mode": state.controller.mode,
        "policy.name": state.controller.policy,
        "policy.boost_per_s": f"{rules.boost_per_s:.3g}, tuned to each engine",
        "policy.gate_horizon_tokens": "no gate" if gate is None else f"{gate.horizon_tokens:,}",
        "policy.gate_margin": "no gate" if gate is None else f"{gate.margin:.3g}, tuned to each engine",
    }
    known = {"mode", "policy.name"} | ({setting.key} if setting.value == "None" else set())
    return found[setting.key] if setting.key in known & set(found) else configured(setting.value)


def versions(found: Mapping[str, str], engines: Sequence[EngineView]) -> dict[str, str]:
    """The versions of the controller's environment, and of the engines, which have environments of their own."""
    here = {
        ("vllm (beside the controller)" if name == "vllm" else name): (
            "not installed, not needed" if name == "vllm" and version == "not installed" else version
        )
        for name, version in found.items()
    }
    return here | {f"engine {engine.engine_id}": f"{engine.engine} {engine.engine_version}" for engine in engines}
