import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.text import notices, words
from store.http_api import ControllerView, EngineView, LearnerView, SnapshotView, StateView, StoreView


@given(st.text())
def test_no_markdown_survives_in_text_from_outside(text: str) -> None:
    """Every character that Markdown could obey has a backslash before it, and lines are joined into one."""
    escaped = words.plain(text)
    assert "\n" not in escaped
    bare = re.sub(r"\\.", "", escaped)
    assert not set(bare) & set(r"\`*_{}[]()<>#|$:~&@^")


@pytest.mark.parametrize("address", ["http://evil/x", "HTTPS://evil", "www.evil.com", "me@evil.com"])
def test_addresses_in_text_from_outside_are_no_links(address: str) -> None:
    """An invisible joiner stands where Markdown would recognise an address."""
    assert "\u2060" in words.plain(f"see {address} now")


@given(st.text(min_size=1))
def test_code_keeps_text_whole(text: str) -> None:
    """The fence is longer than any run of backticks inside, so that nothing ends it early."""
    set_as_code = words.code(text)
    fence = re.match("`+", set_as_code)
    assert fence is not None
    inside = set_as_code[len(fence.group()) : -len(fence.group())]
    assert fence.group() not in re.findall("`+", inside)


def engine(**changes: object) -> EngineView:
    fields: dict[str, object] = {
        "engine_id": "a",
        "connected": True,
        "last_seen_s": 100.0,
        "snapshot": SnapshotView(mode="on"),
    }
    return EngineView(**(fields | changes))  # type: ignore[arg-type]


def test_notices_come_worst_first() -> None:
    """A lost engine stands above one that merely fell back."""
    fallen = engine(snapshot=SnapshotView(mode="off", fallback="no prior"))
    state = StateView(controller=ControllerView(now_s=100.5), engines=(fallen, engine(engine_id="b", connected=False)))
    assert [notice.level for notice in notices.state_notices(state, None)] == ["error", "warning"]
    assert [notice.level for notice in notices.state_notices(state, "a")] == ["warning"]
    assert words.in_force(state.engines) == "fallback"


def test_all_is_well_says_nothing() -> None:
    """No box without a reason."""
    state = StateView(controller=ControllerView(now_s=100.5), engines=(engine(),))
    assert notices.state_notices(state, None) == []
    assert words.in_force(state.engines) == "on"
    assert words.no_prediction_notice(LearnerView(predictions=5, completions=1)) is None


def test_trouble_with_the_history_is_told_before_all_else() -> None:
    """A disk that takes nothing, and segments that are left out, whether an engine is there or not."""
    store = StoreView(last_error="No space left on device", damaged_segments=2)
    [failing, damaged, *_] = notices.state_notices(StateView(controller=ControllerView(), store=store), None)
    assert (failing.level, damaged.level) == ("error", "warning")
    assert "No space left on device" in failing.text
    assert "2 files of the history are damaged" in damaged.title


def test_a_controller_that_is_behind_with_learning_says_so_until_it_is_not() -> None:
    """How much waits and was left out, and what to do."""
    behind = LearnerView(backlog=5000, not_learnt=1234, not_predicted=56)
    [*_, notice] = notices.state_notices(
        StateView(controller=ControllerView(), learner=behind, engines=(engine(),)), None
    )
    assert (notice.level, notice.title) == ("warning", "The controller is behind with learning")
    assert "5,000 pieces of work wait, and 1,234 answers were left out" in notice.text
    assert "56 of them ended before it had time to predict them" in notice.text
    caught_up = LearnerView(backlog=3, not_learnt=1234)
    assert (
        notices.state_notices(StateView(controller=ControllerView(), learner=caught_up, engines=(engine(),)), None)
        == []
    )
