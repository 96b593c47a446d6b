"""vLLM's scheduler with an ear and a hand for the controller: ``--scheduler-cls`` of the serving command.

`SageScheduler` never touches the body of vLLM's ``schedule()``: it lets the `Plugin` act before and after.
It keeps one attribute and three methods of its own beside vLLM's names, so that a release that adds names
to its scheduler is not disturbed.
"""

from __future__ import annotations

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import Request

from engine_adapter.agent.clock import steady_clock
from engine_adapter.ordering.ordering import Ordering
from engine_adapter.transport.keys import EngineKey
from engine_adapter.transport.link import EngineLink
from engine_adapter.transport.zmq_sockets import ZmqLink
from engine_adapter.vllm.plugin import Plugin, start_plugin

_now_s = steady_clock()
"""One clock for the whole life of the engine."""


class SageScheduler(AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, ordered by index tables from the controller.

    Under ``--scheduling-policy priority`` a request's own priority stays a strict class above the index.
    A harness in virtual time overrides `_now_s`, `_make_link` and `_make_ordering`, which are called during construction.
    """

    _sage: Plugin | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._sage = start_plugin(self, now_s=self._now_s, make_link=self._make_link, make_ordering=self._make_ordering)

    def _now_s(self) -> float:
        """Unix seconds of a clock that never jumps."""
        return _now_s()

    def _make_link(self, endpoint: str, key: EngineKey | None) -> EngineLink:
        """The engine's end of the connection to the controller."""
        return ZmqLink(endpoint, key)

    def _make_ordering(self, block_size_tokens: int, max_num_seqs: int) -> Ordering:
        """How index tables are applied."""
        return Ordering(block_size_tokens, max_num_seqs)

    def add_request(self, request: Request, *args: object, **kwargs: object) -> None:
        """Queue a request and report its arrival."""
        super().add_request(request, *args, **kwargs)
        if self._sage:
            self._sage.after_add(request)

    def schedule(self, *args: object, **kwargs: object) -> SchedulerOutput:
        """Let vLLM schedule a step in our order."""
        if self._sage:
            self._sage.before_schedule()
        output = super().schedule(*args, **kwargs)
        if self._sage:
            self._sage.after_schedule(output)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, *args: object, **kwargs: object
    ) -> dict[int, EngineCoreOutputs]:
        """Let vLLM take over a step's tokens and report what it brought."""
        now_s = self._now_s()
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, *args, **kwargs)
        if self._sage:
            self._sage.after_update(scheduler_output, outputs, now_s)
        return outputs

    def finish_requests(self, *args: object, **kwargs: object) -> list[Request]:
        """Let vLLM end requests from outside, aborted ones above all, and report it."""
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
        """Send what is left, say goodbye, and let vLLM shut down."""
        if self._sage:
            self._sage.close()
        super().shutdown()
