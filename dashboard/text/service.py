"""Service levels in words for people; nothing here knows Streamlit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dashboard.text.words import Notice, plain
from store.formatting import DASH, count, percent, span
from store.http_service import ClassAttainment, Misses, ServiceView, TargetAttainment
from store.service_levels import CAUSES, DEFAULT_TARGETS, MEANINGS, Cause, Target, targets_in_words

TARGET_NAMES: dict[Target, str] = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}

_CONFIGURE = (
    "Name targets of your own in tables `[classes.NAME]` of the configuration: their requests are ordered by them."
)


def verdict(found: ServiceView) -> Notice:
    """Say which class misses its objective, the worst first, or that all are well."""
    promised = [one for one in found.classes if one.configured and one.judged]
    missing = sorted((one for one in promised if not one.keeps), key=lambda one: -(one.burn_rate or 0.0))
    if missing:
        names = " and ".join(plain(one.name) for one in missing)
        title = f"{names} {'misses its objective' if len(missing) == 1 else 'miss their objectives'}"
        return Notice("warning", title, " ".join(_shortfall(one, found.misses) for one in missing))
    if promised:
        worst = max(promised, key=lambda one: one.burn_rate or 0.0)
        text = f"The closest is {plain(worst.name)}: {_attained(worst)}, {_budget(worst)}."
        return Notice("info", "Every class keeps its objective", text)
    assumed = next((one for one in found.classes if one.judged), None)
    if assumed is None:
        text = "No request that ended in this range had a target and counts: all were aborted before their first token, or asked for nothing."
        return Notice("info", "Nothing to judge yet", text)
    text = (
        f"Requests are judged by the targets that are assumed until then ({targets_in_words(DEFAULT_TARGETS)}): {_attained(assumed)}. "
        f"{_most_frequent(found.misses, assumed.name)}{_CONFIGURE}"
    )
    return Notice("info", "No service class is configured", text)


def class_targets(found: Sequence[TargetAttainment]) -> str:
    """Write the targets of a class in one line; a range where requests had several.

    >>> class_targets([TargetAttainment(target="ttft", shortest_s=1.0, longest_s=2.0, judged=2, met=1)])
    'TTFT 1 s to 2 s'
    """
    return ", ".join(_target(one) for one in found) or "none"


def budget(found: ClassAttainment) -> str:
    """Write what is left of the error budget.

    >>> few = ClassAttainment(name="a", objective=0.9, requests=9, judged=100, met=70, recent_judged=0, recent_met=0)
    >>> budget(few)
    '3× spent'
    """
    left = found.budget_left
    if left is None or found.burn_rate is None:
        return DASH
    return percent(left) if left >= 0.0 else f"{found.burn_rate:.2g}× spent"


def rate(value: float | None) -> str:
    """Write a burn rate.

    >>> rate(0.0), rate(1.25), rate(None)
    ('0', '1.2', '–')
    """
    return DASH if value is None else f"{value:.2g}"


def _target(one: TargetAttainment) -> str:
    longest = "" if one.shortest_s == one.longest_s else f" to {span(one.longest_s)}"
    return f"{TARGET_NAMES[one.target]} {span(one.shortest_s)}{longest}"


def _attained(one: ClassAttainment) -> str:
    objective = f" (objective {percent(one.objective)})" if one.configured else ""
    return f"{percent(one.attainment)} of {count(one.judged)} requests met all their targets{objective}"


def _budget(one: ClassAttainment) -> str:
    left = one.budget_left
    return f"{percent(left)} of the error budget is left" if left is not None else "nothing is judged"


def _shortfall(one: ClassAttainment, misses: Sequence[Misses]) -> str:
    now = one.recent_burn_rate
    lately = "" if now is None else f", and lately {rate(now)} times as many as allowed miss"
    return f"{plain(one.name)}: {_attained(one)}; its error budget is spent {rate(one.burn_rate)} times{lately}. {_most_frequent(misses, one.name)}"


def _most_frequent(misses: Sequence[Misses], service_class: str) -> str:
    causes: Counter[Cause] = Counter()
    for miss in misses:
        if miss.service_class == service_class:
            causes[miss.cause] += miss.requests
    if not causes:
        return ""
    cause, number = causes.most_common(1)[0]
    return f"Most often ({percent(number / causes.total())} of the misses): {CAUSES[cause]}, {MEANINGS[cause]}. "
