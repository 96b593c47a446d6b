"""The answers of the API, made of records and of the state that the control loop publishes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from msgspec import structs

from controller.monitoring.live_state import EngineView, FinishedView, LiveSnapshot
from online_learning.calibration.calibration import Measurement
from store import http_api
from store.records import Snapshot

SNAPSHOT_COLUMNS = (
    "time_s",
    "waiting",
    "running",
    "kv_blocks_used",
    "kv_blocks",
    "reserved_blocks",
    "admission_limit",
    "mode",
    "fallback",
    "prefill_tokens",
    "decode_tokens",
    "step_s",
    "steps",
    "preemptions",
    "recomputed_tokens",
    "overdue",
)


def learner_view(live_snapshot: LiveSnapshot) -> http_api.LearnerView:
    """What the learner has seen, and how well it is calibrated."""
    counts, quality, calibration = live_snapshot.counts, live_snapshot.quality, live_snapshot.calibration
    return http_api.LearnerView(
        predictions=counts["predictions"],
        completions=counts["completions"],
        censored=counts["censored"],
        not_learnt=counts["not_learnt"],
        not_predicted=counts["not_predicted"],
        backlog=round(live_snapshot.loop.get("backlog", 0.0)),
        clusters=live_snapshot.clusters,
        coverage_50=quality.coverage_50 if quality else None,
        coverage_90=quality.coverage_90 if quality else None,
        crps_tokens=quality.crps_tokens if quality else None,
        log_score=quality.log_score if quality else None,
        pit_histogram=quality.pit_histogram if quality else None,
        drift_events=counts["drift_events"],
        drifts=live_snapshot.drifts,
        models=tuple(_calibration_view(measured) for measured in calibration if measured.scope.kind == "model"),
        distrusted_clusters=tuple(
            _calibration_view(measured)
            for measured in calibration
            if measured.scope.kind != "model" and not measured.trusted
        ),
    )


def _calibration_view(measured: Measurement) -> http_api.CalibrationView:
    scope, figures = measured.scope, asdict(measured)
    del figures["scope"]
    return http_api.CalibrationView(model=scope.model, scope=scope.kind, cluster=scope.cluster, **figures)


def engine_view(engine: EngineView) -> http_api.EngineView:
    """An engine and its last snapshot, without the lists of requests: the queue has an address of its own."""
    hello, snapshot = engine.hello, engine.snapshot
    return http_api.EngineView(
        engine_id=hello.engine_id,
        session_id=hello.session_id,
        model=hello.model,
        engine=hello.engine,
        engine_version=hello.engine_version,
        connected=engine.connected,
        last_seen_s=engine.last_seen_s,
        kv_blocks=hello.kv_blocks,
        block_size_tokens=hello.block_size_tokens,
        max_num_seqs=hello.max_num_seqs,
        unfinished=engine.unfinished,
        tables_sent=engine.tables_sent,
        snapshot=structs.replace(snapshot, running_requests=(), queue=()) if snapshot else None,
    )


def snapshot_row(engine_id: str, snapshot: Snapshot) -> dict[str, Any]:
    """One row of the engine's recent past."""
    return {"engine_id": engine_id} | {column: getattr(snapshot, column) for column in SNAPSHOT_COLUMNS}


def finished_row(view: FinishedView) -> dict[str, Any]:
    """One finished request with what had been predicted of it."""
    fact = view.finished
    return {
        "request_id": fact.request_id,
        "engine_id": view.engine_id,
        "time_s": fact.time_s,
        "ttft_s": None if fact.first_token_s is None else fact.first_token_s - fact.arrival_s,
        "ttlt_s": fact.time_s - fact.arrival_s,
        "output_tokens": fact.output_tokens,
        "reason": fact.reason,
        "prompt_tokens": fact.prompt_tokens,
        "max_tokens": fact.max_tokens,
        "queue_s": None if fact.scheduled_s is None else fact.scheduled_s - fact.arrival_s,
        "priority": view.priority,
        "tenant": view.tenant,
        "cluster": view.cluster,
        "p10_tokens": view.quantile_tokens(0.1),
        "p50_tokens": view.quantile_tokens(0.5),
        "p90_tokens": view.quantile_tokens(0.9),
        "pit": view.pit,
    }
