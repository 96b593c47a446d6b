import numpy as np
import pytest

from online_learning.distribution import log_grid
from online_learning.expert import Query
from online_learning.features import prompt_features
from online_learning.global_belief import GlobalBelief, GlobalSettings
from online_learning.group import GroupExpert, GroupSettings, template_expert, tenant_expert
from online_learning.prompt import Observation, Prompt

GRID = log_grid()
PRIOR = GlobalBelief(GlobalSettings()).prior("m")


def query_of(template: int, number: int, tenant: str | None = None) -> Query:
    """40 leading tokens of the template, then 20 of the prompt's own."""
    head = np.random.default_rng(template).integers(0, 30_000, 40)
    tail = np.random.default_rng((template, number)).integers(0, 30_000, 20)
    tokens = np.concatenate((head, tail)).astype(np.uint32)
    prompt = Prompt(token_ids=tokens, prompt_tokens=60, max_tokens=900, temperature=0.0, model="m", tenant=tenant)
    return Query(prompt_features(prompt), "m", PRIOR)


def median_tokens(expert: GroupExpert, query: Query) -> int:
    return int(GRID[np.searchsorted(np.cumsum(expert.believe(query).mass), 0.5)])


def test_templates_are_told_apart_by_their_beginning() -> None:
    """Two templates of 40 and 800 tokens whose prompts share nothing else."""
    expert = template_expert(GRID)
    for number in range(200):
        expert.learn(query_of(number % 2, number), Observation((40, 800)[number % 2], censored=False), judged=True)
    assert median_tokens(expert, query_of(0, 9_999)) < 50
    assert median_tokens(expert, query_of(1, 9_999)) > 600
    unknown = expert.believe(query_of(2, 9_999))
    assert unknown.evidence == 0.0
    np.testing.assert_array_equal(unknown.mass, PRIOR.mass)


def test_tenants_are_told_apart() -> None:
    """The same template from two tenants; one without a tenant gets the prior."""
    expert = tenant_expert(GRID)
    for number in range(200):
        query = query_of(0, number, ("a", "b")[number % 2])
        expert.learn(query, Observation((40, 800)[number % 2], censored=False), judged=True)
    assert median_tokens(expert, query_of(0, 9_999, "a")) < 50
    assert median_tokens(expert, query_of(0, 9_999, "b")) > 600
    assert expert.believe(query_of(0, 9_999)).trust == 0.0


def test_a_group_of_everyone_says_nothing() -> None:
    """One system prompt in front of all requests is the prior."""
    expert = template_expert(GRID)
    for number in range(100):
        expert.learn(query_of(0, number), Observation(40, censored=False), judged=True)
    assert expert.believe(query_of(0, 9_999)).evidence == 0.0


@pytest.mark.parametrize("max_groups", [2, 5])
def test_the_group_taught_longest_ago_is_forgotten(max_groups: int) -> None:
    """A bound on groups holds whatever comes."""
    expert = tenant_expert(GRID, GroupSettings(max_groups=max_groups))
    for number in range(50):
        expert.learn(query_of(0, number, f"t{number}"), Observation(40, censored=False), judged=False)
    known = [number for number in range(50) if expert.believe(query_of(0, 1, f"t{number}")).evidence > 0.0]
    assert known == list(range(50 - max_groups, 50))
