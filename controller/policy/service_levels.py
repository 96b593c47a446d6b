"""Service classes and tenants: which targets a request has, and the account that it is charged to.

A service class names targets. A request is in the class that it names; otherwise in the first one whose conditions it
meets; otherwise in the class ``default``, if there is one. Targets that a request brings itself take precedence over
those of its class, one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from store.records import Arrived, Targets

DEFAULT_CLASS = "default"
"""The class of requests that name none and meet no conditions, where it is configured."""

DEFAULT_ACCOUNT = "default"
"""The account of requests that name no tenant, and of tenants beyond those that an engine keeps accounts of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceClass:
    """Targets, the share of requests that is to meet them, and the conditions under which a request is in the class.

    A request meets the conditions if it has one of the values of each that is given; a class without any is entered by
    name only.
    """

    targets: Targets = field(default_factory=Targets)
    objective: float = 0.99
    """Share of the requests that is to meet all targets."""
    aliases: frozenset[str] = frozenset()
    """Other names that requests may give, such as a ``service_tier``."""
    tenants: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    """Models or LoRA adapters."""
    priorities: frozenset[int] = frozenset()

    def admits(self, arrived: Arrived, model: str) -> bool:
        """Whether a request meets the conditions."""
        if not (self.tenants or self.models or self.priorities):
            return False
        if self.tenants and arrived.tenant not in self.tenants:
            return False
        if self.models and not self.models & {model, arrived.lora}:
            return False
        return not self.priorities or arrived.priority in self.priorities


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """Weights of the tenants in their share of an engine."""

    fair: bool = False
    """Whether tenants share an engine by weight; otherwise their requests go by the index alone."""
    weights: Mapping[str, float] = field(default_factory=dict)
    default_weight: float = 1.0
    """Weight of every other tenant."""

    def weight(self, tenant: str) -> float:
        """The weight of a tenant."""
        return self.weights.get(tenant, self.default_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What is promised to a request."""

    service_class: str | None = None
    """None for a request that is in no class."""
    targets: Targets | None = None
    """None for a request that has none."""
    objective: float | None = None
    """Share of the requests of the class that is to meet its targets; None for a request that is in no class."""
    account: str | None = None
    """None where no shares are kept."""
    weight: float = 1.0


NO_PROMISE = Promise()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevels:
    """The configured classes, in order, and tenants.

    >>> chat = ServiceClass(targets=Targets(ttft_s=2.0), tenants=frozenset({"shop"}))
    >>> levels = ServiceLevels(classes={"chat": chat})
    >>> from store.records import Arrived
    >>> sizes = {"prompt_tokens": 1, "token_ids": b"", "max_tokens": 1, "temperature": 1.0}
    >>> arrived = Arrived(request_id="r", arrival_s=0.0, tenant="shop", targets=Targets(tpot_s=0.1), **sizes)
    >>> levels.promise(arrived, "llama")
    Promise(service_class='chat', targets=Targets(ttft_s=2.0, tpot_s=0.1, e2e_s=None), objective=0.99, account=None, weight=1.0)
    """

    classes: Mapping[str, ServiceClass] = field(default_factory=dict)
    tenants: Tenants = field(default_factory=Tenants)

    def promise(self, arrived: Arrived, model: str) -> Promise:
        """What is promised to a request of a model."""
        name = self.class_of(arrived, model)
        targets = _merged(arrived.targets, self.classes[name].targets if name is not None else None)
        objective = None if name is None else self.classes[name].objective
        if not self.tenants.fair:
            if name is None and targets is None:
                return NO_PROMISE
            return Promise(service_class=name, targets=targets, objective=objective)
        account = DEFAULT_ACCOUNT if arrived.tenant is None else arrived.tenant
        weight = self.tenants.weight(account)
        return Promise(service_class=name, targets=targets, objective=objective, account=account, weight=weight)

    def class_of(self, arrived: Arrived, model: str) -> str | None:
        """The class of a request; one that names an unknown class is treated as if it named none."""
        named = arrived.service_class
        if named is not None:
            if named in self.classes:
                return named
            for name, service_class in self.classes.items():
                if named in service_class.aliases:
                    return name
        for name, service_class in self.classes.items():
            if service_class.admits(arrived, model):
                return name
        return DEFAULT_CLASS if DEFAULT_CLASS in self.classes else None


def _merged(own: Targets | None, of_class: Targets | None) -> Targets | None:
    """A request's own targets, and those of its class for what it does not say; None for none at all."""
    if own is None or of_class is None:
        targets = own or of_class
        return None if targets == Targets() else targets
    return Targets(
        ttft_s=of_class.ttft_s if own.ttft_s is None else own.ttft_s,
        tpot_s=of_class.tpot_s if own.tpot_s is None else own.tpot_s,
        e2e_s=of_class.e2e_s if own.e2e_s is None else own.e2e_s,
    )
