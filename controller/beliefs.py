"""What is believed of each request, and the verdict that follows: learner and policy behind one door."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from controller.policy import Policy, RequestFacts
from controller.sessions import ServedRequest, Session
from online_learning.prompt import Drift, Features, LengthLearner, Observation, Prompt
from online_learning.scoring import Score, score
from store.records import Arrived, Finished, IndexTable, Outcome, Prediction

PRIOR_PROMPT_TOKENS = 256
PRIOR_MAX_TOKENS = 8192
"""The prior is the table of a request of this size, which nothing else is known of."""

RECORDED_PERCENTILES = (10, 25, 50, 75, 90, 95, 99)


class Beliefs:
    """Forms, renews and judges beliefs; keeps count of what each model's learner was taught.

    ``timer`` measures how long a prediction took; it influences nothing.
    """

    def __init__(self, *, learner: LengthLearner, policy: Policy, hash_key: bytes, timer: Callable[[], float]) -> None:
        self._learner = learner
        self._policy = policy
        self._hash_key = hash_key
        self._timer = timer
        self._taught: dict[str, int] = {}
        self._random = np.random.default_rng(0)

    def form(self, session: Session, arrived: Arrived, now_s: float) -> tuple[ServedRequest, Prediction]:
        """The first belief about a request, and its record."""
        model = session.hello.model
        started = self._timer()
        features = self._learner.features(_prompt(arrived, model))
        forecast = self._learner.predict_one(features, model)
        belief = forecast.distribution.cut(arrived.max_tokens)
        predict_s = self._timer() - started
        assessment = self._policy.assess(_facts(arrived), belief, session.engine)
        request = ServedRequest(
            arrived=arrived,
            features=features,
            forecast=forecast,
            belief=belief,
            table=assessment.table,
            cost_s=assessment.cost_s,
            taught=self.taught(model),
            attained_tokens=arrived.attained_tokens,
        )
        return request, self._prediction(request, predict_s, now_s)

    def renew(self, session: Session, request: ServedRequest) -> None:
        """Form the belief about an unfinished request again, with what has been learnt since."""
        model = session.hello.model
        request.forecast = self._learner.predict_one(request.features, model)
        request.belief = request.forecast.distribution.cut(request.arrived.max_tokens)
        assessment = self._policy.assess(_facts(request.arrived), request.belief, session.engine)
        request.table, request.cost_s = assessment.table, assessment.cost_s
        request.taught = self.taught(model)

    def prior(self, session: Session) -> IndexTable:
        """The table of requests that have none of their own yet."""
        max_tokens = min(PRIOR_MAX_TOKENS, session.hello.max_model_len_tokens)
        facts = RequestFacts(request_id=None, prompt_tokens=PRIOR_PROMPT_TOKENS, max_tokens=max_tokens)
        belief = self._learner.prior(session.hello.model).cut(max_tokens)
        return self._policy.assess(facts, belief, session.engine).table

    def judge(self, request: ServedRequest, finished: Finished, observation: Observation) -> tuple[Outcome, Score]:
        """How the latest belief about a request turned out."""
        verdict = score(request.belief, observation, self._random.random())
        outcome = Outcome(
            request_id=finished.request_id,
            time_s=finished.time_s,
            output_tokens=finished.output_tokens,
            censored=observation.censored,
            cluster=request.forecast.cluster,
            pit=verdict.pit,
            crps_tokens=verdict.crps_tokens,
            log_score=verdict.log_score,
            within_50=verdict.within_50,
            within_90=verdict.within_90,
        )
        return outcome, verdict

    def teach(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Let the learner take an answer into account."""
        self._taught[model] = self.taught(model) + 1
        return self._learner.learn_one(features, model, observation)

    def taught(self, model: str) -> int:
        """Answers of a model that the learner has taken into account."""
        return self._taught.get(model, 0)

    def _prediction(self, request: ServedRequest, predict_s: float, now_s: float) -> Prediction:
        belief, arrived = request.belief, request.arrived
        quantiles = {f"p{percent}_tokens": belief.quantile(percent / 100) for percent in RECORDED_PERCENTILES}
        return Prediction(
            request_id=arrived.request_id,
            time_s=now_s,
            cluster=request.forecast.cluster,
            features=request.features.tobytes(),
            prompt_hash=hashlib.blake2b(arrived.token_ids, key=self._hash_key, digest_size=16).hexdigest(),
            mean_tokens=belief.mean_tokens,
            evidence=request.forecast.evidence,
            experts=request.forecast.experts,
            predict_s=predict_s,
            **quantiles,
        )


def _facts(arrived: Arrived) -> RequestFacts:
    return RequestFacts(
        request_id=arrived.request_id, prompt_tokens=arrived.prompt_tokens, max_tokens=arrived.max_tokens
    )


def _prompt(arrived: Arrived, model: str) -> Prompt:
    return Prompt(
        token_ids=np.frombuffer(arrived.token_ids, dtype="<u4"),
        prompt_tokens=arrived.prompt_tokens,
        max_tokens=arrived.max_tokens,
        temperature=arrived.temperature,
        model=model,
        tenant=arrived.tenant,
        lora=arrived.lora,
    )
