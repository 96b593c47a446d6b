"""What goes wrong around the controller: each fault is injected, must be told within seconds, and is healed again."""

from __future__ import annotations

import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from chaos.book import PATIENCE_S
from chaos.clients import ClientPool
from chaos.site import Site, remove, wait_for
from engine_adapter.serving.processes import free_port

FALLBACK = "SageSched mode off: controller"
"""What the engine's log says when it is without a controller."""
SMALL_STEP_S = 5.0
"""By so much a clock may be set without a word."""
START_S = 60.0
"""What a controller may take to start on a busy machine."""


class Fault(ABC):
    """One kind of trouble; it says how long it lasts and within which time the order must be in force again."""

    name: str
    told_s = 5.0
    lasts_s = 3.0
    recovers_s = 20.0
    loses_history = False
    """Whether what was recorded before is gone, by the operator's own hand."""

    def __init__(self, site: Site, clients: ClientPool, chance: random.Random) -> None:
        self.site = site
        self.clients = clients
        self.chance = chance

    @property
    def possible(self) -> bool:
        """Whether this site can have it."""
        return True

    @abstractmethod
    def inject(self) -> None:
        """Let it happen."""

    def told(self) -> bool:
        """Whether the system says so, in a place where an operator looks; True where there is nothing to tell."""
        return True

    def heal(self) -> None:  # noqa: B027 - some end by themselves
        """End it, as an operator would."""

    def send(self, count: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Have other clients send so many harmless requests, changed."""
        with httpx.Client(timeout=PATIENCE_S) as http, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: self.clients.send_once(http, change), range(count)))


class _Fallback(Fault):
    """Leaves the engine without a controller, which its log tells."""

    def inject(self) -> None:
        self._said = self.site.engine_log().count(FALLBACK)
        self._strike()

    def _strike(self) -> None:
        """Do it."""
        raise NotImplementedError

    def told(self) -> bool:
        return self.site.engine_log().count(FALLBACK) > self._said


class Killed(_Fallback):
    """The controller is killed with SIGKILL, and started again."""

    name = "controller killed"
    recovers_s = START_S

    def _strike(self) -> None:
        self.site.end_controller(signal.SIGKILL)

    def heal(self) -> None:
        self.site.start_controller()


class KilledAndFlooded(Killed):
    """While no controller is there, clients send tenants of a megabyte each."""

    name = "no controller, and tenants of 1 MB"
    requests = 100

    def _strike(self) -> None:
        super()._strike()
        self.send(self.requests, tenant_of(1_000_000))


class Hung(_Fallback):
    """The controller is stopped with SIGSTOP, and goes on later."""

    name = "controller hung"

    def _strike(self) -> None:
        self.site.send_signal(signal.SIGSTOP)

    def heal(self) -> None:
        self.site.send_signal(signal.SIGCONT)


class EngineHung(Fault):
    """The engine core is stopped with SIGSTOP for longer than the lease, and goes on."""

    name = "engine core hung"

    def inject(self) -> None:
        self.site.send_engine_signal(signal.SIGSTOP)

    def heal(self) -> None:
        self.site.send_engine_signal(signal.SIGCONT)


class Restarted(Fault):
    """The controller is ended in order and started again at once."""

    name = "controller restarted"
    recovers_s = START_S

    def inject(self) -> None:
        self.site.end_controller()
        self.site.start_controller()


class FullDisk(Fault):
    """The system refuses what the controller writes: everything, or what makes a file large."""

    name = "disk full"
    recovers_s = 45.0
    """It tries again after 0.5, 1, 2 ... 30 s."""

    def inject(self) -> None:
        self.site.limit_files(self.chance.choice((0, 100_000)))

    def told(self) -> bool:
        return self.site.metric("sagesched_store_failing") == 1.0

    def heal(self) -> None:
        self.site.limit_files(None)
        wait_for(lambda: self.site.metric("sagesched_store_failing") == 0.0, self.recovers_s)


class DeletedHistory(Fault):
    """Somebody removes the history's folder under the controller, which puts back what it has open."""

    name = "history deleted"
    loses_history = True

    def inject(self) -> None:
        remove(self.site.history)

    def told(self) -> bool:
        return "history_replaced" in self.site.degraded()


class DeletedSocket(Fault):
    """Somebody removes the endpoint's file: the controller binds it anew."""

    name = "socket file deleted"

    @property
    def possible(self) -> bool:
        return not self.site.tcp

    def inject(self) -> None:
        self.site.socket.unlink(missing_ok=True)

    def told(self) -> bool:
        return self.site.socket.exists()


class SecondController(Fault):
    """Somebody starts another controller on the same endpoint: it must be refused."""

    name = "second controller on the endpoint"
    told_s = START_S
    lasts_s = 0.0

    def inject(self) -> None:
        self._second = self.site.start_second("second", self.site.folder / "other", self.site.endpoint, free_port(0))

    def told(self) -> bool:
        return not self._second.running and self._second.process.returncode != 0

    def heal(self) -> None:
        self._second.end()


class SecondOnHistory(SecondController):
    """Somebody starts another controller on the same history: it must be refused."""

    name = "second controller on the history"

    def inject(self) -> None:
        endpoint = f"ipc://{self.site.folder}/run/other.sock"
        self._second = self.site.start_second("second", self.site.history, endpoint, free_port(0))


class ClockStep(Fault):
    """The wall clock of the engine's machine, the controller's or both is set forwards or back, and later right again."""

    name = "clock stepped"
    lasts_s = 4.0
    clocks = ("engine", "controller")

    def inject(self) -> None:
        self._ahead_s = self.chance.choice((-86_400, -600, -3, 3, 600, 86_400))
        for clock in self.clocks:
            self.site.set_clock(clock, self._ahead_s)

    def told(self) -> bool:
        return abs(self._ahead_s) <= SMALL_STEP_S or "clock_off" in self.site.degraded()

    def heal(self) -> None:
        for clock in self.clocks:
            self.site.set_clock(clock, 0)


class EngineClockStep(ClockStep):
    """Only the engine's machine."""

    name = "engine's clock stepped"
    clocks = ("engine",)


class ControllerClockStep(ClockStep):
    """Only the controller's."""

    name = "controller's clock stepped"
    clocks = ("controller",)


class ModeSwitched(Fault):
    """An operator switches the order off, or to shadow, and on again."""

    name = "mode switched"

    def inject(self) -> None:
        self._mode = self.chance.choice(("off", "shadow"))
        self._switch(self._mode)

    def told(self) -> bool:
        return bool(self.site.snapshot().get("mode") == self._mode)

    def heal(self) -> None:
        self._switch("on")

    def _switch(self, mode: str) -> None:
        self.site.http.post("/api/mode", json={"mode": mode, "reason": "asked for by the tester"}).raise_for_status()


class HugeIds(Fault):
    """Clients name their requests with hundreds of kilobytes, or with many megabytes."""

    name = "huge request ids"
    requests = 40
    megabytes = 0

    def inject(self) -> None:
        self.send(self.requests, id_of(400_000))
        if self.megabytes:
            self.send(1, id_of(self.megabytes * 1_000_000))


class HugeTenants(Fault):
    """Clients name tenants of a megabyte each."""

    name = "huge tenants"
    requests = 20

    def inject(self) -> None:
        self.send(self.requests, tenant_of(1_000_000))


def id_of(length: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Make a request's id so long."""
    return lambda body: {**body, "request_id": body["request_id"] + "i" * length}


def tenant_of(length: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Give a request a tenant with a name so long, and of its own."""
    return lambda body: {
        **body,
        "vllm_xargs": {**body["vllm_xargs"], "tenant": body["request_id"][:40] + "t" * length},
    }
