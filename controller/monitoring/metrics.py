"""Prometheus metrics: events are counted in the control loop, the rest is read from the latest live snapshot.

Names begin with ``sagesched_``, units are base units, counters end in ``_total``.
The registry is the controller's own, so that a process may hold several controllers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.monitoring.backlog import backlog_s
from controller.monitoring.live_state import EngineView, Live, LiveSnapshot
from controller.monitoring.loop_pauses import LoopPauses
from controller.monitoring.request_metrics import CappedLabel, RequestMetrics, bounded_label
from controller.monitoring.request_tracker import TrackedRequest
from controller.monitoring.service_metrics import ServiceMetrics
from controller.monitoring.surroundings import open_files, open_files_limit
from controller.monitoring.tracing import Telemetry
from controller.prompt_encoder import Encoder
from engine_adapter.transport.zmq_sockets import ZmqHub
from store.entries import Outcome, Prediction
from store.http_api import DegradedKind, EncoderCounts
from store.records import Finished, Snapshot

TICK_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1)
ENGINE_LABELS = 256
"""Largest number of engines with metrics of their own."""

ENGINE_GAUGES = (
    ("engine_waiting_requests", "Requests in the engine's waiting queue.", "waiting"),
    ("engine_running_requests", "Requests that the engine is running.", "running"),
    ("engine_kv_blocks_used", "KV blocks in use.", "kv_blocks_used"),
    ("engine_kv_blocks", "KV blocks that requests can use.", "kv_blocks"),
    ("engine_reserved_blocks", "KV blocks held back for the growth of running requests.", "reserved_blocks"),
    ("engine_impossible_requests", "Unfinished requests that need more KV memory than the engine has.", "impossible"),
    (
        "engine_clock_off_seconds",
        "How far the system clock moved against the engine's steady clock since the engine started.",
        "clock_off_s",
    ),
    ("engine_tables_held", "Index tables that the engine holds.", "tables_held"),
)
ENGINE_COUNTERS = (
    ("engine_tables_applied", "Index tables that reached an unfinished request.", "tables_applied"),
    ("engine_messages_dropped", "Messages that the engine's side dropped.", "messages_dropped"),
    (
        "engine_stamps_replaced",
        "Arrivals with an impossible time stamp from the front end's clock, which was replaced.",
        "stamps_replaced",
    ),
    ("engine_names_cut", "Request ids, tenants and adapter names that were cut, or could not be shown.", "names_cut"),
    ("engine_policy_errors", "Errors of the plugin that were caught inside the engine.", "policy_errors"),
)
CORE_COUNTERS = {
    "predictions": "Requests for which the answer length was predicted.",
    "completions": "Answers learned from.",
    "censored": "Answers learned from of which only a lower bound of the length is known.",
    "tables_sent": "Index tables sent to engines.",
    "drift_events": "Times that a length distribution drifted and part of its past was forgotten.",
    "distrusts": "Times that the predictions for a model or a cluster lost the guard's trust.",
    "duplicate_batches": "Batches of facts received more than once.",
    "damaged_facts": "Facts of engines that were unreadable, or had a count out of its range.",
    "engine_errors": "Failures on messages of one engine, which then serves first come, first served for a while.",
    "early_batches": "Batches of facts left for later because one before them was missing.",
    "unrecorded_batches": "Batches handled while the disk was far behind; engines keep them and send them again.",
    "unknown_connections": "Messages over connections without an accepted hello.",
    "not_tracked": "Arrivals beyond the bound on unfinished requests; they keep the prior's index.",
    "not_learnt": "Answers that were not learned from, because the controller was behind with its work.",
    "not_renewed": "Predictions that were not renewed, because the controller was behind with its work.",
    "deferred": "Arrivals deferred because too many came at once; they use the prior until they are predicted.",
    "not_predicted": "Deferred arrivals that ended before they were predicted.",
}

CALIBRATION_GAUGES = (
    ("answers", "Answers in the window of recent predictions."),
    ("coverage_50", "Share of recent answers within the central half of their prediction."),
    ("coverage_90", "Share of recent answers within the central nine tenths of their prediction."),
    ("crps_tokens", "Mean CRPS of recent predictions."),
    ("log_score", "Mean log score of recent predictions, nats."),
    ("prior_log_score", "Mean log score of the model's prior on the same answers, nats."),
    ("pinball_tokens", "Mean quantile loss of recent predictions."),
    ("kendall_tau", "Rank correlation of recent predicted medians and lengths."),
    ("trusted", "1 while the model's predictions are trusted."),
)
"""By model; the controller watches a bounded number of models."""

STORE_COUNTERS = {
    "commits": "Transactions written.",
    "seals": "Times that history was sealed.",
    "sealed_rows": "Rows sealed.",
    "dropped": "Snapshots, predictions and decisions that were dropped because the writer's queue was full.",
    "refused": "Facts that were dropped because the writer's queue was full; nothing is acknowledged from then on.",
    "rejected": "Rows that were dropped because a value does not fit its column.",
    "duplicates": "Facts that the history already had.",
    "errors": "Failed attempts to write.",
}


class Metrics:
    """All metrics of one controller.

    ``timer`` and ``cpu_timer`` are those of its `LoopPauses`.
    """

    def __init__(
        self, live: Live, *, timer: Callable[[], float] = lambda: 0.0, cpu_timer: Callable[[], float] = lambda: 0.0
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics(self.registry)
        self.service = ServiceMetrics(self.registry)
        self.tick_s = Histogram(
            "sagesched_tick_seconds",
            "Time that one turn of the control loop took, without waiting.",
            buckets=TICK_BUCKETS_S,
            registry=self.registry,
        )
        self.pauses = LoopPauses(self.registry, timer=timer, cpu_timer=cpu_timer)
        self.tick_errors = self._counter(
            "tick_errors", "Failures in the control loop; FCFS follows, of one engine or of all."
        )
        self.messages_received = self._counter("messages_received", "Messages received from engines.")
        self.messages_sent = self._counter("messages_sent", "Messages sent to engines.")
        self.messages_lost = self._counter(
            "messages_lost", "Messages to engines that were dropped, because the engine did not keep up or was gone."
        )
        self.generated_tokens = self._counter("generated_tokens", "Output tokens of finished requests.", "engine_id")
        self.finished = self._counter("finished_requests", "Requests that ended.", "engine_id", "reason")
        self.preemptions = self._counter("preemptions", "Requests that lost their KV blocks.", "engine_id")
        self.recomputed_tokens = self._counter("recomputed_tokens", "Tokens to be computed again.", "engine_id")
        self.prefix_hit_tokens = self._counter(
            "prefix_hit_tokens",
            "Prompt tokens of finished requests that the plan expected in the prefix cache, and that were found there; of"
            " requests that it looked up.",
            "engine_id",
            "kind",
        )
        self.computed_tokens = self._counter("computed_tokens", "Tokens computed, of prompts and answers.", "engine_id")
        self.steps = self._counter("engine_steps", "Steps of engines.", "engine_id")
        self.step_s = self._counter("engine_step_seconds", "Time that engines spent in steps.", "engine_id")
        self.hook_s = self._counter(
            "engine_hook_seconds", "Part of the engines' step time that the plugin took.", "engine_id"
        )
        self.last_prediction_s = self._moment("last_prediction", "Time of the last prediction.")
        self.last_outcome_s = self._moment("last_outcome", "Time at which an answer was last learned from.")
        self.telemetry_dropped = Gauge(
            "sagesched_telemetry_dropped",
            "Requests that OpenTelemetry's exporter dropped since the start, because it did not keep up.",
            registry=self.registry,
        )
        self._engine_labels = CappedLabel(ENGINE_LABELS)
        self._of_snapshots: dict[str, tuple[Counter, ...]] = {}
        self._encoder = EncoderCollector()
        self.registry.register(self._encoder)
        self._transport = TransportCollector()
        self.registry.register(self._transport)
        self.registry.register(LiveCollector(live))

    def count_finished(
        self,
        engine: str,
        fact: Finished,
        request: TrackedRequest | None,
        model: str | None,
        service_s: float | None = None,
        *,
        now_s: float,
    ) -> None:
        """Count a completed request.

        Args:
            engine: its engine.
            fact: its end.
            request: what else was recorded about it.
            model: the model that served it.
            service_s: engine-seconds that it used; None if not known.
            now_s: when the controller heard of it, by its own clock.
        """
        engine_id = self._engine_labels.of(engine)
        self.finished.labels(engine_id, fact.reason).inc()
        self.generated_tokens.labels(engine_id).inc(fact.output_tokens)
        if fact.expected_cached_tokens is not None and fact.scheduled_s is not None:
            self.prefix_hit_tokens.labels(engine_id, "expected").inc(fact.expected_cached_tokens)
            self.prefix_hit_tokens.labels(engine_id, "found").inc(fact.cached_prompt_tokens)
        self.requests.count(engine_id, fact, request, model)
        self.service.count(fact, request, service_s, now_s)

    def count_prediction(self, prediction: Prediction) -> None:
        """Count a prediction."""
        self.requests.predict_s.observe(prediction.predict_s)
        self.last_prediction_s.set(prediction.time_s)

    def count_outcome(self, outcome: Outcome) -> None:
        """Count an answer that was learned from."""
        self.last_outcome_s.set(outcome.time_s)

    def count_snapshot(self, engine: str, snapshot: Snapshot) -> None:
        """Add the counts of an engine since its last snapshot."""
        engine_id = self._engine_labels.of(engine)
        counters = self._of_snapshots.get(engine_id)
        if counters is None:
            counters = self._of_snapshots[engine_id] = self._snapshot_counters(engine_id)
        amounts = (
            snapshot.preemptions,
            snapshot.recomputed_tokens,
            snapshot.prefill_tokens + snapshot.decode_tokens,
            snapshot.steps,
            snapshot.step_s,
            snapshot.hook_s,
        )
        for counter, amount in zip(counters, amounts, strict=True):
            if amount > 0:
                counter.inc(amount)

    def _snapshot_counters(self, engine_id: str) -> tuple[Counter, ...]:
        """The counters of an engine, looked up once because they are updated ten times a second."""
        named = (
            *(self.preemptions, self.recomputed_tokens, self.computed_tokens),
            *(self.steps, self.step_s, self.hook_s),
        )
        return tuple(counter.labels(engine_id) for counter in named)

    def watch_telemetry(self, telemetry: Telemetry | None) -> None:
        """Export the number of requests that the exporter dropped."""
        self.telemetry_dropped.set_function(lambda: float(telemetry.dropped) if telemetry else 0.0)

    def watch_encoder(self, encoder: Encoder | None) -> None:
        """Export the counts of the semantic encoder; zeros without one."""
        self._encoder.encoder = encoder

    def watch_hub(self, hub: ZmqHub) -> None:
        """Export the counts of refused connections and unreadable frames."""
        self._transport.hub = hub

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sagesched_{name}_total", text, labels, registry=self.registry)

    def _moment(self, name: str, text: str) -> Gauge:
        return Gauge(f"sagesched_{name}_timestamp_seconds", f"{text} Unix seconds.", registry=self.registry)


class EncoderCollector(Collector):
    """The counts of the semantic encoder, read at each scrape."""

    def __init__(self) -> None:
        self.encoder: Encoder | None = None

    def describe(self) -> Iterator[Metric]:
        """Describe no metrics in advance."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Its counts so far."""
        counts = EncoderCounts() if self.encoder is None else self.encoder.counts()
        for name, text, value in (
            ("encoder_encoded", "Prompts that the semantic encoder has read.", counts.encoded),
            (
                "encoder_dropped",
                "Prompts that the semantic encoder dropped because it did not keep up.",
                counts.dropped,
            ),
            ("encoder_errors", "Failures of the semantic encoder, on loading or on a batch of prompts.", counts.errors),
        ):
            yield CounterMetricFamily(f"sagesched_{name}", text, value=value)
        yield GaugeMetricFamily(
            "sagesched_encoder_waiting_prompts", "Prompts that wait for the semantic encoder.", value=counts.waiting
        )


class TransportCollector(Collector):
    """The endpoint's counts of refused connections and unreadable frames, read at each scrape."""

    def __init__(self) -> None:
        self.hub: ZmqHub | None = None

    def describe(self) -> Iterator[Metric]:
        """Describe no metrics in advance."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """The hub's counts so far."""
        refused = CounterMetricFamily(
            "sagesched_refused_engines", "Handshakes and messages refused over TCP, by reason.", labels=["reason"]
        )
        counts = self.hub.refused if self.hub else {}
        for reason in ("handshake", "key", "engine_id"):
            refused.add_metric([reason], counts.get(reason, 0))
        yield refused
        bad = self.hub.bad_frames if self.hub else 0
        yield CounterMetricFamily("sagesched_bad_frames", "Frames of engines that could not be read.", value=bad)


class LiveCollector(Collector):
    """Metrics that each scrape reads from the latest live snapshot."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def describe(self) -> Iterator[Metric]:
        """Describe no metrics before the first live snapshot."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Compute metrics from the latest live snapshot."""
        live_snapshot = self._live.live_snapshot
        if live_snapshot is None:
            return
        for name, text in CORE_COUNTERS.items():
            yield CounterMetricFamily(f"sagesched_{name}", text, value=live_snapshot.counts[name])
        yield from _quality(live_snapshot)
        yield from _calibration(live_snapshot)
        yield from _store(live_snapshot)
        newest = {
            bounded_label(engine.hello.engine_id): engine
            for engine in sorted(live_snapshot.engines, key=lambda engine: engine.last_seen_s)
        }
        yield from _engines(dict(list(newest.items())[-ENGINE_LABELS:]))
        yield from _loop(live_snapshot)
        yield _mode(live_snapshot)
        yield _degraded(live_snapshot)
        for name, text, value in (
            ("open_files", "Files and sockets that the controller has open.", open_files()),
            (
                "open_files_limit",
                "Largest number of files and sockets that the controller may open.",
                open_files_limit(),
            ),
        ):
            yield GaugeMetricFamily(f"sagesched_{name}", text, value=value)


def _quality(live_snapshot: LiveSnapshot) -> Iterator[Metric]:
    quality = live_snapshot.quality
    if quality is None:
        return
    for name, text, value in (
        ("prediction_coverage_50", "Share of recent answers within the central half.", quality.coverage_50),
        ("prediction_coverage_90", "Share of recent answers within the central nine tenths.", quality.coverage_90),
        ("prediction_crps_tokens", "Mean CRPS of recent predictions.", quality.crps_tokens),
    ):
        yield GaugeMetricFamily(f"sagesched_{name}", text, value=value)


def _calibration(live_snapshot: LiveSnapshot) -> Iterator[Metric]:
    models = [measured for measured in live_snapshot.calibration if measured.scope.kind == "model"]
    for name, text in CALIBRATION_GAUGES:
        gauge = GaugeMetricFamily(f"sagesched_calibration_{name}", text, labels=["model"])
        for measured in models:
            gauge.add_metric([bounded_label(measured.scope.model)], float(getattr(measured, name)))
        yield gauge
    shares = GaugeMetricFamily(
        "sagesched_calibration_pit_share", "Share of recent answers in a tenth of the PIT.", labels=["model", "tenth"]
    )
    distrusted = GaugeMetricFamily(
        "sagesched_calibration_distrusted_clusters", "Prompt clusters served by the model's prior.", labels=["model"]
    )
    for measured in models:
        model = bounded_label(measured.scope.model)
        for tenth, share in enumerate(measured.pit_histogram):
            shares.add_metric([model, str(tenth)], share)
        scopes = [
            other.scope for other in live_snapshot.calibration if not other.trusted and other.scope.kind != "model"
        ]
        distrusted.add_metric([model], float(sum(scope.model == measured.scope.model for scope in scopes)))
    yield shares
    yield distrusted


def _store(live_snapshot: LiveSnapshot) -> Iterator[Metric]:
    for name, text in STORE_COUNTERS.items():
        yield CounterMetricFamily(f"sagesched_store_{name}", text, value=getattr(live_snapshot.store, name))
    for name, text, value in (
        ("queued_entries", "Entries that are not on disk yet.", live_snapshot.store.queued),
        ("segments", "Sealed files that the catalog lists.", live_snapshot.store.segments),
        (
            "damaged_segments",
            "Sealed files that are missing or damaged and are not read.",
            live_snapshot.store.damaged_segments,
        ),
        ("failing", "1 while history cannot be written.", float(live_snapshot.store.last_error is not None)),
        ("commit_seconds", "Duration of the last commit.", live_snapshot.store.commit_s),
        ("seal_seconds", "Duration of the last sealing.", live_snapshot.store.seal_s),
        ("last_commit_timestamp_seconds", "Time of the last commit.", live_snapshot.store.last_commit_s),
        ("last_seal_timestamp_seconds", "Time of the last sealing.", live_snapshot.store.last_seal_s),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"sagesched_store_{name}", text, value=value)
    rows = CounterMetricFamily("sagesched_store_rows", "Rows on disk since the start, by table.", labels=["table"])
    for table, count in live_snapshot.store.rows.items():
        rows.add_metric([table], count)
    yield rows


def _engines(engines: Mapping[str, EngineView]) -> Iterator[Metric]:
    """The gauges and counters of the engines, by their labels."""
    labels = ["engine_id"]
    connected = GaugeMetricFamily("sagesched_engine_connected", "1 while the engine is connected.", labels=labels)
    fallback = GaugeMetricFamily(
        "sagesched_engine_fallback", "1 while the engine has fallen back to FCFS.", labels=labels
    )
    for label, engine in engines.items():
        connected.add_metric([label], float(engine.connected))
        held_back = engine.snapshot is not None and engine.snapshot.fallback is not None
        fallback.add_metric([label], float(held_back))
    yield connected
    yield fallback
    yield from _engine_signs(engines)
    for family, kinds in ((GaugeMetricFamily, ENGINE_GAUGES), (CounterMetricFamily, ENGINE_COUNTERS)):
        for name, text, attribute in kinds:
            metric = family(f"sagesched_{name}", text, labels=labels)
            for label, engine in engines.items():
                if engine.snapshot is not None:
                    metric.add_metric([label], float(getattr(engine.snapshot, attribute)))
            yield metric


def _engine_signs(engines: Mapping[str, EngineView]) -> Iterator[Metric]:
    """Last message, last snapshot, unfinished requests and backlog of each engine."""
    last_message = GaugeMetricFamily(
        "sagesched_engine_last_message_timestamp_seconds", "Time of the engine's last message.", labels=["engine_id"]
    )
    shown = GaugeMetricFamily(
        "sagesched_engine_last_snapshot_timestamp_seconds",
        "Time of the engine's last snapshot, by the engine's clock.",
        labels=["engine_id"],
    )
    unfinished = GaugeMetricFamily(
        "sagesched_engine_unfinished_requests", "Requests that the controller follows.", labels=["engine_id"]
    )
    backlog = GaugeMetricFamily(
        "sagesched_engine_backlog_seconds",
        "Expected engine-seconds of an engine's unfinished requests; on a full engine about the time until they are served.",
        labels=["engine_id"],
    )
    for label, engine in engines.items():
        last_message.add_metric([label], engine.last_seen_s)
        if engine.connected and (left_s := backlog_s(engine)) is not None:
            backlog.add_metric([label], left_s)
        unfinished.add_metric([label], engine.unfinished)
        if engine.snapshot is not None:
            shown.add_metric([label], engine.snapshot.time_s)
    yield from (last_message, shown, unfinished, backlog)


def _loop(live_snapshot: LiveSnapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "sagesched_loop_last_turn_timestamp_seconds",
        "Time at which the control loop last published its live state.",
        value=live_snapshot.time_s,
    )
    yield GaugeMetricFamily(
        "sagesched_unacknowledged_batches",
        "Batches of facts received that are not on disk yet.",
        value=live_snapshot.loop.get("unacknowledged_batches", 0.0),
    )
    yield GaugeMetricFamily(
        "sagesched_clock_off_seconds",
        "How far the system clock moved against the controller's steady clock since its start.",
        value=live_snapshot.loop.get("clock_off_s", 0.0),
    )
    yield GaugeMetricFamily(
        "sagesched_backlog",
        "Deferred work: arrivals to predict, answers to learn from and predictions to renew.",
        value=live_snapshot.loop.get("backlog", 0.0),
    )


def _mode(live_snapshot: LiveSnapshot) -> Metric:
    metric = GaugeMetricFamily(
        "sagesched_mode", "1 for the mode of the operator's settings, 0 for the others.", labels=["mode"]
    )
    for mode in ("off", "shadow", "on"):
        metric.add_metric([mode], float(live_snapshot.settings.mode == mode))
    return metric


def _degraded(live_snapshot: LiveSnapshot) -> Metric:
    """Count what is amiss by kind; a kind without any is 0."""
    metric = GaugeMetricFamily(
        "sagesched_degraded", "States in which the controller does less than it should, by kind.", labels=["state"]
    )
    for kind in get_args(DegradedKind):
        metric.add_metric([kind], float(sum(state.kind == kind for state in live_snapshot.degraded)))
    return metric
