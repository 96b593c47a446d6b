"""Warm-up of a benchmark's learner before the first measured request arrives."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from controller.core.core import Core
from engine_adapter.virtual_time.engine import TraceRequest
from online_learning.distribution import LengthDistribution
from online_learning.length_learner import Drift, Features, Forecast, LengthLearner, Observation, Prompt
from store.bounds import packed_tokens


def warm_up(core: Core, learner: LengthLearner, requests: Iterable[TraceRequest], *, model: str) -> None:
    """Teach the learner of a core the answers of these requests, as answers of ``model``."""
    for request in requests:
        prompt = Prompt(
            token_ids=np.frombuffer(packed_tokens(request.token_ids), dtype="<u4"),
            prompt_tokens=len(request.token_ids),
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            model=model,
            tenant=request.tenant,
            session=request.session,
            expected_output_tokens=request.expected_output_tokens,
        )
        tokens = min(request.true_output_tokens, request.max_tokens)
        observation = Observation(tokens, censored=request.true_output_tokens > request.max_tokens)
        core.teach(learner.features(prompt), model, observation)


_REMEMBERED_PROMPTS = 50_000
_remembered: dict[tuple[object, ...], Features] = {}
"""Cached features of prompts by everything that they may depend on; they are the same under every policy."""


class RememberedFeatures:
    """A learner that computes the features of a prompt once in a process, for all policies that are measured.

    Exact, because features depend on nothing that was learned.
    """

    def __init__(self, learner: LengthLearner) -> None:
        self._learner = learner

    def features(self, prompt: Prompt) -> Features:
        """The learner's own features."""
        key = (
            type(self._learner),
            prompt.token_ids.tobytes(),
            prompt.prompt_tokens,
            prompt.max_tokens,
            prompt.temperature,
            prompt.model,
            prompt.tenant,
            prompt.lora,
            prompt.session,
            prompt.expected_output_tokens,
        )
        found = _remembered.get(key)
        if found is None:
            if len(_remembered) >= _REMEMBERED_PROMPTS:
                _remembered.clear()
            found = _remembered[key] = self._learner.features(prompt)
        return found

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The learner's own forecast."""
        return self._learner.predict_one(features, model)

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach the learner."""
        return self._learner.learn_one(features, model, observation)

    def prior(self, model: str) -> LengthDistribution:
        """The learner's own prior."""
        return self._learner.prior(model)
