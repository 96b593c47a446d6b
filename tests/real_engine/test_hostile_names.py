"""A real vLLM server whose clients choose ids and tenants of megabytes: its engine is heard, and its memory is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import pytest

from engine_adapter.serving.vllm_server import VllmServer
from engine_adapter.virtual_time.profiles import PROFILES
from store.bounds import MAX_NAME, MAX_REQUEST_ID, bounded_name

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(900)]

Site: TypeAlias = Any
"""`conftest.Site`, which a test module cannot import."""

Ask: TypeAlias = Callable[..., dict[str, Any]]

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def lease_s() -> float:
    """More than the default, so that a busy machine is not taken for a dead controller."""
    return 5.0


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server that takes orders."""
    with VllmServer(
        endpoint=site.endpoint,
        profile=PROFILES["h800-qwen3-32b-24k"],
        speed=20.0,
        log_path=tmp_path_factory.mktemp("server") / "vllm.log",
        ready_s=300.0,
    ) as server:
        site.wait_for(lambda: site.shows(mode="on"), "the engine to take orders")
        yield server


def answers(server: VllmServer, ask: Ask, bodies: list[dict[str, Any]]) -> list[str]:
    """The ids of the answers to several requests, a few at a time."""
    with ThreadPoolExecutor(8) as clients:
        return [
            body["id"] for body in clients.map(lambda body: ask(server, prompt="ten", max_tokens=4, **body), bodies)
        ]


def engine_core(server: VllmServer) -> Path:
    """The folder in /proc of the server's engine core: the largest of its child processes."""
    assert server._child is not None
    parent = server._child.process.pid
    listed = [
        child for task in Path(f"/proc/{parent}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return max((Path("/proc", pid) for pid in listed), key=resident_bytes)


def resident_bytes(process: Path) -> int:
    """Its memory."""
    return int((process / "statm").read_text().split()[1]) * 4096


def test_ids_and_tenants_of_megabytes_are_recorded_short_and_found_by_the_answers_id(
    site: Site, server: VllmServer, ask: Ask
) -> None:
    """Every answer comes and is in the history once; the order stays in force, and what comes after is recorded too."""
    hostile = [
        {"request_id": f"{number}-" + 400_000 * "x", "vllm_xargs": {"tenant": MEGABYTE * "t"}} for number in range(50)
    ]
    hostile += [{"request_id": 10 * MEGABYTE * "y"}, {"request_id": "\x1b]0;pwned\x07\n"}]
    names = answers(server, ask, hostile)
    plain = answers(server, ask, [{"request_id": f"plain-{number}"} for number in range(10)])
    assert plain == [f"cmpl-plain-{number}" for number in range(10)]
    for name in (*map(bounded_name, names), *plain):
        rows = "SELECT request_id, tenant, finished_s FROM requests WHERE starts_with(request_id, ?)"
        site.wait_for(lambda name=name, rows=rows: _ended(site, rows, name), f"the end of {name}")
    lengths = "SELECT max(length(request_id)) AS id, max(length(tenant)) AS tenant FROM arrivals"
    (longest,) = site.query(lengths)
    assert longest["id"] <= MAX_REQUEST_ID
    assert longest["tenant"] == MAX_NAME
    assert site.shows(mode="on", fallback=None, names_cut=102, policy_errors=0, messages_dropped=0)
    explained = site.api.get(f"/api/explain/{quote(bounded_name(names[0]), safe='')}")
    assert explained["facts"]["request_id"].startswith(bounded_name(names[0]))


def _ended(site: Site, rows: str, name: str) -> bool:
    found = site.query(rows.replace("?", "'" + name.replace("'", "''") + "'"))
    assert len(found) < 2, name
    return bool(found) and found[0]["finished_s"] is not None


def test_the_engine_keeps_a_bounded_memory_while_there_is_no_controller(
    site: Site, server: VllmServer, ask: Ask
) -> None:
    """300 MB of tenants, of which it keeps 256 characters each; they are recorded when a controller is back."""
    core = engine_core(server)
    tenant = MEGABYTE * "t"
    answers(server, ask, [{"vllm_xargs": {"tenant": tenant}} for _ in range(20)])
    site.kill_controller()
    before = resident_bytes(core)
    names = answers(server, ask, [{"vllm_xargs": {"tenant": tenant}} for _ in range(300)])
    assert resident_bytes(core) - before < 80 * MEGABYTE
    site.start_controller()
    site.wait_for(lambda: _recorded(site) >= set(names), "all 300 answers in the history")


def _recorded(site: Site) -> set[str]:
    found = site.query("SELECT request_id FROM completions")
    return {row["request_id"].rsplit("-", 2)[0] for row in found}
