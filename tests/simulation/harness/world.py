"""One seed: engines, a controller, its disk and the network between them, under the faults that the seed draws."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness.checks import (
    Ledger,
    StepChecks,
    ViolationError,
    acknowledged_batch,
    check_answers,
    check_lives,
    check_loop,
    check_recorded,
    demand,
)
from harness.controllers import ControllerProcess, ControllerSettings
from harness.disk import Disk, MemoryDisk, RealDisk
from harness.engines import EngineProcess
from harness.faults import SPONTANEOUS, Faults
from harness.network import LONGEST_DELAY_S, Network
from harness.timeline import Timeline
from harness.unknown_connections import throw

from controller.monitoring.engine_states import CLOCK_OFF_S
from controller.policy.policies import Objective, Schedule, policy_named
from controller.policy.policy import Policy
from engine_adapter.agent.agent import AgentLimits
from engine_adapter.virtual_time.engine import Step, TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from store.records import Facts, Preemption, decode_engine_message

CHAOS_S = 12.0
RECOVERY_S = 120.0
QUIET_S = 0.5
TINY = Profile(
    name="tiny",
    base_s=0.03,
    prefill_token_s=1e-4,
    decode_seq_s=1e-3,
    kv_token_s=1e-6,
    kv_tokens=512,
    max_num_seqs=4,
    token_budget=128,
    max_model_len_tokens=256,
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a seed."""

    seed: int
    failure: str | None
    injected: Counter[str]
    served: int
    events: int
    modes: Counter[str]
    digest: str
    """Of all that was told, decided and recorded: the same seed gives the same."""
    simulated_s: float
    real_store: bool


def simulate(seed: int, folder: Path, *, real_store: bool = False, focus: frozenset[str] = frozenset()) -> Result:
    """Run one seed in an empty folder; ``focus`` names the faults instead of those that the seed draws."""
    world = World(seed, folder, real_store=real_store, focus=focus)
    failure = None
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        world.run()
    except ViolationError as violation:
        failure = str(violation)
    except Exception as error:
        # Whatever of the product escapes here would have ended a process.
        failure = f"{type(error).__name__}: {error}"
        world.trace(failure)
        if world.raise_errors:
            raise
    finally:
        logging.disable(before)
        world.controller.abandon()
    return world.result(failure)


class World:
    """Everything of one seed."""

    raise_errors = False

    def __init__(self, seed: int, folder: Path, *, real_store: bool, focus: frozenset[str] = frozenset()) -> None:
        self.seed = seed
        self.real_store = real_store
        self.timeline = Timeline()
        self.faults = Faults(seed, focus)
        self.network = Network(self.timeline, self.faults)
        self.ledger = Ledger()
        self._chance = self.faults.stream("world")
        self._digest = hashlib.blake2b(digest_size=8)
        self.disk: Disk = RealDisk(folder / "history", self.faults) if real_store else MemoryDisk(self.faults)
        self.controller = ControllerProcess(
            timeline=self.timeline,
            faults=self.faults,
            network=self.network,
            disk=self.disk,
            folder=folder / "history",
            settings=_settings(self._chance, real_store=real_store),
            sent=self._sent,
        )
        self.limits = _limits(self._chance)
        self.profile = replace(
            TINY, kv_tokens=self._chance.choice([256, 384, 512]), max_num_seqs=self._chance.choice([1, 2, 4, 8])
        )
        self.processes: list[EngineProcess] = []
        self._checks: dict[str, StepChecks] = {}
        self._starts: Counter[str] = Counter()
        self._requests = 0

    def run(self) -> None:
        """Faults and requests for a while, then peace until all is well again."""
        chance = self._chance
        self.timeline.after(chance.choice([0.0, 0.0, 1.0]), self.controller.start)
        for number in range(chance.choice([1, 1, 2])):
            self.timeline.after(chance.random(), lambda name=f"e{number}": self._start_engine(name))  # type: ignore[misc]
        for _ in range(chance.choice([8, 20, 40, 80])):
            self.timeline.after(CHAOS_S * chance.random(), self._request)
        for kind in SPONTANEOUS:
            if kind in self.faults.rates:
                self._strike_later(kind)
        self._watch()
        self.timeline.run(CHAOS_S)
        self._calm()
        self._recover()
        self._check_end()

    def result(self, failure: str | None) -> Result:
        """What became of it."""
        return Result(
            seed=self.seed,
            failure=failure,
            injected=self.faults.injected,
            served=sum(len(process.lives) for process in self.processes),
            events=self.timeline.events,
            modes=sum((checks.modes for checks in self._checks.values()), Counter()),
            digest=self._digest.hexdigest(),
            simulated_s=self.timeline.now_s,
            real_store=self.real_store,
        )

    def trace(self, text: str) -> None:
        """Add to what two runs of a seed must have in common."""
        self._digest.update(f"{self.timeline.now_s:.6f} {text}\n".encode())

    # --- what happens -------------------------------------------------------------------------------

    def _start_engine(self, engine_id: str) -> None:
        self._starts[engine_id] += 1
        session_id = f"{engine_id}-{self._starts[engine_id]}"
        process = EngineProcess(
            timeline=self.timeline,
            engine_id=engine_id,
            session_id=session_id,
            profile=self.profile,
            end=self.network.connect(session_id),
            limits=self.limits,
            wall_offset_s=lambda: self.controller.wall_offset_s,
            idles_silently=self._chance.random() < 0.3 and self.faults.active,
            on_step=self._stepped,
        )
        self.processes.append(process)
        self._checks[session_id] = StepChecks(process, self.limits)
        self._spy(process)

    def _spy(self, process: EngineProcess) -> None:
        """Read along what an engine sends."""
        send = process.end.send

        def spying(data: bytes, flags: int) -> None:
            send(data, flags)
            self._told(process.session_id, data)

        process.end.send = spying  # type: ignore[method-assign]

    def _request(self) -> None:
        alive = [process for process in self.processes if process.alive]
        if not alive:
            return
        chance, process = self._chance, self._chance.choice(alive)
        self._requests += 1
        work = TraceRequest(
            request_id=self._request_id(),
            arrival_s=0.0,
            token_ids=tuple(chance.choices(range(200), k=chance.choice([3, 20, 100]))),
            max_tokens=chance.choice([5, 40, 150]),
            true_output_tokens=1 + min(150, round(chance.lognormvariate(2.5, 1.0))),
            priority=chance.choice([0, 0, 0, 1]),
            tenant=chance.choice([None, "t", 5_000 * "t", "t\x1b\ud800"]),
            abort_after_tokens=chance.choice([None, None, None, 3]),
        )
        process.submit(work, delay_s=chance.choice([0.0, 0.01, 0.2]))

    def _request_id(self) -> str:
        """As clients choose it: one in ten is far too long."""
        return f"r{self._requests}" + ("" if self._chance.random() < 0.9 else 5_000 * "-")

    def _strike_later(self, kind: str) -> None:
        rate = self.faults.rates[kind]
        self.timeline.after(self._chance.expovariate(rate), lambda: self._strike(kind))

    def _strike(self, kind: str) -> None:
        if not self.faults.active:
            return
        self._strike_later(kind)
        self.trace(kind)
        if kind == "controller killed within a turn":
            self.faults.crash_within = self._chance.randint(1, 40)
            return
        self.faults.count(kind)
        self._strike_controller(kind)
        self._strike_engines(kind)
        throw(kind, self.network, self._chance, f"r{1 + self._chance.randrange(1 + self._requests)}")

    def _strike_controller(self, kind: str) -> None:
        chance, controller, now_s = self._chance, self.controller, self.timeline.now_s
        match kind:
            case "controller killed":
                controller.kill()
            case "controller hung":
                controller.hung_until_s = now_s + chance.choice([0.3, 1.0, 4.0])
            case "controller slow":
                controller.slow_until_s = now_s + 2.0
            case "clock forwards":
                controller.wall_offset_s += chance.choice([0.5, 5.0, 3600.0, 86_400.0])
            case "clock backwards":
                controller.wall_offset_s -= chance.choice([0.5, 5.0, 3600.0, 86_400.0])
            case "mode switched":
                controller.command(chance.choice(["on", "shadow", "off", "on"]))

    def _strike_engines(self, kind: str) -> None:
        alive = [process for process in self.processes if process.alive]
        if not alive:
            return
        match kind:
            case "connection cut":
                self.network.cut()
            case "engine killed":
                self._restart_engine(self._chance.choice(alive))
            case "engine stopped":
                self._chance.choice(alive).stop(self._chance.choice([0.2, 1.0, 3.0]))
            case "client gone":
                self._client_goes(self._chance.choice(alive))

    def _restart_engine(self, process: EngineProcess) -> None:
        process.kill()
        self.timeline.after(self._chance.random(), lambda: self._start_engine(process.engine_id))

    def _client_goes(self, process: EngineProcess) -> None:
        here = [name for name in process.works if name not in process.lives]
        if here:
            process.leave(self._chance.choice(here))

    # --- what is watched ----------------------------------------------------------------------------

    def _stepped(self, process: EngineProcess, step: Step) -> None:
        if step.scheduled_tokens or step.finished:
            self.trace(f"{process.session_id} {step}")
        self._checks[process.session_id].after(step)

    def _told(self, session_id: str, frame: bytes) -> None:
        message = decode_engine_message(frame)
        if isinstance(message, Facts):
            self.ledger.told(session_id, message)

    def _sent(self, session_id: str, frame: bytes) -> None:
        batch = acknowledged_batch(frame)
        if batch is not None:
            self.ledger.promised(session_id, batch, self.disk.durable_batch(session_id))

    def _watch(self) -> None:
        """Every quarter of a second: the controller's bounds, and that what it was told stays told."""
        if self.controller.up:
            check_loop(self.controller)
        self.timeline.after(0.25, self._watch)

    # --- the end ------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """No more faults; what is broken is left to mend itself."""
        self.faults.active = False
        self.faults.crash_within = None
        for process in self.processes:
            process.idles_silently = False

    def _recover(self) -> None:
        until_s = self.timeline.now_s + RECOVERY_S
        while (reason := self._why_not_well()) is not None:
            demand(self.timeline.now_s < until_s, f"not well {RECOVERY_S:g} s after the last fault: {reason}")
            self.timeline.run(self.timeline.now_s + QUIET_S)
        self.timeline.run(self.timeline.now_s + LONGEST_DELAY_S)
        self._stay_well()

    def _stay_well(self) -> None:
        """With nothing else amiss the system's clock may jump as it likes."""
        for jump_s in (-3600.0, 7200.0):
            self.controller.wall_offset_s += jump_s
            for _ in range(6):
                self.timeline.run(self.timeline.now_s + QUIET_S)
                demand(self._why_not_well() is None, f"not well after the clock jumped: {self._why_not_well()}")
            self._check_clock_is_told()

    def _check_clock_is_told(self) -> None:
        """What is off is said, of the controller and of each engine, and what is not off is not."""
        live = self.controller.loop._live.live_snapshot
        told = {state.text.split(" was set")[0] for state in live.degraded if state.kind == "clock_off"}
        for name, off_s in self._clocks_off():
            demand((name in told) == (abs(off_s) > CLOCK_OFF_S), f"{name} is off by {off_s} s, told: {told}")

    def _clocks_off(self) -> Iterator[tuple[str, float]]:
        offset_s = self.controller.wall_offset_s
        own_s = self.controller.clock() - self.timeline.now_s
        yield "The system clock of the controller", offset_s - own_s
        for process in self.processes:
            if process.alive:
                yield f"The system clock of engine {process.engine_id}", offset_s - process.offset_s

    def _why_not_well(self) -> str | None:
        """What is still amiss; None when requests are served, facts are durable, and engines do as they are told."""
        if not self.controller.up:
            return f"the controller is down: {self.controller.not_opened}"
        if self.controller.hung_until_s > self.timeline.now_s:
            return "the controller still hangs"
        for process in self.processes:
            if not process.alive:
                continue
            agent = process.engine.agent
            if process.engine.unfinished:
                return f"requests of {process.session_id} are unfinished"
            if agent.unacknowledged:
                return f"{agent.unacknowledged} facts of {process.session_id} are not acknowledged"
            wanted = self._wanted_mode(process)
            mode = agent.mode(process.engine.now_s)
            if mode != wanted:
                return f"{process.session_id} is {mode}, not {wanted}: {agent.fallback(process.engine.now_s)}"
        return None if self.controller.loop._trouble.until_s is None else "the controller has not come back to itself"

    def _wanted_mode(self, process: EngineProcess) -> str:
        return self.controller.core._state.modes.of_model(process.profile.name).mode

    def _check_end(self) -> None:
        controller = self.controller
        alive = [process for process in self.processes if process.alive]
        for session in controller.core.sessions:
            if session.connected and session.hello.session_id in {process.session_id for process in alive}:
                demand(
                    not session.requests,
                    f"{session.hello.session_id}: {list(session.requests)} are remembered for ever",
                )
        demand(not controller.core.backlog, f"{controller.core.backlog} pieces of work are never done")
        controller.finish()
        history = self.disk.history()
        for name, rows in history.items():
            self.trace(f"{name} {len(rows)}")
        check_recorded(self.ledger, history, {process.session_id for process in alive})
        for process in alive:
            check_lives(process, history)
        check_answers(history)


def _settings(chance: random.Random, *, real_store: bool) -> ControllerSettings:
    unwritten = chance.choice([300, 100_000, 100_000])
    return ControllerSettings(
        policy=_policy(chance),
        learner=chance.choices(["clusters", "semantic", "mixture"], [16, 3, 1])[0],
        mode=chance.choice(["on", "on", "on", "on", "shadow", "off"]),
        lease_s=chance.choice([0.5, 1.0, 2.0]),
        seal_interval_s=4.0 if real_store else 1.0,
        queue_limit=2 * unwritten,
        unwritten_entries=unwritten,
        backlog=chance.choice([0, 3, 5_000]),
        overload_s=chance.choice([-1.0, 0.1, 0.1]),
    )


def _policy(chance: random.Random) -> Policy:
    if chance.random() < 0.1:
        return policy_named("sagesched-paper")
    objective: Objective = chance.choice(["mean", "balanced", "tail"])
    preemption = Preemption(token_s=1e-4, hysteresis=0.5, rest_steps=5) if chance.random() < 0.2 else None
    overtaking = chance.choice([None, 0.1, 3.0])
    return policy_named("sage", schedule=Schedule(objective=objective, preemption=preemption, overtaking=overtaking))


def _limits(chance: random.Random) -> AgentLimits:
    return AgentLimits(
        facts_per_batch=chance.choice([1, 3, 256]), error_pause_s=0.5, error_pause_limit_s=4.0, hello_interval_s=0.5
    )
