"""A past for a controller: answers that ended before it is asked to predict, told as an engine would have told them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from controller.core.core import Core, CoreConfig
from controller.policy.policies import policy_named
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.request_progress import RequestProgress, ending
from online_learning.mixture.mixture import MixtureLearner
from store.history.writer import HistoryWriter
from store.records import Arrived, Facts, Finished, FirstToken, Goodbye, Hello

_CONNECTION = b"past"
PAST_SESSION_ID = "past"
TOKEN_S = 0.05
"""A plausible time per output token: the learner reads no times, people who look at the history do."""


def tell_past(core: Core, works: Sequence[TraceRequest], *, profile: Profile, model: str, now_s: float) -> None:
    """Let an engine of the past, which serves this model, report each of these works from arrival to end, in order.

    The works' arrival times are moved, so that the last answer ends at ``now_s``.
    What the core wants recorded is left in its entries, as with any engine.
    """
    last_s = max((work.arrival_s + TOKEN_S * _output_tokens(work, profile) for work in works), default=0.0)
    start_s = now_s - last_s
    core.take(_CONNECTION, past_hello(profile, model, start_s), start_s)
    for batch, work in enumerate(works, 1):
        arrival_s = start_s + work.arrival_s
        facts = past_facts(replace(work, arrival_s=arrival_s), profile)
        core.take(_CONNECTION, Facts(batch=batch, facts=facts, oldest=batch), now_s)
    core.take(_CONNECTION, Goodbye(time_s=now_s), now_s)


def write_past(
    store: Path, works: Sequence[TraceRequest], *, profile: Profile, model: str, clock: Callable[[], float]
) -> None:
    """Write the history that a controller would have after these works, with its predictions, into a fresh folder."""
    core = Core(
        learner=MixtureLearner(),
        policy=policy_named("sage"),
        config=CoreConfig(controller_id=PAST_SESSION_ID, mode="on", hash_key=b"past"),
        now_s=clock(),
        timer=lambda: 0.0,
    )
    with HistoryWriter(store, clock=clock) as writer:
        tell_past(core, works, profile=profile, model=model, now_s=clock())
        writer.append(core.drain_entries())


def past_facts(work: TraceRequest, profile: Profile) -> tuple[Arrived, FirstToken, Finished]:
    """What an engine reports of a work from its arrival to its end, served at once and at a steady pace."""
    account = RequestProgress(work)
    account.start(work.arrival_s)
    account.generate(work.arrival_s + TOKEN_S)
    account.output_tokens = _output_tokens(work, profile)
    finished_s = work.arrival_s + TOKEN_S * account.output_tokens
    reason = ending(work, account.output_tokens, profile)
    assert reason is not None, "an answer of the past has ended"
    return account.arrived(), account.first_token(), account.finished(finished_s, reason)


def past_hello(profile: Profile, model: str, now_s: float) -> Hello:
    """An engine that existed, serving this model."""
    return Hello(
        engine_id="past",
        session_id=PAST_SESSION_ID,
        model=model,
        engine="vllm",
        engine_version="",
        kv_blocks=profile.kv_blocks,
        block_size_tokens=profile.block_size_tokens,
        max_num_seqs=profile.max_num_seqs,
        token_budget=profile.token_budget,
        max_model_len_tokens=profile.max_model_len_tokens,
        prefix_caching=False,
        started_s=now_s,
    )


def _output_tokens(work: TraceRequest, profile: Profile) -> int:
    return min(work.true_output_tokens, work.max_tokens, profile.max_model_len_tokens - len(work.token_ids))
