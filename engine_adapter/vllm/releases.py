"""The calls that differ between the vLLM releases which the plugin serves, by `engine_adapter.vllm.contract.LATER`."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.request import Request, RequestStatus

from engine_adapter.vllm.contract import LATER


@dataclass(frozen=True, slots=True)
class SchedulerNames:
    """The names of one scheduler's attributes, resolved once."""

    limit: str
    holding: str
    drops_stale_output: bool

    @classmethod
    def of(cls, scheduler: AsyncScheduler) -> SchedulerNames:
        """Look at a scheduler."""
        return cls(
            limit=_name(scheduler, "max_num_active_reqs"),
            holding=_name(scheduler, "kv_holding_waiting"),
            drops_stale_output=hasattr(scheduler, "requires_kv_delivery"),
        )

    def active_limit(self, scheduler: AsyncScheduler) -> int:
        """Return the limit of active requests."""
        return int(getattr(scheduler, self.limit))

    def limit_active(self, scheduler: AsyncScheduler, limit: int) -> None:
        """Set it."""
        setattr(scheduler, self.limit, limit)

    def kv_holding(self, scheduler: AsyncScheduler) -> RequestQueue:
        """Return the waiting requests that hold KV blocks, after `PassedBy.gather`."""
        return getattr(scheduler, self.holding)

    def preempt(self, scheduler: AsyncScheduler, request: Request) -> None:
        """Preempt a request as vLLM itself does, with its steps in flight."""
        more = {"drop_stale_output": scheduler.requires_kv_delivery} if self.drops_stale_output else {}
        scheduler._preempt_request(request, time.monotonic(), **more)  # noqa: SLF001 - no other way in


class PassedBy:
    """The waiting requests that vLLM has passed by, or that are blocked by their status.

    To 0.30 vLLM keeps them apart from its queue, together with those that hold KV blocks, and serves them first.
    """

    def __init__(self, scheduler: AsyncScheduler) -> None:
        self._scheduler = scheduler
        self._apart = not hasattr(scheduler, "deferred_waiting")
        self._deferred: set[Request] = set()

    def gather(self) -> Collection[Request]:
        """Return them, those without KV blocks at the head of the queue, as from 0.31 on."""
        if not self._apart:
            return self._scheduler.deferred_waiting  # type: ignore[no-any-return]
        self._deferred = {request for request in self._deferred if _waits(request)}
        skipped = self._scheduler.skipped_waiting
        if skipped:
            self._deferred |= set(skipped)
            self._merge([request for request in skipped if not _holds_blocks(request)])
        return self._deferred

    def _merge(self, requests: list[Request]) -> None:
        self._scheduler.skipped_waiting.remove_requests(requests)
        for request in reversed(requests):
            self._scheduler.waiting.prepend_request(request)


def blocks_can_be_freed(scheduler: AsyncScheduler, request: Request) -> bool:
    """Whether a running request's blocks would be free at once; not while a step in flight writes to them."""
    if hasattr(scheduler, "_request_blocks_can_be_freed"):
        return bool(scheduler._request_blocks_can_be_freed(request))  # noqa: SLF001 - vLLM asks the same way
    return bool(not scheduler.defer_block_free or request.last_sched_seq <= scheduler.processed_step_seq)


def looks_up_prefix(manager: KVCacheManager, request: Request) -> bool:
    """Whether vLLM looks a request up in its prefix cache."""
    if hasattr(manager, "prefix_cache_lookup_enabled"):
        return bool(manager.prefix_cache_lookup_enabled(request))
    return bool(manager.enable_caching and not request.skip_reading_prefix_cache)


def admission_cap(manager: SingleTypeKVCacheManager) -> int | None:
    """Return the most blocks that vLLM asks a group of layers for when it admits a request; None without a bound."""
    cap: int | None = getattr(manager, _name(manager, "max_admission_blocks_per_request"))
    return cap


def prompt_tokens(new: NewRequestData) -> int:
    """Return the length of a new request's prompt; to 0.30 only the prompt itself says it."""
    tokens: int = new.prompt_len if hasattr(new, "prompt_len") else len(new.prompt_token_ids or ())
    return tokens


def awaits_stale_output(request: Request) -> bool:
    """Whether output of a preempted request is still to be delivered, so that vLLM passes it by."""
    return bool(getattr(request, "num_stale_output_tokens", 0) and not request.drop_stale_output)


def _name(owner: object, name: str) -> str:
    before = LATER[name][1]
    return name if before is None or hasattr(owner, name) else before


def _waits(request: Request) -> bool:
    return request.status != RequestStatus.RUNNING and not request.is_finished()


def _holds_blocks(request: Request) -> bool:
    return bool(request.num_computed_tokens > 0 or request.status == RequestStatus.WAITING_FOR_REMOTE_KVS)
