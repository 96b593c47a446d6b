"""What tests of live faults share: engines under load that never pauses, and controllers that misbehave on order."""

from __future__ import annotations

import itertools
import re
import resource
import signal
import sys
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from controller.config import load_config
from controller.service.service import service
from engine_adapter.serving.processes import Child, Children, free_port
from engine_adapter.serving.simulated_server import faster
from engine_adapter.serving.vllm_server import MODEL_NAME, VllmServer
from engine_adapter.transport.link import Delivery, HubTrouble
from engine_adapter.transport.zmq_sockets import ZmqHub, ZmqLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from store.history.reader import open_history
from store.records import ControllerMessage, EngineMessage

LEASE_S = 2.0
"""The setting's default."""
PLACES = 4
CLIENTS = 12
PATIENCE_S = 240.0
PROFILE = "h800-qwen3-32b-24k"
SPEED = 1.0

Spoil = Callable[[ControllerMessage], Sequence[bytes]]
Start = tuple[float, float]
"""When a request was given its first place, and when it had arrived."""


def wait_for(holds: Callable[[], object], what: str) -> float:
    """Wait until something holds; gives the seconds that it took."""
    started_s = time.monotonic()
    while not holds():
        assert time.monotonic() - started_s < PATIENCE_S, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.02)
    return time.monotonic() - started_s


class LoadedEngine(ABC):
    """An engine whose clients always have a request under way; each answer must come whole."""

    name: str

    @abstractmethod
    def answers(self) -> int:
        """Answers that came whole."""

    @abstractmethod
    def condition(self) -> tuple[str, str]:
        """The mode in force, and the reason of a fallback."""

    @abstractmethod
    def starts(self, since_s: float, until_s: float, history: Path) -> list[Start]:
        """The requests that were given a first place in a time and whose end is known, in that order."""

    def await_mode(self, mode: str, reason: str = "") -> float:
        """Wait until a mode is in force, for a reason that has these words in it."""
        return wait_for(
            lambda: self.condition()[0] == mode and reason in self.condition()[1], f"mode {mode} {reason}".strip()
        )

    def await_answers(self, count: int = CLIENTS) -> None:
        """Wait until so many more answers have come."""
        enough = self.answers() + count
        wait_for(lambda: self.answers() >= enough, f"{count} more answers")


class SimulatedUnderLoad(LoadedEngine):
    """The simulated engine in real time, over a real socket."""

    name = "simulated"

    def __init__(self, endpoint: str) -> None:
        self._engine = SimulatedEngine(
            replace(faster(PROFILES[PROFILE], SPEED), max_num_seqs=PLACES),
            link=ZmqLink(endpoint),
            engine_id=self.name,
            session_id=uuid.uuid4().hex,
            start_s=time.time(),
        )
        self._numbers = itertools.count()
        self._ended: list[Start] = []
        self._failures: list[BaseException] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(PATIENCE_S)
        self._engine.close()
        assert not self._failures, self._failures
        assert self._engine.unfinished == 0, "every request has ended"

    def answers(self) -> int:
        assert not self._failures, self._failures
        return len(self._ended)

    def unacknowledged(self) -> int:
        """Facts that no controller has called durable yet."""
        return self._engine.agent.unacknowledged

    def condition(self) -> tuple[str, str]:
        now_s = time.time()
        return self._engine.agent.mode(now_s), self._engine.agent.fallback(now_s) or ""

    def starts(self, since_s: float, until_s: float, history: Path) -> list[Start]:
        return sorted(start for start in list(self._ended) if since_s <= start[0] < until_s)

    def _run(self) -> None:
        try:
            while not self._ending.is_set() or self._engine.unfinished:
                self._step()
        except BaseException as error:  # noqa: BLE001 - told to the test by another thread
            self._failures.append(error)

    def _step(self) -> None:
        engine = self._engine
        engine.advance_to(time.time())
        while engine.unfinished < CLIENTS and not self._ending.is_set():
            number = next(self._numbers)
            engine.submit(
                TraceRequest(
                    request_id=f"r{number}",
                    arrival_s=engine.now_s,
                    token_ids=tuple(range(1 + 13 * number % 60)),
                    max_tokens=400,
                    true_output_tokens=20 + 37 * number % 80,
                )
            )
        time.sleep(max(0.001, engine.begin_step() - time.time()))
        for life in engine.end_step().finished:
            number = int(life.request_id[1:])
            assert (life.reason, life.output_tokens) == ("stop", 20 + 37 * number % 80)
            self._ended.append((life.scheduled_s, life.arrival_s))


class VllmUnderLoad(LoadedEngine):
    """vLLM's own API server on the virtual GPU, asked over HTTP."""

    name = "vllm"

    def __init__(self, endpoint: str, folder: Path) -> None:
        self._server = VllmServer(
            endpoint=endpoint,
            engine_id=self.name,
            profile=PROFILES[PROFILE],
            speed=SPEED,
            arguments=("--max-num-seqs", str(PLACES)),
            log_path=folder / "vllm.log",
            ready_s=300.0,
        )
        self._numbers = itertools.count()
        self._answered: list[str] = []
        self._ending = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._server.start()
        self._clients = [self._pool.submit(self._run) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._pool.shutdown()
        try:
            for client in self._clients:
                client.result()
        finally:
            self._server.stop()

    def answers(self) -> int:
        for client in self._clients:
            assert not client.done(), client.result()
        return len(self._answered)

    def condition(self) -> tuple[str, str]:
        log = self._server.log_path.read_text(errors="replace")
        found = re.findall(r"SageSched mode (\w+)(?:: (.*))?", log)
        return found[-1] if found else ("off", "")

    def starts(self, since_s: float, until_s: float, history: Path) -> list[Start]:
        names = set(self._answered[:])
        known: dict[str, Start] = {}

        def all_known() -> bool:
            with open_history(history) as connection:
                rows = connection.execute("SELECT request_id, scheduled_s, arrival_s FROM completions").fetchall()
            known.update((_answer_of(name), (scheduled_s, arrival_s)) for name, scheduled_s, arrival_s in rows)
            return names <= known.keys()

        wait_for(all_known, "the ends of all answers in the history")
        return sorted(start for start in known.values() if since_s <= start[0] < until_s)

    def _run(self) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self._ending.is_set():
                self._answered.append(self._answer(client, next(self._numbers)))

    def _answer(self, client: httpx.Client, number: int) -> str:
        length = 20 + 37 * number % 80
        response = client.post(
            f"{self._server.base_url}/v1/completions",
            json={
                "model": MODEL_NAME,
                "prompt": " ten" * (1 + 13 * number % 60),
                "max_tokens": 400,
                "vllm_xargs": {"true_len": str(length)},
            },
        )
        assert response.status_code == 200, response.text
        body = response.json()
        assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("stop", length)
        name: str = body["id"]
        return name


def _answer_of(request_id: str) -> str:
    """The name of the answer that a request of vLLM's engine belongs to."""
    found = re.match("cmpl-[0-9a-f]+", request_id)
    return found[0] if found else request_id


HELD_POLL_S = 0.02
"""Seconds after which messages that are held back are looked at again."""


class FaultyHub:
    """The controller's end of the border, which garbles what it sends, or hands on late what it hears, when told to."""

    def __init__(self, hub: ZmqHub) -> None:
        self._hub = hub
        self._held: deque[tuple[float, tuple[bytes, EngineMessage]]] = deque()
        self.spoil: Spoil | None = None
        """Frames to send in a message's place."""
        self.delay_s = 0.0
        """For how long messages of engines are held back."""

    @property
    def bad_frames(self) -> int:
        return self._hub.bad_frames

    @property
    def troubles(self) -> dict[HubTrouble, str]:
        return self._hub.troubles

    def receive(self, timeout_s: float) -> list[tuple[bytes, EngineMessage]]:
        waits_s = min(timeout_s, HELD_POLL_S) if self._held else timeout_s
        received = self._hub.receive(waits_s)
        now_s = time.monotonic()
        self._held.extend((now_s, message) for message in received)
        ripe = []
        while self._held and self._held[0][0] <= now_s - self.delay_s:
            ripe.append(self._held.popleft()[1])
        return ripe

    def send(self, connection: bytes, message: ControllerMessage) -> Delivery:
        if self.spoil is None:
            return self._hub.send(connection, message)
        for frame in self.spoil(message):
            self._hub._socket.send_multipart([connection, frame])
        return "sent"

    def wake(self) -> None:
        self._hub.wake()

    def close(self) -> None:
        self._hub.close()


class Controller:
    """The controller of one history and endpoint: in this process, or in one of its own."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.history = folder / "history"
        self.endpoint = f"ipc://{folder}/run/engine.sock"
        self._children = children
        self._stack = ExitStack()
        self._child: Child | None = None
        self._address = ""
        self.hub: FaultyHub | None = None

    def start(self) -> None:
        """Start in this process; its hub does as `hub` says."""
        settings = {
            "mode": "on",
            "store": {"path": self.history, "seal_interval_s": 0.5},
            "engine": {"endpoint": self.endpoint, "lease_s": LEASE_S},
            "http": {"port": 0},
            "policy": {"objective": "mean"},
            "learning": {"guard": False},
        }
        config = load_config(settings, environment={})
        opened = self._stack.enter_context(service(config, clock=time.time, timer=time.perf_counter))
        self._address = opened.web.address
        loop = opened.loop
        loop._hub = self.hub = FaultyHub(loop._hub)  # type: ignore[arg-type]
        thread = threading.Thread(target=loop.run, daemon=True)
        self._stack.callback(thread.join, 30.0)
        self._stack.callback(loop.stop)
        thread.start()

    def start_process(self) -> None:
        """Start as a process, which can be killed and stopped, and whose disk can be full."""
        port = free_port(0)
        self._address = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "controller", "serve", "--mode", "on", "--objective", "mean"),
            *("--store", str(self.history), "--endpoint", self.endpoint),
            *("--port", str(port), "--seal-interval", "0.5"),
        ]
        environment = {
            "OMP_NUM_THREADS": "1",
            "SAGESCHED_ENGINE__LEASE_S": str(LEASE_S),
            "SAGESCHED_LEARNING__GUARD": "false",
        }
        self._child = self._children.start("controller", command, environment=environment)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._child is not None
        self._child.process.send_signal(number)

    def limit_files(self, largest_bytes: int | None) -> None:
        """Have the system refuse what the process writes beyond so many bytes of a file; None for nothing."""
        assert self._child is not None
        pid, unlimited = self._child.process.pid, resource.RLIM_INFINITY
        limit = unlimited if largest_bytes is None else largest_bytes
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, unlimited))

    def stop(self) -> None:
        """End whichever runs."""
        self._stack.close()
        self.hub = None
        if self._child is not None:
            self.limit_files(None)
            self._child.process.send_signal(signal.SIGCONT)
            self._child.process.terminate()
            self._child.process.wait(60.0)
            self._child = None

    def ask(self, path: str) -> httpx.Response:
        """Its API's answer, whatever the status."""
        return httpx.get(f"{self._address}{path}", timeout=10.0)

    def get(self, path: str) -> Any:
        """What its API says; raises `httpx.HTTPError` while it does not answer or still starts."""
        answer = self.ask(path).raise_for_status()
        return answer.json() if path.startswith("/api") else answer.text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """A controller that is not started yet; whatever of it runs ends with the module."""
    folder = tmp_path_factory.mktemp("site")
    with Children(folder) as children:
        controller = Controller(folder, children)
        yield controller
        controller.stop()


@pytest.fixture
def controller(site: Controller) -> Iterator[Controller]:
    """A controller that does not run yet, and none that runs afterwards."""
    site.stop()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def simulated(site: Controller) -> Iterator[LoadedEngine]:
    """The simulated engine under load for as long as the module's tests last."""
    site.history.parent.joinpath("run").mkdir(mode=0o700, exist_ok=True)
    with SimulatedUnderLoad(site.endpoint) as loaded:
        yield loaded


@pytest.fixture(
    scope="module",
    params=["simulated", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(900)])],
)
def engine(
    request: pytest.FixtureRequest, site: Controller, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoadedEngine]:
    """An engine under load for as long as the module's tests last; in the end each of its clients has been served."""
    folder = tmp_path_factory.mktemp("engine")
    loaded = SimulatedUnderLoad(site.endpoint) if request.param == "simulated" else VllmUnderLoad(site.endpoint, folder)
    site.history.parent.joinpath("run").mkdir(mode=0o700, exist_ok=True)
    with loaded:
        yield loaded
