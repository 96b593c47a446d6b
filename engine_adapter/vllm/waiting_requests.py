"""What vLLM does with waiting requests beside its queue, as `engine_adapter.ordering.admission.Admission` asks.

vLLM takes a request whose KV is loaded asynchronously out of its queue without counting it against its limit, and
passes by requests that wait for a grammar, for output in flight, or for the slot of a LoRA adapter.
A slot becomes free when no request of its adapter runs any more. For an adapter that has waited for long enough, the one
with the fewest running requests starts no further ones; the others, and the base model, are served as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from collections.abc import Set as AbstractSet

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request, RequestStatus

from engine_adapter.ordering.admission import Readiness
from engine_adapter.vllm.releases import awaits_stale_output

_BLOCKED = frozenset(
    (
        RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR,
        RequestStatus.WAITING_FOR_REMOTE_KVS,
        RequestStatus.WAITING_FOR_STREAMING_REQ,
    )
)


class WaitingRequests:
    """The waiting requests of a vLLM scheduler at the start of a step.

    Args:
        scheduler: The scheduler.
        known: Ids of the requests that the plan knows.
        holding: The waiting requests that hold KV blocks.
        deferred: Those that vLLM passed by, or that are blocked.
    """

    def __init__(
        self,
        scheduler: AsyncScheduler,
        known: AbstractSet[str],
        holding: Collection[Request],
        deferred: Collection[Request],
    ) -> None:
        self._deferred = deferred
        self.holding: Collection[Request] = (
            [request for request in holding if request.request_id in known] if holding else ()
        )
        self.under_way: Collection[Request] = [
            request for request in self.holding if request.status != RequestStatus.WAITING_FOR_STREAMING_REQ
        ]
        self._connected = scheduler.connector is not None or scheduler.ec_connector is not None
        self._max_adapters = scheduler.lora_config.max_loras if scheduler.lora_config else None
        self._adapters: Counter[int] = Counter()
        """Running requests by the number of their adapter."""
        if self._max_adapters is not None:
            self._adapters.update(
                request.lora_request.lora_int_id for request in scheduler.running if request.lora_request
            )
        self._leaving: dict[int, int] = {}
        """Adapters that start no further request, by the one that is to have the slot."""

    def readiness(self, request: Request) -> Readiness:
        """Return whether vLLM would start a request now.

        A connector that has not answered leaves no trace but that vLLM has passed the request by in its last step.
        """
        if request.status in _BLOCKED or awaits_stale_output(request):
            return "skipped"
        adapter = request.lora_request
        if (
            self._max_adapters is not None
            and adapter is not None
            and adapter.lora_int_id not in self._adapters
            and len(self._adapters) >= self._max_adapters
        ):
            return "crowded_out"
        if adapter is not None and adapter.lora_int_id in self._leaving.values():
            return "held_back"
        if self._connected and request in self._deferred:
            return "skipped"
        return "ready"

    def make_room(self, request: Request) -> None:
        """Hold back the requests of the adapter that will be gone soonest, as far as its running requests tell."""
        number = request.lora_request.lora_int_id
        staying = [adapter for adapter in self._adapters if adapter not in self._leaving.values()]
        if number not in self._leaving and staying:
            self._leaving[number] = min(staying, key=lambda adapter: (self._adapters[adapter], adapter))

    def start(self, request: Request) -> None:
        """Record that the plan starts a request, whose adapter then takes a slot."""
        if self._max_adapters is not None and request.lora_request is not None:
            self._adapters[request.lora_request.lora_int_id] += 1


def waiting_requests(
    scheduler: AsyncScheduler, known: AbstractSet[str], holding: Collection[Request], deferred: Collection[Request]
) -> WaitingRequests | None:
    """Return the waiting requests where vLLM treats any of them apart; None, at no price, where it does not."""
    if holding or deferred or scheduler.lora_config is not None or scheduler.connector is not None:
        return WaitingRequests(scheduler, known, holding, deferred)
    return None
