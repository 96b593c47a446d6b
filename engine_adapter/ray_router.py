"""Routing across replicas by predicted cost, as a request router of Ray Serve; the only module that imports Ray.

    from ray.serve.config import RequestRouterConfig

    RequestRouterConfig(
        request_router_class="engine_adapter.ray_router.SageRequestRouter",
        request_router_kwargs={"controller": "http://127.0.0.1:8700", "model": "MODEL"},
        request_routing_stats_period_s=1.0,
    )

Each replica names its engine: ``record_routing_stats(self)`` of its class returns ``{"engine_id": "gpu-1"}``.
For each request the router asks the controller for a forecast on each engine and sends it to the best
(`routing.ranking.ranked`). When the controller does not answer within ``timeout_s``, or knows none of the replicas'
engines, the router falls back to Ray's default (the shorter queue of two random replicas) and asks the controller again
after ``pause_s``; routed and fallen-back requests are counted.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from ray.util.metrics import Counter

from engine_adapter.routing.client import RouteClient
from engine_adapter.routing.ranking import Ledger, Sent, Silence, ranked
from store.errors import ConfigError, EngineError
from store.http_routing import EngineForecast, RouteForecast, RouteOrder

if TYPE_CHECKING:
    from ray.serve._private.replica_result import ReplicaResult

log = logging.getLogger("ray.serve.sagesched")

ASKERS = 4
"""Forecasts that are asked for concurrently; further requests wait for their turn within ``timeout_s``."""
CHOICES_KEPT = 10_000

Describe: TypeAlias = Callable[[str, tuple[Any, ...], dict[str, Any]], RouteOrder | None]
"""Returns the order for a model and a call's positional and named arguments; None if it is no request."""


class SageRequestRouter(RequestRouter):
    """Sends each request to the engine with the best forecast; falls back to power of two choices.

    It does not derive from `FIFOMixin`, which would give the replica chosen for one request to another.
    """

    def initialize_state(  # type: ignore[override]  # Ray passes the options of its configuration by name.
        self,
        *,
        controller: str,
        model: str,
        token: str | None = None,
        timeout_s: float = 0.25,
        pause_s: float = 2.0,
        describe: str = "engine_adapter.routing.request_size.described",
    ) -> None:
        """Configure the router from ``request_router_kwargs``.

        Args:
            controller: URL of the controller's API.
            model: Model name under which the engines serve.
            token: Bearer token of the API, if it needs one.
            timeout_s: Longest wait for a forecast, in seconds.
            pause_s: Seconds after a failure before the controller is asked again.
            describe: Dotted path of the function that reads a request's size from the call; it may tokenise the prompt.

        Raises:
            ConfigError: ``controller`` is no URL, or ``describe`` cannot be imported.
        """
        self._model = model
        self._timeout_s = timeout_s
        self._describe: Describe = _function(describe)
        self._client = RouteClient(controller, token=token, timeout_s=timeout_s, connections=ASKERS)
        self._pool = ThreadPoolExecutor(ASKERS, thread_name_prefix="sagesched-router")
        self._silence = Silence(pause_s)
        self._ledger = Ledger()
        self._chosen: dict[str, dict[str, EngineForecast]] = {}
        self._complained = False
        self.routed = 0
        self.fell_back = 0
        self._count_routed = Counter("sagesched_router_routed", description="Requests sent by predicted cost.")
        self._count_fallbacks = Counter("sagesched_router_fallbacks", description="Requests routed by queue length.")

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return one rank for each replica whose engine the controller knows, the best first; then all others."""
        if pending_request is None:
            return [two_of(candidate_replicas)]
        # Ray goes down the ranks while replicas are full, and starts again after a pause.
        pending_request.routing_context.should_backoff = True
        replicas = self._by_engine(candidate_replicas)
        forecast = await self._ask(pending_request) if replicas else None
        known = [e for e in forecast.engines if e.engine_id in replicas] if forecast else []
        if forecast is None or not known:
            self.fell_back += 1
            self._count_fallbacks.inc()
            return [two_of(candidate_replicas)]
        order = ranked(known, self._ledger.unseen(forecast.time_s))
        self._remember(pending_request.metadata.internal_request_id, known)
        ranks = [[replicas[engine.engine_id]] for engine in order]
        named = {replica.replica_id for rank in ranks for replica in rank}
        rest = [replica for replica in candidate_replicas if replica.replica_id not in named]
        return [*ranks, rest] if rest else ranks

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Record what was sent to which engine until the controller's forecasts include it."""
        super().on_request_routed(pending_request, replica_id, result)
        forecasts = self._chosen.pop(pending_request.metadata.internal_request_id, None)
        replica = self._replicas.get(replica_id)
        engine_id = engine_of(replica) if replica is not None else None
        if forecasts is None or engine_id not in forecasts:
            return
        self.routed += 1
        self._count_routed.inc()
        engine = forecasts[engine_id]
        self._ledger.record(Sent(time.time(), engine.engine_id, engine.cost_s, engine.need_tokens))

    def _by_engine(self, replicas: list[RunningReplica]) -> dict[str, RunningReplica]:
        named = ((engine_of(replica), replica) for replica in replicas)
        return {engine_id: replica for engine_id, replica in named if engine_id is not None}

    async def _ask(self, pending_request: PendingRequest | None) -> RouteForecast | None:
        """Return the controller's forecast; None, within ``timeout_s`` and without raising, if there is none."""
        if pending_request is None or not self._silence.asks(time.monotonic()):
            return None
        try:
            order = self._describe(self._model, tuple(pending_request.args), dict(pending_request.kwargs))
            if order is None:
                return None
            asked = asyncio.get_running_loop().run_in_executor(self._pool, self._client.ask, order)
            forecast = await asyncio.wait_for(asked, self._timeout_s)
        except Exception as error:  # noqa: BLE001 - a router's error would keep the request waiting for ever
            self._give_up(error)
            return None
        if self._complained:
            self._complained = False
            log.warning("the controller answers again: requests are routed by predicted cost")
        return forecast

    def _give_up(self, error: Exception) -> None:
        self._silence.failed(time.monotonic())
        if not self._complained:
            self._complained = True
            what = str(error) if isinstance(error, EngineError) else f"{type(error).__name__} {error}"
            log.warning("the controller gives no forecast (%s): routing is by queue length until it does", what)

    def _remember(self, request_id: str, engines: list[EngineForecast]) -> None:
        self._chosen[request_id] = {engine.engine_id: engine for engine in engines}
        while len(self._chosen) > CHOICES_KEPT:
            del self._chosen[next(iter(self._chosen))]


def two_of(replicas: list[RunningReplica]) -> list[RunningReplica]:
    """Return two random replicas, or all where there are fewer; Ray takes the one with the shorter queue."""
    return random.sample(replicas, min(2, len(replicas)))


def engine_of(replica: RunningReplica) -> str | None:
    """Return the engine id that a replica reports; None until it has reported one."""
    engine_id = (replica.routing_stats or {}).get("engine_id")
    return engine_id if isinstance(engine_id, str) else None


def _function(path: str) -> Describe:
    module, _, name = path.rpartition(".")
    try:
        found: Describe = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"describe is {path!r} and cannot be imported ({error}): give MODULE.FUNCTION") from None
    return found
