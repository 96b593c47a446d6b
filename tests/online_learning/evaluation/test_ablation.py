from dataclasses import replace

import numpy as np

from online_learning.evaluation.ablation import BlindLearner, without_each_expert, without_each_feature
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.features.prompt_features import DIMENSIONS, IDENTITIES, TEXT_DIMENSIONS, hints, prompt_features
from online_learning.length_learner import LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner

PROMPT = Prompt(
    token_ids=np.arange(50, 250, dtype=np.uint32),
    prompt_tokens=200,
    max_tokens=512,
    temperature=0.6,
    model="m",
    tenant="t",
)


def test_each_expert_is_left_out_once() -> None:
    """All but the global distribution, without which nothing is; the others stay."""
    hinted = replace(PROMPT, session="s", expected_output_tokens=50)
    every = _asked(MixtureLearner(), hinted)
    assert {"session", "client says"} <= every
    for name, learner in without_each_expert().items():
        assert every - _asked(learner, hinted) == {name.removeprefix("without ")}


def _asked(learner: LengthLearner, prompt: Prompt) -> set[str]:
    """The experts that a learner has, once it was taught an answer of the session."""
    learner.learn_one(learner.features(prompt), "m", Observation(60, censored=False))
    return set(learner.predict_one(learner.features(prompt), "m").experts)


def test_a_blind_learner_misses_one_part_and_nothing_else() -> None:
    """Together the parts are the whole vector."""
    whole = prompt_features(PROMPT)
    hidden = np.zeros(whole.size, dtype=bool)
    for name, learner in without_each_feature().items():
        shown = learner.features(PROMPT)
        missing = np.ones(whole.size, dtype=bool)
        missing[: shown.size] = shown != whole[: shown.size]
        assert bool(missing.any()) == (name != "blind to the model")
        assert not bool((hidden & missing).any()), "no number belongs to two parts"
        hidden |= missing
    assert bool(hidden[whole != 0.0].all())
    assert TEXT_DIMENSIONS < DIMENSIONS < DIMENSIONS + IDENTITIES < whole.size


def test_blind_to_n_grams_the_hints_are_still_seen() -> None:
    """They are no n-grams, though they stand behind them."""
    hinted = replace(PROMPT, session="s", expected_output_tokens=50)
    shown = without_each_feature()["blind to n-grams"].features(hinted)
    assert hints(shown) == hints(prompt_features(hinted))
    assert shown.size == DIMENSIONS + IDENTITIES + 3


def test_blind_to_the_model_all_models_are_one() -> None:
    """What one model was taught is predicted of the other."""
    learner = BlindLearner(GlobalLearner(), one_model=True)
    for _ in range(200):
        learner.learn_one(learner.features(PROMPT), "m", Observation(50, censored=False))
    assert learner.prior("m").quantile(0.5) == learner.prior("n").quantile(0.5)
