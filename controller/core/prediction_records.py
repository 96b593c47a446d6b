"""A request as policy and learner see it, and what the history keeps of predictions and of how they turned out."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from controller.core.sessions import ServedRequest
from controller.policy.policy import RequestFacts
from controller.policy.service_levels import Promise
from online_learning.calibration.calibration import Judgement, Measurement
from online_learning.length_learner import AtRisk, Observation, Prompt
from store.entries import CalibrationMeasured, Outcome, Prediction
from store.records import Arrived, Finished

RECORDED_PERCENTILES = (10, 25, 50, 75, 90, 95, 99)
_RECORDED = tuple(f"p{percent}_tokens" for percent in RECORDED_PERCENTILES)
_PROBABILITIES = tuple(percent / 100 for percent in RECORDED_PERCENTILES)


class NewRequest(NamedTuple):
    """A request that was predicted for the first time, its record, and what it is weighed against if it runs already."""

    request: ServedRequest
    record: Prediction
    at_risk: AtRisk | None


def facts_of(arrived: Arrived, cached_tokens: int, promise: Promise) -> RequestFacts:
    """What the policy knows of a request; of its prompt ``cached_tokens`` are expected in the engine's prefix cache."""
    return RequestFacts(
        request_id=arrived.request_id,
        prompt_tokens=arrived.prompt_tokens,
        max_tokens=arrived.max_tokens,
        cached_tokens=cached_tokens,
        targets=promise.targets,
        account=promise.account,
        weight=promise.weight,
    )


def prompt_of(arrived: Arrived, model: str) -> Prompt:
    """What the learner knows of a request."""
    return Prompt(
        token_ids=np.frombuffer(arrived.token_ids, dtype="<u4"),
        prompt_tokens=arrived.prompt_tokens,
        max_tokens=arrived.max_tokens,
        temperature=arrived.temperature,
        model=model,
        tenant=arrived.tenant,
        lora=arrived.lora,
        session=arrived.session,
        expected_output_tokens=arrived.expected_output_tokens,
    )


def prediction_record(request: ServedRequest, hash_key: bytes, predict_s: float, now_s: float) -> Prediction:
    """The record of a prediction that took ``predict_s`` seconds; ``hash_key`` keys the hash of the prompt."""
    predicted, arrived = request.predicted, request.arrived
    quantiles = dict(zip(_RECORDED, predicted.quantiles(_PROBABILITIES), strict=True))
    return Prediction(
        request_id=arrived.request_id,
        time_s=now_s,
        cluster=request.forecast.cluster,
        features=request.features.tobytes(),
        prompt_hash=hashlib.blake2b(arrived.token_ids, key=hash_key, digest_size=16).hexdigest(),
        mean_tokens=predicted.mean_tokens,
        evidence=request.forecast.evidence,
        experts=request.forecast.experts if request.trusted else {"prior": 1.0},
        predict_s=predict_s,
        **quantiles,
    )


def outcome_record(
    finished: Finished,
    observation: Observation,
    cluster: int | None,
    judgement: Judgement,
    *,
    answer: int,
    service_s: float,
) -> Outcome:
    """The record of an answer against what was served; ``answer`` is its number, ``service_s`` what it used."""
    served, surprises = judgement.served, observation.surprises
    return Outcome(
        request_id=finished.request_id,
        time_s=finished.time_s,
        output_tokens=finished.output_tokens,
        censored=observation.censored,
        cluster=cluster,
        pit=served.pit,
        crps_tokens=served.crps_tokens,
        log_score=served.log_score,
        within_50=served.within_50,
        within_90=served.within_90,
        answer=answer,
        model_surprise=surprises[0] if surprises else None,
        cluster_surprise=surprises[1] if surprises else None,
        service_s=service_s,
    )


def calibration_record(measurement: Measurement, now_s: float) -> CalibrationMeasured:
    """The record of a measurement."""
    scope = measurement.scope
    return CalibrationMeasured(
        time_s=now_s,
        model=scope.model,
        scope=scope.kind,
        cluster=scope.cluster,
        answers=measurement.answers,
        censored=measurement.censored,
        coverage_50=measurement.coverage_50,
        coverage_90=measurement.coverage_90,
        crps_tokens=measurement.crps_tokens,
        log_score=measurement.log_score,
        prior_log_score=measurement.prior_log_score,
        pinball_tokens=measurement.pinball_tokens,
        kendall_tau=measurement.kendall_tau,
        pit_histogram=measurement.pit_histogram,
        trusted=measurement.trusted,
        reason=measurement.reason,
    )
