from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from controller.monitoring.request_tracker import TrackedRequest
from controller.monitoring.tracing import QUEUED_REQUESTS, Ended, Telemetry, open_telemetry
from store.entries import Decision, Prediction
from store.errors import ConfigError
from store.records import Arrived, Finished, Hello

HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="qwen",
    engine="vllm",
    engine_version="1",
    kv_blocks=1,
    block_size_tokens=16,
    max_num_seqs=1,
    token_budget=1,
    max_model_len_tokens=1,
    prefix_caching=False,
    started_s=0.0,
)
FINISHED = Finished(
    request_id="r",
    time_s=110.0,
    reason="stop",
    arrival_s=100.0,
    prompt_tokens=70,
    output_tokens=11,
    max_tokens=50,
    cached_prompt_tokens=16,
    preemptions=1,
    recomputed_tokens=5,
    scheduled_s=104.0,
    first_token_s=105.0,
)


def tracked() -> TrackedRequest:
    found = TrackedRequest(
        "e",
        arrived=Arrived(
            request_id="r",
            arrival_s=100.0,
            prompt_tokens=70,
            token_ids=b"secret!!",
            max_tokens=50,
            temperature=0.7,
            tenant="t",
            session="s",
        ),
        prediction=Prediction(
            request_id="r",
            time_s=100.0,
            cluster=3,
            features=b"f",
            prompt_hash="hash",
            mean_tokens=12.0,
            p10_tokens=1,
            p25_tokens=5,
            p50_tokens=10,
            p75_tokens=15,
            p90_tokens=20,
            p95_tokens=22,
            p99_tokens=30,
            evidence=9.0,
            experts={},
            predict_s=0.001,
        ),
    )
    found.decision = Decision(
        request_id="r",
        time_s=100.0,
        policy="sage",
        reason="arrival",
        cost_s=0.5,
        index_s=0.25,
        attained_tokens=(0,),
        table_index_s=(0.25,),
        growth_tokens=(1.0,),
    )
    found.preempted_s.append(107.0)
    return found


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def telemetry(spans: InMemorySpanExporter, reader: InMemoryMetricReader) -> Iterator[Telemetry]:
    opened = Telemetry(spans, reader, {"service.name": "sagesched"})
    yield opened
    opened.close()


def test_an_ended_request_is_a_span_of_recorded_facts(telemetry: Telemetry, spans: InMemorySpanExporter) -> None:
    """Its times, the conventions' attributes and ours; nothing of its prompt."""
    telemetry.record(Ended(FINISHED, tracked(), HELLO))
    telemetry.close()
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("text_completion qwen", SpanKind.SERVER)
    assert (span.start_time, span.end_time) == (100_000_000_000, 110_000_000_000)
    assert span.resource.attributes["service.name"] == "sagesched"
    attributes = dict(span.attributes or {})
    assert attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "qwen",
        "gen_ai.response.model": "qwen",
        "gen_ai.response.id": "r",
        "gen_ai.conversation.id": "s",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.7,
        "gen_ai.usage.input_tokens": 70,
        "gen_ai.usage.output_tokens": 11,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.response.time_to_first_chunk": 5.0,
        "sagesched.engine_id": "e",
        "sagesched.queue_s": 4.0,
        "sagesched.priority": 0,
        "sagesched.tenant": "t",
        "sagesched.preemptions": 1,
        "sagesched.recomputed_tokens": 5,
        "sagesched.predicted_mean_tokens": 12.0,
        "sagesched.predicted_p50_tokens": 10,
        "sagesched.predicted_p90_tokens": 20,
        "sagesched.cluster": 3,
        "sagesched.cost_s": 0.5,
        "sagesched.index_s": 0.25,
    }
    assert [(event.name, event.timestamp) for event in span.events] == [
        ("scheduled", 104_000_000_000),
        ("first token", 105_000_000_000),
        ("preempted", 107_000_000_000),
    ]


def test_measurements_have_the_conventions_names_and_units(telemetry: Telemetry, reader: InMemoryMetricReader) -> None:
    """Duration, first token, time per token and tokens; a request that failed counts in the duration alone."""
    telemetry.record(Ended(FINISHED, tracked(), HELLO))
    telemetry.record(Ended(Finished(**_fields(FINISHED) | {"reason": "error", "request_id": "x"}), None, HELLO))
    telemetry._ended.put(None)
    telemetry._thread.join(10.0)
    data = reader.get_metrics_data()
    assert data is not None
    metrics = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert {name: metric.unit for name, metric in metrics.items()} == {
        "gen_ai.server.request.duration": "s",
        "gen_ai.server.time_to_first_token": "s",
        "gen_ai.server.time_per_output_token": "s",
        "gen_ai.client.token.usage": "{token}",
    }
    labels = {
        label for metric in metrics.values() for point in metric.data.data_points for label in point.attributes or {}
    }
    assert "gen_ai.conversation.id" not in labels, "there may be any number of sessions"
    sums = {name: [point.sum for point in metric.data.data_points] for name, metric in metrics.items()}
    assert sums["gen_ai.server.request.duration"] == [10.0, 10.0]
    assert sums["gen_ai.server.time_to_first_token"] == [5.0]
    assert sums["gen_ai.server.time_per_output_token"] == [0.5]
    assert sorted(sums["gen_ai.client.token.usage"]) == [11, 11, 70, 70]


def _fields(fact: Finished) -> dict[str, Any]:
    return {name: getattr(fact, name) for name in fact.__struct_fields__}


def test_what_is_not_known_is_left_out_and_a_failure_is_an_error(
    telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    """A request of which only the end was told."""
    bare = _fields(FINISHED) | {"reason": "error", "first_token_s": None, "scheduled_s": None}
    telemetry.record(Ended(Finished(**bare), None, None))
    telemetry.close()
    (span,) = spans.get_finished_spans()
    assert span.name == "text_completion"
    assert span.status.status_code is StatusCode.ERROR
    attributes = dict(span.attributes or {})
    assert attributes["error.type"] == "error"
    assert not {"gen_ai.request.model", "sagesched.queue_s", "sagesched.cluster"} & set(attributes)
    assert span.events == ()


def test_handing_over_never_waits(telemetry: Telemetry) -> None:
    """When the exporter stands still, what exceeds the queue is counted as dropped."""
    going = threading.Event()
    telemetry._export = lambda _ended: going.wait(30.0)  # type: ignore[method-assign, assignment, return-value]
    for _ in range(QUEUED_REQUESTS + 50):
        telemetry.record(Ended(FINISHED, None, None))
    assert 0 < telemetry.dropped <= 50
    going.set()


@pytest.mark.slow
def test_a_controller_exports_over_otlp_what_its_engine_served(start_controller: Callable[..., Any]) -> None:
    """A real collector's address gets spans and metrics as protobuf; off by default nothing is sent."""
    got: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        running = start_controller(telemetry={"enabled": True, "endpoint": endpoint})
        engine = running.connect()
        engine.submit("only one", output_tokens=4)
        engine.step_until(lambda: len(engine.lives) == 1)
        engine.step_until(lambda: any(path == "/v1/traces" and b"only one" in body for path, body in got))
        assert "sagesched_telemetry_dropped 0.0" in running.client.get("/metrics").text
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for telemetry where OpenTelemetry is missing is bad configuration, said at start."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"sagesched-controller\[otel\]"):
        open_telemetry("http://127.0.0.1:4318", {})
