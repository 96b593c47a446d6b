"""OpenTelemetry: a span and a few measurements of every completed request, after the GenAI conventions.

All values are recorded facts.
The control loop only queues completed requests and never waits: separate threads make and export the spans, and if
they do not keep up, requests are dropped and counted.
The engine does not report which trace a client's call belongs to, so each span is the root of its own trace; it has
the request's name, as vLLM's own spans do.

Names are those of the semantic conventions for generative AI (opentelemetry.io/docs/specs/semconv/gen-ai), whose status
is development; other names begin with ``sagesched.``.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from controller.monitoring.request_tracker import TrackedRequest
from store.errors import ConfigError
from store.records import Finished, Hello

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace.export import SpanExporter

QUEUED_REQUESTS = 10_000
CLOSING_S = 5.0
OPERATION = "text_completion"
"""The engine receives tokens and cannot distinguish chats from other completions."""

DURATION_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
USAGE_BUCKETS_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
"""Bucket boundaries of the conventions."""


class Ended(NamedTuple):
    """A completed request, with what else is known about it."""

    fact: Finished
    request: TrackedRequest | None
    hello: Hello | None


class Telemetry:
    """Makes spans and measurements of completed requests; the control loop calls `record`."""

    def __init__(self, span_exporter: SpanExporter, metric_reader: MetricReader, resource: dict[str, str]) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        about = Resource.create(resource)
        self._traces = TracerProvider(resource=about, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(span_exporter))
        self._tracer = self._traces.get_tracer("sagesched")
        self._meters = MeterProvider([metric_reader], resource=about, shutdown_on_exit=False)
        self._instruments = _instruments(self._meters.get_meter("sagesched"))
        self._ended: queue.Queue[Ended | None] = queue.Queue(maxsize=QUEUED_REQUESTS)
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self.dropped = 0
        """Number of requests dropped because the export did not keep up."""
        self._thread.start()

    def record(self, ended: Ended) -> None:
        """Queue a completed request for export, or drop it if the queue is full; never waits."""
        try:
            self._ended.put_nowait(ended)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Export the queued requests, and stop."""
        with contextlib.suppress(queue.Full):
            self._ended.put(None, timeout=CLOSING_S)
        self._thread.join(timeout=CLOSING_S)
        self._traces.shutdown()
        self._meters.shutdown()

    def _run(self) -> None:
        while (ended := self._ended.get()) is not None:
            self._export(ended)

    def _export(self, ended: Ended) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        attributes = span_attributes(ended)
        span = self._tracer.start_span(
            f"{OPERATION} {attributes.get('gen_ai.request.model', '')}".strip(),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=_nanoseconds(ended.fact.arrival_s),
        )
        for name, time_s in _events(ended):
            span.add_event(name, timestamp=_nanoseconds(time_s))
        if ended.fact.reason == "error":
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=_nanoseconds(ended.fact.time_s))
        self._measure(ended, attributes)

    def _measure(self, ended: Ended, attributes: dict[str, Any]) -> None:
        fact = ended.fact
        labels = {name: attributes[name] for name in _METRIC_LABELS if name in attributes}
        self._instruments["duration"].record(max(0.0, fact.time_s - fact.arrival_s), labels)
        self._instruments["usage"].record(fact.prompt_tokens, labels | {"gen_ai.token.type": "input"})
        self._instruments["usage"].record(fact.output_tokens, labels | {"gen_ai.token.type": "output"})
        if fact.first_token_s is None or "error.type" in attributes:
            return
        self._instruments["first"].record(max(0.0, fact.first_token_s - fact.arrival_s), labels)
        if fact.output_tokens > 1:
            tpot_s = max(0.0, fact.time_s - fact.first_token_s) / (fact.output_tokens - 1)
            self._instruments["token"].record(tpot_s, labels)


def open_telemetry(endpoint: str, resource: dict[str, str]) -> Telemetry:
    """Export to an OTLP collector over HTTP; raises `ConfigError` where the extra is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    except ImportError as error:
        raise ConfigError(
            f'telemetry.enabled = True and OpenTelemetry is not installed ({error}): install "sagesched-controller[otel]"'
        ) from None
    base = endpoint.rstrip("/")
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{base}/v1/metrics"))
    return Telemetry(OTLPSpanExporter(endpoint=f"{base}/v1/traces"), reader, resource)


def span_attributes(ended: Ended) -> dict[str, Any]:
    """The known attributes of a request, under the names of the conventions."""
    fact, request, hello = ended
    arrived = request.arrived if request else None
    predicted = request.prediction if request else None
    choice = request.decision if request else None
    known: dict[str, Any] = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": hello.engine if hello else None,
        "gen_ai.request.model": hello.model if hello else None,
        "gen_ai.response.model": hello.model if hello else None,
        "gen_ai.response.id": fact.request_id,
        "gen_ai.conversation.id": arrived.session if arrived else None,
        "gen_ai.response.finish_reasons": (fact.reason,),
        "gen_ai.request.max_tokens": fact.max_tokens,
        "gen_ai.request.temperature": arrived.temperature if arrived else None,
        "gen_ai.usage.input_tokens": fact.prompt_tokens,
        "gen_ai.usage.output_tokens": fact.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": fact.cached_prompt_tokens,
        "gen_ai.response.time_to_first_chunk": _since(fact.arrival_s, fact.first_token_s),
        "error.type": fact.reason if fact.reason in {"abort", "error"} else None,
        "sagesched.engine_id": request.engine_id if request else None,
        "sagesched.queue_s": _since(fact.arrival_s, fact.scheduled_s),
        "sagesched.priority": arrived.priority if arrived else None,
        "sagesched.tenant": arrived.tenant if arrived else None,
        "sagesched.preemptions": fact.preemptions,
        "sagesched.recomputed_tokens": fact.recomputed_tokens,
        "sagesched.predicted_mean_tokens": predicted.mean_tokens if predicted else None,
        "sagesched.predicted_p50_tokens": predicted.p50_tokens if predicted else None,
        "sagesched.predicted_p90_tokens": predicted.p90_tokens if predicted else None,
        "sagesched.cluster": predicted.cluster if predicted else None,
        "sagesched.cost_s": choice.cost_s if choice else None,
        "sagesched.index_s": choice.index_s if choice else None,
    }
    return {name: value for name, value in known.items() if value is not None}


_METRIC_LABELS = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "error.type",
)


def _instruments(meter: Any) -> dict[str, Any]:  # noqa: ANN401 - OpenTelemetry's own meter, an extra
    described = (
        ("duration", "gen_ai.server.request.duration", "s", "Time to the last token.", DURATION_BUCKETS_S),
        ("first", "gen_ai.server.time_to_first_token", "s", "Time to the first token.", FIRST_TOKEN_BUCKETS_S),
        ("token", "gen_ai.server.time_per_output_token", "s", "Time per token after the first.", TOKEN_BUCKETS_S),
        ("usage", "gen_ai.client.token.usage", "{token}", "Tokens of prompts and answers.", USAGE_BUCKETS_TOKENS),
    )
    return {
        key: meter.create_histogram(name, unit=unit, description=text, explicit_bucket_boundaries_advisory=buckets)
        for key, name, unit, text, buckets in described
    }


def _events(ended: Ended) -> list[tuple[str, float]]:
    fact, request, _ = ended
    found = [("scheduled", fact.scheduled_s), ("first token", fact.first_token_s)]
    found += [("preempted", time_s) for time_s in request.preempted_s] if request else []
    return sorted(((name, time_s) for name, time_s in found if time_s is not None), key=lambda event: event[1])


def _since(start_s: float, end_s: float | None) -> float | None:
    return None if end_s is None else max(0.0, end_s - start_s)


def _nanoseconds(time_s: float) -> int:
    return round(time_s * 1e9)
