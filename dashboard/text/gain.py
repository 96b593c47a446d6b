"""The comparison with first come, first served in words for people; nothing here knows Streamlit."""

from __future__ import annotations

from typing import Literal

from dashboard.text.words import Notice, plain
from store.formatting import DASH, count, known, span
from store.http_api import GainView, LatencyView, RatioView, ReproductionView, TaxView


def gain_notice(gain: GainView) -> Notice:
    """Say why there is no comparison with first come, first served yet."""
    method = plain(gain.method or "")
    if gain.status == "warming up":
        text = f"The comparison needs more finished requests ({count(gain.requests)} so far). {method}"
        return Notice("info", "Warming up", text)
    return Notice("info", "No comparison available", method or "The controller offers none in this mode.")


def gain_verdict(gain: GainView, mode: str) -> Notice:
    """Say in one sentence what the order brings, or would bring, and how sure that is."""
    verdict = part_verdict(gain.ratio) if gain.ratio else DASH
    change_ = change(gain.fcfs, gain.modelled)
    if mode in {"shadow", "off"}:
        what = f"Mode `on` would change the mean time to last token by {change_}"
    else:
        what = f"The mean time to last token is changed by {change_} against first come, first served"
    sure = {
        "gains": "and that is no chance: the whole 90 % interval is a gain.",
        "loses": "and that is no chance: the whole 90 % interval is a loss. Look below for whose.",
        "undecided": "but that may be chance: the 90 % interval reaches to both sides.",
    }
    level: dict[str, Literal["error", "warning", "info"]] = {"loses": "warning"}
    text = (
        f"{what} ({interval(gain.ratio)}), {sure[verdict]}"
        if verdict in sure
        else f"{what}; how sure that is, is not known."
    )
    title = "What `on` would bring" if mode in {"shadow", "off"} else "What it brings"
    return Notice(level.get(verdict, "info"), title, text)


def gain_method(gain: GainView) -> str:
    """Say exactly what the comparison is: how, from how many requests, and that only one of the three was measured."""
    return (
        f"Method: {plain((gain.method or 'not stated').rstrip('. '))}. From {count(gain.requests)} finished requests. "
        "Only *measured* really happened; both replays are modelled, and how far the replay of the policy in use is "
        "from the measured tells how far to trust the other."
    )


def good_replay(found: ReproductionView) -> str:
    """Say how well what happened is reproduced."""
    mean = ratio_change(None if found.mean_ttlt_error is None else 1 + found.mean_ttlt_error)
    tail = ratio_change(None if found.p99_ttlt_error is None else 1 + found.p99_ttlt_error)
    return (
        f"How far to trust it: the replay of what was really in force (mode {plain(found.mode or DASH)}) is off by {mean} in the "
        f"mean TTLT, by {tail} in its 99th percentile, and by {span(found.request_error_s)} for a single request."
    )


def poor_replay_notice(found: ReproductionView) -> Notice:
    """Warn that what happened is reproduced badly."""
    text = f"{plain('; '.join(found.poor))}. Do not trust differences of that size."
    return Notice("warning", "The replay reproduces poorly what happened", text)


def change(before: LatencyView | None, after: LatencyView | None) -> str:
    """Write the change of the mean TTLT in per cent of what it was before.

    >>> change(LatencyView(mean_ttlt_s=10.0), LatencyView(mean_ttlt_s=7.5))
    '−25 %'
    """
    old = before.mean_ttlt_s if before else None
    new = after.mean_ttlt_s if after else None
    if not old or new is None:
        return DASH
    per_cent = round(100 * (new / old - 1))
    return f"{per_cent:+d} %".replace("-", "−") if per_cent else "±0 %"


def ratio_change(ratio: float | None) -> str:
    """Write a ratio as the change that it is.

    >>> ratio_change(0.75), ratio_change(1.101), ratio_change(None)
    ('−25 %', '+10 %', '–')
    """
    if ratio is None or not known(ratio):
        return DASH
    per_cent = round(100 * (ratio - 1))
    return f"{per_cent:+d} %".replace("-", "−") if per_cent else "±0 %"


def interval(ratio: RatioView | None) -> str:
    """Write the interval of a ratio as changes.

    >>> interval(RatioView(mean=0.75, low=0.7, high=0.81))
    '−30 % to −19 %'
    """
    if ratio is None or ratio.low is None or ratio.high is None:
        return DASH
    return f"{ratio_change(ratio.low)} to {ratio_change(ratio.high)}"


def part_verdict(ratio: RatioView) -> str:
    """Say whether a part gains or loses, as far as its interval tells.

    >>> part_verdict(RatioView(mean=1.2, low=1.1, high=1.3)), part_verdict(RatioView(mean=1.2, low=0.9, high=1.3))
    ('loses', 'undecided')
    """
    if ratio.low is None or ratio.high is None:
        return DASH
    return "gains" if ratio.high < 1.0 else "loses" if ratio.low > 1.0 else "undecided"


def tax_saved(fcfs: TaxView | None, ours: TaxView | None) -> str:
    """Write how many tokens fewer are computed twice.

    >>> tax_saved(TaxView(recomputed_tokens=5000), TaxView(recomputed_tokens=800))
    '4,200'
    """
    before = fcfs.recomputed_tokens if fcfs else None
    after = ours.recomputed_tokens if ours else None
    return DASH if before is None or after is None else count(before - after).replace("-", "−")


def tax_change(fcfs: TaxView | None, ours: TaxView | None) -> str:
    """Write the recompute tax before and after.

    >>> tax_change(TaxView(share=0.12), TaxView(share=0.004))
    '12 % to 0.4 % of all'
    """
    before, after = (None if tax is None or tax.share is None else f"{100 * tax.share:.2g} %" for tax in (fcfs, ours))
    return DASH if before is None or after is None else f"{before} to {after} of all"
