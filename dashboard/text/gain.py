"""The comparison with first come, first served in words for people; nothing here knows Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dashboard.text.words import Notice, plain
from store.formatting import DASH, count, known, span
from store.http_api import (
    Gain,
    GainPart,
    GainView,
    ObjectiveGain,
    PartKind,
    Ratio,
    RecomputeTax,
    Reproduction,
)


def gain_notice(view: GainView) -> Notice:
    """Say why there is no comparison with first come, first served yet.

    >>> gain_notice(GainView(status="warming up", reason="too few requests")).title
    'Warming up'
    """
    title = "Warming up" if view.status == "warming up" else "No comparison available"
    return Notice("info", title, f"{plain(view.reason or 'No reason is given')}.")


def gain_verdict(gain: Gain, mode: str) -> Notice:
    """Say first whether the comparison can be trusted, then what the order brings and which requests lose by it.

    Args:
        gain: the comparison.
        mode: in force in the engines; in ``shadow`` and ``off`` nothing of the policy is.
    """
    in_force = mode not in {"shadow", "off"}
    poor, verdict = gain.reproduction.poor, part_verdict(gain.ratio)
    change = f"{ratio_change(gain.ratio.mean)} (90% interval {interval(gain.ratio)})"
    tail = ratio_change(gain.modelled.p99_ttlt_s / gain.fcfs.p99_ttlt_s if gain.fcfs.p99_ttlt_s else None)
    effect = f"mean time to last token {change}, P99 {tail}, against first come, first served"
    subject = "SageSched" if in_force else "Mode `on`, which is not in force,"
    if poor:
        text = f"{plain('; '.join(poor))}. Within that error, the replay estimates for {subject} a {effect}."
        return Notice("warning", f"Uncertain: {_missed(gain.reproduction)}", text)
    verb = {"gains": "lowers", "loses": "raises", "undecided": "does not clearly change"}[verdict]
    if not in_force:
        verb = {"gains": "would lower", "loses": "would raise", "undecided": "would not clearly change"}[verdict]
    level: Literal["warning", "info"] = "warning" if verdict == "loses" else "info"
    title = f"{subject} {verb} latency"
    clear = "not statistically clear" if verdict == "undecided" else "statistically clear"
    return Notice(level, title, f"{effect[:1].upper()}{effect[1:]}: {clear}. {losers(gain.parts)}")


def _missed(found: Reproduction) -> str:
    """By how much the replay misses what was measured."""
    if found.mean_ttlt_error is None:
        return "the replay does not reproduce what was measured"
    return f"the replay misses the measured mean by {abs(found.mean_ttlt_error):.0%}"


def losers(parts: Sequence[GainPart]) -> str:
    """Name the requests that clearly lose, the worst first.

    >>> part = GainPart(by="length", name="under 16", requests=9, fcfs_mean_ttlt_s=1, mean_ttlt_s=2,
    ...                 ratio=Ratio(mean=2.0, low=1.5, high=2.5))
    >>> losers([part]), losers([])
    ('Slower: answers of under 16 tokens (+100%).', 'No group of requests is clearly slower.')
    """
    found = sorted((part for part in parts if part_verdict(part.ratio) == "loses"), key=lambda part: -part.ratio.mean)
    if not found:
        return "No group of requests is clearly slower."
    named = [f"{plain(part_name(part))} ({ratio_change(part.ratio.mean)})" for part in found]
    more = f" and {len(named) - LOSERS_NAMED} more groups" if len(named) > LOSERS_NAMED else ""
    return f"Slower: {', '.join(named[:LOSERS_NAMED])}{more}."


def part_name(part: GainPart) -> str:
    """Name a group of requests."""
    return _PARTS[part.by].format(part.name)


LOSERS_NAMED = 3
_PARTS: dict[PartKind, str] = {"class": "priority {}", "length": "answers of {} tokens", "cluster": "cluster {}"}


def advice(found: Sequence[ObjectiveGain]) -> str:
    """Compare the objective in use with the others; empty where there is none to compare.

    >>> from store.http_api import Latency
    >>> now = Latency(mean_ttlt_s=4.0, p50_ttlt_s=1, p90_ttlt_s=9, p99_ttlt_s=30)
    >>> mean = Latency(mean_ttlt_s=2.0, p50_ttlt_s=1, p90_ttlt_s=9, p99_ttlt_s=33)
    >>> advice([ObjectiveGain(objective="balanced", in_use=True, latency=now, p99_ttft_s=1, max_ttlt_s=50),
    ...         ObjectiveGain(objective="mean", in_use=False, latency=mean, p99_ttft_s=1, max_ttlt_s=85)])
    'Objective `mean` would change the mean by −50%, P99 by +10% and the longest request by +70%.'
    """
    mine = next((one for one in found if one.in_use), None)
    others = [one for one in found if not one.in_use]
    if mine is None or not others:
        return ""
    best = min(others, key=lambda one: one.latency.mean_ttlt_s)
    if best.latency.mean_ttlt_s > (1.0 - WORTH) * mine.latency.mean_ttlt_s:
        return f"Objective `{mine.objective}`, the one in use, has the lowest mean or is within {WORTH:.0%} of it."
    mean, tail, longest = (
        ratio_change(new / old if old else None)
        for new, old in (
            (best.latency.mean_ttlt_s, mine.latency.mean_ttlt_s),
            (best.latency.p99_ttlt_s, mine.latency.p99_ttlt_s),
            (best.max_ttlt_s, mine.max_ttlt_s),
        )
    )
    return f"Objective `{best.objective}` would change the mean by {mean}, P99 by {tail} and the longest request by {longest}."


WORTH = 0.05
"""A mean that is less than this share lower is no reason to change the objective."""


def gain_method(gain: Gain) -> str:
    """Say exactly what the comparison is: how, from how many requests, and that only one of the three was measured."""
    return (
        f"Method: {plain(gain.method.rstrip('. '))}. From {count(gain.requests)} finished requests. "
        "Only *measured* really happened; both replays are modelled, and the distance of the replay of what was in force "
        "from *measured* shows how far to trust the other."
    )


def trust(found: Reproduction) -> str:
    """Say how well what happened is reproduced."""
    mean, tail = (None if error is None else 1.0 + error for error in (found.mean_ttlt_error, found.p99_ttlt_error))
    return (
        f"How far to trust it: the replay of what was really in force (mode {found.mode}) is off by {ratio_change(mean)} in "
        f"the mean TTLT, by {ratio_change(tail)} in its 99th percentile, and by {span(found.request_error_s)} for a single "
        "request."
    )


def ratio_change(ratio: float | None) -> str:
    """Write a ratio as the change that it is.

    >>> ratio_change(0.75), ratio_change(1.101), ratio_change(None)
    ('−25%', '+10%', '–')
    """
    if ratio is None or not known(ratio):
        return DASH
    per_cent = round(100 * (ratio - 1))
    return f"{per_cent:+d}%".replace("-", "−") if per_cent else "±0%"


def interval(ratio: Ratio) -> str:
    """Write the interval of a ratio as changes.

    >>> interval(Ratio(mean=0.75, low=0.7, high=0.81))
    '−30% to −19%'
    """
    return f"{ratio_change(ratio.low)} to {ratio_change(ratio.high)}"


def part_verdict(ratio: Ratio) -> Literal["gains", "loses", "undecided"]:
    """Say whether a part gains or loses, as far as its interval shows.

    >>> part_verdict(Ratio(mean=1.2, low=1.1, high=1.3)), part_verdict(Ratio(mean=1.2, low=0.9, high=1.3))
    ('loses', 'undecided')
    """
    return "gains" if ratio.high < 1.0 else "loses" if ratio.low > 1.0 else "undecided"


def tax_saved(fcfs: RecomputeTax, ours: RecomputeTax) -> str:
    """Write how many tokens fewer are computed twice.

    >>> before = RecomputeTax(preemptions=9, recomputed_tokens=5000, share=0.12)
    >>> after = RecomputeTax(preemptions=1, recomputed_tokens=800, share=0.004)
    >>> tax_saved(before, after), tax_change(before, after)
    ('4,200', '12% to 0.4% of all')
    """
    return count(fcfs.recomputed_tokens - ours.recomputed_tokens).replace("-", "−")


def tax_change(fcfs: RecomputeTax, ours: RecomputeTax) -> str:
    """Write the recompute tax before and after."""
    return f"{100 * fcfs.share:.2g}% to {100 * ours.share:.2g}% of all"
