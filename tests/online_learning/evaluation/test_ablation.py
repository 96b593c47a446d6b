import numpy as np

from online_learning.evaluation.ablation import BlindLearner, without_each_expert, without_each_feature
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.features.prompt_features import DIMENSIONS, IDENTITIES, TEXT_DIMENSIONS, prompt_features
from online_learning.length_learner import Observation, Prompt
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
    every = set(MixtureLearner().predict_one(prompt_features(PROMPT), "m").experts)
    for name, learner in without_each_expert().items():
        left = set(learner.predict_one(prompt_features(PROMPT), "m").experts)
        assert every - left == {name.removeprefix("without ")}


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


def test_blind_to_the_model_all_models_are_one() -> None:
    """What one model was taught is predicted of the other."""
    learner = BlindLearner(GlobalLearner(), one_model=True)
    for _ in range(200):
        learner.learn_one(learner.features(PROMPT), "m", Observation(50, censored=False))
    assert learner.prior("m").quantile(0.5) == learner.prior("n").quantile(0.5)
