"""The middleware, driven as a server drives it: what a request says arrives, everything else passes as it is."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from engine_adapter import http_hints
from engine_adapter.agent.hints import NAMES, Hints
from engine_adapter.agent.shedding import SHED_REASON
from engine_adapter.hints.counted import IGNORED, Counted
from engine_adapter.hints.headers import HEADERS
from engine_adapter.hints.settings import Settings, Tier
from engine_adapter.hints.values import FIELDS, UnusableHintError
from engine_adapter.http_hints import HttpHints
from store.bounds import MAX_NAME, bounded_name
from store.records import Targets

CHAT = "/v1/chat/completions"
IGNORING = Settings(unusable="ignore")
OK: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}


class Exchange:
    """What the application behind the middleware got, and what the client got."""

    def __init__(
        self, *, answer: Sequence[dict[str, Any]] = (OK, {"type": "http.response.body", "body": b"data"})
    ) -> None:
        self.scope: dict[str, Any] = {}
        self.received: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self._answer = answer

    def run(
        self,
        body: bytes = b"{}",
        *headers: tuple[str, str],
        settings: Settings = Settings(),  # noqa: B008 - frozen
        chunks: int = 1,
        **scope: object,
    ) -> Exchange:
        """Send one request in so many parts."""
        size = max(1, math.ceil(len(body) / chunks))
        parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
        messages = [
            {"type": "http.request", "body": part, "more_body": number < len(parts)}
            for number, part in enumerate(parts, 1)
        ]
        return self.serve(
            [*messages, {"type": "http.disconnect"}], *headers, settings=settings, length=len(body), **scope
        )

    def serve(
        self,
        messages: list[dict[str, Any]],
        *headers: tuple[str, str],
        settings: Settings = Settings(),  # noqa: B008 - frozen
        length: int = 0,
        raw: Sequence[tuple[bytes, bytes]] = (),
        **scope: object,
    ) -> Exchange:
        """Give the middleware a connection's messages."""
        given = [(name.lower().encode(), value.encode()) for name, value in headers]
        whole = {"type": "http", "method": "POST", "path": CHAT, **scope}
        whole["headers"] = [*given, *raw, (b"content-length", b"%d" % length)]
        coming = iter(messages)

        async def receive() -> dict[str, Any]:
            return next(coming)

        async def send(message: Any) -> None:
            self.sent.append(message)

        asyncio.run(HttpHints(self._app, settings)(whole, receive, send))
        return self

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        while not self.received or self.received[-1].get("more_body"):
            self.received.append(await receive())
        for message in self._answer:
            await send(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.body)
        return fields

    @property
    def xargs(self) -> dict[str, Any]:
        found: dict[str, Any] = self.fields.get("vllm_xargs", {})
        return found

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(b"".join(message.get("body", b"") for message in self.sent[1:]))
        return found

    def header(self, name: bytes) -> bytes | None:
        return dict(self.sent[0]["headers"]).get(name)


def run(body: dict[str, Any] | None = None, *headers: tuple[str, str], **options: Any) -> Exchange:
    return Exchange().run(json.dumps(body or {}).encode(), *headers, **options)


@pytest.mark.parametrize(
    ("header", "text", "field", "value"),
    [
        ("x-llm-d-inference-fairness-id", "team-a", "tenant", "team-a"),
        ("x-gateway-inference-fairness-id", "team-a", "tenant", "team-a"),
        ("X-LLM-D-SLO-TTFT-MS", "2000", "slo_ttft_ms", 2000),
        ("x-slo-ttft-ms", "1.5e3", "slo_ttft_ms", 1500),
        ("x-llm-d-slo-tpot-ms", "50.5", "slo_tpot_ms", 50.5),
        ("x-slo-tpot-ms", "50", "slo_tpot_ms", 50),
        ("x-sagesched-slo-e2e-ms", "86400000", "slo_e2e_ms", 86_400_000),
        ("x-sagesched-class", "interactive", "service_class", "interactive"),
        ("x-sagesched-shed", "1", "sheds", 1),
        ("X-Session-ID", "s-1", "session_id", "s-1"),
        ("x-dynamo-session-id", "s-1", "session_id", "s-1"),
        ("x-claude-code-session-id", "s-1", "session_id", "s-1"),
        ("session-id", "s-1", "session_id", "s-1"),
        ("session_id", "s-1", "session_id", "s-1"),
        ("thread-id", "s-1", "session_id", "s-1"),
        ("x-session-affinity", "s-1", "session_id", "s-1"),
        ("x-aibrix-session-key", "s-1", "session_id", "s-1"),
        ("x-session-id", "größe", "session_id", "größe"),
    ],
)
def test_a_header_becomes_a_field_that_the_scheduler_sees(header: str, text: str, field: str, value: object) -> None:
    """Beside it the body stays, and its stated length is the new one's."""
    exchange = run({"prompt": "ten", "vllm_xargs": {"mine": 1}}, (header, text))
    assert exchange.fields == {"prompt": "ten", "vllm_xargs": {"mine": 1, field: value}}
    assert dict(exchange.scope["headers"])[b"content-length"] == b"%d" % len(exchange.body)


@pytest.mark.parametrize(
    ("body", "xargs"),
    [
        ({"user": "u"}, {"tenant": "u"}),
        ({"safety_identifier": "s"}, {"tenant": "s"}),
        ({"user": 17}, {"tenant": "17"}),
        ({"user": "u", "safety_identifier": "s"}, {"tenant": "u"}),
        ({"service_tier": "flex"}, {"service_class": "flex"}),
        ({"service_tier": "auto"}, {}),
        (
            {"nvext": {"agent_hints": {"osl": 128, "speculative_prefill": True}, "annotations": []}},
            {"expected_output_tokens": 128},
        ),
        ({"user": None, "service_tier": None, "nvext": None, "vllm_xargs": None}, {}),
        ({"user": "", "nvext": {"agent_hints": None}, "metadata": {"user": "not this"}}, {}),
    ],
)
def test_a_body_field_becomes_a_field_that_the_scheduler_sees(body: dict[str, Any], xargs: dict[str, Any]) -> None:
    """The field itself stays; null and the empty string say nothing, and then the bytes are the same."""
    exchange = run(body)
    assert (exchange.xargs or {}) == xargs
    assert {**exchange.fields, "vllm_xargs": None} == {**body, "vllm_xargs": None}
    assert xargs or exchange.body == json.dumps(body).encode()


def test_vllm_xargs_count_more_than_headers_and_headers_more_than_the_bodys_other_fields() -> None:
    """New names of a header count more than old ones, and whatever counts less is not written at all."""
    headers = [
        ("x-llm-d-inference-fairness-id", "header"),
        ("x-gateway-inference-fairness-id", "old"),
        ("x-llm-d-slo-ttft-ms", "2"),
        ("x-slo-ttft-ms", "1"),
        ("x-sagesched-class", "from-header"),
    ]
    body = {"user": "user", "service_tier": "flex", "vllm_xargs": {"slo_ttft_ms": "3", "session_id": ""}}
    exchange = run(body, *headers, ("x-session-id", "s"))
    said = {"slo_ttft_ms": "3", "tenant": "header", "service_class": "from-header", "session_id": "s"}
    assert exchange.xargs == said


def test_of_a_header_that_stands_there_twice_the_first_counts_and_no_shedding_is_nothing_said() -> None:
    """As vLLM reads its own headers; a request whose headers say nothing after all passes byte for byte."""
    assert run({}, ("thread-id", "first"), ("thread-id", "second")).xargs == {"session_id": "first"}
    assert run({}, ("x-sagesched-shed", "0"), ("x-session-id", "")).body == b"{}"


def test_a_value_that_is_ignored_is_taken_out_of_vllm_xargs() -> None:
    """So that the engine does not meet it; the others stay as they are written."""
    exchange = Exchange().run(b'{"vllm_xargs": {"slo_ttft_ms": "soon", "tenant": "", "x": 1.50}}', settings=IGNORING)
    assert exchange.body == b'{"vllm_xargs":{"x":1.50}}'


def test_a_session_in_vllms_own_field_counts_more_than_headers() -> None:
    """VLLM reads that field first, too."""
    assert run({"session_id": "own"}, ("thread-id", "other")).body == b'{"session_id": "own"}'


@pytest.mark.parametrize(
    ("body", "headers", "priority", "header"),
    [
        ({"nvext": {"agent_hints": {"priority": 5}}}, [], -5, None),
        ({"nvext": {"agent_hints": {"priority": 5}}, "priority": 3}, [], 3, None),
        ({}, [("x-dynamo-request-priority", "5")], None, b"-5"),
        ({}, [("x-dynamo-request-priority", "5"), ("x-vllm-priority", "2")], None, b"2"),
        ({"service_tier": "flex"}, [], 7, None),
    ],
)
def test_dynamos_priority_counts_the_other_way_round(
    body: dict[str, Any], headers: list[tuple[str, str]], priority: int | None, header: bytes | None
) -> None:
    """Lower is first for vLLM; its own field and header count more, and a tier's priority is the operator's to give."""
    exchange = run(body, *headers, settings=Settings(service_tiers={"flex": Tier(priority=7)}))
    assert exchange.fields.get("priority") == priority
    assert dict(exchange.scope["headers"]).get(b"x-vllm-priority") == header
    assert exchange.xargs == {}


def test_a_key_of_the_operators_list_decides_the_tenant() -> None:
    """It counts more than what a client may say, and the key itself goes nowhere but into vLLM's own check."""
    settings = Settings(tenants={sha256(b"secret").hexdigest(): "team-a"})
    key = ("authorization", "Bearer secret")
    assert run({"user": "u", "vllm_xargs": {"tenant": "other"}}, key, settings=settings).xargs == {"tenant": "team-a"}
    assert run({"user": "u"}, ("authorization", "Bearer unknown"), settings=settings).xargs == {"tenant": "u"}
    own = run({}, key, settings=Settings(tenant_per_key=True))
    assert own.xargs == {"tenant": f"key-{sha256(b'secret').hexdigest()[:12]}"}
    assert b"secret" not in own.body


@pytest.mark.parametrize(
    ("settings", "tenant"),
    [
        (Settings(tenants={sha256(b"secret").hexdigest(): "team-a"}), "team-a"),
        (Settings(tenant_per_key=True), f"key-{sha256(b'secret').hexdigest()[:12]}"),
        (Settings(tenant_per_key=True), "key-0123456789ab"),
    ],
)
@pytest.mark.parametrize("authorization", [[], [("authorization", "Bearer unknown")]])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
def test_nobody_without_its_key_is_a_tenant_of_a_key(
    settings: Settings, tenant: str, authorization: list[tuple[str, str]], path: str
) -> None:
    """However it is named; such a request would use up the tenant's share and its limit."""
    if authorization and settings.tenant_per_key:
        authorization = []  # There each key has its tenant.
    ways: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
        ({"vllm_xargs": {"tenant": tenant}}, []),
        ({"user": tenant}, []),
        ({"safety_identifier": tenant}, []),
        ({}, [("x-llm-d-inference-fairness-id", tenant)]),
    ]
    for body, headers in ways:
        refused = run(body, *headers, *authorization, settings=settings, path=path)
        assert (refused.status, refused.answer["error"]["param"]) == (400, "tenant")
        ignoring = msgspec.structs.replace(settings, unusable="ignore")
        served = run({"seed": 1, **body}, *headers, *authorization, settings=ignoring, path=path)
        assert served.status == 200
        assert "tenant" not in served.xargs
    assert run({"user": "someone"}, *authorization, settings=settings, path=path).xargs == {"tenant": "someone"}


WRONG_HEADERS = [
    *[
        ("x-llm-d-slo-ttft-ms", text)
        for text in ("soon", "0", "-1", "nan", "inf", "86400001", "1_000", "0x10", "1e999")
    ],
    ("x-sagesched-shed", "true"),
    ("x-dynamo-request-priority", "high"),
    ("x-vllm-priority", "1.5"),
]
WRONG_BODIES = [
    ({"vllm_xargs": {"slo_e2e_ms": "never"}}, "field vllm_xargs.slo_e2e_ms"),
    ({"vllm_xargs": {"expected_output_tokens": 0}}, "field vllm_xargs.expected_output_tokens"),
    ({"vllm_xargs": {"tenant": ["a", "b"]}}, "field vllm_xargs.tenant"),
    ({"nvext": {"agent_hints": {"osl": "many"}}}, "field nvext.agent_hints.osl"),
    ({"nvext": {"agent_hints": {"priority": 0.5}}}, "field nvext.agent_hints.priority"),
    ({"service_tier": "gold"}, "field service_tier"),
    ({"user": [17]}, "field user"),
    ({"vllm_xargs": {"sheds": True}}, "field vllm_xargs.sheds"),
]


@pytest.mark.parametrize(("header", "text"), WRONG_HEADERS)
def test_a_header_that_cannot_be_used_is_refused_with_what_is_allowed(header: str, text: str) -> None:
    """In the form in which OpenAI's clients show it; the application never sees such a request."""
    exchange = run({}, (header, text))
    assert (exchange.status, exchange.scope) == (400, {})
    error = exchange.answer["error"]
    assert (error["param"], error["code"]) == (header, 400)
    assert error["message"].startswith(f"header {header} is {text!r}: give ")


@pytest.mark.parametrize(("body", "source"), WRONG_BODIES)
def test_a_field_that_cannot_be_used_is_refused_in_place_of_the_applications_answer(
    body: dict[str, Any], source: str
) -> None:
    """The application, which has checked the key by then, gets an empty body, and its answer is dropped."""
    exchange = run(body)
    assert (exchange.status, exchange.body) == (400, b"")
    assert exchange.answer["error"]["message"].startswith(f"{source} is ")
    assert len(exchange.sent) == 2


def test_anthropics_clients_are_refused_in_their_own_form() -> None:
    """On that path errors look different."""
    exchange = run({}, ("x-slo-tpot-ms", "-1"), path="/base/v1/messages", root_path="/base")
    assert exchange.answer["type"] == "error"
    assert exchange.answer["error"]["type"] == "invalid_request_error"


def ignored(source: str) -> float:
    return REGISTRY.get_sample_value("sagesched_http_hints_ignored_total", {"hint": source}) or 0.0


@pytest.mark.parametrize(
    ("body", "headers", "source"),
    [
        *[({}, [header], f"header {header[0]}") for header in WRONG_HEADERS],
        *[(body, [], source) for body, source in WRONG_BODIES],
    ],
)
def test_what_cannot_be_used_is_ignored_and_counted_where_the_operator_says_so(
    body: dict[str, Any], headers: list[tuple[str, str]], source: str
) -> None:
    """The scheduler does not see it; what else the request says arrives."""
    before = ignored(source)
    exchange = run(body, *headers, ("x-session-id", "s"), settings=IGNORING)
    assert (exchange.status, exchange.xargs) == (200, {"session_id": "s"})
    assert ignored(source) == before + 1


def test_the_log_has_a_line_for_a_header_at_most_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Which says how many there were since the last one, and shows what was sent without what steers a terminal."""
    now_s = [0.0]
    counts = Counted(IGNORED, "ignored", lambda: now_s[0])
    with caplog.at_level(logging.WARNING):
        for second in range(0, 100, 10):
            now_s[0] = float(second)
            error = UnusableHintError("header x-slo-ttft-ms", "\x1b]0;" + 1000 * "x", "milliseconds")
            counts.count(error.source, error)
    texts = [record.getMessage() for record in caplog.records]
    assert [text[:17] for text in texts] == ["ignored 1 times: ", "ignored 6 times: "]
    assert "\x1b" not in texts[0]
    assert len(texts[0]) < 400


def test_names_are_bounded_as_the_engine_bounds_them() -> None:
    """Two long names stay two, and none is longer than what crosses to the controller."""
    exchange = run({"user": 10_000 * "u"}, ("thread-id", 300 * "t"))
    assert exchange.xargs == {"tenant": bounded_name(10_000 * "u"), "session_id": bounded_name(300 * "t")}
    assert len(exchange.xargs["tenant"]) == MAX_NAME


def test_what_is_written_is_what_the_engine_reads() -> None:
    """The two halves have their tables of their own, as they run in two processes."""
    assert set(FIELDS) == set(NAMES)
    everything = [(header.decode(), "1") for header in HEADERS]
    said = Hints.of(run({"nvext": {"agent_hints": {"osl": 1}}}, *everything).xargs)
    targets = Targets(ttft_s=0.001, tpot_s=0.001, e2e_s=0.001)
    assert said == Hints("1", "1", "1", targets, expected_output_tokens=1, sheds=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["vllm_xargs", "user", "safety_identifier", "service_tier", "nvext", "priority", "session_id", *FIELDS]
)
bodies = st.dictionaries(st.text() | names, json_values | st.dictionaries(names, json_values, max_size=3), max_size=6)
said = st.lists(
    st.sampled_from(
        [("x-slo-ttft-ms", "20"), ("session-id", "s"), ("x-sagesched-shed", "0"), ("x-dynamo-request-priority", "1")]
    )
)


@given(body=bodies, headers=said, escaped=st.booleans(), chunks=st.integers(1, 4))
def test_nothing_else_of_a_body_changes(
    body: dict[str, Any], headers: list[tuple[str, str]], *, escaped: bool, chunks: int
) -> None:
    """Whatever stands in it, in however many parts it comes; values that cannot be used are no error of the server."""
    text = json.dumps(body, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    exchange = Exchange().run(text, *headers, settings=IGNORING, chunks=chunks)
    assert exchange.status == 200
    ours = {"vllm_xargs", "priority"}
    assert {n: v for n, v in exchange.fields.items() if n not in ours} == {
        n: v for n, v in body.items() if n not in ours
    }
    own = body.get("vllm_xargs")
    if isinstance(own, dict):
        others = {name: value for name, value in own.items() if name not in FIELDS}
        assert {name: value for name, value in exchange.xargs.items() if name not in FIELDS} == others


@given(
    body=bodies, name=st.sampled_from([*HEADERS, b"x-vllm-priority", b"x-dynamo-request-priority"]), value=st.binary()
)
def test_nonsense_is_the_clients_error_and_never_the_servers(body: dict[str, Any], name: bytes, value: bytes) -> None:
    """Whatever bytes stand in a header or a field: the request is served or refused."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
    assert Exchange().serve(messages, raw=[(name, value)]).status in {200, 400}


@given(
    body=bodies.filter(
        lambda body: not body.keys() & {"user", "safety_identifier", "service_tier", "nvext", "vllm_xargs"}
    )
)
def test_a_request_that_says_nothing_passes_byte_for_byte(body: dict[str, Any]) -> None:
    """Spaces, escapes and the forms of numbers included, and so do its headers."""
    text = json.dumps(body, indent=1).encode()
    exchange = Exchange().run(text, ("accept", "*/*"))
    assert exchange.body == text
    assert exchange.scope["headers"] == [(b"accept", b"*/*"), (b"content-length", b"%d" % len(text))]


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"{", b'"x"', b"\xff", b'{"vllm_xargs": 3}', b"[" * 100_000, b'{"a": NaN}']
)
def test_a_body_that_cannot_be_read_passes_as_it_is(body: bytes) -> None:
    """What its headers said is lost with it, and counted."""
    before = ignored("body")
    exchange = Exchange().run(body, ("x-session-id", "s"))
    assert (exchange.status, exchange.body) == (200, body)
    assert ignored("body") == before + 1


def test_values_in_other_fields_are_passed_on_as_they_are_written() -> None:
    """Numbers of any length and form, and a field that stands there twice as a reader of JSON takes it."""
    exchange = Exchange().run(
        b'{"seed": 123456789012345678901234567890, "t": 1.50e0, "u": "\\u00e4", "a": 1, "a": 2}', ("thread-id", "s")
    )
    assert exchange.body == (
        b'{"seed":123456789012345678901234567890,"t":1.50e0,"u":"\\u00e4","a":2,"vllm_xargs":{"session_id":"s"}}'
    )


@pytest.mark.parametrize("settings", [Settings(tenant_per_key=True), Settings(tenant_per_key=True, unusable="ignore")])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"vllm_xargs": {"tenant": "other"}, "a": NaN}',
        b'{"vllm_xargs": {"tenant": "other"}, "a": "\\ud800"}',
        b'\xef\xbb\xbf{"vllm_xargs": {"tenant": "other"}}',
        '{"vllm_xargs": {"tenant": "other"}}'.encode("utf-16"),
        b'{"vllm_xargs": {"tenant": "other"}, "a": "' + 2000 * b"x" + b'"}',
    ],
)
def test_no_body_hides_from_its_key(
    body: bytes, path: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM would read and we cannot, or keep no longer, is refused where keys decide the tenant, with and without one."""
    monkeypatch.setattr(http_hints, "MAX_BODY_BYTES", 1000)
    assert json.loads(body)["vllm_xargs"]["tenant"] == "other"
    for headers in ([("authorization", "Bearer secret")], []):
        exchange = Exchange().run(body, *headers, settings=settings, chunks=4, path=path)
        assert exchange.status == 400
        assert b"other" not in exchange.body
    assert Exchange().run(body, chunks=4, path=path).body == body


def test_a_body_over_the_limit_passes_in_parts_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the limit is kept."""
    monkeypatch.setattr(http_hints, "MAX_BODY_BYTES", 100)
    before = ignored("body")
    text = json.dumps({"prompt": 1000 * "x"}).encode()
    exchange = Exchange().run(text, ("x-session-id", "s"), chunks=20)
    assert exchange.body == text
    assert 100 < len(exchange.received[0]["body"]) < 200
    assert ignored("body") == before + 1


def test_a_client_that_goes_while_it_sends_is_seen_to_go() -> None:
    """The application is told so, as it would be without us."""
    part = {"type": "http.request", "body": b'{"prom', "more_body": True}
    exchange = Exchange(answer=()).serve([part, {"type": "http.disconnect"}], ("x-session-id", "s"))
    assert exchange.received == [{"type": "http.disconnect"}]


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "lifespan"},
        {"type": "websocket", "path": "/v1/realtime"},
        {"method": "GET"},
        {"method": "HEAD"},
        {"method": "OPTIONS"},
        {"path": "/v1/embeddings"},
        {"path": "/v1/chat/completions/render"},
    ],
)
def test_other_traffic_passes_untouched(scope: dict[str, Any]) -> None:
    """The application gets the very scope and messages."""
    body = b'{"user": "u"}'
    exchange = Exchange().run(body, ("x-slo-ttft-ms", "wrong"), **scope)
    assert (exchange.body, exchange.status) == (body, 200)


def test_a_stream_passes_message_by_message() -> None:
    """With the tier in a header where the request named one; nothing is held back."""
    stream = [OK, *({"type": "http.response.body", "body": b"data: %d" % n, "more_body": n < 3} for n in range(4))]
    exchange = Exchange(answer=stream).run(b'{"service_tier": "flex", "stream": true}')
    assert exchange.sent[1:] == stream[1:]
    assert exchange.header(b"x-sagesched-service-tier") == b"flex"
    silent = Exchange(answer=stream).run(b'{"stream": true}')
    assert silent.sent == stream


def json_answer(body: bytes, status: int = 200) -> list[dict[str, Any]]:
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    start = {"type": "http.response.start", "status": status, "headers": headers}
    return [
        start,
        {"type": "http.response.body", "body": body[:5], "more_body": True},
        {"type": "http.response.body", "body": body[5:]},
    ]


@pytest.mark.parametrize(("named", "served"), [("priority", "priority"), ("auto", "default"), ("default", "default")])
def test_an_answer_names_the_tier_as_which_it_was_served(named: str, served: str) -> None:
    """In OpenAI's field, beside everything else of the answer, and in a header."""
    exchange = Exchange(answer=json_answer(b'{"id": "x", "service_tier": null, "p": 1.50}'))
    exchange.run(json.dumps({"service_tier": named}).encode())
    body = exchange.sent[1]["body"]
    assert body == b'{"id":"x","service_tier":"%s","p":1.50}' % served.encode()
    assert exchange.header(b"content-length") == b"%d" % len(body)
    assert exchange.header(b"x-sagesched-service-tier") == served.encode()


@pytest.mark.parametrize(
    ("body", "status", "path"),
    [(b'{"error": 1}', 404, CHAT), (b"[1, 2, 3]", 200, CHAT), (b'{"id": 1}', 200, "/v1/messages")],
)
def test_an_answer_without_a_place_for_the_tier_has_it_in_the_header_alone(body: bytes, status: int, path: str) -> None:
    """Errors, what is no object, and Anthropic's messages are passed on as they are."""
    exchange = Exchange(answer=json_answer(body, status)).run(b'{"service_tier": "auto"}', path=path)
    assert b"".join(message["body"] for message in exchange.sent[1:]) == body
    assert exchange.header(b"content-length") == b"%d" % len(body)
    assert exchange.header(b"x-sagesched-service-tier") == b"default"


def test_an_answer_to_who_named_no_tier_is_not_looked_at() -> None:
    """Nor to one whose class was named otherwise: then no tier was served."""
    answer = json_answer(b'{"service_tier": null}')
    assert Exchange(answer=answer).run(b'{"user": "u"}').sent == answer
    other = Exchange(answer=answer).run(b'{"service_tier": "flex"}', ("x-sagesched-class", "batch"))
    assert other.sent == answer


class Busy:
    """An application that answers when it is told to; a server may serve several requests at once."""

    def __init__(self, settings: Settings) -> None:
        self._server = HttpHints(self._app, settings)
        self.reached = 0
        self.failing = False
        self._go = asyncio.Event()

    async def post(self, body: dict[str, Any], *headers: tuple[bytes, bytes], path: str = CHAT) -> list[dict[str, Any]]:
        """Send a request; returns the messages of its answer."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._server({"type": "http", "method": "POST", "path": path, "headers": list(headers)}, receive, send)
        return sent

    def answer(self) -> None:
        """Let every request that is served end."""
        self._go.set()

    async def _app(self, _scope: Any, receive: Any, send: Any) -> None:
        if not (await receive())["body"]:
            await send(OK)
            return
        self.reached += 1
        await self._go.wait()
        if self.failing:
            raise RuntimeError("the application fails")
        await send(OK)
        await send({"type": "http.response.body", "body": b"{}"})


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


LIMITED = Settings(
    max_requests_per_tenant=2, tenant_max_requests={"shop": 3, "key-2bb80d537b1d": 1}, tenant_per_key=True
)


@pytest.mark.parametrize(
    ("body", "headers", "most"),
    [
        ({"user": "someone"}, (), 2),
        ({"user": "shop"}, (), 3),
        ({}, ((b"x-llm-d-inference-fairness-id", b"shop"),), 3),
        ({"vllm_xargs": {"tenant": "shop"}}, (), 3),
        ({}, (), 2),
        ({"user": "shop"}, ((b"authorization", b"Bearer secret"),), 1),
    ],
)
def test_a_tenant_has_only_so_many_requests_at_once(
    body: dict[str, Any], headers: tuple[tuple[bytes, bytes], ...], most: int
) -> None:
    """The next one is answered by 429 at once, in the words of SDKs and gateways, and another tenant's is served."""

    async def traffic() -> None:
        busy = Busy(LIMITED)
        served = [asyncio.create_task(busy.post(body, *headers)) for _ in range(most)]
        await turns()
        assert busy.reached == most
        start, told = await busy.post(body, *headers)
        assert busy.reached == most
        assert start["status"] == 429
        assert dict(start["headers"])[b"x-llm-d-request-dropped-reason"] == b"rejected-saturated"
        assert dict(start["headers"])[b"retry-after"] == b"1"
        error = json.loads(told["body"])["error"]
        assert (error["code"], error["type"]) == (429, "RateLimitError")
        assert f"may have {most} unfinished at once" in error["message"]
        other = asyncio.create_task(busy.post({"user": "another"}))
        await turns()
        assert busy.reached == most + 1
        busy.answer()
        await asyncio.gather(*served, other)
        assert (await busy.post(body, *headers))[0]["status"] == 200, "the others have ended"

    asyncio.run(traffic())


def test_a_request_that_fails_or_whose_client_goes_leaves_its_place() -> None:
    """However a request ends, its tenant may have another."""

    async def traffic() -> None:
        busy = Busy(Settings(max_requests_per_tenant=1))
        gone = asyncio.create_task(busy.post({"user": "u"}))
        await turns()
        gone.cancel()
        await turns()
        busy.answer()
        busy.failing = True
        with pytest.raises(RuntimeError):
            await busy.post({"user": "u"})
        busy.failing = False
        assert (await busy.post({"user": "u"}))[0]["status"] == 200

    asyncio.run(traffic())


@pytest.mark.parametrize("background", [True, "true", 1])
def test_an_answer_for_later_is_refused_where_a_limit_would_not_see_its_end(background: object) -> None:
    """Elsewhere the field means nothing, and without a limit it is served."""
    body, path = {"background": background}, "/v1/responses"
    refused = run(body, settings=LIMITED, path=path)
    assert (refused.status, refused.answer["error"]["param"]) == (400, "background")
    assert run({"background": False}, settings=LIMITED, path=path).status == 200
    assert run(body, settings=LIMITED).status == 200
    assert run(body, path=path).status == 200


def test_a_refused_request_takes_no_place() -> None:
    """Neither one that states nonsense nor one that came too early."""

    async def traffic() -> None:
        busy = Busy(Settings(max_requests_per_tenant=1))
        busy.answer()
        for _ in range(3):
            assert (await busy.post({"user": "u", "service_tier": "no such"}))[0]["status"] == 400
        assert (await busy.post({"user": "u"}))[0]["status"] == 200

    asyncio.run(traffic())


def test_anthropics_clients_hear_of_a_limit_in_their_own_form() -> None:
    """Their SDK knows the error by its type."""

    async def traffic() -> None:
        busy = Busy(Settings(max_requests_per_tenant=1))
        first = asyncio.create_task(busy.post({}, path="/v1/messages"))
        await turns()
        start, told = await busy.post({}, path="/v1/messages")
        assert (start["status"], json.loads(told["body"])["error"]["type"]) == (429, "rate_limit_error")
        busy.answer()
        await first

    asyncio.run(traffic())


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("sagesched_http_dropped_total", {"reason": reason}) or 0.0


def shed_answer(*stop_reasons: str | int | None) -> list[dict[str, Any]]:
    choices = [{"finish_reason": "abort", "stop_reason": reason, "text": ""} for reason in stop_reasons]
    return json_answer(json.dumps({"id": "x", "choices": choices}).encode())


def test_a_shed_request_is_answered_by_429_with_the_reason() -> None:
    """The client had asked for an error, in a header or in ``vllm_xargs``; the tier is still named to others."""
    before = dropped("shed")
    for body, headers in (({}, (("x-sagesched-shed", "1"),)), ({"vllm_xargs": {"sheds": 1}}, ())):
        exchange = Exchange(answer=shed_answer(SHED_REASON)).run(json.dumps(body).encode(), *headers)
        assert exchange.status == 429
        assert exchange.answer["error"]["message"] == SHED_REASON
        assert exchange.header(b"x-llm-d-request-dropped-reason") == b"rejected-ttl-expired"
    assert dropped("shed") == before + 2


@pytest.mark.parametrize("stop_reasons", [(None,), (13,), ("shed the load",), (SHED_REASON, None), ()])
def test_an_answer_that_was_served_passes_whole(stop_reasons: tuple[str | int | None, ...]) -> None:
    """Also one of which a choice was ended, and one that stops at a text that looks like a reason."""
    answer = shed_answer(*stop_reasons)
    exchange = Exchange(answer=answer).run(b"{}", ("x-sagesched-shed", "1"))
    whole = [answer[0], {"type": "http.response.body", "body": b"".join(message["body"] for message in answer[1:])}]
    assert exchange.sent == whole


def test_without_leave_to_shed_an_answer_is_not_looked_at() -> None:
    """It passes message by message."""
    answer = shed_answer(SHED_REASON)
    assert Exchange(answer=answer).run(b'{"user": "u"}').sent == answer
