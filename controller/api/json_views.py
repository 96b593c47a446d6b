"""The JSON that the API shows, made of records and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from msgspec import structs

from controller.monitoring.live_state import EngineView, FinishedView, LiveSnapshot
from online_learning.calibration.calibration import Measurement
from store.entries import DriftDetected
from store.records import Settings, Snapshot

SNAPSHOT_LISTS = ("running_requests", "queue")
"""What a snapshot holds beside scalars; the queue has an address of its own."""
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


def state_view(live_snapshot: LiveSnapshot, about: Mapping[str, str | float]) -> dict[str, Any]:
    """The whole live state, queue and history apart; ``about`` is what is known of the controller's process."""
    return {
        "controller": {
            **about,
            "mode": live_snapshot.settings.mode,
            "policy": live_snapshot.policy,
            "settings": settings_view(live_snapshot.settings),
            "loop": dict(live_snapshot.loop),
        },
        "store": asdict(live_snapshot.store),
        "learner": _learner_view(live_snapshot),
        "engines": [_engine_view(engine) for engine in live_snapshot.engines],
    }


def _learner_view(live_snapshot: LiveSnapshot) -> dict[str, Any]:
    counts, quality = live_snapshot.counts, live_snapshot.quality
    return {
        "predictions": counts["predictions"],
        "completions": counts["completions"],
        "censored": counts["censored"],
        "not_learnt": counts["not_learnt"],
        "not_predicted": counts["not_predicted"],
        "backlog": round(live_snapshot.loop.get("backlog", 0.0)),
        "clusters": live_snapshot.clusters,
        "coverage_50": quality.coverage_50 if quality else None,
        "coverage_90": quality.coverage_90 if quality else None,
        "crps_tokens": quality.crps_tokens if quality else None,
        "log_score": quality.log_score if quality else None,
        "pit_histogram": quality.pit_histogram if quality else None,
        "drift_events": counts["drift_events"],
        "drifts": [_drift_view(drift) for drift in live_snapshot.drifts],
        "models": [
            _calibration_view(measured) for measured in live_snapshot.calibration if measured.scope.kind == "model"
        ],
        "distrusted_clusters": [
            _calibration_view(measured)
            for measured in live_snapshot.calibration
            if measured.scope.kind != "model" and not measured.trusted
        ],
    }


def _calibration_view(measured: Measurement) -> dict[str, Any]:
    """A measurement as JSON; its scope is spelt out."""
    figures = {name: value for name, value in asdict(measured).items() if name != "scope"}
    scope = measured.scope
    return {"model": scope.model, "scope": scope.kind, "cluster": scope.cluster} | figures


def _drift_view(drift: DriftDetected) -> dict[str, Any]:
    """A drift as JSON, with what changed in words."""
    what = (
        f"mean {drift.before_mean_tokens:.0f} to {drift.after_mean_tokens:.0f} tokens, "
        f"{drift.forgotten:.0f} answers forgotten"
    )
    return structs.asdict(drift) | {"what": what}


def settings_view(settings: Settings) -> dict[str, Any]:
    """Settings as JSON."""
    return {
        "revision": settings.revision,
        "mode": settings.mode,
        "gate": structs.asdict(settings.rules.gate) if settings.rules.gate else None,
        "boost_per_s": settings.rules.boost_per_s,
        "lease_s": settings.lease_s,
        "victims": settings.rules.victims,
    }


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


def _engine_view(engine: EngineView) -> dict[str, Any]:
    hello = engine.hello
    return {
        "engine_id": hello.engine_id,
        "session_id": hello.session_id,
        "model": hello.model,
        "engine": hello.engine,
        "engine_version": hello.engine_version,
        "connected": engine.connected,
        "last_seen_s": engine.last_seen_s,
        "kv_blocks": hello.kv_blocks,
        "block_size_tokens": hello.block_size_tokens,
        "max_num_seqs": hello.max_num_seqs,
        "unfinished": engine.unfinished,
        "tables_sent": engine.tables_sent,
        "snapshot": _scalars(engine.snapshot) if engine.snapshot else None,
    }


def _scalars(snapshot: Snapshot) -> dict[str, Any]:
    return {name: value for name, value in structs.asdict(snapshot).items() if name not in SNAPSHOT_LISTS}
