"""From records to rows: which table an entry belongs to and the values of its columns."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias

from store.entries import (
    CalibrationMeasured,
    ClusterChanged,
    Decision,
    DriftDetected,
    EngineSeen,
    Entry,
    Outcome,
    Prediction,
    SettingsChanged,
)
from store.records import Arrived, Finished, FirstToken, Preempted, Snapshot

Row: TypeAlias = tuple[Any, ...]
"""Values in the order of the table's columns."""

TABLE_OF: dict[type, str] = {
    Arrived: "arrivals",
    FirstToken: "first_tokens",
    Preempted: "preemptions",
    Finished: "completions",
    Snapshot: "snapshots",
    EngineSeen: "engines",
    Prediction: "predictions",
    Decision: "decisions",
    Outcome: "outcomes",
    CalibrationMeasured: "calibration",
    DriftDetected: "drift_events",
    ClusterChanged: "cluster_changes",
    SettingsChanged: "settings_history",
}

DROPPABLE = (Snapshot, Prediction, Decision, CalibrationMeasured)
"""Kinds that the history may lose under pressure: the facts, outcomes and settings tell what happened without them."""


def row_of(entry: Entry, received_s: float, *, store_prompts: bool) -> Row:
    """The row that keeps an entry, without its token ids unless prompts are stored."""
    record = entry.record
    head = (entry.engine_id, entry.session_id, entry.batch, received_s)
    if type(record) is Arrived:
        values = _ARRIVED(record)
        return head + (values if store_prompts else (*values[:3], None, *values[4:]))
    return head + _VALUES[type(record)](record)


_ARRIVED = attrgetter(
    "request_id", "arrival_s", "prompt_tokens", "token_ids", "max_tokens", "temperature",
    "priority", "tenant", "lora", "resent", "attained_tokens",
)  # fmt: skip

_SNAPSHOT = attrgetter(
    "time_s", "waiting", "running", "kv_blocks_used", "kv_blocks", "mode", "fallback", "steps", "step_s",
    "prefill_tokens", "decode_tokens", "kv_tokens_read", "preemptions", "recomputed_tokens",
    "admission_limit", "reserved_blocks",
)  # fmt: skip

_SNAPSHOT_TAIL = attrgetter(
    "tables_held", "tables_applied", "messages_dropped", "policy_errors", "hook_s", "overdue"
)  # fmt: skip

_HELLO = attrgetter(
    "model", "engine", "engine_version", "kv_blocks", "block_size_tokens", "max_num_seqs", "token_budget",
    "max_model_len_tokens", "prefix_caching", "started_s", "data_parallel_rank",
)  # fmt: skip

_PREDICTION = attrgetter(
    "request_id", "time_s", "cluster", "features", "prompt_hash", "mean_tokens", "p10_tokens", "p25_tokens",
    "p50_tokens", "p75_tokens", "p90_tokens", "p95_tokens", "p99_tokens", "evidence",
)  # fmt: skip


def _snapshot(record: Snapshot) -> Row:
    lists = (record.running_requests, record.queue) if record.detailed else (None, None)
    return (*_SNAPSHOT(record), *lists, *_SNAPSHOT_TAIL(record))


def _engine_seen(record: EngineSeen) -> Row:
    return (record.time_s, record.event, *_HELLO(record.hello))


def _prediction(record: Prediction) -> Row:
    return (*_PREDICTION(record), list(record.experts.items()), record.predict_s)


def _settings_changed(record: SettingsChanged) -> Row:
    settings = record.settings
    rules = settings.rules
    gate = (rules.gate.horizon_tokens, rules.gate.margin) if rules.gate else (None, None)
    preemption = rules.preemption
    price = (preemption.token_s, preemption.hysteresis, preemption.rest_steps) if preemption else (None, None, None)
    return (
        record.time_s, record.reason, settings.revision, settings.mode, *gate, rules.boost_per_s, settings.lease_s,
        rules.victims, *price,
    )  # fmt: skip


_VALUES: dict[type, Callable[[Any], Row]] = {
    FirstToken: attrgetter("request_id", "time_s", "scheduled_s", "cached_prompt_tokens"),
    Preempted: attrgetter("request_id", "time_s", "lost_tokens", "attained_tokens", "cause"),
    Finished: attrgetter(
        "request_id", "time_s", "reason", "arrival_s", "prompt_tokens", "output_tokens", "max_tokens",
        "cached_prompt_tokens", "preemptions", "recomputed_tokens", "scheduled_s", "first_token_s",
    ),
    Snapshot: _snapshot,
    EngineSeen: _engine_seen,
    Prediction: _prediction,
    Decision: attrgetter(
        "request_id", "time_s", "policy", "reason", "cost_s", "index_s",
        "attained_tokens", "table_index_s", "growth_tokens", "patience_s",
    ),
    Outcome: attrgetter(
        "request_id", "time_s", "output_tokens", "censored", "cluster", "pit", "crps_tokens", "log_score",
        "within_50", "within_90", "answer",
    ),
    CalibrationMeasured: attrgetter(
        "time_s", "model", "scope", "cluster", "answers", "censored", "coverage_50", "coverage_90", "crps_tokens",
        "log_score", "prior_log_score", "pinball_tokens", "kendall_tau", "pit_histogram", "trusted", "reason",
    ),
    DriftDetected: attrgetter(
        "time_s", "model", "cluster", "before_mean_tokens", "after_mean_tokens", "forgotten", "renewed_requests"
    ),
    ClusterChanged: attrgetter("time_s", "kind", "cluster", "other_cluster"),
    SettingsChanged: _settings_changed,
}  # fmt: skip
