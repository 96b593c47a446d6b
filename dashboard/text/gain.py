"""The comparison with first come, first served in words for people; nothing here knows Streamlit."""

from __future__ import annotations

from typing import Literal

from dashboard.text.words import Notice, plain
from store.formatting import DASH, count, known, span
from store.http_api import Gain, GainView, Ratio, RecomputeTax, Reproduction


def gain_notice(view: GainView) -> Notice:
    """Say why there is no comparison with first come, first served yet.

    >>> gain_notice(GainView(status="warming up", reason="too few requests")).title
    'Warming up'
    """
    title = "Warming up" if view.status == "warming up" else "No comparison available"
    return Notice("info", title, f"{plain(view.reason or 'No reason is given')}.")


def gain_verdict(gain: Gain, mode: str) -> Notice:
    """Say in one sentence what the order brings, or would bring, and how sure that is."""
    change = ratio_change(gain.ratio.mean)
    if mode in {"shadow", "off"}:
        title = "What `on` would bring"
        what = f"Mode `on` would change the mean time to last token by {change}"
    else:
        title = "What it brings"
        what = f"The mean time to last token is changed by {change} against first come, first served"
    verdict = part_verdict(gain.ratio)
    sure = {
        "gains": "and that is no chance: the whole 90% interval is a gain.",
        "loses": "and that is no chance: the whole 90% interval is a loss. Look below for whose.",
        "undecided": "but that may be chance: the 90% interval reaches to both sides.",
    }
    level: Literal["warning", "info"] = "warning" if verdict == "loses" else "info"
    return Notice(level, title, f"{what} ({interval(gain.ratio)}), {sure[verdict]}")


def gain_method(gain: Gain) -> str:
    """Say exactly what the comparison is: how, from how many requests, and that only one of the three was measured."""
    return (
        f"Method: {plain(gain.method.rstrip('. '))}. From {count(gain.requests)} finished requests. "
        "Only *measured* really happened; both replays are modelled, and how far the replay of the policy in use is "
        "from the measured shows how far to trust the other."
    )


def good_replay(found: Reproduction) -> str:
    """Say how well what happened is reproduced."""
    mean, tail = (None if error is None else 1.0 + error for error in (found.mean_ttlt_error, found.p99_ttlt_error))
    return (
        f"How far to trust it: the replay of what was really in force (mode {found.mode}) is off by {ratio_change(mean)} in "
        f"the mean TTLT, by {ratio_change(tail)} in its 99th percentile, and by {span(found.request_error_s)} for a single "
        "request."
    )


def poor_replay_notice(found: Reproduction) -> Notice:
    """Warn that what happened is reproduced badly."""
    text = f"{plain('; '.join(found.poor))}. Do not trust differences of that size."
    return Notice("warning", "The replay reproduces poorly what happened", text)


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
