"""What is amiss at present, by the rules of `store.rules`, and the worst of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from controller.monitoring.live_state import EngineView, LiveSnapshot
from controller.monitoring.present.demand import demand_text, present_demand, slow_growth
from controller.monitoring.present.pulse import BIN_S, Bin, latest
from store.formatting import count, percent, span
from store.http_now import AttainedNow, Finding
from store.rules import FEWEST_MISSES, RULES, WINDOW_S
from store.service_levels import DEFAULT_TARGETS, NOT_CONFIGURED, targets_in_words

LOOP_S = 60.0
"""Span over which the control loop's own delays are judged."""


def findings(snapshot: LiveSnapshot, bins: Sequence[Bin], *, free_bytes: int | None, now_s: float) -> list[Finding]:
    """All that the rules find."""
    return [
        *_of_loop(snapshot, bins, now_s),
        *_of_history(snapshot, free_bytes),
        *_of_engines(snapshot, now_s),
        *_of_drops(bins, now_s),
        *_of_demand(bins),
        *_of_targets(attained(bins, now_s)),
        *_of_recompute(bins, now_s),
        *_of_predictions(snapshot),
    ]


def found(
    rule: str, text: str, *, value: float | None = None, subject: str = "", do: str | None = None
) -> Iterator[Finding]:
    """The finding of a rule if its number, or its state, is amiss."""
    of = RULES[rule]
    level = of.level if value is None else of.judge(value)
    if level is not None and level != "green":
        yield Finding(rule=rule, level=level, subject=subject, text=text, do=of.do if do is None else do)


def free_bytes(folder: Path | str) -> int | None:
    """Bytes that this user may still write on the disk of a folder; None where the folder cannot be asked."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def loop_shares(bins: Sequence[Bin], now_s: float) -> tuple[float, float]:
    """Shares of the last minute in which the control loop was held up, and was in turns that took too long."""
    recent = latest(bins, LOOP_S, now_s)
    over_s = BIN_S * len(recent) or 1.0
    return sum(each.held_s for each in recent) / over_s, sum(each.late_s for each in recent) / over_s


def attained(bins: Sequence[Bin], now_s: float) -> list[AttainedNow]:
    """How the requests of each class fared lately; those that wait for too long already have missed a target."""
    judged: Counter[tuple[str, float]] = Counter(bins[-1].overdue if bins else {})
    missed = judged.copy()
    for each in latest(bins, WINDOW_S, now_s):
        for key, (requests, misses) in each.judged.items():
            judged[key] += requests
            missed[key] += misses
    return [
        AttainedNow(service_class=name, objective=objective, judged=judged[name, objective], missed=missed[name, objective])
        for name, objective in judged
    ]  # fmt: skip


def recompute_share(bins: Sequence[Bin], now_s: float) -> float:
    """Share of the tokens computed lately that had been computed before."""
    engines = [engine for each in latest(bins, WINDOW_S, now_s) for engine in each.engines.values()]
    computed = sum(engine.computed_tokens for engine in engines)
    return sum(engine.recomputed_tokens for engine in engines) / computed if computed else 0.0


def _of_loop(snapshot: LiveSnapshot, bins: Sequence[Bin], now_s: float) -> Iterator[Finding]:
    age_s = now_s - snapshot.time_s
    yield from found("loop_stuck", f"It last turned {span(age_s)} ago.", value=age_s)
    held, late = loop_shares(bins, now_s)
    yield from found(
        "slow_host",
        f"The control loop waited for a core or the disk for {percent(held)} of the last minute.",
        value=held,
    )
    yield from found(
        "late_controller", f"{percent(late)} of the last minute went into turns of more than half a second.", value=late
    )
    backlog = snapshot.loop.get("backlog", 0.0)
    left_out = snapshot.counts.get("not_learnt", 0)
    text = f"{count(backlog)} tasks are pending, and {count(left_out)} answers were left out since the start."
    yield from found("behind", text, value=backlog)
    for state in snapshot.degraded:
        yield from found(state.kind, state.text, do="")


def _of_history(snapshot: LiveSnapshot, free: int | None) -> Iterator[Finding]:
    store = snapshot.store
    if store.last_error is not None:
        yield from found("history_not_written", f"{store.last_error}.")
    if free is not None:
        yield from found("disk_full", f"{free / 1e9:.2g} GB are free.", value=float(free))
    if store.damaged_segments:
        yield from found("damaged_history", f"{count(store.damaged_segments)} files are missing or damaged.")


def _of_engines(snapshot: LiveSnapshot, now_s: float) -> Iterator[Finding]:
    connected = sum(engine.connected for engine in snapshot.engines)
    if not any(engine.gone == "lost" for engine in snapshot.engines):
        yield from found("no_engine", "The controller is ready and nothing reports to it.", value=float(connected))
    for engine in snapshot.engines:
        yield from _of_engine(engine, now_s)


def _of_engine(engine: EngineView, now_s: float) -> Iterator[Finding]:
    name, silent_s, last = engine.hello.engine_id, now_s - engine.last_seen_s, engine.snapshot
    if engine.gone == "lost":
        yield from found("engine_lost", f"Its last message came {span(silent_s)} ago.", subject=name)
    if not engine.connected:
        return
    yield from found("engine_silent", f"Its last message came {span(silent_s)} ago.", value=silent_s, subject=name)
    if last is None:
        return
    if last.fallback:
        yield from found("engine_fallback", f"Reason: {last.fallback}.", subject=name)
    if last.impossible:
        needs = "1 request needs" if last.impossible == 1 else f"{count(last.impossible)} requests need"
        yield from found("impossible_requests", f"{needs} more KV memory than it has.", subject=name)


def _of_drops(bins: Sequence[Bin], now_s: float) -> Iterator[Finding]:
    dropped: Counter[str] = Counter()
    for each in latest(bins, WINDOW_S, now_s):
        dropped.update({name: engine.dropped for name, engine in each.engines.items()})
    for name in sorted(name for name, number in dropped.items() if number):
        yield from found("messages_dropped", f"{count(dropped[name])} within ten minutes.", subject=name)


def _of_demand(bins: Sequence[Bin]) -> Iterator[Finding]:
    """Overload of these seconds, or else a queue that has grown for minutes."""
    now, lately = present_demand(bins), slow_growth(bins)
    overload = list(found("overload", demand_text(now), value=now.ratio or 0.0)) if now else []
    if not overload and lately:
        yield from found("queue_growing", demand_text(lately), value=lately.ratio or 0.0)
    yield from overload


def _of_targets(classes: Iterable[AttainedNow]) -> Iterator[Finding]:
    for each in classes:
        if each.missed <= FEWEST_MISSES:
            continue
        share = each.missed / each.judged
        # An objective that leaves a large budget cannot be missed 14.4 times as often: nine in ten count as such then.
        burn = max(share / (1.0 - each.objective), 14.4 if share >= 0.9 else 0.0)
        assumed = each.service_class == NOT_CONFIGURED
        targets = f" (assumed: {targets_in_words(DEFAULT_TARGETS)})" if assumed else ""
        text = f"{percent(share)} of {count(each.judged)} requests missed a target within ten minutes{targets}."
        more = " Targets of your own: `[classes]` in the configuration." if assumed else ""
        subject = "The service" if assumed else f"Class {each.service_class}"
        yield from found("missed_targets", text, value=burn, subject=subject, do=RULES["missed_targets"].do + more)


def _of_recompute(bins: Sequence[Bin], now_s: float) -> Iterator[Finding]:
    share = recompute_share(bins, now_s)
    text = f"{percent(share)} of the tokens of the last minutes had been computed before: preemptions threw them away."
    yield from found("recompute", text, value=share)


def _of_predictions(snapshot: LiveSnapshot) -> Iterator[Finding]:
    served = {engine.hello.model for engine in snapshot.engines if engine.connected}
    for measured in snapshot.calibration:
        if measured.scope.kind == "model" and not measured.trusted and measured.scope.model in served:
            text = (
                f"The guard found them wrong, so its engines serve first come, first served. Reason: {measured.reason}."
            )
            yield from found("distrusted", text, subject=measured.scope.model)
