import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.ordering.boost import boost_s
from engine_adapter.ordering.kv_memory import PlainMemory
from engine_adapter.ordering.ordering import Ordering
from store.records import EngineRules, IndexTable, Settings


@dataclass
class Request:
    request_id: str
    num_tokens: int = 16
    num_computed_tokens: int = 0


@given(st.floats(1e-6, 1e4), st.floats(1e-6, 1e4), st.floats(1e-4, 10.0))
def test_the_boost_falls_with_the_index(one_s: float, other_s: float, rate: float) -> None:
    """A shorter request never has the smaller boost, and no boost is negative."""
    small, large = sorted((one_s, other_s))
    assert boost_s(small, rate) >= boost_s(large, rate) >= 0.0


def first(boost_per_s: float, *, older_s: float, old_index_s: float, new_index_s: float) -> str:
    """Who of two waiting requests goes first: the old one, or the one that came ``older_s`` later."""
    ordering = Ordering(16, 100)
    ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=EngineRules(boost_per_s=boost_per_s)))
    for name, arrival_s, index_s in (("old", 0.0, old_index_s), ("new", older_s, new_index_s)):
        ordering.track(name, priority=0, arrival_s=arrival_s)
        ordering.put(IndexTable(request_id=name, attained_tokens=(0,), index_s=(index_s,), growth_tokens=(0.0,)))
    queue = [Request("old"), Request("new")]
    return ordering.plan(older_s, waiting=queue, running=[], memory=PlainMemory(9, 16)).waiting[0].request_id


@pytest.mark.parametrize("overtaking", [0.7, 30.0, 140.0])
@pytest.mark.parametrize("response_s", [2.0, 60.0, 900.0])
def test_an_answer_of_half_the_cost_overtakes_one_that_has_waited_so_many_mean_times(
    overtaking: float, response_s: float
) -> None:
    """The dial has this meaning at any depth of the queue, as long as costs are small against the waits."""
    boost_per_s = math.log(2.0) / overtaking / response_s
    index_s = 1e-3 / boost_per_s
    for halvings in (1, 3):
        reach_s = halvings * overtaking * response_s
        for share, expected in ((0.97, "new"), (1.03, "old")):
            found = first(boost_per_s, older_s=share * reach_s, old_index_s=index_s, new_index_s=index_s / 2**halvings)
            assert found == expected


@given(
    boost_per_s=st.floats(1e-4, 1.0),
    old_index_s=st.floats(1e-3, 1e4),
    new_index_s=st.floats(1e-3, 1e4),
)
def test_every_wait_ends(boost_per_s: float, old_index_s: float, new_index_s: float) -> None:
    """Whoever comes later than its own boost can no longer overtake, whatever both cost."""
    late_s = boost_s(new_index_s, boost_per_s) * 1.001 + 1e-6
    assert first(boost_per_s, older_s=late_s, old_index_s=old_index_s, new_index_s=new_index_s) == "old"
