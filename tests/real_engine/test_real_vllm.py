"""A real vLLM server with the plugin computes a tiny model on the CPU; a real controller records every life.

The history is read with plain DuckDB from the catalog while the controller writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

from engine_adapter.serving.vllm_server import MODEL_NAME, VllmServer
from store.errors import EngineError

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ATTEMPTS = 3
"""A starved server may notice that its client has left only when the answer is complete."""

LONG_TOKENS = 16_000
"""So long an answer takes many seconds, so that a client can leave in the middle of it on any machine."""

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

Ask: TypeAlias = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def lease_s() -> float:
    """Longer than any pause of this machine: every fact must come by itself, never only with the next request."""
    return 60.0


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[VllmServer]:
    """The server, connected to the controller."""
    with VllmServer(endpoint=site.endpoint, engine_id="cpu", ready_s=300.0) as server:
        site.connect(server)
        yield server


def check_life(site: Site, life: dict[str, Any], reason: str) -> None:
    """A life is whole: in order, predicted, decided on, and told once."""
    assert life["arrival_s"] <= life["scheduled_s"] < life["first_token_s"] <= life["finished_s"]
    assert (life["reason"], life["model"], life["engine_id"]) == (reason, MODEL_NAME, "cpu")
    assert 0 < life["p10_tokens"] <= life["p50_tokens"] <= life["p99_tokens"] <= life["max_tokens"]
    for table in ("arrivals", "first_tokens", "completions", "predictions", "outcomes"):
        assert len(_rows(site, table, life)) == 1, table
    decisions = _rows(site, "decisions", life)
    assert decisions[0]["reason"] == "arrival"
    assert decisions[0]["index_s"] == decisions[0]["table_index_s"][0] > 0.0


def _rows(site: Site, table: str, life: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = site.query(
        f"SELECT * FROM {table} WHERE session_id = '{life['session_id']}' AND request_id = '{life['request_id']}'"
        " ORDER BY received_s"
    )
    return rows


def test_an_answers_life_is_in_the_history(site: Site, server: VllmServer, ask: Ask) -> None:
    """Its token counts and its end are those that the client was told, and its tenant is known."""
    answer = ask(server, prompt="How many requests wait?", max_tokens=12, vllm_xargs={"tenant": "acme"})
    (life,) = site.lives(answer["id"])
    usage, (choice,) = answer["usage"], answer["choices"]
    check_life(site, life, choice["finish_reason"])
    assert (life["prompt_tokens"], life["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (life["max_tokens"], life["tenant"], life["priority"]) == (12, "acme", 0)


def test_each_of_two_answers_to_a_request_has_a_life_of_its_own(site: Site, server: VllmServer, ask: Ask) -> None:
    """``n=2``: the engine serves two requests, and their tokens add up to what the client was told."""
    answer = ask(server, prompt="ten twenty thirty", max_tokens=9, n=2)
    lives = site.lives(answer["id"], 2)
    reasons = sorted(choice["finish_reason"] for choice in answer["choices"])
    assert sorted(life["reason"] for life in lives) == reasons
    for life in lives:
        check_life(site, life, life["reason"])
    assert sum(life["output_tokens"] for life in lives) == answer["usage"]["completion_tokens"]


def test_a_stream_is_recorded_like_any_answer(site: Site, server: VllmServer) -> None:
    """The client reads piece by piece to the end."""
    body = {"model": MODEL_NAME, "prompt": "the lazy dog", "max_tokens": 20, "stream": True}
    with httpx.stream("POST", f"{server.base_url}/v1/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    (life,) = site.lives(events[0]["id"])
    check_life(site, life, events[-1]["choices"][0]["finish_reason"])
    assert life["output_tokens"] <= 20


def test_a_client_that_leaves_is_an_abort_and_is_told_at_once(site: Site, server: VllmServer) -> None:
    """The client goes away after the first piece; nothing else is sent, yet the end gets into the history."""
    life: dict[str, Any] = {}
    for _ in range(ATTEMPTS):
        (life,) = site.lives(_leave_early(server))
        if life["reason"] == "abort":
            break
    check_life(site, life, "abort")
    assert 1 <= life["output_tokens"] < LONG_TOKENS
    (outcome,) = _rows(site, "outcomes", life)
    assert outcome["censored"]


def _leave_early(server: VllmServer) -> str:
    """Ask for a long answer and go away after its first piece; gives the answer's id."""
    body = {"model": MODEL_NAME, "prompt": "quick brown", "max_tokens": LONG_TOKENS, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.base_url}/v1/completions", json=body, timeout=60) as response:
        first = next(line for line in response.iter_lines() if line.startswith("data: {"))
    return str(json.loads(first[6:])["id"])


def test_what_the_prefix_cache_spared_is_recorded(site: Site, server: VllmServer, ask: Ask) -> None:
    """The second time, most of a long prompt is in the cache."""
    prompt = "ninety hundred " * 150
    (first,) = site.lives(ask(server, prompt=prompt, max_tokens=3)["id"])
    (second,) = site.lives(ask(server, prompt=prompt, max_tokens=3)["id"])
    assert first["cached_prompt_tokens"] == 0
    assert 0 < second["cached_prompt_tokens"] < second["prompt_tokens"]


def test_the_engine_orders_goes_idle_and_stays_healthy(site: Site, server: VllmServer, ask: Ask) -> None:
    """Tables come in time for longer answers; afterwards nothing is held, and nothing was dropped or failed."""

    def applied() -> bool:
        ask(server, prompt="ten", max_tokens=300, ignore_eos=True)
        return bool(site.snapshot()["tables_applied"])

    site.wait_for(applied, "a table that comes before its request has ended")
    site.wait_for(lambda: site.shows(running=0, waiting=0, kv_blocks_used=0), "an idle snapshot")
    assert site.shows(mode="on", fallback=None, policy_errors=0, messages_dropped=0)
    assert site.api.get("/api/state")["engines"][0]["contract"] == "all names and 15 behaviours hold"


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error carries the end of vLLM's own log, and no process is left."""
    server = VllmServer(endpoint=f"ipc://{tmp_path}/e.sock", arguments=("--no-such-flag",))
    with pytest.raises(EngineError, match="no-such-flag"):
        server.start()
    assert not server.alive
