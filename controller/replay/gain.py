"""The gain of the order: the latest completed requests replayed first come, first served, and under our policy.

Both replays run on the simulated engine with this engine's sizes and measured step times, so that they differ only in
the order. The measured figures are reported too, and compared with the replay of the order that was in force, which
shows how far replays can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import structs

from controller.policy.baselines import PRIORITY, BenchContext, bench_policy
from controller.policy.policies import EngineOrder, Objective, Schedule, as_tuned
from controller.policy.policy import Policy
from controller.replay.fidelity import fit_of, ratio_of
from controller.replay.gain_parts import attained, parts_of, per_request_of, tax_of
from controller.replay.recorded_run import RecordedRun, Replayable
from controller.replay.replay import counted_requests
from controller.replay.replay_engine import replay_under
from engine_adapter.virtual_time.engine import CompletedRequest
from online_learning.distribution import FloatArray
from store.http_api import Gain, Latency, ObjectiveGain, Reproduction
from store.records import EngineRules, Mode
from store.service_levels import NOT_CONFIGURED

FEWEST_REQUESTS = 20
"""Smallest number of requests for a comparison."""

METHOD = (
    "Replay, not measurement: {requests} finished requests ({predicted} with the prediction recorded when they arrived) "
    "and {beside} that were in the engine beside them, "
    "through the simulated engine with this engine's KV cache and limits and its measured step time "
    "({base_ms:.1f} ms + {prefill_us:.0f} us per prefill token + {decode_us:.0f} us per decoding sequence "
    "+ {kv_ns:.0f} ns per KV token), once first come, first served and once under policy {policy}. "
    "Both begin with the queue and the running requests of the first moment and find no cached prefixes; "
    "requests that had not finished run for their expected length, and count with their time until the last end on record."
)


def estimate_gain(run: RecordedRun, policy: Policy, others: Mapping[Objective, Policy] | None = None) -> Gain | None:
    """Replay a run under both orders, which takes seconds of CPU time.

    Args:
        run: the latest requests of an engine.
        policy: the configured one.
        others: the same policy with each of its objectives, the configured one included; None compares none.

    Returns None if there are too few requests, or if none has a recorded prediction.
    """
    past = Replayable.of(run).seen_to_its_end()
    if len(past.counted) < FEWEST_REQUESTS or not past.predictions:
        return None
    actual = past.recorded
    fcfs = counted_requests(past, replay_under(past, EngineOrder()))
    ours = counted_requests(past, replay_under(past, as_tuned(policy, run.rules))) if policy.orders else fcfs
    in_force = ours if run.mode == "on" else fcfs
    orders = {"actual": actual, "fcfs": fcfs, "priority": _by_priority(past, fcfs), "modelled": ours}
    levels = [request.level for request in past.counted.values()]
    objectives = {
        name: ours
        if other == policy
        else counted_requests(past, replay_under(past, as_tuned(other, _rules_of(other, policy, run.rules))))
        for name, other in (others or {}).items()
    }
    return Gain(
        requests=len(actual),
        fcfs=_latency(fcfs),
        modelled=_latency(ours),
        actual=_latency(actual),
        ratio=ratio_of(_ttlt_s(ours), _ttlt_s(fcfs)),
        reproduction=_reproduction(run.mode, actual, in_force),
        parts=parts_of(past.counted, fcfs, ours),
        fcfs_tax=tax_of(fcfs),
        tax=tax_of(ours),
        per_request=per_request_of(fcfs, ours),
        objectives=tuple(_objective(name, done, in_use=done is ours) for name, done in objectives.items()),
        service=tuple(attained(levels, orders)),
        assumed_targets=sum(level.service_class == NOT_CONFIGURED for level in levels),
        method=_method(past, policy),
    )


def _objective(name: Objective, requests: Sequence[CompletedRequest], *, in_use: bool) -> ObjectiveGain:
    return ObjectiveGain(
        objective=name,
        in_use=in_use,
        latency=_latency(requests),
        p99_ttft_s=float(np.percentile([request.ttft_s for request in requests], 99)),
        max_ttlt_s=max(request.ttlt_s for request in requests),
    )


def _rules_of(other: Policy, policy: Policy, rules: EngineRules | None) -> EngineRules | None:
    """The rules to which an engine under ``policy`` was adapted, as they would be under ``other``: each has a boost by its own scale."""
    scale, own = (None if one.tuning is None else one.tuning.boost_scale for one in (other, policy))
    if rules is None or rules.boost_per_s is None or not scale or not own:
        return rules
    return structs.replace(rules, boost_per_s=rules.boost_per_s * scale / own)


def _by_priority(past: Replayable, fcfs: list[CompletedRequest]) -> list[CompletedRequest]:
    """The requests in vLLM's own order by priority; the same as without where all have one priority."""
    if len({request.priority for request in past.requests}) < 2:
        return fcfs
    policy = bench_policy(PRIORITY, BenchContext(schedule=Schedule(), lengths={}))
    return counted_requests(past, replay_under(past, policy))


def _reproduction(
    mode: Mode, recorded: Sequence[CompletedRequest], replayed: Sequence[CompletedRequest]
) -> Reproduction:
    fit = fit_of(recorded, replayed)
    return Reproduction(
        mode=mode,
        mean_ttlt_error=fit.mean_ttlt.error,
        p99_ttlt_error=fit.p99_ttlt.error,
        request_error_s=fit.request_error_s,
        poor=fit.poor,
    )


def _method(past: Replayable, policy: Policy) -> str:
    model = past.step_model
    return METHOD.format(
        requests=len(past.counted),
        predicted=sum(request_id in past.predictions for request_id in past.counted),
        beside=len(past.requests) - len(past.counted),
        base_ms=1e3 * model.base_s,
        prefill_us=1e6 * model.prefill_token_s,
        decode_us=1e6 * model.decode_seq_s,
        kv_ns=1e9 * model.kv_token_s,
        policy=policy.name,
    )


def _ttlt_s(requests: Sequence[CompletedRequest]) -> FloatArray:
    return np.array([request.ttlt_s for request in requests])


def _latency(requests: Sequence[CompletedRequest]) -> Latency:
    ttlt_s = _ttlt_s(requests)
    p50, p90, p99 = np.percentile(ttlt_s, (50, 90, 99)).tolist()
    return Latency(mean_ttlt_s=float(ttlt_s.mean()), p50_ttlt_s=p50, p90_ttlt_s=p90, p99_ttlt_s=p99)
