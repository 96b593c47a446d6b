"""What the benchmark remembers to save time changes nothing."""

import numpy as np

from controller.benchmark.warm_up import RememberedFeatures
from online_learning.length_learner import Features, Prompt
from online_learning.mixture.mixture import MixtureLearner


class Counting(MixtureLearner):
    """The real learner, and how often it computed."""

    computed = 0

    def features(self, prompt: Prompt) -> Features:
        self.computed += 1
        return super().features(prompt)


def prompt(
    first: int,
    *,
    tenant: str | None = None,
    max_tokens: int = 100,
    session: str | None = None,
    expected: int | None = None,
) -> Prompt:
    return Prompt(
        token_ids=np.arange(first, first + 40, dtype=np.uint32),
        prompt_tokens=40,
        max_tokens=max_tokens,
        temperature=1.0,
        model="remembered",
        tenant=tenant,
        session=session,
        expected_output_tokens=expected,
    )


def test_remembered_features_are_the_learner_s_own() -> None:
    """Computed once for a prompt, anew for whatever differs in anything, and the same to the last digit."""
    learner = Counting()
    remembered = RememberedFeatures(learner)
    asked = [
        prompt(1),
        prompt(2),
        prompt(1, tenant="a"),
        prompt(1, max_tokens=7),
        prompt(1, session="s"),
        prompt(1, expected=50),
    ]
    first = [remembered.features(one) for one in asked]
    assert learner.computed == len(asked)
    second = [RememberedFeatures(learner).features(one) for one in asked]
    assert learner.computed == len(asked)
    for one, here, again in zip(asked, first, second, strict=True):
        assert again is here
        assert np.array_equal(here, MixtureLearner().features(one))
    assert not np.array_equal(first[0], first[2])
