"""What every length learner must do: one suite, run on each of them."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.clustering.clusters import ClusterSettings
from online_learning.distribution import log_grid
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.evaluation.memory import held_bytes
from online_learning.evaluation.paper_predictor import SimilarityLearner, SimilaritySettings
from online_learning.experts.expert import SoloLearner
from online_learning.experts.neighbours import NeighbourExpert, NeighbourSettings
from online_learning.experts.network import NetworkExpert
from online_learning.experts.quantile_bands import QuantileBandExpert
from online_learning.length_learner import Drift, Features, LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings, solo_learners
from online_learning.mixture.pooling import PoolSettings
from online_learning.mixture.settings import LearnerSettings
from online_learning.survival.length_sketch import SketchSettings

Factory = Callable[[], LengthLearner]

SMALL = LearnerSettings(
    max_models=3,
    sketch=SketchSettings(recent_answers=64),
    cluster_sketch=SketchSettings(memory_answers=1_000.0, recent_answers=40),
    clusters=ClusterSettings(clusters=6, early_seed_prompts=(30,), seed_prompts=60, recent_prompts=48),
)

GRID = log_grid()
NEIGHBOURS = NeighbourSettings(history_prompts=300, fit_prompts=(30, 100), kernels=((0.05, 300.0), (0.2, 300.0)))
POOL = PoolSettings(max_models=3, max_clusters=12)

ALL: dict[str, Factory] = {
    "global": lambda: GlobalLearner(SMALL),
    "cluster": lambda: solo_learners(MixtureSettings(common=SMALL))["cluster"],
    "neighbours": lambda: SoloLearner(NeighbourExpert(GRID, NEIGHBOURS, max_models=3), SMALL.model_prior),
    "bands": lambda: SoloLearner(QuantileBandExpert(GRID), SMALL.model_prior),
    "network": lambda: SoloLearner(NetworkExpert(GRID), SMALL.model_prior),
    "mixture": lambda: MixtureLearner(MixtureSettings(common=SMALL, neighbours=NEIGHBOURS, pool=POOL)),
    "similarity": lambda: SimilarityLearner(SimilaritySettings(history_prompts=300), SMALL),
}
OURS = {name: create for name, create in ALL.items() if name != "similarity"}
"""Those that must be honest about tails, censoring and drift; the published predictor is not."""

every_learner = pytest.mark.parametrize("create", ALL.values(), ids=ALL.keys())
our_learner = pytest.mark.parametrize("create", OURS.values(), ids=OURS.keys())


def make_prompt(family: int, number: int, model: str = "m") -> Prompt:
    """A prompt whose words, beginning and tenant are its family's; some have a session, or a length that is expected."""
    generator = np.random.default_rng((family, number))
    words = np.random.default_rng(family).integers(16, 32_000, 40)
    tokens = np.concatenate((words[:8], generator.choice(words, 30))).astype(np.uint32)
    return Prompt(
        token_ids=tokens,
        prompt_tokens=38,
        max_tokens=2_000,
        temperature=0.7,
        model=model,
        tenant=f"tenant {family}",
        session=f"session {number // 6}" if number % 3 == 0 else None,
        expected_output_tokens=100 if number % 4 == 0 else None,
    )


def make_stream(count: int, seed: int = 0) -> Iterator[tuple[Prompt, Observation]]:
    """Three families with medians of 30, 200 and 900 tokens over two models; one answer in eight is censored."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        family = int(generator.integers(3))
        tokens = int((30, 200, 900)[family] * np.exp(0.5 * generator.normal())) + 1
        censored = bool(generator.random() < 0.125)
        observed = Observation(max(1, int(tokens * generator.random())) if censored else tokens, censored)
        yield make_prompt(family, number, model="mn"[number % 2]), observed


def teach(learner: LengthLearner, prompt: Prompt, observation: Observation) -> list[Drift]:
    """One answer."""
    return learner.learn_one(learner.features(prompt), prompt.model, observation)


def teach_constant(learner: LengthLearner, family: int, tokens: int, count: int, *, first: int = 0) -> list[Drift]:
    """Many answers of one length."""
    drifts: list[Drift] = []
    for number in range(first, first + count):
        drifts += teach(learner, make_prompt(family, number), Observation(tokens, censored=False))
    return drifts


def mass_of(learner: LengthLearner, prompt: Prompt) -> tuple[list[int], list[float]]:
    """The predicted distribution, to be compared exactly."""
    predicted = learner.predict_one(learner.features(prompt), prompt.model).distribution
    return predicted.lengths.tolist(), predicted.mass.tolist()


@every_learner
@settings(max_examples=15, deadline=None)
@given(
    answers=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200_000), st.booleans()), max_size=100),
    max_tokens=st.integers(1, 200_000),
)
def test_a_prediction_is_a_distribution(create: Factory, answers: list[tuple[int, int, bool]], max_tokens: int) -> None:
    """Whatever was learnt: masses are not negative and sum to 1, lengths rise, and max_tokens cuts them."""
    learner = create()
    for number, (family, tokens, censored) in enumerate(answers):
        teach(learner, make_prompt(family, number), Observation(tokens, censored))
    for model in ("m", "never seen"):
        predicted = learner.predict_one(learner.features(make_prompt(0, 999)), model).distribution
        for distribution in (predicted, learner.prior(model), predicted.cut(max_tokens)):
            assert abs(float(distribution.mass.sum()) - 1.0) < 1e-9
            assert float(distribution.mass.min()) >= 0.0
            assert bool((np.diff(distribution.lengths) > 0).all())
        assert int(predicted.cut(max_tokens).lengths[-1]) <= max_tokens


@pytest.mark.slow
@every_learner
def test_predicting_changes_nothing_and_replaying_rebuilds_exactly(create: Factory) -> None:
    """A learner that never stopped, and one taught the recorded triples again, predict the same to the last bit."""
    lived, replayed = create(), create()
    recorded: list[tuple[Features, str, Observation]] = []
    for prompt, observation in make_stream(300):
        features = lived.features(prompt)
        lived.predict_one(features, prompt.model)
        lived.prior(prompt.model)
        lived.learn_one(features, prompt.model, observation)
        recorded.append((np.frombuffer(features.tobytes(), dtype=np.float32), prompt.model, observation))
    for features, model, observation in recorded:
        replayed.learn_one(features, model, observation)
    for family in range(4):
        prompt = make_prompt(family, 10_000)
        assert mass_of(lived, prompt) == mass_of(replayed, prompt)
        first = lived.predict_one(lived.features(prompt), "n")
        second = replayed.predict_one(replayed.features(prompt), "n")
        assert (first.cluster, first.evidence, first.experts) == (second.cluster, second.evidence, second.experts)


@every_learner
def test_features_do_not_depend_on_what_was_learnt(create: Factory) -> None:
    """The features of a prompt are the same before and after learning, so that stored ones stay valid."""
    learner = create()
    before = learner.features(make_prompt(1, 1))
    for prompt, observation in make_stream(150):
        teach(learner, prompt, observation)
    assert before.dtype == np.float32
    np.testing.assert_array_equal(before, learner.features(make_prompt(1, 1)))


@pytest.mark.slow
@every_learner
def test_experts_weights_sum_to_one(create: Factory) -> None:
    """A forecast says how much each expert has in it."""
    learner = create()
    for prompt, observation in make_stream(200):
        forecast = learner.predict_one(learner.features(prompt), prompt.model)
        assert abs(sum(forecast.experts.values()) - 1.0) < 1e-9
        assert min(forecast.experts.values()) >= 0.0
        teach(learner, prompt, observation)


@every_learner
def test_evidence_grows_with_every_answer(create: Factory) -> None:
    """The same prompt answered again and again: the evidence behind its prediction never falls without a drift."""
    learner = create()
    prompt = make_prompt(0, 0)
    features = learner.features(prompt)
    evidence = [learner.predict_one(features, "m").evidence]
    for _ in range(200):
        assert teach(learner, prompt, Observation(100, censored=False)) == []
        evidence.append(learner.predict_one(features, "m").evidence)
    assert evidence == sorted(evidence)
    assert evidence[0] < 1.0
    assert evidence[-1] > 100.0


@every_learner
def test_a_young_learner_does_not_think_that_it_knows(create: Factory) -> None:
    """Before any answer the median is a few hundred tokens; after one short answer long ones remain likely for others."""
    learner = create()
    assert 150 <= learner.prior("m").quantile(0.5) <= 300
    teach(learner, make_prompt(0, 0), Observation(10, censored=False))
    assert learner.predict_one(learner.features(make_prompt(1, 1)), "m").distribution.survival(300) > 0.02
    assert learner.prior("m").survival(300) > 0.02


@pytest.mark.slow
@every_learner
def test_a_point_mass_is_learnt(create: Factory) -> None:
    """Answers that are always 100 tokens long are soon predicted to be: nine tenths of the mass on their bin."""
    learner = create()
    teach_constant(learner, 0, 100, 400)
    predicted = learner.predict_one(learner.features(make_prompt(0, 5_000)), "m").distribution
    assert predicted.survival(96) - predicted.survival(108) > 0.9
    assert 97 <= predicted.quantile(0.5) <= 108


@pytest.mark.slow
@our_learner
def test_memory_of_what_changed_fades_fast(create: Factory) -> None:
    """Lengths jump from 50 to 500 tokens after 1,000 answers: a drift is reported, and 100 answers later 500 is predicted."""
    learner = create()
    generator = np.random.default_rng(3)
    drifts: list[Drift] = []
    for number in range(1_150):
        tokens = int((50 if number < 1_000 else 500) * np.exp(0.2 * generator.normal()))
        found = teach(learner, make_prompt(0, number % 50), Observation(tokens, censored=False))
        assert number >= 1_000 or not found, "nothing drifted yet"
        drifts += found
    predicted = learner.predict_one(learner.features(make_prompt(0, 7)), "m").distribution
    assert drifts
    assert drifts[0].model == "m"
    assert 40 < drifts[0].before_mean_tokens < 120
    assert drifts[-1].after_mean_tokens > 300
    assert sum(drift.forgotten for drift in drifts) > 10
    assert predicted.survival(200) > 0.8


@pytest.mark.slow
@our_learner
@pytest.mark.parametrize("attained_tokens", [400, 2_000, 20_000])
def test_an_outlived_request_is_not_nearly_done(create: Factory, attained_tokens: int) -> None:
    """One that outlived every sample is expected to go on for a quarter of what it attained, at least."""
    learner = create()
    generator = np.random.default_rng(5)
    for number in range(500):
        tokens = 1 + int(generator.integers(300))
        teach(learner, make_prompt(number % 3, number), Observation(tokens, censored=False))
    predicted = learner.predict_one(learner.features(make_prompt(0, 9_999)), "m").distribution
    rest_tokens = predicted.given(attained_tokens).mean_tokens - attained_tokens
    assert rest_tokens > 0.25 * attained_tokens


def test_the_published_predictor_thinks_an_outlived_request_done() -> None:
    """Why the tail matters: past its last sample the published prediction is one more token."""
    learner = ALL["similarity"]()
    teach_constant(learner, 0, 300, 200)
    predicted = learner.predict_one(learner.features(make_prompt(0, 3)), "m").distribution
    assert predicted.given(2_000).mean_tokens == 2_001.0


def _median_when_long_answers_run(create: Factory, *, keep_censored: bool) -> int:
    """Half the answers take 60 tokens, half 600 of which a young system has only seen the first 100 to 500."""
    learner = create()
    generator = np.random.default_rng(11)
    for number in range(600):
        prompt = make_prompt(0, number % 80)
        if generator.random() < 0.45:
            teach(learner, prompt, Observation(60, censored=False))
        elif generator.random() < 0.15:
            teach(learner, prompt, Observation(600, censored=False))
        elif keep_censored:
            teach(learner, prompt, Observation(int(generator.integers(100, 500)), censored=True))
    return learner.predict_one(learner.features(make_prompt(0, 3)), "m").distribution.quantile(0.5)


@pytest.mark.slow
@our_learner
def test_unfinished_answers_keep_the_prediction_from_being_short(create: Factory) -> None:
    """Dropping answers that still run makes the median ten times too short; counting what they outlived does not."""
    assert _median_when_long_answers_run(create, keep_censored=False) < 100
    assert 540 <= _median_when_long_answers_run(create, keep_censored=True) <= 680


@pytest.mark.slow
@our_learner
def test_answers_that_are_all_cut_are_predicted_longer_than_the_cut(create: Factory) -> None:
    """When max_tokens cuts every answer at 128, nearly all are predicted to be longer."""
    learner = create()
    for number in range(400):
        teach(learner, make_prompt(0, number), Observation(128, censored=True))
    assert learner.predict_one(learner.features(make_prompt(0, 3)), "m").distribution.survival(121) > 0.9


@pytest.mark.slow
@every_learner
def test_models_learn_apart_and_a_new_one_starts_from_all(create: Factory) -> None:
    """What one model does is not predicted of another that is known; an unknown one is predicted to be like the known."""
    learner = create()
    for number in range(200):
        teach(learner, make_prompt(number % 3, number, "short"), Observation(20, censored=False))
        teach(learner, make_prompt(number % 3, number, "long"), Observation(1_000, censored=False))
    features = learner.features(make_prompt(0, 777))
    assert learner.predict_one(features, "short").distribution.quantile(0.5) <= 22
    assert learner.predict_one(features, "long").distribution.quantile(0.5) >= 900
    unknown = learner.prior("unknown")
    assert unknown.quantile(0.25) <= 22
    assert unknown.quantile(0.75) >= 900


@pytest.mark.slow
@every_learner
def test_memory_is_bounded(create: Factory) -> None:
    """Once every model, cluster and window is full, more answers of more models take no more memory."""
    learner = create()
    sizes = []
    for lap in range(3):
        for number in range(800):
            model = f"model {lap} {number % 5}"
            teach(
                learner, make_prompt(number % 3, number, model), Observation(1 + number % 500, censored=number % 9 == 0)
            )
        sizes.append(held_bytes(learner))
    assert sizes[2] <= 1.05 * sizes[1]


def test_the_default_grid_reaches_as_far_as_engines_do() -> None:
    """Answers of 131,072 tokens are on the grid, in fewer than a hundred bins."""
    assert int(log_grid()[-1]) == 131_072
    assert log_grid().size < 100


def test_prompts_that_tell_lengths_apart_are_used() -> None:
    """Where families differ, the clusters' distribution of each is near its own lengths and far from the global one."""
    learner = ALL["cluster"]()
    for prompt, observation in make_stream(900, seed=8):
        teach(learner, prompt, observation)
    medians = [
        learner.predict_one(learner.features(make_prompt(family, 5_555)), "m").distribution.quantile(0.5)
        for family in range(3)
    ]
    assert 20 <= medians[0] <= 50
    assert 140 <= medians[1] <= 290
    assert 600 <= medians[2] <= 1_300


@pytest.mark.slow
def test_prompts_that_say_nothing_leave_the_global_distribution() -> None:
    """Where lengths do not depend on prompts, clusters score as well as the global distribution within 1%."""
    learners = {name: create() for name, create in OURS.items()}
    totals = dict.fromkeys(learners, 0.0)
    generator = np.random.default_rng(21)
    for number in range(2_000):
        prompt = make_prompt(int(generator.integers(6)), number)
        observation = Observation(1 + int(200 * np.exp(0.8 * generator.normal())), censored=False)
        for name, learner in learners.items():
            predicted = learner.predict_one(learner.features(prompt), "m").distribution
            position = int(np.searchsorted(predicted.lengths, observation.output_tokens))
            totals[name] += float(np.log(predicted.mass[position])) if number >= 500 else 0.0
            teach(learner, prompt, observation)
    assert totals["cluster"] > 1.01 * totals["global"]
