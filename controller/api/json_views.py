"""Builds answers of the API from records and from the state that the control loop publishes."""

from __future__ import annotations

from dataclasses import asdict

from msgspec import structs

from controller.monitoring.live_state import EngineView, LiveSnapshot
from online_learning.calibration.calibration import Measurement
from store import http_api


def learner_view(live_snapshot: LiveSnapshot) -> http_api.LearnerView:
    """The counts of the learner, and its calibration."""
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
    """An engine and its last snapshot, without the lists of requests, which have a path of their own."""
    hello, snapshot = engine.hello, engine.snapshot
    return http_api.EngineView(
        engine_id=hello.engine_id,
        session_id=hello.session_id,
        model=hello.model,
        engine=hello.engine,
        engine_version=hello.engine_version,
        contract=hello.contract,
        connected=engine.connected,
        gone=engine.gone,
        last_seen_s=engine.last_seen_s,
        kv_blocks=hello.kv_blocks,
        block_size_tokens=hello.block_size_tokens,
        max_num_seqs=hello.max_num_seqs,
        unfinished=engine.unfinished,
        tables_sent=engine.tables_sent,
        snapshot=structs.replace(snapshot, running_requests=(), queue=()) if snapshot else None,
    )
