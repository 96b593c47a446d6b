"""What must be true whatever was done: answers are stock's, history has each once, memory is bounded."""

from __future__ import annotations

import itertools
import re
import statistics
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx

from chaos.clients import Line
from chaos.site import READ_TOKEN, Site
from store.errors import StoreError
from store.history.reader import open_history

SLACK_S = 0.25
"""What a recorded time may be beyond that which its client saw."""
LATER_S = 5.0
"""How much later than recorded half of the clients may see their first piece, on a busy machine."""
ADDED_BYTES = {"engine": 350_000_000, "controller": 700_000_000}
"""What a process may grow by: an engine keeps 64 MiB of facts, and 20,000 of them at most."""
SHOWN = 8
"""Violations of one kind that are told in full."""
PAGE_BYTES = 3_000_000
COLUMNS = "request_id, priority, reason, output_tokens, arrival_s, scheduled_s, first_token_s, finished_s"


@dataclass(slots=True)
class Findings:
    """What was found to be broken, with the moment, and how often something was looked at."""

    began_s: float
    violations: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    """Violations by what was checked."""
    checks: Counter[str] = field(default_factory=Counter)

    def check(self, kind: str, holds: object, what: str) -> bool:
        """Count a check, and note a violation if it does not hold."""
        self.checks[kind] += 1
        if not holds:
            self.kinds[kind] += 1
            if self.kinds[kind] <= SHOWN:
                self.violations.append(f"at {time.monotonic() - self.began_s:.0f} s, {kind}: {what[:400]}")
        return bool(holds)


def check_answers(lines: list[Line], findings: Findings) -> None:
    """Each answer is stock's, token for token; of one that was left early, the part that was read."""
    for line in lines:
        page = line.page
        if findings.check("answered over HTTP", line.outcome != "failed", f"{line.tag}: {line.text}"):
            same = line.answer == page.answer if line.outcome == "answered" else _is_part(line)
            findings.check("as stock answers", same, f"{line.tag}: {_difference(line)}")


def _is_part(line: Line) -> bool:
    """Whether what was read before the client left is how stock's choices begin."""
    whole = [choice.token_ids for choice in line.page.answer.choices]
    return all(any(ids[: len(part.token_ids)] == part.token_ids for ids in whole) for part in line.answer.choices)


def _difference(line: Line) -> str:
    found, meant = line.answer, line.page.answer
    if found.status != meant.status:
        return f"status {found.status}, stock {meant.status}"
    pairs = [(len(choice.token_ids), choice.reason) for choice in found.choices]
    return f"choices {pairs}, stock {[(len(choice.token_ids), choice.reason) for choice in meant.choices]}"


@dataclass(frozen=True, slots=True)
class Clocks:
    """The tester's wall clock at a moment of its steady one."""

    wall_s: float
    steady_s: float


def check_history(site: Site, lines: list[Line], began: Clocks, findings: Findings) -> None:
    """Each answered request is in the history once, with the numbers that its client saw."""
    rows = history_rows(site)
    later: list[float] = []
    for line in lines:
        found = rows.get(line.tag, [])
        if line.served:
            _check_served(line, found, findings)
        findings.check(
            "no request twice",
            len({row["request_id"] for row in found}) == len(found),
            f"{line.tag}: {len(found)} rows",
        )
        for row in found:
            later.extend(_check_times(line, row, began, findings))
    if later:
        findings.check(
            "recorded TTFT is what clients saw",
            statistics.median(later) < LATER_S,
            f"half see it {statistics.median(later):.2f} s later",
        )


def history_rows(site: Site) -> dict[str, list[dict[str, Any]]]:
    """The recorded requests, by the tag with which their ids begin."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        with open_history(site.history) as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM requests").fetchall()
    except StoreError:
        return found
    names = COLUMNS.split(", ")
    for values in rows:
        row = dict(zip(names, values, strict=True))
        tag = re.search("cmpl-([ax][0-9-]+)!", row["request_id"])
        if tag:
            found[tag[1]].append(row)
    return found


def _check_served(line: Line, found: list[dict[str, Any]], findings: Findings) -> None:
    seen = Counter((len(choice.token_ids), choice.reason) for choice in line.answer.choices)
    recorded = Counter((row["output_tokens"], row["reason"]) for row in found)
    findings.check(
        "answered requests in SQL", recorded == seen, f"{line.tag}: client {dict(seen)}, SQL {dict(recorded)}"
    )


def _check_times(line: Line, row: dict[str, Any], began: Clocks, findings: Findings) -> list[float]:
    """Times in order, within what the client saw; gives how much later the client saw the first token."""
    if row["finished_s"] is None or row["first_token_s"] is None:
        return []
    sent_s = began.wall_s + line.sent_s - began.steady_s
    took_s, ttft_s = row["finished_s"] - row["arrival_s"], row["first_token_s"] - row["arrival_s"]
    seen_s = line.ended_s - line.sent_s + SLACK_S
    findings.check("times in order", 0 <= ttft_s <= took_s, f"{line.tag}: TTFT {ttft_s:.3f} s, TTLT {took_s:.3f} s")
    if line.outcome != "answered":
        return []
    findings.check("TTLT within the client's", took_s <= seen_s, f"{line.tag}: {took_s:.3f} s, client {seen_s:.3f} s")
    findings.check(
        "arrival when it was sent",
        -SLACK_S <= row["arrival_s"] - sent_s <= seen_s,
        f"{line.tag}: {row['arrival_s'] - sent_s:+.3f} s",
    )
    if line.first_s is None:
        return []
    client_s = line.first_s - line.sent_s
    findings.check(
        "TTFT within the client's", ttft_s <= client_s + SLACK_S, f"{line.tag}: {ttft_s:.3f} s, client {client_s:.3f} s"
    )
    return [client_s - ttft_s]


def check_pages(site: Site, findings: Findings) -> None:
    """What is shown stays small, whatever clients were called."""
    for path in ("/metrics", "/api/state", "/api/queue", "/api/health"):
        answer = site.ask(path)
        size = len(answer.content) if answer is not None and answer.is_success else None
        findings.check("pages bounded", size is not None and size < PAGE_BYTES, f"{path}: {size} bytes")


def check_order(site: Site, findings: Findings) -> None:
    """An order was in force: in the same class, requests start before others that came earlier."""
    classes: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for rows in history_rows(site).values():
        for row in rows:
            if row["scheduled_s"] is not None:
                classes[row["priority"]].append((row["scheduled_s"], row["arrival_s"]))
    starts = [pair for started in classes.values() for pair in itertools.pairwise(sorted(started))]
    overtaken = sum(later[1] < earlier[1] for earlier, later in starts)
    findings.check("later ones overtake", overtaken > len(starts) / 50, f"{overtaken} of {len(starts)} starts")


def check_ends(site: Site, lines: list[Line], findings: Findings) -> None:
    """No request of ours stays unfinished in the history."""
    rows = history_rows(site)
    ended = [row for line in lines for row in rows.get(line.tag, ())]
    open_ends = [row["request_id"][:60] for row in ended if row["finished_s"] is None]
    findings.check("every arrival has an end", not open_ends, f"{len(open_ends)} of {len(ended)}: {open_ends[:5]}")


def missing(site: Site, lines: list[Line]) -> int:
    """Answered requests of which the history does not yet have every choice."""
    rows = history_rows(site)
    return sum(
        sum(row["finished_s"] is not None for row in rows.get(line.tag, ())) < len(line.answer.choices)
        for line in lines
        if line.served
    )


class MemoryWatch:
    """Looks at the processes' memory once a second, in a thread of its own."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.first = site.memory_bytes()
        self.most: dict[str, int] = dict(self.first)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self, findings: Findings) -> None:
        """End, and check the largest growth."""
        self._ending.set()
        self._thread.join()
        for name, most in self.most.items():
            added = most - self.first[name]
            findings.check(
                f"memory of the {name}",
                added <= ADDED_BYTES[name],
                f"grew by {added / 1e6:.0f} MB to {most / 1e6:.0f} MB, {ADDED_BYTES[name] / 1e6:.0f} are allowed",
            )

    def _run(self) -> None:
        while not self._ending.wait(1.0):
            for name, now in self._site.memory_bytes().items():
                self.most[name] = max(self.most.get(name, 0), now)
                self.first.setdefault(name, now)


SECRETS = ("/metrics", "/api/state", "/api/queue", "/api/health", "/api/doctor", "/api/mode")


def check_doors(site: Site, findings: Findings) -> None:
    """Without the token nobody is let in, by whatever name they call the host; no other web page drives the dashboard."""
    api = f"http://127.0.0.1:{site.port}"
    for path in SECRETS:
        for headers in (
            {},
            {"Host": "localhost"},
            {"Authorization": "Bearer wrong"},
            {"Origin": "http://evil.example"},
        ):
            status = _status(f"{api}{path}", headers)
            findings.check("no token, no answer", status in {401, 403, 405, 429}, f"{path} with {headers}: {status}")
    for token, meant in ((READ_TOKEN, {403}), ("wrong", {401})):
        status = _status(f"{api}/api/mode", {"Authorization": f"Bearer {token}"}, method="POST", json={"mode": "off"})
        findings.check("who may switch", status in meant, f"with {token!r}: {status}")
    for host, origin in (
        ("evil.example", "http://evil.example"),
        (f"127.0.0.1:{site.dashboard_port}", "http://evil.example"),
    ):
        status = _status(
            f"http://127.0.0.1:{site.dashboard_port}/_stcore/stream",
            {
                "Host": host,
                "Origin": origin,
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            },
        )
        findings.check(
            "no foreign page in the dashboard", status in {0, 400, 401, 403}, f"{host} from {origin}: {status}"
        )


def _status(url: str, headers: dict[str, str], *, method: str = "GET", json: object = None) -> int:
    """The status of an answer; 0 where there is none."""
    try:
        with httpx.stream(method, url, headers=headers, json=json, timeout=5.0) as response:
            return response.status_code
    except httpx.HTTPError:
        return 0
