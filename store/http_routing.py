"""Requests and responses of ``POST /api/route`` and ``/api/predict``, between a router and the controller.

Imported in Ray, so kept light.
"""

from __future__ import annotations

import msgspec


class RouteOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of ``POST /api/route``: a request's description before an engine is chosen."""

    model: str
    prompt_tokens: int
    max_tokens: int
    token_ids: tuple[int, ...] | None = None
    """The prompt, or its head and tail as in `store.records.Arrived`; None where only its length is known."""
    temperature: float = 1.0
    tenant: str | None = None
    session: str | None = None
    """Conversation or agent's program that the request belongs to, if its client says."""
    lora: str | None = None
    expected_output_tokens: int | None = None
    """Output length that the client expects."""


class PredictOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of ``POST /api/predict``: a request whose output length is asked for."""

    model: str
    max_tokens: int
    token_ids: tuple[int, ...] | None = None
    """The prompt, or its head and tail as in `store.records.Arrived`."""
    prompt_tokens: int | None = None
    """Length of the whole prompt where ``token_ids`` are its head and tail, or where only the length is known."""
    text: str | None = None
    """The prompt as text, in place of token ids, where the controller has the model's tokenizer."""
    temperature: float = 1.0
    tenant: str | None = None
    session: str | None = None
    lora: str | None = None
    expected_output_tokens: int | None = None


class LengthForecast(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of ``POST /api/predict``: the predicted output length, up to the request's max_tokens."""

    q50_tokens: int
    """Median."""
    q90_tokens: int
    """Length that the answer exceeds with a chance of one in ten."""
    mean_tokens: float
    evidence: float
    """Effective number of past answers behind it; 0 where nothing was learned yet."""
    trusted: bool
    """Whether it is of this prompt; false: recent predictions were wrong, and this is the model's own distribution."""


class EngineForecast(msgspec.Struct, frozen=True, kw_only=True):
    """Forecast of a request on one engine."""

    engine_id: str
    wait_s: float
    """Wait for KV memory and a slot, behind the requests that precede it."""
    run_s: float
    """Duration of its answer once it runs."""
    cost_s: float
    """Delay that it causes to each request behind it."""
    behind: int
    """Waiting requests that come after it, each of which it delays."""
    need_tokens: int
    """KV memory that it needs at first, beside what is expected in the prefix cache."""
    demand_tokens: int
    """KV memory that others hold or wait for."""
    kv_tokens: int
    """KV memory that the engine has."""
    cached_tokens: int = 0
    """Prompt tokens that it is expected to find in the engine's prefix cache."""
    saved_s: float = 0.0
    """Prefill that they save."""


class RouteForecast(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of ``POST /api/route``."""

    time_s: float
    """Time of the queues that the forecast rests on, Unix seconds of the controller's clock."""
    engines: tuple[EngineForecast, ...]
