"""Converts vLLM's requests and step outputs to facts for the controller.

Nothing here changes the engine; the plugin calls it after each event.
The true length of a request, which is for the virtual GPU only, is in ``extra_args`` and is never read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import Request

from engine_adapter.agent.agent import Agent
from engine_adapter.agent.clock import StampClock
from engine_adapter.agent.hints import Hints
from engine_adapter.agent.step_times import InterTokenTimes, StepTimes
from store.bounds import packed_tokens
from store.records import Arrived, Finished, FinishReason, FirstToken, Preempted, PreemptionCause

_REASONS: dict[str, FinishReason] = {
    "STOP": "stop",
    "REPETITION": "stop",
    "LENGTH": "length",
    "ABORT": "abort",
}


def _not_expected(_request_id: str) -> None:
    """Nothing is looked up in the prefix cache."""


@dataclass(slots=True)
class _TrackedRequest:
    """The state of an unfinished request that vLLM does not keep itself."""

    request: Request
    arrival_s: float
    """By the engine's own clock; vLLM stamps a session anew with each chunk of its input."""
    serial: int
    """Its number among all that were tracked."""
    session_tokens: int | None = None
    """Output tokens of a streaming-input session, some of which vLLM makes its prompt; None for any other request."""
    scheduled_s: float | None = None
    first_token_s: float | None = None
    cached_prompt_tokens: int = 0
    expected_cached_tokens: int | None = None
    preemptions: int = 0
    recomputed_tokens: int = 0
    lost_tokens: int = 0
    """Computed tokens lost in a preemption after which the request has not been scheduled again."""
    first_step: int = 0
    """Number of the step that generated its first token; 0 before it."""
    last_step: int = 0
    """Number of the step of its latest token while a gap is expected after it; 0 otherwise."""
    seen_tokens: int = 0
    """Output tokens when it was last looked at while it was watched."""
    left_out: list[tuple[int, int]] = field(default_factory=list)
    """Pairs of steps between which it got no token: it was preempted, or the token budget was used up before it."""
    shed: str | None = None
    """Why it is ended before it was served."""
    turn: tuple[FinishReason, int] | None = None
    """How a session's last turn ended, and after how many output tokens of all its turns."""
    input_ended: bool = False
    """Whether a session's input has ended in order."""

    def count(self) -> int:
        """Return its output tokens."""
        return self.request.num_output_tokens if self.session_tokens is None else self.session_tokens


class RequestTracker:
    """Tracks every generating request from its arrival to its end and reports it to the agent.

    Pooling requests generate nothing and are not tracked.
    A streaming-input session is one request, from its first chunk of input to its end.

    Args:
        agent: Receives the facts.
        clock: Turns vLLM's stamps of arrival into the engine's own time.
        expected_tokens: Returns and forgets the tokens of a request that the plan expected in the prefix cache.
    """

    def __init__(
        self, agent: Agent, clock: StampClock, expected_tokens: Callable[[str], int | None] = _not_expected
    ) -> None:
        self._agent = agent
        self._clock = clock
        self._expected_tokens = expected_tokens
        self._tracked: dict[str, _TrackedRequest] = {}
        self._serial = 0
        self._preempted: set[str] = set()
        self._steps = StepTimes()
        self._watched: set[str] = set()
        """Requests that run and have no first token, or a gap after their latest: their tokens are counted in every step."""
        self._sessions: set[str] = set()
        """Sessions: vLLM makes their tokens their prompt, so that they are counted by what each step brings."""

    @property
    def request_ids(self) -> AbstractSet[str]:
        """Ids of the tracked requests that have not ended."""
        return self._tracked.keys()

    def begin(self, request: Request) -> None:
        """Track a request that was added to the engine; a further chunk of a known session changes nothing."""
        if request.sampling_params is None or request.request_id in self._tracked:
            return
        arrival_s = self._clock.own_s(request.arrival_time)
        self._serial += 1
        tracked = _TrackedRequest(request, arrival_s, self._serial, 0 if request.resumable else None)
        self._agent.arrived(arrived(request, arrival_s), tracked.count)
        self._tracked[request.request_id] = tracked
        if request.resumable:
            self._sessions.add(request.request_id)

    def end_input(self, request: Request) -> None:
        """Remember that a known session's input ends with this request, which is about to be added to the engine."""
        tracked = self._tracked.get(request.request_id)
        if tracked is not None and not request.resumable:
            tracked.input_ended = True

    def arrival(self, request: Request) -> tuple[float, int]:
        """Return when a request of vLLM's arrived, by the engine's own clock, and its number, which breaks ties."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            return float(request.arrival_time) - self._clock.off_s(), 0
        return tracked.arrival_s, tracked.serial

    def schedule(self, output: SchedulerOutput, running: Sequence[Request], now_s: float) -> None:
        """Record a scheduled step from vLLM's ``SchedulerOutput``, and which running requests it left out."""
        for new in output.scheduled_new_reqs:
            tracked = self._tracked.get(new.req_id)
            if tracked is not None and tracked.scheduled_s is None:
                tracked.scheduled_s = now_s
                self._watched.add(new.req_id)
                tracked.cached_prompt_tokens = max(0, new.num_computed_tokens)  # A KV connector may say less.
                tracked.expected_cached_tokens = self._expected_tokens(new.req_id)
        if self._preempted:
            self._resume(output.num_scheduled_tokens)
        if len(output.num_scheduled_tokens) < len(running):
            for request in running:
                if request.request_id not in output.num_scheduled_tokens:
                    self._expect_gap(request.request_id)

    def preempt(self, request: Request, lost_tokens: int, cause: PreemptionCause, now_s: float) -> None:
        """Report a running request that lost its blocks with ``lost_tokens`` computed tokens."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            return
        tracked.preemptions += 1
        tracked.recomputed_tokens += lost_tokens
        tracked.lost_tokens = lost_tokens
        self._preempted.add(request.request_id)
        self._expect_gap(request.request_id)
        self._agent.preempted(
            Preempted(
                request_id=request.request_id,
                time_s=now_s,
                lost_tokens=lost_tokens,
                attained_tokens=tracked.count(),
                cause=cause,
            )
        )

    def emit(
        self, outputs: Iterable[EngineCoreOutput], scheduled: Iterable[str], ended: AbstractSet[str], now_s: float
    ) -> None:
        """Report what a step brought.

        Hundreds of requests that only generate a further token are not looked at.

        Args:
            outputs: What vLLM tells its clients, which is read for sessions only.
            scheduled: Ids of the requests that were in the step.
            ended: Ids of those that have ended since vLLM's last ``SchedulerOutput``.
            now_s: When the step ended.
        """
        self._steps.ended(now_s)
        if self._sessions:
            self._emit_of_sessions(outputs, now_s)
        watched = self._watched
        for request_id in [each for each in scheduled if each in watched or each in ended]:
            tracked = self._tracked.get(request_id)
            if tracked is None:
                continue
            if request_id in watched and tracked.count() > tracked.seen_tokens:
                tracked.seen_tokens = tracked.count()
                self._generate(tracked, now_s)
            if request_id in ended and tracked.request.is_finished():
                self.end(tracked.request, now_s)

    def _emit_of_sessions(self, outputs: Iterable[EngineCoreOutput], now_s: float) -> None:
        """Count the tokens of sessions, and note how each of their turns ended."""
        for output in [each for each in outputs if each.request_id in self._sessions]:
            tracked = self._tracked[output.request_id]
            tracked.session_tokens = tracked.count() + len(output.new_token_ids)
            if output.finish_reason is not None and not tracked.request.is_finished():
                tracked.turn = _REASONS.get(output.finish_reason.name, "error"), tracked.count()

    def end(self, request: Request, now_s: float) -> None:
        """Report a finished request, whose final status is set."""
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None:
            return
        self._preempted.discard(request.request_id)
        self._watched.discard(request.request_id)
        self._sessions.discard(request.request_id)
        self._expected_tokens(request.request_id)
        times = self._inter_token_times(tracked)
        self._agent.finished(
            Finished(
                request_id=request.request_id,
                time_s=now_s,
                reason=_reason(tracked),
                arrival_s=tracked.arrival_s,
                prompt_tokens=request.num_prompt_tokens,
                output_tokens=max(tracked.count(), request.num_output_tokens),
                max_tokens=request.max_tokens,
                cached_prompt_tokens=tracked.cached_prompt_tokens,
                preemptions=tracked.preemptions,
                recomputed_tokens=tracked.recomputed_tokens,
                scheduled_s=tracked.scheduled_s,
                first_token_s=tracked.first_token_s,
                expected_cached_tokens=tracked.expected_cached_tokens,
                itl_max_s=None if times is None else times.max_s,
                itl_p99_s=None if times is None else times.p99_s,
                shed=tracked.shed,
            )
        )

    def shed(self, request_id: str, reason: str) -> Request:
        """Note why a tracked request is about to be ended; return it."""
        tracked = self._tracked[request_id]
        tracked.shed = reason
        return tracked.request

    def end_finished(self, now_s: float) -> None:
        """Report the requests whose end was missed, as after an error."""
        for tracked in [tracked for tracked in self._tracked.values() if tracked.request.is_finished()]:
            self.end(tracked.request, now_s)

    def _generate(self, tracked: _TrackedRequest, now_s: float) -> None:
        """Follow a watched request that has generated tokens in the step that ended."""
        if tracked.first_token_s is None:
            self._first_token(tracked, now_s)
        elif tracked.last_step:
            step, before = self._steps.steps, tracked.last_step
            if step <= before + 1:  # A step that was already under way when the gap was predicted.
                tracked.last_step = step
                return
            tracked.left_out.append((before, step))
            tracked.last_step = 0
        self._watched.discard(tracked.request.request_id)

    def _expect_gap(self, request_id: str) -> None:
        """Look at the tokens of a request that decodes and gets none in some step, until the next one after that."""
        tracked = self._tracked.get(request_id)
        if tracked is not None and tracked.first_step and not tracked.last_step:
            tracked.last_step = self._steps.steps
            tracked.seen_tokens = tracked.count()
            self._watched.add(request_id)

    def _first_token(self, tracked: _TrackedRequest, now_s: float) -> None:
        tracked.first_token_s = now_s
        tracked.first_step = self._steps.steps
        self._agent.first_token(
            FirstToken(
                request_id=tracked.request.request_id,
                time_s=now_s,
                scheduled_s=now_s if tracked.scheduled_s is None else tracked.scheduled_s,
                cached_prompt_tokens=tracked.cached_prompt_tokens,
            )
        )

    def _inter_token_times(self, tracked: _TrackedRequest) -> InterTokenTimes | None:
        """Return the figures of a request's output tokens; None for a session, whose turns wait for its client."""
        if not tracked.first_step or tracked.session_tokens is not None:
            return None
        return self._steps.between(tracked.first_step, tracked.last_step or self._steps.steps, tracked.left_out)

    def _resume(self, scheduled_tokens: Mapping[str, int]) -> None:
        """Subtract the tokens that a resumed request found in the prefix cache from those to recompute."""
        for request_id in [request_id for request_id in self._preempted if request_id in scheduled_tokens]:
            self._preempted.discard(request_id)
            tracked = self._tracked[request_id]
            found_tokens = tracked.request.num_computed_tokens - scheduled_tokens[request_id]
            spared_tokens = min(found_tokens, tracked.lost_tokens)
            tracked.recomputed_tokens -= spared_tokens
            self._agent.resumed(tracked.lost_tokens - spared_tokens)


def arrived(request: Request, arrival_s: float) -> Arrived:
    """Return the fact of a vLLM request's arrival at ``arrival_s`` by the engine's own clock."""
    sampling = request.sampling_params
    said = Hints.of(sampling.extra_args, getattr(request, "session_id", None))
    return Arrived(
        request_id=request.request_id,
        arrival_s=arrival_s,
        prompt_tokens=request.num_prompt_tokens,
        token_ids=token_bytes(request.prompt_token_ids or ()),
        max_tokens=request.max_tokens,
        temperature=sampling.temperature,
        priority=bounded_class(request.priority),
        tenant=said.tenant,
        lora=request.lora_request.lora_name if request.lora_request else None,
        session=said.session,
        service_class=said.service_class,
        targets=said.targets,
        expected_output_tokens=said.expected_output_tokens,
        sheds=said.sheds,
    )


def bounded_class(priority: int) -> int:
    """Return a strict class that fits 64 bits: vLLM takes any number from the header ``X-Vllm-Priority``.

    >>> bounded_class(2**64 - 1) == 2**63 - 1
    True
    """
    return min(max(priority, -(1 << 63)), (1 << 63) - 1)


def token_bytes(token_ids: Iterable[int]) -> bytes:
    """Pack token ids as little-endian uint32, of a long prompt its head and tail; empty if they are no plain ids.

    >>> token_bytes([1, 256]).hex()
    '0100000000010000'
    >>> len(token_bytes(range(20_000))) // 4
    8192
    >>> token_bytes([-1])
    b''
    """
    try:
        return packed_tokens(tuple(token_ids))
    except (OverflowError, TypeError):
        return b""


def _reason(tracked: _TrackedRequest) -> FinishReason:
    """Return why a request ended.

    VLLM aborts a session whose input ends while it waits for more: that one ended as its last turn did.
    """
    reason = tracked.request.get_finished_reason()
    name: FinishReason = "error" if reason is None else _REASONS.get(reason.name, "error")
    if name == "abort" and tracked.input_ended and tracked.turn is not None:
        turn_reason, output_tokens = tracked.turn
        return turn_reason if output_tokens == tracked.count() else name
    return name
