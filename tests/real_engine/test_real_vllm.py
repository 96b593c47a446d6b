"""The real vLLM server with the plugin in it, over its OpenAI API: on the CPU with a tiny model, and on the virtual GPU.

The controller is a script behind a real socket, in a thread of the test.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from engine_adapter.profiles import PROFILES
from engine_adapter.transport import ZmqHub
from engine_adapter.vllm_server import MODEL_NAME, VllmServer
from store.errors import EngineError
from store.records import (
    Acknowledged,
    Arrived,
    EngineMessage,
    Fact,
    Facts,
    Finished,
    FirstToken,
    Goodbye,
    Heartbeat,
    Hello,
    IndexTable,
    Settings,
    Snapshot,
    Welcome,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

LEASE_S = 1.0
PATIENCE_S = 60.0


class Controller:
    """A controller by script behind a real socket: a shorter prompt has a lower index; acknowledges everything."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.heard: list[EngineMessage] = []
        self._connections: set[bytes] = set()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen, for the first time or again."""
        self._ending.clear()
        self._connections.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Vanish without a word, as a killed controller does."""
        self._ending.set()
        if self._thread:
            self._thread.join()

    def facts(self, kind: type[Fact]) -> dict[str, Fact]:
        """Facts of a kind by request."""
        batches = [message for message in list(self.heard) if isinstance(message, Facts)]
        return {fact.request_id: fact for batch in batches for fact in batch.facts if isinstance(fact, kind)}

    def of(self, response_id: str) -> list[Finished]:
        """How the engine's requests behind an API response ended, once all have."""
        wait_for(lambda: self._ended(response_id), "the end of a request's life")
        return self._ended(response_id)

    def last_snapshot(self) -> Snapshot | None:
        """The newest snapshot."""
        return next((message for message in reversed(list(self.heard)) if isinstance(message, Snapshot)), None)

    def _ended(self, response_id: str) -> list[Finished]:
        ends = [fact for name, fact in sorted(self.facts(Finished).items()) if response_id in name]
        return [fact for fact in ends if isinstance(fact, Finished)]

    def _run(self) -> None:
        hub = ZmqHub(self.endpoint)
        beat_s = 0.0
        while not self._ending.is_set():
            for connection, message in hub.receive(0.05):
                self.heard.append(message)
                for answer in self._answers(connection, message):
                    hub.send(connection, answer)
            if time.monotonic() > beat_s:
                beat_s = time.monotonic() + LEASE_S / 5
                for connection in self._connections:
                    hub.send(connection, Heartbeat(time_s=time.time()))
        hub.close()

    def _answers(
        self, connection: bytes, message: EngineMessage
    ) -> Iterator[Welcome | Settings | IndexTable | Acknowledged]:
        if isinstance(message, Hello):
            self._connections.add(connection)
            yield Welcome(controller_id="script", durable_batch=0)
            yield Settings(revision=1, mode="on", gate=None, boost_per_s=None, lease_s=LEASE_S)
            yield _table(None, 1e6)
        if isinstance(message, Facts):
            yield Acknowledged(batch=message.batch)
            yield from (
                _table(fact.request_id, float(fact.prompt_tokens))
                for fact in message.facts
                if isinstance(fact, Arrived)
            )


def _table(request_id: str | None, index_s: float) -> IndexTable:
    return IndexTable(request_id=request_id, attained_tokens=(0,), index_s=(index_s,), growth_tokens=(10.0,))


def wait_for(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds; fails by name."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.02)


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    """A controller that listens."""
    scripted = Controller(f"ipc://{tmp_path}/private/engine.sock")
    scripted.start()
    yield scripted
    scripted.stop()


def complete(server: VllmServer, **body: object) -> dict[str, object]:
    """One completion, which must succeed."""
    response = httpx.post(f"{server.base_url}/v1/completions", json={"model": MODEL_NAME, **body}, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def test_every_request_of_a_real_server_is_told_from_arrival_to_end(controller: Controller) -> None:
    """A tiny model really computed on the CPU: a plain answer, two at once, a stream, one the client leaves."""
    with VllmServer(endpoint=controller.endpoint, engine_id="cpu") as server:
        _check_plain(server, controller)
        _check_two(server, controller)
        _check_stream(server, controller)
        _check_abort(server, controller)
        _check_prefix_cache(server, controller)
        hello = next(message for message in controller.heard if isinstance(message, Hello))
        assert (hello.engine_id, hello.model, hello.engine, hello.prefix_caching) == ("cpu", MODEL_NAME, "vllm", True)
        wait_for(lambda: (last := controller.last_snapshot()) and last.running == 0, "an idle snapshot")
        last = controller.last_snapshot()
        assert last is not None
        assert (last.mode, last.fallback, last.policy_errors, last.messages_dropped) == ("on", None, 0, 0)
        assert (last.waiting, last.kv_blocks_used) == (0, 0)
        assert last.tables_applied >= 5


def _check_plain(server: VllmServer, controller: Controller) -> None:
    answer = complete(server, prompt="How many requests wait?", max_tokens=12, vllm_xargs={"tenant": "acme"})
    (end,) = controller.of(str(answer["id"]))
    usage, (choice,) = answer["usage"], answer["choices"]  # type: ignore[misc]
    assert (end.prompt_tokens, end.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])  # type: ignore[index]
    assert (end.reason, end.max_tokens) == (choice["finish_reason"], 12)
    arrived = controller.facts(Arrived)[end.request_id]
    assert isinstance(arrived, Arrived)
    assert (arrived.tenant, len(arrived.token_ids)) == ("acme", 4 * end.prompt_tokens)
    assert end.scheduled_s is not None
    assert end.first_token_s is not None
    assert end.arrival_s <= end.scheduled_s < end.first_token_s <= end.time_s
    assert abs(end.time_s - time.time()) < PATIENCE_S


def _check_two(server: VllmServer, controller: Controller) -> None:
    """Each of ``n`` answers is a request of its own."""
    answer = complete(server, prompt="ten twenty thirty", max_tokens=9, n=2)
    wait_for(lambda: len(controller.of(str(answer["id"]))) == 2, "two lives")
    ends = controller.of(str(answer["id"]))
    assert sum(end.output_tokens for end in ends) == answer["usage"]["completion_tokens"]  # type: ignore[index]


def _check_stream(server: VllmServer, controller: Controller) -> None:
    body = {"model": MODEL_NAME, "prompt": "the lazy dog", "max_tokens": 20, "stream": True}
    with httpx.stream("POST", f"{server.base_url}/v1/completions", json=body, timeout=60) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    (end,) = controller.of(json.loads(events[0])["id"])
    assert end.output_tokens <= 20
    assert end.reason == json.loads(events[-1])["choices"][0]["finish_reason"]


def _check_abort(server: VllmServer, controller: Controller) -> None:
    """The client goes away after the first piece; the engine notices and stops."""
    body = {"model": MODEL_NAME, "prompt": "quick brown", "max_tokens": 1000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.base_url}/v1/completions", json=body, timeout=60) as response:
        first = next(line for line in response.iter_lines() if line.startswith("data: {"))
    (end,) = controller.of(json.loads(first.removeprefix("data: "))["id"])
    assert end.reason == "abort"
    assert 1 <= end.output_tokens < 1000
    assert isinstance(controller.facts(FirstToken)[end.request_id], FirstToken)


def _check_prefix_cache(server: VllmServer, controller: Controller) -> None:
    """The second time a long prompt is found in the cache, and the facts say so."""
    prompt = "ninety hundred " * 150
    (first,) = controller.of(str(complete(server, prompt=prompt, max_tokens=3)["id"]))
    (second,) = controller.of(str(complete(server, prompt=prompt, max_tokens=3)["id"]))
    assert first.cached_prompt_tokens == 0
    assert 0 < second.cached_prompt_tokens < second.prompt_tokens


def test_a_real_server_is_ordered_falls_back_and_is_ordered_again(controller: Controller) -> None:
    """The virtual GPU: forty answers end at their true length; the controller dies under load and comes back."""
    profile = PROFILES["h800-qwen3-32b-24k"]
    places = ("--max-num-seqs", "8")
    with VllmServer(endpoint=controller.endpoint, profile=profile, speed=2.0, arguments=places) as server:
        complete(server, prompt="ten", max_tokens=2)
        wait_for(controller.last_snapshot, "the first snapshot")
        _check_ordered(server, controller)
        with ThreadPoolExecutor(40) as clients:
            futures = [clients.submit(_answer, server, 1 + number % 5, 100 + number) for number in range(40)]
            wait_for(
                lambda: (last := controller.last_snapshot()) and last.running == 8, "eight requests in their places"
            )
            controller.stop()
            lengths = [future.result()[1] for future in futures]
        assert lengths == [100 + number for number in range(40)]
        time.sleep(LEASE_S)
        assert _answer(server, 3, 17)[1] == 17
        heard = len(controller.heard)
        controller.start()
        _until_on_again(server, controller, heard)
        _check_ordered(server, controller)
        assert len(controller.facts(Finished)) == len(controller.facts(Arrived))
    wait_for(lambda: any(isinstance(message, Goodbye) for message in controller.heard), "goodbye")


def _answer(server: VllmServer, prompt_words: int, true_len: int) -> tuple[str, int]:
    """Response id and number of tokens of an answer of that true length."""
    answer = complete(server, prompt=" ten" * prompt_words, max_tokens=400, vllm_xargs={"true_len": str(true_len)})
    (choice,) = answer["choices"]  # type: ignore[misc]
    assert choice["finish_reason"] == "stop"
    return str(answer["id"]), int(answer["usage"]["completion_tokens"])  # type: ignore[index]


def _check_ordered(server: VllmServer, controller: Controller) -> None:
    """Eight long answers hold all places; of those who wait the shorter prompt goes first, not the first to come."""
    words = [20 - number for number in range(12)]
    heard = len(controller.heard)
    with ThreadPoolExecutor(20) as clients:
        holding = [clients.submit(_answer, server, 1, 390) for _ in range(8)]
        wait_for(lambda: _snapshot_since(controller, heard, running=8, waiting=0), "eight requests in their places")
        waiting = [clients.submit(_answer, server, count, 60) for count in words]
        wait_for(lambda: _snapshot_since(controller, heard, running=8, waiting=12), "twelve to wait")
        ids = [future.result()[0] for future in waiting]
        assert all(future.result()[1] == 390 for future in holding)
    ends = [controller.of(name)[0] for name in ids]
    by_start = sorted(ends, key=lambda end: (end.scheduled_s or 0.0, end.prompt_tokens))
    assert [end.prompt_tokens for end in by_start] == sorted(end.prompt_tokens for end in ends)


def _snapshot_since(controller: Controller, heard: int, *, running: int, waiting: int) -> bool:
    last = controller.last_snapshot()
    return last in controller.heard[heard:] and last is not None and (last.running, last.waiting) == (running, waiting)


def _until_on_again(server: VllmServer, controller: Controller, heard: int) -> None:
    """An idle engine does not look; a request wakes it, and it greets the controller and takes its orders."""

    def on_again() -> bool:
        _answer(server, 1, 5)
        news = controller.heard[heard:]
        return any(isinstance(message, Hello) for message in news) and any(
            isinstance(message, Snapshot) and message.mode == "on" for message in news
        )

    wait_for(on_again, "the engine to take orders again")


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error carries the end of vLLM's own log, and no process is left."""
    server = VllmServer(endpoint=f"ipc://{tmp_path}/e.sock", arguments=("--no-such-flag",))
    with pytest.raises(EngineError, match="no-such-flag"):
        server.start()
    assert not server.alive
