"""Explains one request in plain sentences: what was expected of it, why it ran when it did, and how it ended.

`explain` is pure: it turns recorded facts into sentences and invents none that is not on record.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.explain import queue_sentences, service_sentences
from controller.explain.formatting import clock, count, listed
from controller.explain.wait_causes import first_wait_s, overtakers, waits
from store.formatting import percent, span
from store.http_requests import Explanation, Predicted, RequestTimeline, Sentence, Topic

WEIGHTS_NAMED = 4
"""Experts that are named with their weights."""


def explain(timeline: RequestTimeline) -> Explanation:
    """Explain the facts of a timeline in sentences."""
    passed, waited = overtakers(timeline), waits(timeline, *first_wait_s(timeline))
    parts: tuple[tuple[Topic, Iterator[str]], ...] = (
        ("arrival", _arrival(timeline)),
        ("prediction", _prediction(timeline)),
        ("index", _index(timeline)),
        ("queue", queue_sentences.queue(timeline, passed)),
        ("wait", queue_sentences.wait(timeline, waited)),
        ("preemptions", queue_sentences.preemptions(timeline)),
        ("mode", queue_sentences.modes(timeline)),
        ("end", _end(timeline)),
        ("outcome", _outcome(timeline)),
        ("service", service_sentences.service(timeline)),
    )
    return Explanation(
        request_id=timeline.request_id,
        engine_id=timeline.engine_id,
        session_id=timeline.session_id,
        state=timeline.state,
        known_until_s=timeline.known_until_s,
        sentences=tuple(Sentence(about=about, text=text) for about, texts in parts for text in texts),
        overtakers=passed,
        waits=waited,
    )


def _arrival(timeline: RequestTimeline) -> Iterator[str]:
    model = f", which serves {timeline.model}" if timeline.model else ""
    yield (
        f"It arrived at {clock(timeline.arrival_s)} at engine {timeline.engine_id}{model}, with a prompt of "
        f"{count(timeline.prompt_tokens)} tokens and max_tokens {count(timeline.max_tokens)}."
    )
    if timeline.priority is None:
        yield "The message of its arrival was lost; these facts come from the message of its end."
    about = [f"priority {timeline.priority}"] if timeline.priority else []
    about += [f"tenant {timeline.tenant}"] if timeline.tenant else []
    about += [f"LoRA adapter {timeline.lora}"] if timeline.lora else []
    if about:
        yield f"It came with {listed(about)}."
    if timeline.other_sessions:
        yield f"{count(timeline.other_sessions)} other session(s) of engines had a request of this name; this is the latest."


def _prediction(timeline: RequestTimeline) -> Iterator[str]:
    predicted = timeline.predicted
    if predicted is None:
        yield "No prediction of its length is on record, so it stood in the queue with the prior's index."
        return
    yield (
        f"Its answer was expected to take {count(predicted.mean_tokens)} tokens: at most {count(predicted.p50_tokens)} in half "
        f"of such cases, between {count(predicted.p10_tokens)} and {count(predicted.p90_tokens)} in eight of ten, and more than "
        f"{count(predicted.p99_tokens)} in one of a hundred."
    )
    if predicted.experts == {"prior": 1.0}:
        yield (
            "That is what was known of any answer of the model: "
            "forecasts for prompts like this one were not trusted at that time."
        )
        return
    cluster = (
        "no prompt cluster was known for it" if predicted.cluster is None else f"it is of cluster {predicted.cluster}"
    )
    yield f"This rests on about {count(predicted.evidence)} past answers; {cluster}{_experts(predicted)}."
    for shift in timeline.shifts:
        yield (
            f"{span(shift.time_s - timeline.arrival_s)} after its arrival the answers of its cluster were found to have moved, "
            f"from {count(shift.before_mean_tokens)} to {count(shift.after_mean_tokens)} tokens in the mean."
        )


def _experts(predicted: Predicted) -> str:
    heaviest = sorted(predicted.experts.items(), key=lambda item: -item[1])[:WEIGHTS_NAMED]
    named = [f"{name} {percent(weight)}" for name, weight in heaviest if weight >= 0.005]
    return f", and the experts counted for {listed(named)}" if named else ""


def _index(timeline: RequestTimeline) -> Iterator[str]:
    if not timeline.choices:
        yield "No index table was decided for it."
        return
    first = timeline.choices[0]
    yield (
        f"Policy {first.policy} put its cost at {span(first.cost_s)} of the engine's time "
        f"and gave it an index of {first.index_s:.3g} s, where lower runs first."
    )
    steps = list(zip(first.table_index_s, first.attained_tokens, strict=True))
    lowest, highest = min(steps), max(steps)
    if len(steps) > 1 and highest[0] > 1.05 * lowest[0]:
        yield (
            f"With growing output the index was to lie between {lowest[0]:.3g} s (from {count(lowest[1])} tokens on) "
            f"and {highest[0]:.3g} s (from {count(highest[1])} tokens on)."
        )
    renewed = [choice for choice in timeline.choices[1:] if choice.reason == "prediction"]
    if renewed:
        yield (
            f"Its length was predicted again {_times(len(renewed))} while it was unfinished; "
            f"the last index that was decided is {renewed[-1].index_s:.3g} s."
        )
    resent = sum(choice.reason == "resent" for choice in timeline.choices)
    if resent:
        yield f"Its table was sent again {_times(resent)}, after controller and engine had lost each other."


def _end(timeline: RequestTimeline) -> Iterator[str]:
    if timeline.finished_s is None:
        yield _so_far(timeline)
        return
    ttlt_s = timeline.finished_s - timeline.arrival_s
    parts = []
    if timeline.first_token_s is not None:
        parts.append(f"the first token {span(timeline.first_token_s - timeline.arrival_s)} after its arrival")
        if (timeline.output_tokens or 0) > 1:
            tpot_s = (timeline.finished_s - timeline.first_token_s) / ((timeline.output_tokens or 0) - 1)
            parts.append(f"then {span(tpot_s)} for each further one")
    how = {
        "stop": "the model ended its answer",
        "length": "its answer reached the limit on its length",
        "abort": "it was shed" if timeline.shed else "its client went away",
        "error": "it failed",
    }[timeline.reason or "error"]
    detail = f": {listed(parts)}" if parts else ""
    yield f"It ended {span(ttlt_s)} after its arrival, because {how}, with {count(timeline.output_tokens)} output tokens{detail}."
    if timeline.cached_prompt_tokens:
        yield f"The prefix cache spared it {count(timeline.cached_prompt_tokens)} tokens of its prompt."


def _so_far(timeline: RequestTimeline) -> str:
    age = span(timeline.until_s - timeline.arrival_s)
    if timeline.state != "running":
        again = " for a place again" if timeline.losses else ""
        return f"It has not ended; when its engine last reported it, {age} after its arrival, it was waiting{again}."
    attained = timeline.moments[-1].attained_tokens
    return f"It has not ended; when its engine last reported it, {age} after its arrival, it was running and had {count(attained)} output tokens."


def _outcome(timeline: RequestTimeline) -> Iterator[str]:
    predicted, scored = timeline.predicted, timeline.scored
    if predicted is None or timeline.output_tokens is None or timeline.finished_s is None:
        return
    yield _place(predicted, timeline.output_tokens, cut=timeline.reason != "stop")
    if scored is not None:
        fifty = "inside" if scored.within_50 else "outside"
        ninety = "inside" if scored.within_90 else "outside"
        latest = "the last prediction" if len(timeline.choices) > 1 else "that prediction"
        yield (
            f"Judged by {latest} it came at {percent(scored.pit)} of the distribution, {fifty} the middle half and "
            f"{ninety} the middle nine tenths; the CRPS is {count(scored.crps_tokens)} tokens."
        )


def _place(predicted: Predicted, output_tokens: int, *, cut: bool) -> str:
    """Where the length lies among the quantiles predicted at the arrival."""
    below = [probability for probability, tokens in predicted.quantiles if tokens < output_tokens]
    above = [probability for probability, tokens in predicted.quantiles if tokens >= output_tokens]
    if cut:
        seen = f"at least as long as {percent(below[-1])}" if below else "not longer than the shortest tenth"
        return f"It was cut, so its whole length is not known; up to there it was {seen} of such answers were expected to be."
    if not below:
        return f"That is among the shortest {percent(above[0])} of what was expected on arrival."
    if not above:
        return f"That is among the longest {percent(1.0 - below[-1])} of what was expected on arrival."
    return f"That lies between the {percent(below[-1])} and the {percent(above[0])} quantile predicted on arrival."


def _times(number: int) -> str:
    return "once" if number == 1 else f"{count(number)} times"
