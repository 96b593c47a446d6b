from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from controller.config import load_config
from controller.policy.from_config import service_levels_of
from controller.policy.policies import policy_named
from controller.policy.policy import EngineFacts, RequestFacts
from controller.policy.promised_lengths import lengths_beyond
from controller.policy.service_levels import NO_PROMISE, Promise
from online_learning.distribution import LengthDistribution
from store.errors import ConfigError
from store.records import Arrived, Targets

FILE = {
    "classes": {
        "interactive": {"ttft_s": 2.0, "tpot_s": 0.08, "tenants": ["shop"], "aliases": ["priority"]},
        "adapters": {"e2e_s": 30.0, "models": ["sql-lora"], "priorities": [0]},
        "batch": {"objective": 0.9},
    },
    "tenants": {"fair": True, "weights": {"shop": 3.0}, "default_weight": 0.5},
}


def arrived(**fields: object) -> Arrived:
    """A request."""
    sizes = {"prompt_tokens": 1, "token_ids": b"", "max_tokens": 1, "temperature": 1.0}
    return Arrived(request_id="r", arrival_s=0.0, **sizes, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"service_class": "batch", "tenant": "shop"}, "batch"),
        ({"service_class": "priority"}, "interactive"),
        ({"service_class": "gold", "tenant": "shop"}, "interactive"),
        ({"tenant": "other"}, None),
        ({"lora": "sql-lora", "priority": 0}, "adapters"),
        ({"lora": "sql-lora", "priority": 1}, None),
    ],
)
def test_a_request_is_in_the_class_that_it_names_or_whose_conditions_it_meets(
    fields: dict[str, object], name: str | None
) -> None:
    """All conditions of a class must hold, the first class wins, and an unknown name counts as none."""
    levels = service_levels_of(load_config(FILE, environment={}))
    assert levels.promise(arrived(**fields), "llama").service_class == name


def test_a_request_brings_its_own_targets_and_its_tenant_its_weight() -> None:
    """What it does not say comes from its class; a tenant that is not listed has the default weight."""
    levels = service_levels_of(load_config(FILE, environment={}))
    promise = levels.promise(arrived(tenant="shop", targets=Targets(ttft_s=0.5)), "llama")
    targets = Targets(ttft_s=0.5, tpot_s=0.08)
    assert promise == Promise(service_class="interactive", targets=targets, objective=0.99, account="shop", weight=3.0)
    assert levels.promise(arrived(tenant="other"), "llama").weight == 0.5
    assert levels.promise(arrived(), "llama").account == "default"


def test_nothing_is_promised_where_nothing_is_configured() -> None:
    """Without classes and shares a request that says nothing has no promise, whatever its tenant."""
    levels = service_levels_of(load_config(environment={}))
    assert levels.promise(arrived(tenant="shop", service_class="gold"), "llama") is NO_PROMISE
    assert levels.promise(arrived(targets=Targets(e2e_s=9.0)), "llama").targets == Targets(e2e_s=9.0)


def test_classes_stand_in_the_environment_too_and_a_wrong_target_is_named() -> None:
    """A target that is no span of time is refused with its key."""
    config = load_config(environment={"SAGESCHED_CLASSES__CHAT__TTFT_S": "1.5"})
    assert service_levels_of(config).classes["chat"].targets == Targets(ttft_s=1.5)
    with pytest.raises(ConfigError, match=r"classes\.chat\.ttft_s = -1"):
        load_config({"classes": {"chat": {"ttft_s": -1}}}, environment={})


LENGTHS = np.array([1, 2, 5, 10, 50, 400])


@given(
    st.lists(st.just(0.0) | st.floats(1e-4, 1.0), min_size=6, max_size=6).filter(lambda mass: sum(mass) > 0.1),
    st.lists(st.integers(0, 900), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_quantiles_beyond_an_age_are_those_of_the_definition(mass: list[float], ages: list[int], share: float) -> None:
    """The smallest length that the answer does not exceed with the given probability, once it is longer than its age."""
    predicted = LengthDistribution(LENGTHS, np.array(mass) / sum(mass))
    found = lengths_beyond(predicted, np.array(ages), share, 1000)
    for age, length in zip(ages, found.tolist(), strict=True):
        beyond = age < LENGTHS
        alive = predicted.mass[beyond].sum()
        assume(not 1e-10 < alive < 1e-8)
        if alive < 1e-9:
            assert length == min(max(2 * age, age + 1), 1000)
            continue
        reached = np.cumsum(predicted.mass[beyond]) / alive
        assert length in {LENGTHS[beyond][np.argmax(reached >= share + slack)] for slack in (-1e-9, 0.0, 1e-9)}


def test_a_table_has_the_targets_and_quantiles_for_each_of_its_entries() -> None:
    """They are there with an end-to-end target only; a request without a promise has the table that it always had."""
    engine = EngineFacts(kv_tokens=1000, block_size_tokens=16, max_num_seqs=8, base_s=0.03, prefill_token_s=1e-4)
    predicted = LengthDistribution(np.array([10, 20, 400]), np.array([0.5, 0.25, 0.25]))
    asked = {"request_id": "r", "prompt_tokens": 5, "max_tokens": 1000}
    policy = policy_named("sage")
    plain = policy.assess(RequestFacts(**asked), predicted, engine).table  # type: ignore[arg-type]
    slow = policy.assess(RequestFacts(**asked, targets=Targets(e2e_s=9.0)), predicted, engine).table  # type: ignore[arg-type]
    chat = policy.assess(RequestFacts(**asked, targets=Targets(ttft_s=2.0)), predicted, engine).table  # type: ignore[arg-type]
    assert (plain.targets, plain.early_tokens) == (None, ())
    assert (chat.targets, chat.late_tokens) == (Targets(ttft_s=2.0), ())
    assert slow.index_s == plain.index_s
    assert len(slow.early_tokens) == len(slow.late_tokens) == len(slow.attained_tokens)
    assert (slow.early_tokens[0], slow.late_tokens[0]) == (10, 400)
