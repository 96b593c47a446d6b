"""Ends requests that wait in vain, as their clients asked for, with the reason in the answer."""

from __future__ import annotations

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from engine_adapter.agent.shedding import SHED_REASON
from engine_adapter.vllm.request_events import RequestTracker


class Shedding:
    """The requests that were ended before they were served.

    vLLM tells a client of an end only with the output of a step, so that it hears it with the next one.
    """

    def __init__(self, scheduler: AsyncScheduler, tracker: RequestTracker) -> None:
        self._scheduler = scheduler
        self._tracker = tracker
        self._untold: list[Request] = []

    def end(self, request_ids: list[str]) -> None:
        """End waiting requests; all by one call, for vLLM goes through its whole queue in each."""
        if request_ids:
            self._untold.extend(self._tracker.shed(request_id, SHED_REASON) for request_id in request_ids)
            self._scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ABORTED)

    def answer(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Put their ends into a step's outputs."""
        for request in self._untold:
            output = EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=SHED_REASON,
            )
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(output)
        self._untold.clear()
