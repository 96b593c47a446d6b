"""Synthetic histories: completed requests that a simulated engine reports to a controller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from controller.core.core import CoreConfig
from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.request_progress import RequestProgress, ending
from online_learning.mixture.mixture import MixtureLearner
from store.entries import Entry
from store.history.writer import HistoryWriter
from store.records import Arrived, Facts, Finished, FirstToken, Goodbye, Hello

SESSION_ID = "synthetic"
_CONNECTION = b"synthetic"
TOKEN_S = 0.05
"""Plausible seconds per output token in the history; the learner uses no times."""


def report_history(
    controller: InProcessController, requests: Sequence[TraceRequest], *, profile: Profile, model: str, now_s: float
) -> None:
    """Report each request from arrival to end to a controller, in order, as an engine that then disconnects.

    Arrival times are shifted, so that the last answer ends at ``now_s``.
    """
    last_s = max((request.arrival_s + TOKEN_S * _output_tokens(request, profile) for request in requests), default=0.0)
    start_s = now_s - last_s
    controller.handle(_CONNECTION, synthetic_hello(profile, model, start_s), start_s)
    for batch, request in enumerate(requests, 1):
        facts = synthetic_facts(replace(request, arrival_s=start_s + request.arrival_s), profile)
        controller.handle(_CONNECTION, Facts(batch=batch, facts=facts, oldest=batch), now_s)
    controller.handle(_CONNECTION, Goodbye(time_s=now_s), now_s)


def write_history(
    store: Path, requests: Sequence[TraceRequest], *, profile: Profile, model: str, clock: Callable[[], float]
) -> None:
    """Write the history of a controller that has served these requests into a fresh folder, with its predictions."""
    entries: list[Entry] = []
    config = CoreConfig(controller_id=SESSION_ID, mode="on", hash_key=b"synthetic")
    controller = InProcessController(
        MixtureLearner(), policy_named("sage"), config=config, now_s=clock(), on_entries=entries.extend
    )
    with HistoryWriter(store, clock=clock) as writer:
        report_history(controller, requests, profile=profile, model=model, now_s=clock())
        writer.append(entries)


def synthetic_facts(request: TraceRequest, profile: Profile) -> tuple[Arrived, FirstToken, Finished]:
    """The facts of a request from its arrival to its end, served at once and at a steady pace."""
    progress = RequestProgress(request)
    arrived = progress.arrived()
    progress.start(request.arrival_s)
    progress.generate(request.arrival_s + TOKEN_S)
    progress.output_tokens = _output_tokens(request, profile)
    finished_s = request.arrival_s + TOKEN_S * progress.output_tokens
    reason = ending(request, progress.output_tokens, profile)
    assert reason is not None, "the answer has ended"
    return arrived, progress.first_token(), progress.finished(finished_s, reason)


def synthetic_hello(profile: Profile, model: str, now_s: float) -> Hello:
    """The hello of an engine that serves this model."""
    return Hello(
        engine_id="synthetic",
        session_id=SESSION_ID,
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


def _output_tokens(request: TraceRequest, profile: Profile) -> int:
    return min(request.true_output_tokens, request.max_tokens, profile.max_model_len_tokens - len(request.token_ids))
