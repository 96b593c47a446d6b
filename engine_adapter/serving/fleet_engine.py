"""One engine of a fleet: the real agent and its protocol, with a device that only lets time pass.

No step is scheduled: a request runs as soon as there is a slot and ends after the time of its tokens, so one
process can act as dozens of engines. The messages exchanged with the controller are the same as with vLLM.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from engine_adapter.agent.agent import Agent, AgentLimits, View
from engine_adapter.serving.latency_histogram import Latencies
from engine_adapter.transport.link import EngineLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.request_progress import RequestProgress
from store.records import ControllerMessage, EngineMessage, FinishReason, Hello, IndexTable, RunningRequest, Snapshot

BLOCK_TOKENS = 16
MAX_MODEL_LEN_TOKENS = 32_768
PREFILL_STEPS = 2
MODEL = "fleet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Speed and sizes of an engine of the fleet."""

    token_s: float = 0.03
    """Seconds for an output token of a running request."""
    max_running: int = 256
    kv_blocks: int = 65_536


@dataclass(frozen=True, slots=True)
class Due:
    """When a request that has just begun to run gets its first token, and when it ends."""

    request_id: str
    first_token_s: float
    end_s: float


class TimedLink:
    """A link that measures how long requests wait for their index tables."""

    def __init__(self, link: EngineLink, clock: Callable[[], float], latencies: Latencies) -> None:
        self._link = link
        self._clock = clock
        self._latencies = latencies
        self.awaited_s: dict[str, float] = {}
        """Arrival times of the requests without a table."""
        self.tables = 0
        self.dropped = 0
        """Messages that the engine's side has dropped."""

    @property
    def bad_frames(self) -> int:
        """Frames received that did not decode."""
        return self._link.bad_frames

    def send(self, message: EngineMessage) -> bool:
        """Send a message."""
        sent = self._link.send(message)
        if isinstance(message, Snapshot):
            self.dropped = message.messages_dropped + (not sent)
        return sent

    def receive(self) -> list[ControllerMessage]:
        """Return the received messages, and measure the wait for first tables."""
        messages = self._link.receive()
        if messages:
            now_s = self._clock()
            for message in messages:
                if isinstance(message, IndexTable) and message.request_id is not None:
                    self.tables += 1
                    arrived_s = self.awaited_s.pop(message.request_id, None)
                    if arrived_s is not None:
                        self._latencies.add(now_s - arrived_s)
        return messages

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


@dataclass(slots=True, eq=False)
class _Running:
    progress: RequestProgress
    since_s: float
    tokens: int

    def attained(self, now_s: float, token_s: float) -> int:
        """Return the tokens generated; one less than all until the request is ended."""
        steps = int((now_s - self.since_s) / token_s) - PREFILL_STEPS + 1
        return min(max(0, steps), self.tokens - 1)


class FleetEngine:
    """An engine with endless traffic; its owner calls `first_token`, `end` and `arrive` when due, and `listen` often.

    Args:
        name: The engine's name.
        session_id: Identifies this start of the engine.
        link: The connection to the controller.
        requests: The traffic in order of arrival, in seconds from the start.
        device: Speed and sizes of the engine.
    """

    def __init__(
        self, *, name: str, session_id: str, link: TimedLink, requests: Iterator[TraceRequest], device: Device
    ) -> None:
        self._link = link
        self._requests = requests
        self._device = device
        self._session_id = session_id
        self._agent = Agent(hello=_hello(name, session_id, device), link=link, limits=AgentLimits())
        self._following = next(requests)
        self._start_s = math.inf
        self._waiting: deque[RequestProgress] = deque()
        self._running: dict[str, _Running] = {}
        self.submitted = 0
        self.finished = 0
        self.late = Latencies()
        """Delay of submissions against the plan: how far the fleet itself is behind."""

    @property
    def waiting(self) -> int:
        """Number of requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of requests with a slot."""
        return len(self._running)

    @property
    def unacknowledged(self) -> int:
        """Number of facts that the controller has not yet acknowledged as durable."""
        return self._agent.unacknowledged

    @property
    def without_table(self) -> int:
        """Number of unfinished requests that have received no table."""
        return len(self._link.awaited_s)

    @property
    def tables(self) -> int:
        """Number of index tables received for requests."""
        return self._link.tables

    @property
    def dropped(self) -> int:
        """Number of messages dropped by this side."""
        return self._link.dropped

    def begin(self, start_s: float) -> None:
        """Set the time from which arrivals count."""
        self._start_s = start_s

    def next_arrival_s(self) -> float:
        """Return the planned time of the next request."""
        return self._start_s + self._following.arrival_s

    def listen(self, now_s: float) -> None:
        """Receive the controller's messages and send pending ones."""
        self._agent.poll(now_s)

    def arrive(self, now_s: float) -> Due | None:
        """Submit the next request; return its due times if it got a slot at once."""
        request = replace(self._following, request_id=f"{self._session_id[:8]}-{self.submitted}", arrival_s=now_s)
        self.late.add(now_s - self.next_arrival_s())
        self._following = next(self._requests)
        self.submitted += 1
        progress = RequestProgress(request)
        self._link.awaited_s[request.request_id] = now_s
        self._agent.arrived(progress.arrived(), progress.count)
        self._agent.poll(now_s)
        self._waiting.append(progress)
        return self._start_next(now_s)

    def first_token(self, request_id: str, now_s: float) -> None:
        """Report a running request's first token."""
        running = self._running.get(request_id)
        if running is not None:
            running.progress.generate(now_s)
            self._agent.first_token(running.progress.first_token())

    def end(self, request_id: str, now_s: float) -> Due | None:
        """End a request; return the due times of the one that takes its slot."""
        running = self._running.pop(request_id)
        progress = running.progress
        progress.output_tokens = running.tokens
        reason: FinishReason = "stop" if running.tokens < progress.request.max_tokens else "length"
        self._agent.finished(progress.finished(now_s, reason))
        self._link.awaited_s.pop(request_id, None)
        self.finished += 1
        return self._start_next(now_s)

    def report(self, now_s: float) -> None:
        """Exchange messages and send a snapshot if one is due."""
        self._agent.poll(now_s)
        token_s = self._device.token_s
        shown = [
            (request_id, running.attained(now_s, token_s), len(running.progress.request.token_ids))
            for request_id, running in self._running.items()
        ]
        requests = [
            RunningRequest(name, attained, -(-(prompt + attained) // BLOCK_TOKENS)) for name, attained, prompt in shown
        ]
        self._count_steps(len(requests), sum(prompt + attained for _, attained, prompt in shown))
        view = View(
            kv_blocks_used=min(self._device.kv_blocks, sum(request.kv_blocks for request in requests)),
            waiting=len(self._waiting),
            running=len(requests),
            queue=(progress.request.request_id for progress in self._waiting),
            running_requests=requests,
        )
        self._agent.report(now_s, view)

    def close(self, now_s: float) -> None:
        """Disconnect from the controller."""
        self._agent.close(now_s)

    def _count_steps(self, running: int, kv_tokens: int) -> None:
        """Count the steps of a tenth of a second."""
        steps = max(1, round(0.1 / self._device.token_s)) if running else 0
        for _ in range(steps):
            self._agent.count_step(
                step_s=self._device.token_s,
                prefill_tokens=0,
                decode_tokens=running,
                kv_tokens_read=kv_tokens,
                hook_s=0.0,
            )

    def _start_next(self, now_s: float) -> Due | None:
        if not self._waiting or len(self._running) >= self._device.max_running:
            return None
        progress = self._waiting.popleft()
        request = progress.request
        tokens = min(request.true_output_tokens, request.max_tokens)
        progress.start(now_s)
        self._running[request.request_id] = _Running(progress, now_s, tokens)
        token_s = self._device.token_s
        return Due(request.request_id, now_s + PREFILL_STEPS * token_s, now_s + (PREFILL_STEPS + tokens) * token_s)


def _hello(name: str, session_id: str, device: Device) -> Hello:
    return Hello(
        engine_id=name,
        session_id=session_id,
        model=MODEL,
        engine="simulated",
        engine_version="1",
        kv_blocks=device.kv_blocks,
        block_size_tokens=BLOCK_TOKENS,
        max_num_seqs=device.max_running,
        token_budget=8192,
        max_model_len_tokens=MAX_MODEL_LEN_TOKENS,
        prefix_caching=False,
        started_s=0.0,
    )
