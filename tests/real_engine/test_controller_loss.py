"""A real vLLM server on the virtual GPU, under load over HTTP, while its real controller dies and comes back.

The server runs under vLLM's priority policy, so that its own order and ours both have classes to respect.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeAlias

import pytest

from engine_adapter.serving.vllm_server import VllmServer
from engine_adapter.virtual_time.profiles import PROFILES

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

Ask: TypeAlias = Callable[..., dict[str, Any]]
CompletedRequest: TypeAlias = dict[str, Any]

PLACES = 8
CLIENTS = 24

NEARLY = 0.01
"""Share by which two indexes differ that are nearly equal: the boost then goes by arrival."""


@pytest.fixture(scope="module")
def lease_s() -> float:
    """More than the default, so that a busy machine is not taken for a dead controller."""
    return 5.0


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server with few places, connected to the controller."""
    with VllmServer(
        endpoint=site.endpoint,
        profile=PROFILES["h800-qwen3-32b-24k"],
        speed=3.0,
        arguments=("--max-num-seqs", str(PLACES), "--scheduling-policy", "priority"),
        log_path=tmp_path_factory.mktemp("server") / "vllm.log",
        ready_s=300.0,
    ) as server:
        site.connect(server)
        yield server


class Load:
    """Clients that always have a request under way; every answer must come, and with its true length."""

    def __init__(self, server: VllmServer, ask: Ask) -> None:
        self.lengths: dict[str, int] = {}
        """True length of each answer that came, by its id."""
        self._server = server
        self._ask = ask
        self._numbers = itertools.count()
        self._ending = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._clients = [self._pool.submit(self._run) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def _run(self) -> None:
        while not self._ending.is_set():
            number = next(self._numbers)
            length = 20 + 37 * number % 80
            self.lengths[answer(self._server, self._ask, words=1 + 13 * number % 60, length=length)] = length


def answer(server: VllmServer, ask: Ask, *, words: int, length: int, priority: int = 0) -> str:
    """Have one answer of that true length; gives its id."""
    body = ask(
        server,
        prompt=" ten" * words,
        max_tokens=400,
        priority=priority,
        vllm_xargs={"true_len": str(length)},
    )
    (choice,) = body["choices"]
    assert (choice["finish_reason"], body["usage"]["completion_tokens"]) == ("stop", length)
    name: str = body["id"]
    return name


def test_a_killed_controller_costs_no_request_and_no_fact(
    site: Site, server: VllmServer, ask: Ask, answer_of: Callable[[str], str]
) -> None:
    """Killed under load: all are answered, first come, first served meanwhile; then ordered again, each life once."""
    with Load(server, ask) as load:
        _await_answers(site, load, CLIENTS)
        started_s = time.time()
        _await_answers(site, load, CLIENTS)
        site.kill_controller()
        killed_s = time.time()
        site.wait_for(lambda: "controller silent for more than" in server.log_path.read_text(), "the fallback")
        alone_s = time.time()
        _await_answers(site, load, CLIENTS)
        site.start_controller()
        back_s = time.time()
        site.wait_for(lambda: site.shows(mode="on", fallback=None), "the engine to take orders again")
        applied = site.snapshot()["tables_applied"]
        again_s = time.time()
        _await_answers(site, load, CLIENTS)
        assert site.snapshot()["tables_applied"] > applied
        ended_s = time.time()
    lives = _lives_of(site, load.lengths, answer_of)
    _check_lives(site, lives, load.lengths, answer_of)
    # A prediction is no fact: what the killed one had not written of it is lost, unless the request is met again.
    missed = [life for life in lives if life["arrival_s"] < killed_s < life["finished_s"] < again_s]
    assert all(life["p50_tokens"] is not None for life in lives if life not in missed)
    assert _overtakings(lives, started_s, killed_s) > 0, "ordered before"
    assert _overtakings(lives, alone_s, back_s) == 0, "first come, first served meanwhile"
    assert _overtakings(lives, again_s, ended_s) > 0, "ordered again"


def _await_answers(site: Site, load: Load, count: int) -> None:
    enough = len(load.lengths) + count
    site.wait_for(lambda: len(load.lengths) >= enough, f"{count} more answers")


def _lives_of(site: Site, names: dict[str, int], answer_of: Callable[[str], str]) -> list[CompletedRequest]:
    """The lives behind the answers, once the history shows the end of each."""
    found: list[CompletedRequest] = []

    def all_ended() -> bool:
        lives = site.query("SELECT * FROM requests")
        found[:] = [life for life in lives if answer_of(life["request_id"]) in names]
        return len([life for life in found if life["finished_s"] is not None]) >= len(names)

    site.wait_for(all_ended, f"the ends of {len(names)} lives in the history")
    return found


def _check_lives(
    site: Site, lives: list[CompletedRequest], lengths: dict[str, int], answer_of: Callable[[str], str]
) -> None:
    """Each request is there once, whole and with its length; each of its facts too, whoever was killed in between."""
    assert sorted(answer_of(life["request_id"]) for life in lives) == sorted(lengths)
    for life in lives:
        assert life["output_tokens"] == lengths[answer_of(life["request_id"])]
        assert life["arrival_s"] <= life["scheduled_s"] <= life["first_token_s"] <= life["finished_s"]
    for facts in ("arrivals WHERE NOT resent", "first_tokens", "completions"):
        names = [answer_of(row["request_id"]) for row in site.query(f"SELECT request_id FROM {facts}")]
        assert sorted(name for name in names if name in lengths) == sorted(lengths), facts


def _overtakings(lives: list[CompletedRequest], since_s: float, until_s: float) -> int:
    """How many of those that started in a time did so right after one that had come later than they."""
    started = sorted(
        (life["scheduled_s"], life["arrival_s"]) for life in lives if since_s <= life["scheduled_s"] < until_s
    )
    assert len(started) >= PLACES, "enough started to tell the order"
    return sum(later < earlier for (_, earlier), (_, later) in itertools.pairwise(started))


def test_classes_are_strict_and_the_index_orders_within_them(
    site: Site, server: VllmServer, ask: Ask, answer_of: Callable[[str], str]
) -> None:
    """Places come free one by one; who waits gets them by ``priority``, then by index, however late it came."""
    with ThreadPoolExecutor(2 * PLACES + 4) as clients:
        holding = [clients.submit(answer, server, ask, words=1, length=300 + 12 * place) for place in range(PLACES)]
        site.wait_for(lambda: site.shows(running=PLACES, waiting=0), "all places to be taken")
        waiting = [
            clients.submit(answer, server, ask, words=60 - 4 * number, length=60, priority=2 - number % 3)
            for number in range(12)
        ]
        site.wait_for(lambda: site.shows(running=PLACES, waiting=12, tables_held=PLACES + 12), "twelve to wait")
        decided_s = time.time()
        names = {future.result(): 60 for future in waiting}
        for future in holding:
            future.result()
    lives = sorted(_lives_of(site, names, answer_of), key=lambda life: (life["scheduled_s"], life["priority"]))
    assert lives[0]["scheduled_s"] > decided_s
    assert [life["priority"] for life in lives] == [0] * 4 + [1] * 4 + [2] * 4
    decisions = _decisions(site)
    for first, second in itertools.combinations(lives, 2):
        started_s = first["scheduled_s"]
        if first["priority"] == second["priority"] and started_s < second["scheduled_s"]:
            indexes, others = (_indexes(decisions[life["request_id"]], started_s) for life in (first, second))
            assert min(indexes) <= max(others) * (1.0 + NEARLY), "those of nearly equal index go in order of arrival"
    assert len({decisions[life["request_id"]][0][1] for life in lives}) > 6, "indexes differ"


def _decisions(site: Site) -> dict[str, list[tuple[float, float]]]:
    """When which index was decided for each request as long as it has no output, in order."""
    decided: dict[str, list[tuple[float, float]]] = {}
    for row in site.query("SELECT request_id, time_s, table_index_s[1] AS index_s FROM decisions ORDER BY time_s"):
        decided.setdefault(row["request_id"], []).append((row["time_s"], row["index_s"]))
    return decided


def _indexes(decided: list[tuple[float, float]], at_s: float) -> list[float]:
    """The indexes that may be in force in the engine at a moment: one decided in the last second may be on its way."""
    old = [index_s for time_s, index_s in decided if time_s <= at_s - 1.0]
    return old[-1:] + [index_s for time_s, index_s in decided if at_s - 1.0 < time_s <= at_s]


def test_a_server_that_ends_says_goodbye(site: Site, server: VllmServer) -> None:
    """The history knows that the engine left, and did not merely vanish. Comes last: it stops the server."""
    server.stop()
    site.wait_for(lambda: "left" in _events(site), "the goodbye in the history")
    assert {"reconnected", "lost"}.isdisjoint(_events(site))
    assert not server.alive


def _events(site: Site) -> list[str]:
    return [row["event"] for row in site.query("SELECT event FROM engines ORDER BY received_s")]
