"""The settings in force: the operator's, or first come, first served for models whose predictions are not trusted."""

from __future__ import annotations

from msgspec import structs

from controller.core.sessions import Session
from controller.policy.cost import hybrid_cost
from controller.policy.policy import Policy
from store.records import FairShares, Mode, Settings


class Modes:
    """The settings of each model's engines; every change has a revision of its own."""

    def __init__(self, policy: Policy, mode: Mode, lease_s: float, *, fair: bool = False) -> None:
        self._orders = policy.orders
        self._fair = fair
        self._fallbacks: dict[str, Settings] = {}
        self._promised: set[str] = set()
        """Models of which a request had targets."""
        self.settings = Settings(
            revision=1,
            mode=self._possible(mode),
            lease_s=lease_s,
            rules=policy.rules,
        )
        """The operator's settings."""
        self._revision = 1

    def of_model(self, model: str) -> Settings:
        """The settings of a model's engines."""
        return self._fallbacks.get(model, self.settings)

    def of_engine(self, session: Session) -> Settings:
        """The settings of one engine: its model's, with the parts that are adapted to the engine.

        While the controller fails on its messages it is off, unless it is in shadow.
        """
        settings = session.tuning.applied(self.of_model(session.hello.model))
        if self._fair:
            settings = structs.replace(settings, rules=structs.replace(settings.rules, shares=_shares(session)))
        paused = session.trouble.until_s is not None and settings.mode == "on"
        return structs.replace(settings, mode="off") if paused else settings

    def switch(self, mode: Mode) -> None:
        """Switch to the operator's mode; models that are not trusted stay first come, first served."""
        self.settings = self._revised(self._possible(mode))
        self._fallbacks = {model: self._fallback(model) for model in self._fallbacks}

    def follow(self, model: str, *, trusted: bool) -> None:
        """Switch a model's engines to first come, first served while its predictions are not trusted.

        Targets are kept all the same, if its requests have any: for those of time to first token and per output token
        no prediction is needed.
        """
        if not trusted:
            self._fallbacks[model] = self._fallback(model)
        elif self._fallbacks.pop(model, None) is not None:
            self.settings = self._revised(self.settings.mode)

    def promise(self, model: str) -> bool:
        """Note that a request of a model has targets; returns whether the model's settings have changed by that."""
        if model in self._promised:
            return False
        self._promised.add(model)
        if model not in self._fallbacks:
            return False
        self._fallbacks[model] = self._fallback(model)
        return True

    def renumber(self) -> None:
        """Give the operator's settings a new revision, because the part adapted to an engine changed."""
        self.settings = self._revised(self.settings.mode)

    def _fallback(self, model: str) -> Settings:
        if self.settings.mode != "on":
            return self._revised(self.settings.mode)
        if model not in self._promised:
            return self._revised("off")
        rules = structs.replace(self.settings.rules, by_arrival=True, gate=None, preemption=None, victims="last")
        return structs.replace(self._revised("on"), rules=rules)

    def _revised(self, mode: Mode) -> Settings:
        self._revision += 1
        return structs.replace(self.settings, mode=mode, revision=self._revision)

    def _possible(self, mode: Mode) -> Mode:
        return mode if self._orders else "off"


def _shares(session: Session) -> FairShares:
    """The prices by which an engine charges its tenants."""
    cost = hybrid_cost(session.engine)
    return FairShares(
        kv_token_step_s=float(cost.kv_token_step_s),
        slot_step_s=float(cost.slot_step_s),
        prefill_token_s=float(cost.prefill_token_s),
    )
