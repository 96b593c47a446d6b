"""Service classes for the requests of a benchmark, and what each policy is told of them.

The class of a request is drawn by a hash of the seed and its id: the same under every policy, engine and load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

from controller.policy.baselines import PRIORITY, knows_service
from engine_adapter.virtual_time.engine import TraceRequest
from store.errors import ConfigError
from store.records import Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedClass:
    """A service class and its share of the requests."""

    name: str
    share: float
    targets: Targets | None = None
    priority: int = 0
    """In vLLM's own order by priority; lower is served first."""


CHAT = MixedClass(name="chat", share=0.6, targets=Targets(ttft_s=2.0, tpot_s=0.08))
AGENTS = MixedClass(name="agents", share=0.25, targets=Targets(e2e_s=30.0), priority=1)
BATCH = MixedClass(name="batch", share=0.15, priority=2)

MIXES: dict[str, tuple[MixedClass, ...]] = {
    "chat-agents-batch": (CHAT, AGENTS, BATCH),
    "chat-batch": (CHAT, replace(BATCH, share=0.4)),
    "chat": (replace(CHAT, share=1.0),),
    "agents": (replace(AGENTS, share=1.0, priority=0),),
}
"""Mixes by name; the shares of each sum to 1, and the first is the default."""

DEFAULT_MIX = next(iter(MIXES))


def mix_named(name: str) -> tuple[MixedClass, ...]:
    """The mix of this name; raises `ConfigError` for an unknown one.

    >>> [service_class.name for service_class in mix_named("chat-batch")]
    ['chat', 'batch']
    """
    try:
        return MIXES[name]
    except KeyError:
        raise ConfigError(f"unknown mix of service classes {name!r}: choose one of {', '.join(MIXES)}") from None


def in_classes(requests: Sequence[TraceRequest], mix: Sequence[MixedClass], seed: int) -> list[TraceRequest]:
    """The same requests, each in a class of the mix and with its targets."""
    return [
        replace(request, service_class=chosen.name, targets=chosen.targets)
        for request in requests
        for chosen in [_class_of(request.request_id, mix, seed)]
    ]


def told(requests: Sequence[TraceRequest], mix: Sequence[MixedClass], policy: str) -> list[TraceRequest]:
    """What a policy is told: ours the targets, vLLM's order by priority each class's priority, all others neither."""
    if knows_service(policy):
        return list(requests)
    priorities = {one.name: one.priority if policy == PRIORITY else None for one in mix}
    return [
        replace(request, service_class=None, targets=None, priority=request.priority if priority is None else priority)
        for request in requests
        for priority in [priorities[request.service_class or ""]]
    ]


def _class_of(request_id: str, mix: Sequence[MixedClass], seed: int) -> MixedClass:
    place = crc32(f"{seed}/{request_id}".encode()) / 2**32
    for one in mix[:-1]:
        place -= one.share
        if place < 0.0:
            return one
    return mix[-1]
