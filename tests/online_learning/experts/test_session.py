"""What the answers of a session tell of its next one, which the prompts do not."""

import numpy as np
import pytest

from online_learning.distribution import FloatArray, LengthDistribution, log_grid
from online_learning.experts.session import SessionExpert, SessionSettings
from online_learning.experts.specialist import HintedQuery
from online_learning.features.request_hints import RequestHints
from online_learning.length_learner import Observation

GRID = log_grid()
BROAD: FloatArray = np.full(GRID.size, 1.0 / GRID.size)


def query(session: int | None, before: FloatArray = BROAD, model: str = "m") -> HintedQuery:
    return HintedQuery(RequestHints(0, session, None), model, before)


def median(expert: SessionExpert, asked: HintedQuery) -> int:
    return LengthDistribution(GRID, expert.predict(asked)).quantile(0.5)


def taught(expert: SessionExpert, session: int, *lengths: int) -> SessionExpert:
    for tokens in lengths:
        expert.learn(query(session), Observation(tokens, censored=False))
    return expert


def test_it_is_silent_without_a_session_and_about_a_new_one() -> None:
    """And about the same session with another model."""
    expert = taught(SessionExpert(GRID), 7, 50)
    assert expert.speaks(query(7).hints, "m")
    assert not expert.speaks(query(None).hints, "m")
    assert not expert.speaks(query(8).hints, "m")
    assert not expert.speaks(query(7).hints, "n")


def test_each_session_is_predicted_by_its_own_answers() -> None:
    """One answers briefly, the other at length."""
    expert = SessionExpert(GRID)
    for _ in range(6):
        taught(expert, 1, 40)
        taught(expert, 2, 900)
    assert median(expert, query(1)) == pytest.approx(40, rel=0.3)
    assert median(expert, query(2)) == pytest.approx(900, rel=0.3)


def test_the_level_of_a_session_moves_what_the_prompt_says() -> None:
    """Where prompts tell calls of tools from last answers, a session twice as long is so for both."""
    expert = SessionExpert(GRID)
    around = {tokens: np.exp(-0.5 * (np.log(GRID / tokens) / 0.2) ** 2) for tokens in (44, 444)}
    before = {tokens: mass / mass.sum() for tokens, mass in around.items()}
    generator = np.random.default_rng(1)
    for session in range(200):
        factor = np.exp(0.7 * generator.normal())
        for kind in (44, 44, 44, 444):
            length = max(1, round(kind * factor * np.exp(0.1 * generator.normal())))
            expert.learn(query(session, before[kind]), Observation(length, censored=False))
    for _ in range(5):
        expert.learn(query(999, before[44]), Observation(88, censored=False))
    assert median(expert, query(999, before[444])) == pytest.approx(888, rel=0.25)


def test_only_its_latest_answers_count() -> None:
    """A session that has become longer is predicted so."""
    expert = taught(SessionExpert(GRID), 1, *[20] * 8, *[600] * 8)
    assert median(expert, query(1)) == pytest.approx(600, rel=0.3)


def test_an_answer_that_was_cut_counts_as_at_least_so_long() -> None:
    """Eight that were cut at 400 tokens let a longer one be expected, where eight that ended there do not."""
    cut, ended = SessionExpert(GRID), SessionExpert(GRID)
    for _ in range(8):
        cut.learn(query(1), Observation(400, censored=True))
        ended.learn(query(1), Observation(400, censored=False))
    assert LengthDistribution(GRID, cut.predict(query(1))).survival(400) > 0.8
    assert LengthDistribution(GRID, ended.predict(query(1))).survival(460) < 0.5


def test_the_sessions_remembered_are_bounded() -> None:
    """The one that was taught longest ago is forgotten first."""
    expert = SessionExpert(GRID, SessionSettings(max_sessions=3))
    for session in (1, 2, 3, 1, 4):
        taught(expert, session, 10)
    assert [expert.speaks(query(session).hints, "m") for session in (1, 2, 3, 4)] == [True, False, True, True]


@pytest.mark.parametrize("tokens", [1, 17, 131_072, 10**9])
def test_masses_are_whole(tokens: int) -> None:
    """At the ends of the grid too, of answers that were cut too, and where the others are sure of something else."""
    sure = np.zeros(GRID.size)
    sure[40] = 1.0
    expert = SessionExpert(GRID)
    for before in (BROAD, sure):
        for censored in (False, True):
            expert.learn(query(1, before), Observation(tokens, censored=censored))
            mass = expert.predict(query(1, before))
            assert mass.min() >= 0.0
            assert mass.sum() == pytest.approx(1.0)
