"""Question and answer of ``POST /api/route``, between a router and the controller; imported inside Ray, so kept light."""

from __future__ import annotations

import msgspec


class RouteOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of ``POST /api/route``: what is known of a request before an engine has it."""

    model: str
    prompt_tokens: int
    max_tokens: int
    token_ids: tuple[int, ...] | None = None
    """The prompt, or its head and tail as in `store.records.Arrived`; None where only its length is known."""
    temperature: float = 1.0
    tenant: str | None = None


class EngineForecast(msgspec.Struct, frozen=True, kw_only=True):
    """What to expect of a request on one engine."""

    engine_id: str
    wait_s: float
    """Until there is memory and a place, behind those that go before it."""
    run_s: float
    """For its answer once it runs."""
    cost_s: float
    """Engine-seconds that it takes from all others."""
    behind: int
    """Requests that wait and go after it, each of which it delays."""
    need_tokens: int
    """KV memory that it takes at first."""
    demand_tokens: int
    """KV memory held and waited for by others."""
    kv_tokens: int
    """KV memory that the engine has."""


class RouteForecast(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of ``POST /api/route``."""

    time_s: float
    """Time of the queues that the forecast rests on, Unix seconds of the controller's clock."""
    engines: tuple[EngineForecast, ...]
