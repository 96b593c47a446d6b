import argparse
from itertools import islice

import pytest

from controller.demo.vllm_engine import REQUESTS_PER_TRACE, _traces
from engine_adapter.virtual_time.profiles import profile_named

pytestmark = pytest.mark.slow


def test_an_endless_load_comes_in_traces_of_which_each_begins_at_once() -> None:
    """Every request has a name of its own, so that the history tells those of one session apart."""
    options = argparse.Namespace(seed=1, load=0.9, cv=2.0, wave_period=120.0, wave_depth=0.6, speed=6.0)
    first, second = islice(_traces(options, profile_named("h800-qwen3-32b-24k")), 2)
    assert len({line.request_id for line in (*first, *second)}) == 2 * REQUESTS_PER_TRACE
    for trace in (first, second):
        arrivals_s = [line.arrival_s for line in trace]
        assert arrivals_s[0] == 0.0
        assert arrivals_s == sorted(arrivals_s)
