"""A simulated controller as a process: the loop, the core and the writer of the product, turned by simulated time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.disk import Disk
from harness.faults import Faults
from harness.learner import embed_with, learner_of
from harness.network import Network
from harness.timeline import Crash, Timeline

from controller.api.commands import Commands, SetMode
from controller.core.core import Core, CoreConfig
from controller.monitoring.live_state import Live
from controller.monitoring.metrics import Metrics
from controller.policy.policy import Policy
from controller.prompt_encoder import Encoder
from controller.service.control_loop import ControlLoop, LoopLimits
from controller.service.warm_start import learn_again
from engine_adapter.agent.clock import steady_clock
from engine_adapter.transport.frames import FrameHub
from store.errors import StoreError
from store.history.writer import HistoryWriter
from store.records import Mode

TURN_S = 0.02
IDLE_TURN_S = 0.1
RESTART_S = 0.5


@dataclass(frozen=True, kw_only=True)
class ControllerSettings:
    """How the controller of a seed is set up."""

    policy: Policy
    learner: str
    mode: Mode
    lease_s: float
    seal_interval_s: float
    queue_limit: int
    unwritten_entries: int
    backlog: int
    overload_s: float
    """Below 0: every turn is overloaded."""


class Hub(FrameHub):
    """The production hub over a simulated socket."""

    def close(self) -> None:
        """The socket goes with the process."""


class ControllerProcess:
    """The controller, restarted by its supervisor whenever it has died."""

    def __init__(
        self,
        *,
        timeline: Timeline,
        faults: Faults,
        network: Network,
        disk: Disk,
        folder: Path,
        settings: ControllerSettings,
        sent: Callable[[str, bytes], None],
    ) -> None:
        self.timeline = timeline
        self.settings = settings
        self.up = False
        self.starts = 0
        self.not_opened: str | None = None
        """Why it could not start the last time that it could not."""
        self.wall_offset_s = 1_700_000_000.0
        self.hung_until_s = -math.inf
        self.slow_until_s = -math.inf
        self.clock = lambda: self.wall_offset_s
        self._faults = faults
        self._network = network
        self._disk = disk
        self._folder = folder
        self._sent = sent
        self._chance = faults.stream("controller")
        self._embed = embed_with(faults)
        self._run = 0

    def start(self) -> None:
        """Open everything in the order in which `controller.service.service` does, and turn from then on."""
        if self.up:
            return
        try:
            self._open()
        except Crash:
            self._die()
        except StoreError as error:
            self.not_opened = f"{type(error).__name__}: {error}"
            self._close_writer()
            self.timeline.after(RESTART_S, self.start)
        else:
            self.up = True
            self._run += 1
            self._turn_later(self._run, 0.0)
            self._write_later(self._run, 0.0)

    def kill(self) -> None:
        """The process dies between two turns."""
        if self.up:
            self._die()

    def finish(self) -> None:
        """Stop in order, so that all is on the disk and can be read."""
        self.loop.shutdown()
        assert self.writer.turn(closing=True), "nothing is amiss with the disk any more"
        self.abandon()

    def abandon(self) -> None:
        """Let go of what the process holds."""
        self.up = False
        self._run += 1
        if hasattr(self, "writer"):
            if self.writer._live is not None:
                self.writer._live.close()
            self._close_writer()

    def command(self, mode: Mode) -> None:
        """The operator switches the mode."""
        if self.up:
            self.commands.offer(
                SetMode(mode=mode, reason="simulated operator", credential="token", address="simulated")
            )

    def _open(self) -> None:
        settings = self.settings
        self.starts += 1
        self.clock = steady_clock(lambda: self.timeline.now_s + self.wall_offset_s, lambda: self.timeline.now_s)
        self.writer = HistoryWriter(
            self._folder,
            seal_interval_s=settings.seal_interval_s,
            retention_days=36_500.0,
            queue_limit=settings.queue_limit,
            clock=self.clock,
            timer=lambda: self.timeline.now_s,
            open_live=self._disk.open,
        )
        self.writer.open()
        self.core = self._new_core()
        self.hub = Hub(self._network.listen())
        assert self._network.controller is not None
        self._network.controller.sent = self._sent
        self.commands, live = Commands(), Live()
        self.encoder = Encoder(lambda: self._embed) if settings.learner == "semantic" else None
        self.loop = ControlLoop(
            core=self.core,
            hub=self.hub,
            history=self.writer,
            live=live,
            metrics=Metrics(live),
            commands=self.commands,
            clock=self.clock,
            wall=lambda: self.timeline.now_s + self.wall_offset_s,
            encoder=self.encoder,
            limits=LoopLimits(
                wait_s=0.0,
                idle_wait_s=0.0,
                idle_publish_interval_s=2.0,
                publish_interval_s=2.0,
                unwritten_entries=settings.unwritten_entries,
                overload_s=settings.overload_s,
                error_pause_s=0.5,
                error_pause_limit_s=4.0,
            ),
        )
        self.loop.startup()

    def _new_core(self) -> Core:
        learner = learner_of(self.settings.learner, self._faults)
        core = Core(
            learner=learner,
            policy=self.settings.policy,
            config=CoreConfig(
                controller_id=f"c{self.starts}",
                mode=self.settings.mode,
                hash_key=b"k",
                lease_s=self.settings.lease_s,
                forget_lost_s=20.0,
                backlog=self.settings.backlog,
            ),
            now_s=self.clock(),
            timer=lambda: 0.0,
            durable_batches=self.writer.last_batches,
        )
        learner.rebuilding = True  # type: ignore[attr-defined]
        learn_again(core, self._disk.learning_history(), next_answer=self._disk.next_answer())
        learner.rebuilding = False  # type: ignore[attr-defined]
        return core

    def _die(self) -> None:
        self.up = False
        self._run += 1
        self._faults.crash_within = None
        if self._network.controller is not None:
            self._network.hang_up()
        self._disk.crash()
        self._close_writer()
        self.timeline.after(self._chance.choice([0.1, 0.5, 3.0]) * (0.5 + self._chance.random()), self.start)

    def _close_writer(self) -> None:
        """The system lets go of a dead process's lock."""
        if self.writer._is_open:
            self.writer._lock.release()
            self.writer._is_open = False

    def _turn_later(self, run: int, delay_s: float) -> None:
        self.timeline.at(max(self.timeline.now_s + delay_s, self.hung_until_s), lambda: self._turn(run))

    def _turn(self, run: int) -> None:
        if run != self._run:
            return
        now_s = self.timeline.now_s
        if now_s < self.hung_until_s:
            self._turn_later(run, 0.0)
            return
        try:
            self.loop.turn()
            self._encode()
        except Crash:
            self._die()
            return
        delay_s = TURN_S if self._network.controller and self._network.controller.inbox else 2 * TURN_S
        if now_s < self.slow_until_s:
            delay_s += 0.3 * self._chance.random()
        self._turn_later(run, delay_s)

    def _encode(self) -> None:
        """What the encoder's thread does."""
        encoder = self.encoder
        if encoder is not None and not encoder._waiting.empty() and self._chance.random() < 0.3:
            encoder._encode(self._embed, encoder._next_batch())

    def _write_later(self, run: int, delay_s: float) -> None:
        self.timeline.after(delay_s, lambda: self._write(run))

    def _write(self, run: int) -> None:
        """What the writer's thread does."""
        if run != self._run:
            return
        try:
            self.writer.turn()
        except Crash:
            self._die()
            return
        self._write_later(run, max(self.writer.pause_s, 0.2 * (0.5 + self._chance.random())))
