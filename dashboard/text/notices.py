"""Notices of unusual states of engines, history and learning, with remedies."""

from __future__ import annotations

from typing import Literal

from dashboard.text.words import Notice, plain
from store.formatting import count, span
from store.history.writer_stats import WriterStats
from store.http_api import CalibrationView, DegradedKind, EngineView, LearnerView, StateView

SILENT_S = 3.0
"""An engine sends ten snapshots a second: after this many seconds without any it is called silent."""

BEHIND = 1000
"""Number of pending tasks from which the controller counts as behind: some seconds of work."""


def state_notices(state: StateView, engine_id: str | None) -> list[Notice]:
    """List what is out of the ordinary with the chosen engine, or with any when none is chosen; worst first."""
    troubles = [*_degraded_notices(state), *_store_notices(state.store), *_overload_notices(state.learner)]
    if not state.engines:
        return [*troubles, _no_engine_yet()]
    chosen = [engine for engine in state.engines if engine_id in {None, engine.engine_id}]
    now_s = state.controller.now_s
    found = troubles + [notice for engine in chosen for notice in _engine_notices(engine, now_s)]
    served = {engine.model for engine in chosen if engine.connected}
    found += [_distrusted(model) for model in state.learner.models if not model.trusted and model.model in served]
    return sorted(found, key=lambda notice: ("error", "warning", "info").index(notice.level))


DEGRADED: dict[DegradedKind, tuple[Literal["error", "warning"], str]] = {
    "loop_failing": ("error", "The controller fails and its engines serve first come, first served"),
    "engine_failing": ("error", "The controller fails on the messages of an engine"),
    "clock_off": ("warning", "A system clock was set, or two clocks differ"),
    "frames_refused": ("warning", "Messages of engines cannot be read"),
    "facts_damaged": ("warning", "An engine reports what cannot be"),
    "learner_failing": ("error", "The learner fails again and again"),
    "name_shared": ("warning", "Engines share a name"),
    "deaf_endpoint": ("error", "No engine can connect"),
    "connection_flood": ("warning", "Strangers connect to the engines' port"),
    "files_near_limit": ("warning", "Open files are near their limit"),
    "history_replaced": ("error", "The history's files were removed or replaced"),
    "history_behind": ("warning", "The disk is too slow for the history"),
    "learning_past": ("warning", "The past is still being learned"),
    "clock_ahead": ("warning", "The clock is far beyond the history"),
}
"""How grave each state is, and its title."""


def _degraded_notices(state: StateView) -> list[Notice]:
    return [Notice(*DEGRADED[found.kind], plain(found.text)) for found in state.degraded]


def _store_notices(store: WriterStats) -> list[Notice]:
    notices = []
    if store.last_error:
        text = (
            f"{plain(store.last_error)}. Decisions go on, engines keep their facts, and history is written again by itself "
            "once the disk takes it: make room, or see what is wrong with the disk. Charts and lists of the last minutes are "
            "empty until then, for they are read from the history."
        )
        notices.append(Notice("error", "History cannot be written", text))
    if store.damaged_segments:
        text = "The log names them. Put copies of them in their places and their rows are back within seconds."
        notices.append(Notice("warning", f"{count(store.damaged_segments)} files of the history are damaged", text))
    return notices


def _overload_notices(learner: LearnerView) -> list[Notice]:
    if learner.backlog < BEHIND:
        return []
    text = (
        f"Requests come faster than it learns from them: {count(learner.backlog)} tasks are pending, and "
        f"{count(learner.not_learnt)} answers were left out so far. Arrivals go first; {count(learner.not_predicted)} "
        "of them ended before it had time to predict them, and went by what is known of their model. "
        "Give it a faster core of its own, or spread the engines over two controllers."
    )
    return [Notice("warning", "The controller is behind with learning", text)]


def _no_engine_yet() -> Notice:
    return Notice(
        "info",
        "No engine is connected yet",
        "The controller is ready. Start one with "
        "`vllm serve MODEL --scheduler-cls engine_adapter.vllm_scheduler.SageScheduler`, "
        "or see everything at work with `python -m controller demo`.",
    )


def _engine_notices(engine: EngineView, now_s: float) -> list[Notice]:
    name = plain(engine.engine_id)
    silence_s = now_s - engine.last_seen_s
    if not engine.connected:
        return [_lost(name, silence_s)]
    notices = []
    snapshot = engine.snapshot
    if snapshot is not None and snapshot.fallback:
        notices.append(_fallback(name, snapshot.fallback))
    if silence_s > SILENT_S:
        notices.append(
            Notice(
                "warning",
                f"Engine {name} is silent",
                f"Its last message came {span(silence_s)} ago: the values shown are old.",
            )
        )
    if snapshot is not None and snapshot.messages_dropped:
        dropped = f"{count(snapshot.messages_dropped)} messages between engine and controller were dropped since start."
        notices.append(Notice("warning", f"Engine {name} drops messages", dropped))
    if snapshot is not None and snapshot.impossible:
        needs = "1 request needs" if snapshot.impossible == 1 else f"{count(snapshot.impossible)} requests need"
        text = (
            f"{needs} more KV memory than it has and can never run; all others go first. Its log names each: abort it, "
            "lower `--max-model-len`, or give the engine more KV memory."
        )
        notices.append(Notice("warning", f"Engine {name} has requests that it can never serve", text))
    return notices


def _lost(name: str, silence_s: float) -> Notice:
    return Notice(
        "error",
        f"Engine {name} is lost",
        f"The controller receives no messages from it; the last came {span(silence_s)} ago. If its process runs, it serves first come, first served "
        "and reconnects by itself; if not, restart it.",
    )


def _fallback(name: str, reason: str) -> Notice:
    return Notice(
        "warning",
        f"Engine {name} has fallen back to first come, first served",
        f"Reason: {plain(reason)}. Requests are served, but not in SageSched's order. It heals by itself once the cause is gone.",
    )


def _distrusted(model: CalibrationView) -> Notice:
    return Notice(
        "warning",
        f"The predictions for {plain(model.model)} are not trusted",
        f"The guard found them wrong, so its engines serve first come, first served. Reason: {plain(model.reason)}. "
        "It ends by itself once they are right again; *Predictions* shows how they fare.",
    )
