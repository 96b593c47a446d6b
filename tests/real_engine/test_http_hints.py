"""A real vLLM server with the middleware: what requests say arrives in its engine, and answers come as they always do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

import httpx
import pytest

from engine_adapter.serving.vllm_server import MODEL_NAME, VllmServer
from engine_adapter.virtual_time.profiles import PROFILES

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

KEY = "not-to-be-seen"

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"

COMPLETIONS = {"prompt": "ten", "max_tokens": 8}
CHAT = {"messages": [{"role": "user", "content": "ten"}], "max_tokens": 8}
RESPONSES = {"input": "ten", "max_output_tokens": 8}
BODIES = {
    "/v1/completions": COMPLETIONS,
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/responses": RESPONSES,
}


@pytest.fixture(scope="module")
def lease_s() -> float:
    """More than the default, so that a busy machine is not taken for a dead controller."""
    return 5.0


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server that asks for a key, takes orders, and lets one tenant have one request at once."""
    folder = tmp_path_factory.mktemp("server")
    hints = folder / "hints.toml"
    hints.write_text("[tenant_max_requests]\none-at-once = 1\n")
    with VllmServer(
        endpoint=site.endpoint,
        profile=PROFILES["h800-qwen3-32b-24k"],
        speed=20.0,
        arguments=("--api-key", KEY, "--chat-template", CHAT_TEMPLATE),
        environment={"SAGESCHED_HINTS": "refuse", "SAGESCHED_HINTS_FILE": str(hints)},
        log_path=folder / "vllm.log",
        ready_s=300.0,
    ) as server:
        site.wait_for(lambda: site.shows(mode="on"), "the engine to take orders")
        yield server


@pytest.fixture
def client(server: VllmServer) -> Iterator[httpx.Client]:
    """A client with the key."""
    with httpx.Client(base_url=server.base_url, headers={"authorization": f"Bearer {KEY}"}, timeout=60.0) as client:
        yield client


def arrival(site: Site, tenant: str) -> dict[str, Any]:
    """The recorded arrival of a tenant's one request."""
    found: list[dict[str, Any]] = []

    def recorded() -> bool:
        found[:] = site.query(f"SELECT * FROM arrivals WHERE tenant = '{tenant}'")
        return bool(found)

    site.wait_for(recorded, f"the request of {tenant}")
    (row,) = found
    return row


@pytest.mark.parametrize("path", BODIES)
def test_what_a_request_says_arrives_in_the_engine(site: Site, client: httpx.Client, path: str) -> None:
    """On every path on which vLLM generates, and the answer names the tier where it has a place for it."""
    tenant = f"team{path}"
    headers = {
        "x-llm-d-inference-fairness-id": tenant,
        "x-llm-d-slo-ttft-ms": "2000",
        "x-slo-tpot-ms": "62.5",
        "x-sagesched-slo-e2e-ms": "90000",
        "x-claude-code-session-id": "session-1",
        "x-dynamo-request-priority": "7",
        "x-sagesched-shed": "1",
    }
    nvext = {"agent_hints": {"osl": 128}}
    body = {"model": MODEL_NAME, **BODIES[path], "service_tier": "flex", "nvext": nvext}
    answer = client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-sagesched-service-tier"] == "flex"
    assert answer.json().get("service_tier") == (None if path == "/v1/messages" else "flex")
    row = arrival(site, tenant)
    said = {
        "priority": -7,
        "session": "session-1",
        "service_class": "flex",
        "targets_ttft_s": 2.0,
        "targets_tpot_s": 0.0625,
        "targets_e2e_s": 90.0,
        "expected_output_tokens": 128,
        "sheds": True,
    }
    assert {name: row[name] for name in said} == said


def test_a_stream_comes_as_it_is_made(site: Site, client: httpx.Client) -> None:
    """Beside what the request says; a busy server puts some tokens together."""
    body = {
        "model": MODEL_NAME,
        **COMPLETIONS,
        "max_tokens": 80,
        "user": "streaming",
        "stream": True,
        "stream_options": {"include_usage": True},
        "vllm_xargs": {"true_len": "60"},
    }
    with client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert len([choice for chunk in chunks for choice in chunk["choices"]]) > 5
    assert chunks[-1]["usage"]["completion_tokens"] == 60
    assert arrival(site, "streaming")["max_tokens"] == 80


def test_a_client_that_goes_ends_its_request(site: Site, client: httpx.Client) -> None:
    """The server sees it go through the middleware, as it would without."""
    body = {
        "model": MODEL_NAME,
        "prompt": "ten",
        "max_tokens": 8000,
        "user": "gone",
        "vllm_xargs": {"true_len": "8000"},
    }
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=body, timeout=0.5)
    rows = "SELECT reason FROM completions JOIN arrivals USING (request_id) WHERE tenant = 'gone'"
    site.wait_for(lambda: site.query(rows), "the end of the request")
    assert site.query(rows) == [{"reason": "abort"}]


def test_a_tenant_at_its_limit_is_answered_by_429_until_its_request_ends(site: Site, client: httpx.Client) -> None:
    """Also when that ends because its client goes; the refused one never reaches the engine."""
    body = {"model": MODEL_NAME, **COMPLETIONS, "user": "one-at-once"}
    long = {**body, "max_tokens": 8000, "stream": True, "vllm_xargs": {"true_len": "8000"}}
    with client.stream("POST", "/v1/completions", json=long) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(lines)
        refused = client.post("/v1/completions", json=body)
        assert refused.status_code == 429, refused.text
        assert refused.headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
        assert client.post("/v1/completions", json={**body, "user": "another"}).status_code == 200
    site.wait_for(lambda: client.post("/v1/completions", json=body).status_code == 200, "its place")
    arrivals = "SELECT * FROM arrivals WHERE tenant = 'one-at-once'"
    site.wait_for(lambda: len(site.query(arrivals)) >= 2, "both that were served")
    assert len(site.query(arrivals)) == 2
    assert 'sagesched_http_dropped_total{reason="tenant_limit"}' in client.get("/metrics").text


def test_what_cannot_be_used_is_refused_after_the_key(server: VllmServer, client: httpx.Client) -> None:
    """Who has none is told that alone; neither reaches the engine, and vLLM counts both as its own refusals."""
    body = {"model": MODEL_NAME, **CHAT, "nvext": {"agent_hints": {"osl": -1}}}
    refused = client.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "nvext.agent_hints.osl")
    unknown = httpx.post(f"{server.base_url}/v1/chat/completions", json=body, headers={"authorization": "Bearer x"})
    assert unknown.status_code == 401


def test_what_was_ignored_stands_in_vllms_own_metrics(server: VllmServer, client: httpx.Client) -> None:
    """Here a body that cannot be read, whose header was lost with it; the key is in no log."""
    answer = client.post("/v1/completions", content=b"[]", headers={"x-session-id": "s"})
    assert answer.status_code == 400
    assert 'sagesched_http_hints_ignored_total{hint="body"} 1.0' in client.get("/metrics").text
    log = server.log_path.read_text().splitlines()
    assert [line for line in log if KEY in line and "args" not in line] == []
