"""Numbers, states and troubles in words for people; nothing here knows Streamlit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dashboard.data.client import Trouble
from dashboard.data.sql_questions import QuestionTrouble
from store.formatting import DASH, count, span
from store.http_api import ControllerView, EngineView, LearnerView
from store.records import Settings, Victims

NO_ENGINE = "no engine"

MODES = {
    "on": "on: SageSched orders and admits",
    "shadow": "shadow: decides and records, changes nothing",
    "off": "off: first come, first served",
}


@dataclass(frozen=True)
class Notice:
    """Something the operator should know, and what to do about it."""

    level: Literal["error", "warning", "info"]
    title: str
    text: str
    """Markdown; whatever came from outside in it has been through `plain`."""


def plain(text: str) -> str:
    r"""Escape text from outside, so that Markdown shows it as it is and makes no links of addresses in it.

    >>> plain("[a](b) $x$ :red[c]")
    '\\[a\\]\\(b\\) \\$x\\$ \\:red\\[c\\]'
    """
    one_line = " ".join(text.split())
    escaped = re.sub(r"([\\`*_{}\[\]()<>#+\-.!|$:~&\"'=/@^])", r"\\\1", one_line)
    # Bare addresses become links in spite of backslashes; an invisible word joiner keeps them text.
    return re.sub(r"(?i)(https?\\:|www|\\@)", "\\1\u2060", escaped)


def code(text: str) -> str:
    """Set text from outside as code, which Markdown leaves alone and people can copy.

    >>> code("http://h"), code("a`b")
    ('`http://h`', '`` a`b ``')
    """
    one_line = " ".join(text.split()) or DASH
    longest = max((len(run) for run in re.findall("`+", one_line)), default=0)
    return f"`{one_line}`" if not longest else f"{'`' * (longest + 1)} {one_line} {'`' * (longest + 1)}"


_WHILE_DOWN = (
    "Engines serve first come, first served until it is back. Start it again with the command and the history that it "
    "had (`sagesched serve --store DIR`), or give the dashboard its address (`--api`). What is shown comes from the "
    "history; this page is live again by itself."
)


def trouble_notice(trouble: Trouble, api_url: str) -> Notice:
    """Say why the controller gives no answer and what to do.

    >>> trouble_notice(Trouble("down", "refused"), "http://127.0.0.1:8700").title
    'The controller does not answer'
    """
    where, detail = code(api_url), plain(trouble.detail)
    kinds = {
        "down": (
            "The controller does not answer",
            f"Nobody listens at {where}. {_WHILE_DOWN}",
        ),
        "slow": (
            "The controller is slow to answer",
            f"{detail}. It may be starting or its machine overloaded; this page keeps asking.",
        ),
        "refused": (
            "The controller refuses this dashboard",
            f"{detail}. Set `SAGESCHED_HTTP__TOKEN` for the dashboard to the controller's `http.token`, or `SAGESCHED_HTTP__READ_TOKEN` to its `http.read_token`.",
        ),
        "unknown": (
            "The controller does not know what was asked for",
            f"{detail}. It may be of another release: run controller and dashboard from the same one.",
        ),
        "unavailable": ("The controller cannot say now", f"{detail}. This page keeps asking."),
        "failed": ("The controller reports an error", f"{detail}. Its log says more."),
        "garbled": (
            "The controller's answer is not understood",
            f"{detail}. Run controller and dashboard from the same release, and check that {where} is a controller.",
        ),
    }
    title, text = kinds[trouble.kind]
    return Notice("error", title, text)


def nothing_chosen_notice() -> Notice:
    """Say that the filters leave nothing."""
    text = "Choose another engine or model in the bar at the side, or all of them."
    return Notice("info", "No engine is both connected and chosen", text)


def in_force(engines: Sequence[EngineView]) -> str:
    """Say in a few words what the engines do at this moment.

    >>> in_force([])
    'no engine'
    """
    modes = {engine.snapshot.mode for engine in engines if engine.connected and engine.snapshot}
    if not modes:
        return NO_ENGINE
    if any(engine.snapshot and engine.snapshot.fallback for engine in engines if engine.connected):
        return "fallback"
    return str(modes.pop()) if len(modes) == 1 else "mixed"


def scheduling(engines: Sequence[EngineView], controller: ControllerView) -> str:
    """Say in one line what orders the requests, and of how many engines; those that left in order are not missed."""
    known = [engine for engine in engines if engine.gone != "left"]
    connected = sum(engine.connected for engine in known)
    mode = in_force(known)
    if not connected:
        return f"Requested mode: {controller.mode} ({controller.policy}). No engine is connected."
    noun = "engine" if len(known) == 1 else "engines"
    whose = {"fallback": "first come, first served (fallback)", "mixed": "not the same on all engines"}.get(mode, mode)
    return f"Scheduling: {whose} ({controller.policy}). {connected} of {len(known)} {noun} connected."


def rules(settings: Settings) -> list[str]:
    """Say by which rules requests are admitted and preempted."""
    gate = settings.rules.gate
    # The margin is tuned for each engine; the controller's settings hold its initial value.
    admitted = (
        f"Admission holds room for each request to grow by its next {count(gate.horizon_tokens)} tokens."
        if gate is not None
        else "Admission is the engine's own."
    )
    victims: dict[Victims, str] = {
        "last": "When KV memory runs out, the last request in the order is preempted.",
        "cheapest": "When KV memory runs out, the request that is cheapest to recompute is preempted.",
        "later": "When KV memory runs out, the last request in the order is preempted, but never the one that arrived first.",
    }
    return [admitted, victims[settings.rules.victims]]


def peak_error_sentence(ahead_s: float, error: float | None) -> str:
    """Say how the predicted peak of KV memory compares with the actual one.

    >>> peak_error_sentence(30.0, 0.041)
    'The peak of KV memory predicted 30 s ahead was on average 4% above the actual one.'
    """
    if error is None:
        return ""
    above = "as high as" if abs(error) < 0.005 else f"{abs(error):.0%} {'above' if error > 0 else 'below'}"
    return f"The peak of KV memory predicted {span(ahead_s)} ahead was on average {above} the actual one."


def step_bounds(step_tokens: Sequence[int], chunk_tokens: Sequence[int]) -> str:
    """Say how far steps are held below the engines' own bounds; empty where none is.

    Args:
        step_tokens: The bound on a step of each engine that has one below its own.
        chunk_tokens: The bound on one prompt's part of a step, likewise.

    >>> step_bounds([2048], [512, 256])
    'Just now a step computes at most 2,048 tokens, and of one prompt at most 256, so that short prompts get through beside long ones.'
    >>> step_bounds([], [])
    ''
    """
    bounds = []
    if step_tokens:
        bounds.append(f"a step computes at most {count(min(step_tokens))} tokens")
    if chunk_tokens:
        bounds.append(f"{'' if bounds else 'a step computes '}of one prompt at most {count(min(chunk_tokens))}")
    if not bounds:
        return ""
    tokens = "" if step_tokens else " tokens"
    return f"Just now {', and '.join(bounds)}{tokens}, so that short prompts get through beside long ones."


def no_prediction_notice(learner: LearnerView) -> Notice | None:
    """Say what is missing before predictions can be compared with outcomes; None when nothing is."""
    if not learner.predictions:
        text = "The first request that an engine reports brings the first one."
        return Notice("info", "No predictions yet", text)
    if not learner.completions:
        text = f"{count(learner.predictions)} predictions are made, but no request has finished since."
        return Notice("info", "No outcomes yet", text)
    return None


def mode_consequence(mode: str) -> str:
    """Say what a mode does, for the one who confirms it."""
    return {
        "on": "I want SageSched to order and admit the requests of all engines.",
        "shadow": "I want all engines to go back to first come, first served, while SageSched decides and records.",
        "off": "I want all engines to go back to first come, first served.",
    }[mode]


def no_store_notice() -> Notice:
    """Say that nobody named the folder of the history."""
    text = "Set `SAGESCHED_STORE__PATH` or `--store` for the dashboard, or start the controller, which knows it."
    return Notice("info", "No history is known", text)


def archive_notice(kind: Literal["absent", "unreadable"], detail: str) -> Notice:
    """Say why the history cannot be shown."""
    if kind == "absent":
        return Notice("info", "No history yet", f"{plain(detail)}.")
    return Notice("error", "The history cannot be read", f"{plain(detail)}. This page keeps trying.")


def question_notice(trouble: QuestionTrouble) -> Notice:
    """Say why a statement has no answer.

    >>> question_notice(QuestionTrouble("statement", "UPDATE statements are not allowed")).title
    'The statement was refused'
    """
    if trouble.kind == "history":
        return archive_notice("absent", trouble.detail)
    said = trouble.detail[:1].upper() + trouble.detail[1:]
    wrong = trouble.detail.startswith("query")
    return Notice("error", "The statement could not be answered" if wrong else "The statement was refused", plain(said))


def answer_size(rows: int, took_s: float, *, truncated: bool) -> str:
    """Say how many rows an answer has.

    >>> answer_size(1, 0.5, truncated=False), answer_size(10, 2.0, truncated=True)
    ('1 row in 500 ms.', 'The first 10 rows, in 2 s; there are more.')
    """
    number = f"{count(rows)} row" if rows == 1 else f"{count(rows)} rows"
    return f"The first {number}, in {span(took_s)}; there are more." if truncated else f"{number} in {span(took_s)}."


def nothing_ended_notice(ago_s: float, moment: str) -> Notice:
    """Say that no request ended in the range, and when the last one before did.

    >>> nothing_ended_notice(7200.0, "2026-01-01 00:00:00").text
    'The last one ended 2 h ago, at 2026-01-01 00:00:00.'
    """
    return Notice("info", "No request finished in this range", f"The last one ended {ago(ago_s)}, at {moment}.")


def ago(seconds: float) -> str:
    """Write how long something is past, in days where hours would be many.

    >>> ago(90.0), ago(3 * 86_400.0), ago(86_400.0 * 1.2)
    ('1 min 30 s ago', '3 days ago', '28 h 48 min ago')
    """
    days = int(seconds // 86_400)
    return f"{days} days ago" if days >= 2 else f"{span(max(0.0, seconds))} ago"


def empty_store_notice() -> Notice:
    """Say that the history holds no finished request."""
    return Notice(
        "info", "No finished request is recorded yet", "Charts appear with the first one, a few seconds late."
    )


def no_clusters_notice() -> Notice:
    """Say that there are no prompt clusters to show."""
    text = "Clusters are formed after the first few hundred prompts; then answers are counted by them."
    return Notice("info", "No answer of any prompt cluster in this range", text)


def no_request_notice() -> Notice:
    """Say how to choose a request."""
    text = (
        "Enter a request id above, or choose a request below. On *Now*, too, a row of the queue opens its request here."
    )
    return Notice("info", "No request is chosen", text)


def unknown_request_notice(request_id: str) -> Notice:
    """Say that nobody knows the request."""
    text = (
        f"Neither the last minutes nor the history have {code(request_id)}. "
        "It may be older than the history's retention, or its id may be longer: "
        "vLLM puts a prefix and a suffix around a client's request id."
    )
    return Notice("warning", "This request is not known", text)


def facts_only_notice(trouble: Notice) -> Notice:
    """Say that the controller, which words the explanation, cannot be asked."""
    text = f"{trouble.text} What follows is drawn from the history; `sagesched explain` words it without a controller."
    return Notice("warning", trouble.title, text)


def engine_gone_notice(engine_id: str) -> Notice:
    """Say that the engine of an unfinished request is not connected."""
    text = (
        f"Engine {plain(engine_id)} is not connected, and this request had not ended when it last reported. "
        "If the engine comes back with it, this page goes on by itself."
    )
    return Notice("warning", "Its engine is gone", text)
