"""Text from outside on every page: a prompt's tenant, a request's id, a model's or an engine's name, a log line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
import streamlit
from markdown_it import MarkdownIt
from streamlit.testing.v1 import AppTest

from store.entries import EngineSeen, Entry
from store.history.writer import HistoryWriter
from store.records import Arrived, Finished, Hello

EVIL = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[click](javascript:alert(1))", "[x](https://evil.example/a)", "![x](https://evil.example/p.png)",
    "https://evil.example/x", "**bold** _it_ `code` # head", "| a | b |\n|---|---|\n| 1 | 2 |", "$\\href{javascript:1}{x}$",
    ":red[x] :material/delete: :smile:", "\u202egnp.exe\u2066 \u200f", "💥🧨" * 5, "x" * 20_000, "</div></body>", "\x00\x07\x1b[31m",
    "&lt;b&gt; &#60;b&#62;", "=cmd|' /C calc'!A0", "'; DROP TABLE x; --", "{{7*7}} ${7*7} %(x)s {0}", "\n\n# Head\n\n---\n",
]  # fmt: skip
MARK = "evil.example|javascript:|onerror|alert\\(1\\)|<script"
LIVE = {"a", "img", "h1", "h2", "table"}
"""What Markdown could make of the texts above; a page's own headings are of a lower order."""


def run_page(page: str) -> None:
    """Stand alone: `AppTest` writes this function's text into a script of its own."""
    import importlib

    importlib.import_module(f"dashboard.screens.{page}").page()


def evil_history(path: Path) -> Path:
    """Requests, tenants, models and engines of all these names."""
    entries = []
    for number, text in enumerate(EVIL):
        hello = Hello(
            engine_id=text,
            session_id=f"s{number}",
            model=text,
            engine="simulated",
            engine_version="1",
            kv_blocks=9,
            block_size_tokens=16,
            max_num_seqs=8,
            token_budget=99,
            max_model_len_tokens=99,
            prefix_caching=False,
            started_s=1.0,
        )
        finished = Finished(
            request_id=text,
            time_s=1_767_225_600.0 - number,
            reason="stop",
            arrival_s=1_767_225_500.0,
            prompt_tokens=9,
            output_tokens=9,
            max_tokens=99,
            cached_prompt_tokens=0,
            preemptions=0,
            recomputed_tokens=0,
            scheduled_s=1_767_225_501.0,
            first_token_s=1_767_225_502.0,
        )
        arrived = Arrived(
            request_id=text,
            arrival_s=1_767_225_500.0,
            prompt_tokens=9,
            token_ids=b"",
            max_tokens=99,
            temperature=1.0,
            tenant=text,
            lora=text,
        )
        seen = EngineSeen(time_s=1_767_225_400.0, event="connected", hello=hello)
        entries.append(Entry(engine_id=text, session_id=f"s{number}", batch=None, record=seen))
        entries += [
            Entry(engine_id=text, session_id=f"s{number}", batch=1, record=fact) for fact in (arrived, finished)
        ]
    with HistoryWriter(path) as writer:
        writer.append(entries)
    return path


def evil_engines(now_s: float, _waiting: int) -> list[dict[str, Any]]:
    snapshot = {
        "time_s": now_s,
        "waiting": 1,
        "running": 1,
        "kv_blocks_used": 9,
        "kv_blocks": 15,
        "mode": "on",
        "reserved_blocks": 0,
        "fallback": EVIL[0] + EVIL[2] + EVIL[5],
        "admission_limit": 5,
        "steps": 4,
        "step_s": 0.1,
        "prefill_tokens": 1,
        "decode_tokens": 1,
        "kv_tokens_read": 1,
        "preemptions": 0,
        "recomputed_tokens": 0,
        "tables_held": 1,
        "tables_applied": 1,
        "messages_dropped": 0,
        "policy_errors": 0,
        "hook_s": 0.0,
        "queue": [],
        "running_requests": [],
    }
    return [
        {
            "engine_id": text,
            "session_id": f"s{number}",
            "model": text,
            "engine": "simulated",
            "engine_version": text,
            "connected": number % 2 == 0,
            "last_seen_s": now_s,
            "kv_blocks": 15,
            "block_size_tokens": 16,
            "max_num_seqs": 9,
            "unfinished": 1,
            "tables_sent": 1,
            "snapshot": snapshot,
        }
        for number, text in enumerate(EVIL)
    ]


@pytest.fixture
def evil(standing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    standing.world.engines = evil_engines
    recent_warnings = [{"time_s": 1.0, "level": "WARNING", "logger": text, "text": text} for text in EVIL]
    standing.world.health = standing.world.health | {"recent_warnings": recent_warnings}
    monkeypatch.setenv("SAGESCHED_DASHBOARD_API", standing.url)
    monkeypatch.setenv("SAGESCHED_STORE__PATH", str(evil_history(tmp_path / "h")))
    yield
    streamlit.cache_resource.clear()
    streamlit.cache_data.clear()


class Elements(HTMLParser):
    """Collects of a page's own HTML what no page makes itself: elements that load or run something, and their attributes."""

    OWN = frozenset(
        {
            "b",
            "div",
            "h2",
            "h3",
            "li",
            "ol",
            "path",
            "small",
            "span",
            "style",
            "svg",
            "table",
            "tbody",
            "td",
            "th",
            "thead",
        }
        | {"time", "title", "tr", "ul", "p"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.foreign: set[str] = set()

    @classmethod
    def of(cls, text: str) -> set[str]:
        """Return the foreign elements and attributes of a text."""
        parser = cls()
        parser.feed(text)
        parser.close()
        return parser.foreign

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at an element."""
        picture = tag == "img" and str(dict(attrs).get("src")).startswith("data:image/svg+xml,")
        if tag not in self.OWN and not picture:
            self.foreign.add(tag)
        self.foreign |= {
            name for name, _ in attrs if name.startswith("on") or (name in {"href", "src"} and not picture)
        }


def made_of(markdown: str) -> set[str]:
    """The kinds of elements that Markdown makes of a text, links and images of the outside above all."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
    inner = [child for token in tokens for child in token.children or ()]
    return {token.tag for token in (*tokens, *inner)} | {
        "html" for token in (*tokens, *inner) if token.type.startswith("html") and re.search(MARK, token.content)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["now", "latency", "service", "gain", "predictions", "prompts", "history", "sql", "settings"]
)
def test_no_element_is_made_of_text_from_outside(evil: None, page: str) -> None:
    """Every page is drawn without an error, and wherever such a text is Markdown it is escaped."""
    streamlit.cache_resource.clear()
    streamlit.cache_data.clear()
    test = AppTest.from_function(run_page, args=(page,), default_timeout=60).run()
    assert not test.exception, test.exception
    texts = [
        element.value
        for kind in ("markdown", "caption", "error", "warning", "info", "success")
        for element in test.get(kind)
    ]
    texts += [metric.label for metric in test.metric]
    for text in texts:
        if re.search(MARK, text):
            assert not made_of(text) & (LIVE | {"html"}), text[:300]
    for element in test.get("html"):
        assert Elements.of(element.proto.body) == set(), element.proto.body[:300]
    assert not test.get("iframe")


@pytest.mark.slow
@pytest.mark.parametrize("text", EVIL[:8])
def test_a_request_of_such_a_name_can_be_looked_at(evil: None, text: str) -> None:
    """The page *Request* with the name in its address, as a link from a table has it."""
    streamlit.cache_resource.clear()
    test = AppTest.from_function(run_page, args=("request",), default_timeout=60)
    test.query_params["request"] = text
    test.run()
    assert not test.exception, test.exception
    for kind in ("markdown", "caption", "error", "warning", "info"):
        for element in test.get(kind):
            assert not made_of(element.value) & {"a", "img", "html"}, element.value[:300]


def test_the_texts_would_be_elements_if_nobody_escaped_them() -> None:
    """So that the tests above can fail."""
    found = set().union(*(made_of(text) for text in EVIL))
    assert {"a", "img", "html", "strong", "table", "h1"} <= found
    assert msgspec.json.encode(EVIL)
