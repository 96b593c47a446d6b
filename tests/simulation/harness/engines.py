"""A simulated engine as a process: it steps in simulated time, serves its clients, stalls and dies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from harness.network import EngineEnd
from harness.timeline import Timeline

from engine_adapter.agent.agent import AgentLimits
from engine_adapter.transport.frames import FrameLink
from engine_adapter.virtual_time.engine import CompletedRequest, Step, TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from store.records import Acknowledged, ControllerMessage, Settings, Welcome

IDLE_POLL_S = 0.1


class HeardLink(FrameLink):
    """The production link, which also tells the checks what the engine has heard, and when."""

    def __init__(self, socket: EngineEnd, now_s: Callable[[], float]) -> None:
        super().__init__(socket)
        self._end = socket
        self._now_s = now_s
        self.heard_s = -math.inf
        self.settings: Settings | None = None
        self.released = 0

    def receive(self) -> list[ControllerMessage]:
        """What came in."""
        messages = super().receive()
        for message in messages:
            self.heard_s = self._now_s()
            match message:
                case Acknowledged(batch=batch) | Welcome(durable_batch=batch):
                    self.released = max(self.released, batch)
                case _:
                    pass
        return messages

    def close(self) -> None:
        """Close the socket."""
        self._end.close()


@dataclass(frozen=True)
class Sent:
    """When a request was sent and when it entered the engine, by the engine's clock."""

    sent_s: float
    entered_s: float
    jumped: bool
    """Whether the system clock jumped in between."""


@dataclass(eq=False)
class EngineProcess:
    """One run of one engine, with what its clients know of it."""

    timeline: Timeline
    engine_id: str
    session_id: str
    profile: Profile
    end: EngineEnd
    limits: AgentLimits
    wall_offset_s: Callable[[], float]
    """Unix time minus simulated time, by the system clock, which jumps."""
    idles_silently: bool
    """An idle vLLM does not call its scheduler, so that nothing is polled."""
    on_step: Callable[[EngineProcess, Step], None]
    works: dict[str, TraceRequest] = field(default_factory=dict)
    lives: dict[str, CompletedRequest] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    """Requests whose clients went away."""
    stopped_until_s: float = -math.inf
    alive: bool = True
    stepping: bool = False

    def __post_init__(self) -> None:
        self.offset_s = self.wall_offset_s()
        self.sent: dict[str, Sent] = {}
        self.link = HeardLink(self.end, lambda: self.engine.now_s)
        self.engine = SimulatedEngine(
            self.profile,
            link=self.link,
            engine_id=self.engine_id,
            session_id=self.session_id,
            limits=self.limits,
            start_s=self.now_s,
            wall_s=lambda: self.timeline.now_s + self.wall_offset_s(),
        )
        self.timeline.after(0.0, self._begin)

    @property
    def now_s(self) -> float:
        """The engine's clock: it never jumps, because it is set once."""
        return self.timeline.now_s + self.offset_s

    def submit(self, work: TraceRequest, delay_s: float) -> None:
        """A client sends a request, which the front end stamps by the system clock; the engine gets it a little later."""
        sent_s, offset_s = self.now_s, self.wall_offset_s()
        stamped = replace(work, arrival_s=self.timeline.now_s + offset_s)

        def enter() -> None:
            if self.alive:
                self.engine.advance_to(self.now_s)
                self.works[work.request_id] = stamped
                jumped = self.wall_offset_s() != offset_s
                self.sent[work.request_id] = Sent(sent_s, self.engine.now_s, jumped=jumped)
                self.engine.submit(stamped)

        self.timeline.after(delay_s, enter)

    def leave(self, request_id: str) -> None:
        """A client goes away; the engine is told between two steps."""
        if self.alive and request_id in self.works and request_id not in self.lives:
            self.left.add(request_id)

    def stop(self, span_s: float) -> None:
        """The process gets no processor for a while."""
        self.stopped_until_s = self.timeline.now_s + span_s

    def kill(self) -> None:
        """The process dies; its clients' requests fail with it."""
        self.alive = False
        self.end.close()

    def _begin(self) -> None:
        if not self.alive:
            return
        if self.timeline.now_s < self.stopped_until_s:
            self.timeline.at(self.stopped_until_s, self._begin)
            return
        engine = self.engine
        engine.advance_to(self.now_s)
        for request_id in sorted(self.left):
            if request_id not in self.lives and request_id in engine._progress:
                engine.abort(request_id)
        if not engine.unfinished and self.idles_silently:
            self.timeline.after(IDLE_POLL_S, self._begin)
            return
        self.stepping = True
        done_s = engine.begin_step()
        wait_s = done_s - self.now_s
        self.timeline.after(wait_s if wait_s > 0.0 else IDLE_POLL_S, self._finish)

    def _finish(self) -> None:
        if not self.alive:
            return
        self.stepping = False
        step = self.engine.end_step()
        for life in step.finished:
            assert life.request_id not in self.lives, f"request {life.request_id} was served twice"
            self.lives[life.request_id] = life
        self.on_step(self, step)
        self._begin()
