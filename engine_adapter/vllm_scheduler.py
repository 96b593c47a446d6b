"""vLLM's scheduler under the controller's direction, for ``vllm serve --scheduler-cls``.

`SageScheduler` leaves the body of vLLM's ``schedule()`` unchanged: the `Plugin` acts before and after it.
It adds one attribute and four methods to vLLM's names, so conflicts with names of later releases are unlikely.
"""

from __future__ import annotations

import time

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import Request

from engine_adapter.agent.clock import steady_clock
from engine_adapter.ordering.ordering import Ordering
from engine_adapter.transport.keys import EngineKey
from engine_adapter.transport.link import EngineLink
from engine_adapter.transport.zmq_sockets import ZmqLink
from engine_adapter.vllm.plugin import Plugin, check_model, start_plugin

_now_s = steady_clock()
"""The one clock of the engine's process."""


class SageScheduler(AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, ordered by index tables from the controller.

    Under ``--scheduling-policy priority`` a request's own priority stays a strict class above the index.
    A harness in virtual time overrides `_now_s`, `_wall_s`, `_make_link` and `_make_ordering`, which are called during construction.

    Args:
        vllm_config: Its ``--additional-config`` names the controller and the engine
            (`engine_adapter.vllm.plugin.plugin_settings`). Invalid settings are logged, and vLLM then serves in its
            own order.
        args: Passed to vLLM's ``AsyncScheduler``, as are ``kwargs``.

    Raises:
        ConfigError: The model needs another scheduler of vLLM's.
    """

    _sage: Plugin | None = None

    def __init__(self, vllm_config: VllmConfig, *args: object, **kwargs: object) -> None:
        check_model(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)
        self._sage = start_plugin(
            self,
            now_s=self._now_s,
            wall_s=self._wall_s,
            make_link=self._make_link,
            make_ordering=self._make_ordering,
        )

    def _now_s(self) -> float:
        """Return Unix seconds of a clock that never jumps."""
        return _now_s()

    def _wall_s(self) -> float:
        """Return Unix seconds of the system clock, by which vLLM's front end stamps arrivals."""
        return time.time()

    def _make_link(self, endpoint: str, key: EngineKey | None, group: int | None) -> EngineLink:
        """Make the engine's end of the connection to the controller."""
        return ZmqLink(endpoint, key, group)

    def _make_ordering(self, block_size_tokens: int, max_num_seqs: int) -> Ordering:
        """Make the ordering that applies index tables."""
        return Ordering(block_size_tokens, max_num_seqs)

    def add_request(self, request: Request, *args: object, **kwargs: object) -> None:
        """Queue a request and report its arrival."""
        if self._sage:
            self._sage.before_add(request)
        super().add_request(request, *args, **kwargs)
        if self._sage:
            self._sage.after_add(request)

    def schedule(self, *args: object, **kwargs: object) -> SchedulerOutput:
        """Let vLLM schedule a step in the plan's order."""
        if self._sage:
            self._sage.before_schedule()
        output = super().schedule(*args, **kwargs)
        if self._sage:
            self._sage.after_schedule(output)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, *args: object, **kwargs: object
    ) -> dict[int, EngineCoreOutputs]:
        """Let vLLM update its requests from a step's output, and report the tokens."""
        now_s = self._now_s()
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, *args, **kwargs)
        if self._sage:
            self._sage.after_update(scheduler_output, outputs, now_s)
        return outputs

    def finish_requests(self, *args: object, **kwargs: object) -> list[Request]:
        """Let vLLM end requests from outside, such as aborted ones, and report them."""
        requests: list[Request] = super().finish_requests(*args, **kwargs)
        if self._sage:
            self._sage.after_finish(requests)
        return requests

    def _preempt_request(self, request: Request, *args: object, **kwargs: object) -> None:
        lost_tokens = request.num_computed_tokens
        super()._preempt_request(request, *args, **kwargs)
        if self._sage:
            self._sage.after_preemption(request, lost_tokens)

    def shutdown(self) -> None:
        """Send the remaining facts, disconnect, and let vLLM shut down."""
        if self._sage:
            self._sage.close()
        super().shutdown()
