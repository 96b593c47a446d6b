"""Controls vLLM's order, victim, admission limit and step, and restores them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from itertools import chain, islice

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, SchedulingPolicy, create_request_queue
from vllm.v1.request import Request

from engine_adapter.agent.agent import Agent
from engine_adapter.ordering.kv_memory import KvMemory
from engine_adapter.ordering.ordered_queue import OrderedQueue
from engine_adapter.ordering.ordering import Plan
from engine_adapter.vllm.releases import PassedBy, SchedulerNames
from engine_adapter.vllm.step_shape import StepShape
from engine_adapter.vllm.waiting_requests import WaitingRequests, waiting_requests


class SchedulerControl:
    """Steers a vLLM scheduler from outside, before each of its steps.

    While steered, vLLM runs under its ``FCFS`` policy, whatever it was started with:
    its queue is then a deque that is served in its order, and its victim is the last of ``running``.
    A request's own priority still counts: it comes first in the plan's order.
    Waiting requests that hold KV blocks (``kv_holding_waiting``) are left to vLLM and go first.

    vLLM counts neither requests whose KV it loads asynchronously nor those that it passes by against its limit. Where
    there may be such, it is shown only the head of the queue that the plan admits; `show_all` returns the rest.

    Args:
        scheduler: The scheduler to steer.
        arrival: By what vLLM's own order is restored: when a request arrived, by a clock that never jumps.
    """

    def __init__(self, scheduler: AsyncScheduler, arrival: Callable[[Request], tuple[float, int]]) -> None:
        self._scheduler = scheduler
        self._arrival = arrival
        self.pushing_out = False
        """Whether the plan, not the engine, causes a preemption that happens now."""
        self.shape = StepShape(scheduler)
        """Bounds of the step in force."""
        self._stock_policy: SchedulingPolicy = scheduler.policy
        self._names = SchedulerNames.of(scheduler)
        self._passed_by = PassedBy(scheduler)
        self._stock_limit = self._names.active_limit(scheduler)
        self._held = False
        self._behind: OrderedRequestQueue | None = None
        """The queue behind its head, while vLLM is shown the head only."""

    def steer(
        self, agent: Agent, known: AbstractSet[str], *, now_s: float, memory: KvMemory, steps_in_flight: int
    ) -> Plan[Request] | None:
        """Apply the agent's plan, or restore vLLM's own order when it has none; return the plan.

        Requests that the agent does not know go first, outside the gate. A scheduler that is paused is left alone: it
        starts nobody, so that whoever was pushed out for a waiting request would be missing when it is drained.
        """
        scheduler = self._scheduler
        if agent.mode(now_s) != "on" or scheduler.pause_state != PauseState.UNPAUSED:
            # Iterating over vLLM's heap costs a sort, which is avoided unless needed.
            self.give_back()
            return None
        passed_by = self._passed_by.gather()
        holding = self._names.kv_holding(scheduler)
        waiting, running = scheduler.waiting, scheduler.running
        strange_waiting: list[Request] = []
        strange_running: list[Request] = []
        # Finished requests whose blocks are freed later are in none of the three.
        if len(waiting) + len(running) + len(holding) != len(known):
            if not known:
                self.give_back()
                return None
            # Rare, and finding them touches every request.
            waiting, strange_waiting = _split(waiting, known)
            running, strange_running = _split(running, known)
        admission = waiting_requests(scheduler, known, holding, passed_by)
        plan = agent.plan(
            now_s,
            waiting=waiting,
            running=running,
            memory=memory,
            admission=admission,
            steps_in_flight=steps_in_flight,
        )
        if plan is None:
            self.give_back()
        else:
            self._apply(plan, admission, strange_waiting, strange_running)
        return plan

    def show_all(self) -> None:
        """Return to vLLM the part of its queue that it was not shown in the step that it has scheduled."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.extendleft(reversed(self._scheduler.waiting))
            self._scheduler.waiting = behind

    def give_back(self) -> None:
        """Restore vLLM's own policy, limit, order and step."""
        self.show_all()
        if not self._held:
            return
        scheduler = self._scheduler
        waiting = create_request_queue(self._stock_policy)
        for request in sorted(scheduler.waiting, key=self._arrival):
            waiting.add_request(request)
        scheduler.running.sort(key=self._arrival)
        scheduler.waiting = waiting
        scheduler.policy = self._stock_policy
        self._names.limit_active(scheduler, self._stock_limit)
        self.shape.give_back()
        self._held = False

    def _apply(
        self,
        plan: Plan[Request],
        admission: WaitingRequests | None,
        strange_waiting: list[Request],
        strange_running: list[Request],
    ) -> None:
        """Check the whole plan, then apply it at once: an error leaves vLLM unchanged."""
        scheduler = self._scheduler
        waiting = scheduler.waiting
        if strange_waiting:
            waiting = OrderedRequestQueue(chain(strange_waiting, plan.waiting))
        elif plan.waiting is not waiting:
            waiting = OrderedRequestQueue(plan.waiting)
        running = strange_running + plan.running
        moved = len(plan.pushed_out)
        assert len(waiting) == len(scheduler.waiting) + moved, "the plan loses or invents waiting requests"
        assert len(running) == len(scheduler.running) - moved, "the plan loses or invents running requests"
        limit, head = self._stock_limit, None
        if plan.admission_limit is not None:
            held = 0 if admission is None else len(admission.holding)
            active = plan.admission_limit + plan.skipped + len(strange_waiting) + len(strange_running)
            strange_held = len(self._names.kv_holding(scheduler)) - held
            limit = min(limit, active + strange_held)
            if held or plan.skipped or scheduler.connector is not None:
                head = active - len(running) - held
        self._held = True
        scheduler.policy = SchedulingPolicy.FCFS
        self._push_out(plan.pushed_out)
        scheduler.waiting = waiting
        scheduler.running[:] = running
        # To 0.30 vLLM asserts that no more run than its limit.
        self._names.limit_active(scheduler, max(limit, len(running)))
        self.shape.apply(plan.step_tokens, plan.chunk_tokens)
        if head is not None and head < len(waiting):
            self._show(head, waiting)

    def _show(self, count: int, waiting: OrderedRequestQueue) -> None:
        """Show vLLM only the first ``count`` requests of the queue."""
        self._scheduler.waiting = FCFSRequestQueue(islice(waiting, count))
        for _ in range(count):
            waiting.popleft()
        self._behind = waiting

    def _push_out(self, victims: list[Request]) -> None:
        """Preempt running requests through vLLM's own method, which handles steps in flight, as vLLM itself does."""
        self.pushing_out = True
        try:
            for victim in victims:
                self._names.preempt(self._scheduler, victim)
        finally:
            self.pushing_out = False


class OrderedRequestQueue(OrderedQueue[Request], FCFSRequestQueue):  # type: ignore[misc]  # mypy does not follow vLLM
    """VLLM's deque in the plan's order; vLLM changes it through the deque's methods and this one."""

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Remove requests, such as aborted ones, and keep the others in order."""
        self.remove_all(requests)


def _split(requests: Collection[Request], known: AbstractSet[str]) -> tuple[list[Request], list[Request]]:
    """Split requests into the known ones and the others, each in order; others are rare."""
    known_requests = [request for request in requests if request.request_id in known]
    if len(known_requests) == len(requests):
        return known_requests, []
    return known_requests, [request for request in requests if request.request_id not in known]
