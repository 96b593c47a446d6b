from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import streamlit
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from dashboard.charts import request_timeline
from store.http_requests import Loss, Moment, RequestTimeline

Open = Callable[..., AppTest]


def run_page() -> None:
    """Stand alone: `AppTest` writes this function's text into a script of its own."""
    import importlib

    importlib.import_module("dashboard.screens.request").page()


@pytest.fixture
def opened(standing: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open the page of a request, or of none."""
    monkeypatch.setenv("SAGESCHED_DASHBOARD_API", standing.url)
    monkeypatch.delenv("SAGESCHED_STORE__PATH", raising=False)

    def open_page(request_id: str | None, store: Path | None = None) -> AppTest:
        if store is not None:
            monkeypatch.setenv("SAGESCHED_STORE__PATH", str(store))
        streamlit.cache_resource.clear()
        test = AppTest.from_function(run_page, default_timeout=20)
        if request_id is not None:
            test.query_params["request"] = request_id
        test.run()
        assert not test.exception, test.exception
        return test

    yield open_page
    streamlit.cache_resource.clear()


def boxes(test: AppTest) -> str:
    return "\n".join(box.value for box in (*test.error, *test.warning, *test.info))


def metrics(test: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in test.metric}


def text(test: AppTest) -> str:
    return "\n".join(markdown.value for markdown in test.markdown)


def charts(test: AppTest) -> int:
    return len(test.get("bidi_component"))


def test_a_request_is_shown_in_words_figures_charts_and_overtakers(opened: Open) -> None:
    """Named by the address: its sentences, five charts, and who was served before it."""
    test = opened("cmpl-7")
    assert boxes(test) == ""
    assert {name: metrics(test)[name] for name in ("Class", "TTFT target", "End-to-end target", "Targets")} == {
        "Class": "none", "TTFT target": "2 s", "End-to-end target": "–", "Targets": "not ended yet",
    }  # fmt: skip
    assert {name: metrics(test)[name] for name in ("State", "Output tokens", "Preemptions", "Index on arrival")} == {
        "State": "running",
        "Output tokens": "236",
        "Preemptions": "1",
        "Index on arrival": "0.25 s",
    }
    assert "Waited 10 s because 30 requests were ahead and the free KV memory was reserved" in text(test)
    assert "Before it, 5 requests that arrived later started" in text(test)
    assert charts(test) == 5
    overtakers = test.dataframe[0].value
    assert list(overtakers["Request"]) == [f"cmpl-r{number}" for number in range(1, 6)]
    assert set(overtakers["Why"]) == {"lower index"}


def test_without_a_choice_the_page_offers_requests(opened: Open) -> None:
    """What waits or runs, and what ended last."""
    test = opened(None)
    assert "No request is chosen" in boxes(test)
    unfinished, ended = (frame.value for frame in test.dataframe)
    assert len(unfinished) == 15
    assert len(ended) == 15


def test_nothing_to_offer_is_said(opened: Open, standing: Any) -> None:
    """An idle engine has no requests to choose from."""
    standing.world.empty = True
    test = opened(None)
    assert len(test.dataframe) == 0
    assert "No request waits or runs, as far as is known." in [caption.value for caption in test.caption]


def test_while_the_disk_is_broken_no_ended_request_is_offered(opened: Open, standing: Any) -> None:
    """What waits or runs is known all the same."""
    standing.world.disk_error = "the recent past is unknown while history /h cannot be written: No space left"
    test = opened(None)
    assert "No space left" in boxes(test)
    (unfinished,) = (frame.value for frame in test.dataframe)
    assert len(unfinished) == 15


@pytest.mark.slow
def test_an_unknown_request_is_said(opened: Open, recorded: Path) -> None:
    """Neither the controller nor the history has it."""
    assert "This request is not known" in boxes(opened("nobody"))
    assert "This request is not known" in boxes(opened("nobody", recorded))


@pytest.mark.slow
def test_without_a_controller_the_facts_come_from_the_history(opened: Open, standing: Any, recorded: Path) -> None:
    """Charts are drawn, and it is said that the words are missing and why; without a history the trouble is said."""
    standing.stop()
    test = opened("cmpl-3", recorded)
    assert "The controller does not answer" in boxes(test)
    assert "drawn from the history" in boxes(test)
    assert metrics(test)["State"] == "ended"
    assert charts(test) == 4
    assert "In detail" not in text(test)
    alone = opened("cmpl-3", recorded.parent / "nowhere")
    assert "The controller does not answer" in boxes(alone)
    assert charts(alone) == 0


def test_an_engine_that_is_gone_is_said_of_an_unfinished_request_only(opened: Open, standing: Any) -> None:
    """Its request may come back; one that ended needs no engine."""
    standing.world.facts = {"session_id": "another"}
    assert "Its engine is gone" in boxes(opened("cmpl-7"))
    standing.world.facts |= {"finished_s": 2e9, "reason": "stop", "output_tokens": 300}
    assert boxes(opened("cmpl-7")) == ""


def test_entering_a_name_changes_the_address(opened: Open) -> None:
    """So that the address leads to what is shown."""
    test = opened(None)
    test.text_input[0].set_value(" cmpl-9 ").run()
    assert test.query_params["request"] == "cmpl-9"


def a_life(losses: list[tuple[float, float]], end_s: float) -> RequestTimeline:
    """A life of ``end_s`` seconds that started at 1 s, with places lost and got back at these moments."""
    moment = Moment(
        time_s=0.0,
        waiting=1,
        running=1,
        kv_blocks_used=1,
        kv_blocks=2,
        admission_limit=None,
        reserved_blocks=0,
        mode="on",
        fallback=None,
        ahead=None,
        head_prompt_tokens=None,
        attained_tokens=3,
    )
    back = [msgspec.structs.replace(moment, time_s=again_s) for _, again_s in losses]
    return RequestTimeline(
        request_id="r",
        engine_id="e",
        session_id="s",
        known_until_s=end_s,
        arrival_s=0.0,
        prompt_tokens=5,
        max_tokens=9,
        scheduled_s=1.0,
        first_token_s=2.0,
        finished_s=end_s,
        reason="stop",
        output_tokens=9,
        moments=tuple(back),
        losses=tuple(Loss(time_s=lost_s, lost_tokens=4, attained_tokens=2, cause="memory") for lost_s, _ in losses),
    )


@given(st.lists(st.floats(0.1, 5.0), max_size=6))
def test_the_phases_of_a_life_share_it_without_gap_or_overlap(spans_s: list[float]) -> None:
    """Also when the place was lost while the prompt was computed."""
    losses, now_s = [], 1.5
    for number in range(0, len(spans_s) - 1, 2):
        losses.append((now_s + spans_s[number], now_s + spans_s[number] + spans_s[number + 1]))
        now_s = losses[-1][1]
    life = a_life(losses, now_s + 3.0)
    phases = request_timeline.phases(life)
    assert phases[0].start_s == 0.0
    assert phases[-1].end_s == life.until_s
    assert all(before.end_s == pytest.approx(after.start_s) for before, after in pairwise(phases))
    away_s = sum(phase.end_s - phase.start_s for phase in phases if phase.name == "preempted")
    assert away_s == pytest.approx(sum(again_s - lost_s for lost_s, again_s in losses))


def test_a_life_of_which_nothing_is_known_yet_draws_empty_charts() -> None:
    """Each chart says in words that it has nothing to show."""
    life = RequestTimeline(
        request_id="r", engine_id="e", session_id="s", known_until_s=1.0, arrival_s=1.0, prompt_tokens=5, max_tokens=9
    )
    drawn = [
        request_timeline.bars(life),
        request_timeline.distribution(life),
        request_timeline.index(life),
        request_timeline.queue(life),
        request_timeline.waits(()),
    ]
    assert all(len(figure.layout.annotations) == 1 for figure in drawn)
