import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.explain import formatting as sentences
from store import formatting


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_not_known_is_a_dash(value: float | None) -> None:
    """No "nan", no "None" on the screen."""
    assert {formatting.count(value), formatting.percent(value), formatting.span(value)} == {formatting.DASH}


@given(st.floats(0, 1e7))
def test_spans_are_short_and_have_units(seconds: float) -> None:
    """Whatever its size, a span fits a tile."""
    text = formatting.span(seconds)
    assert re.fullmatch(r"(<1|[\d.e+]+) (ms|s|min|h)( \d+ (s|min))?", text), text
    assert len(text) <= 15


@given(st.floats(5.1e-5, 1.0 - 5.1e-5))
def test_a_share_is_none_or_all_only_where_it_is(share: float) -> None:
    """Down to a hundredth of a percent, what is not nothing is not written as 0%, nor as 100% what is not all."""
    assert formatting.percent(share) not in {"0%", "0.00%", "100%", "100.00%"}


@given(st.floats(0, 1e9))
def test_sentences_count_as_pages_do(number: float) -> None:
    """An explanation rounds as the dashboard beside it does; only what is not known has other words."""
    assert sentences.count(number) == formatting.count(number)
    assert sentences.count(None) == "an unknown number of"
