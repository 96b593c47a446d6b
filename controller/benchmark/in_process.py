"""The controller's brain in a benchmark: the core as it runs live, with a learner of the policy's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from controller.core.core import Core, CoreConfig
from controller.policy.policy import Policy
from engine_adapter.transport.link import DirectLink
from engine_adapter.virtual_time.engine import TraceRequest, VirtualEngine
from online_learning.calibration.calibration import CalibrationSettings
from online_learning.calibration.guard import GuardSettings
from online_learning.distribution import LengthDistribution
from online_learning.length_learner import Drift, Features, Forecast, LengthLearner, Observation, Prompt
from store.records import ControllerMessage, EngineMessage, Hello, packed_tokens

CONNECTION = b"bench"
LEASE_S = 1e9
"""Virtual time jumps over idle hours, in which no heartbeat comes; the controller is in this process and cannot die."""


class Brain:
    """What answers the engine.

    ``guarded`` lets the calibration guard take a policy's predictions from it: the guard is ours,
    a rival serves by its own predictions, whatever they are worth.
    """

    def __init__(
        self, *, learner: LengthLearner, policy: Policy, warmup: Sequence[TraceRequest], guarded: bool
    ) -> None:
        self.engine: VirtualEngine | None = None
        self.link = DirectLink(self._answer)
        self._warmup = warmup
        self._learner = RememberedFeatures(learner)
        self._core = Core(
            learner=self._learner,
            policy=policy,
            config=CoreConfig(
                controller_id="bench",
                mode="on",
                hash_key=b"bench",
                lease_s=LEASE_S,
                acknowledge_at_once=True,
                calibration=CalibrationSettings(guard=GuardSettings(enabled=guarded)),
            ),
            now_s=0.0,
            timer=lambda: 0.0,
        )

    def check(self, requests: int) -> None:
        """A figure under a policy's name must come from that policy, from the first request to the last."""
        (session,) = self._core.sessions
        snapshot = session.snapshot
        assert snapshot is not None, "the engine reports"
        assert snapshot.policy_errors == 0, "the policy must not have failed"
        assert snapshot.fallback is None, f"the engine must not have fallen back: {snapshot.fallback}"
        assert self._core.counts.predictions == requests, "every request is predicted once"

    def _answer(self, message: EngineMessage) -> list[ControllerMessage]:
        assert self.engine is not None, "the engine exists before it speaks"
        if isinstance(message, Hello):
            self._warm_up(message.model)
        answers = self._core.take(CONNECTION, message, self.engine.now_s)
        self._core.drain_entries()
        return [answer for _, answer in answers]

    def _warm_up(self, model: str) -> None:
        """Teach answers of this model that ended before the first measured request arrives."""
        for work in self._warmup:
            prompt = Prompt(
                token_ids=np.frombuffer(packed_tokens(work.token_ids), dtype="<u4"),
                prompt_tokens=len(work.token_ids),
                max_tokens=work.max_tokens,
                temperature=work.temperature,
                model=model,
                tenant=work.tenant,
            )
            length = min(work.true_output_tokens, work.max_tokens)
            observation = Observation(length, censored=work.true_output_tokens > work.max_tokens)
            self._core.teach(self._learner.features(prompt), model, observation)


_REMEMBERED_PROMPTS = 50_000
_remembered: dict[tuple[object, ...], Features] = {}
"""Features of prompts by all that they may depend on: the same under every policy that serves the same requests."""


class RememberedFeatures:
    """A learner that computes a prompt's features once in a process, however many policies meet the prompt.

    Exact, because features depend on nothing that was learnt.
    """

    def __init__(self, learner: LengthLearner) -> None:
        self._learner = learner

    def features(self, prompt: Prompt) -> Features:
        """The learner's own features."""
        known_by = (
            type(self._learner),
            prompt.token_ids.tobytes(),
            prompt.prompt_tokens,
            prompt.max_tokens,
            prompt.temperature,
            prompt.model,
            prompt.tenant,
            prompt.lora,
        )
        found = _remembered.get(known_by)
        if found is None:
            if len(_remembered) >= _REMEMBERED_PROMPTS:
                _remembered.clear()
            found = _remembered[known_by] = self._learner.features(prompt)
        return found

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The learner's own belief."""
        return self._learner.predict_one(features, model)

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Teach the learner."""
        return self._learner.learn_one(features, model, observation)

    def prior(self, model: str) -> LengthDistribution:
        """The learner's own prior."""
        return self._learner.prior(model)
