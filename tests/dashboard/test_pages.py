from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from dashboard import history, latency, launch, now, predictions

Open = Callable[..., AppTest]


def run_page(page: str) -> None:
    """Stand alone: `AppTest` writes this function's text into a script of its own."""
    import importlib  # noqa: PLC0415 - see above

    importlib.import_module(f"dashboard.{page}").page()


@pytest.fixture
def opened(standing: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open a page of a dashboard that asks the stand-in for the controller."""
    monkeypatch.setenv("SAGESCHED_DASHBOARD_API", standing.url)
    monkeypatch.delenv("SAGESCHED_STORE__PATH", raising=False)

    def open_page(page: str, store: Path | None = None) -> AppTest:
        if store is not None:
            monkeypatch.setenv("SAGESCHED_STORE__PATH", str(store))
        test = AppTest.from_function(run_page, args=(page,), default_timeout=20)
        return again(test)

    yield open_page
    streamlit.cache_resource.clear()


def again(test: AppTest) -> AppTest:
    streamlit.cache_resource.clear()
    test.run()
    assert not test.exception, test.exception
    return test


def boxes(test: AppTest) -> str:
    return "\n".join(box.value for box in (*test.error, *test.warning, *test.info))


def metrics(test: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in test.metric}


def charts(test: AppTest) -> int:
    return len(test.get("plotly_chart"))


def captions(test: AppTest) -> str:
    return "\n".join(caption.value for caption in test.caption)


def test_every_page_module_is_in_the_navigation(opened: Open) -> None:
    """The whole application runs from its entry script and offers each page."""
    test = again(AppTest.from_file(str(launch.ENTRY), default_timeout=20))
    assert "Now" in [title.value for title in test.title]
    text = launch.ENTRY.read_text()
    assert all(f"{page.__name__.split('.')[1]}.page" in text for page in (now, predictions, latency, history))


def test_now_shows_queue_memory_and_throughput(opened: Open) -> None:
    """Counts, three charts, the waiting in order and the running."""
    test = opened("now")
    assert metrics(test)["Waiting"] == "137"
    assert metrics(test)["Running"] == "48"
    assert charts(test) == 3
    waiting, running = (frame.value for frame in test.dataframe)
    assert list(waiting["position"]) == list(range(137))
    assert {"request_id", "index_s", "age_s", "priority", "expected_remaining_tokens"} <= set(waiting.columns)
    assert len(running) == 48
    assert boxes(test) == ""


def test_a_long_queue_is_cut_and_says_so(opened: Open, standing: Any) -> None:
    """With 10,000 waiting, the head is shown and the rest is a number."""
    standing.world.waiting = 10_000
    test = opened("now")
    assert metrics(test)["Waiting"] == "10,000"
    assert len(test.dataframe[0].value) == 452
    assert "The first 452 are shown; 9,548 more wait." in captions(test)


def test_a_controller_that_is_down_is_said_with_a_remedy_and_comes_back(opened: Open, standing: Any) -> None:
    """The page names the address and the command, and heals by itself."""
    test = opened("now")
    standing.stop()
    again(test)
    assert "The controller does not answer" in boxes(test)
    assert "python -m controller serve" in boxes(test)
    assert charts(test) == 0
    standing.start()
    again(test)
    assert boxes(test) == ""
    assert charts(test) == 3


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"connected": False, "snapshot": None}, r"Engine engine\-0 is lost"),
        ({"last_seen_s": 1.0}, r"Engine engine\-0 is silent"),
    ],
)
def test_an_engine_that_is_lost_or_silent_is_named(
    opened: Open, standing: Any, changes: dict[str, Any], title: str
) -> None:
    """What is wrong with an engine stands above the charts."""
    engines = standing.world.engines
    standing.world.engines = lambda now_s, waiting: [engine | changes for engine in engines(now_s, waiting)]
    assert title in boxes(opened("now"))


def test_a_fallback_is_prominent_and_gives_its_reason(opened: Open, standing: Any) -> None:
    """A reason from the engine is shown as text, whatever Markdown it contains."""
    engines = standing.world.engines

    def fallen(now_s: float, waiting: int) -> list[dict[str, Any]]:
        (engine,) = engines(now_s, waiting)
        return [engine | {"snapshot": engine["snapshot"] | {"fallback": "KeyError: [x](http://evil)", "mode": "off"}}]

    standing.world.engines = fallen
    test = opened("now")
    assert metrics(test)["In force"] == "fallback"
    assert "has fallen back to first come, first served" in boxes(test)
    assert r"\[x\]\(" in boxes(test)
    assert "http://evil" not in boxes(test)


def test_no_engine_is_a_state_with_a_next_step(opened: Open, standing: Any) -> None:
    """A fresh controller tells how to connect an engine and draws no empty charts."""
    standing.world.engines = lambda *_: []
    standing.world.empty = True
    test = opened("now")
    assert "No engine is connected yet" in boxes(test)
    assert "--scheduler-cls" in boxes(test)
    assert charts(test) == 0


def test_several_engines_can_be_told_apart(opened: Open, standing: Any) -> None:
    """All together at first; one alone when chosen."""
    engines = standing.world.engines

    def two(now_s: float, waiting: int) -> list[dict[str, Any]]:
        return [*engines(now_s, 100), *(engine | {"engine_id": "engine-1"} for engine in engines(now_s, 11))]

    standing.world.engines = two
    test = opened("now")
    assert metrics(test)["Waiting"] == "111"
    test.selectbox(key="engine").set_value("engine-1")
    again(test)
    assert metrics(test)["Waiting"] == "11"


def test_predictions_shows_calibration(opened: Open) -> None:
    """Coverage in figures, scatter and PIT as charts."""
    test = opened("predictions")
    assert metrics(test)["Coverage of 50 %"] == "51 %"
    assert metrics(test)["Coverage of 90 %"] == "88 %"
    assert charts(test) == 2
    assert boxes(test) == ""


def test_predictions_by_model_say_whom_they_are_trusted_for(opened: Open, standing: Any) -> None:
    """One row for each model that was measured; a model without figures, or none at all, breaks nothing."""
    assert not opened("predictions").dataframe
    measured = {"model": "qwen", "answers": 1000, "coverage_50": 0.49, "coverage_90": 0.91, "crps_tokens": 51.0,
                "log_score": -3.2, "prior_log_score": -3.6, "trusted": False, "scope": "model"}  # fmt: skip
    standing.world.learner = {"models": [measured, {"model": "new"}]}
    [table] = opened("predictions").dataframe
    rows = table.value.to_dict("records")
    assert [row["Model"] for row in rows] == ["qwen", "new"]
    assert rows[0]["Trusted"] == "no"
    assert rows[0]["Coverage of 90 %"] == "91 %"
    assert rows[0]["Log score over the prior's"] == "+0.40 nats"
    assert rows[1]["CRPS (tokens)"] == "–"


@pytest.mark.parametrize(
    ("learner", "title"),
    [
        ({"predictions": 0, "completions": 0, "coverage_50": None, "coverage_90": None}, "No predictions yet"),
        ({"completions": 0, "coverage_50": None, "crps_tokens": None}, "No outcomes yet"),
    ],
)
def test_missing_predictions_are_said(opened: Open, standing: Any, learner: dict[str, Any], title: str) -> None:
    """Before the first prediction or outcome there are dashes, not zeros."""
    standing.world.learner, standing.world.empty = learner, True
    test = opened("predictions")
    assert title in boxes(test)
    assert metrics(test)["Coverage of 50 %"] == "–"


def test_latency_labels_what_is_measured_and_what_is_modelled(opened: Open) -> None:
    """The gain is the change from replay to replay, and the method stands beside it."""
    test = opened("latency")
    assert charts(test) == 3
    assert metrics(test)["Replay against replay"] == "−34 %"
    assert "replay of finished requests through the simulated engine" in captions(test)
    assert "Only *measured* really happened" in captions(test)


@pytest.mark.parametrize(
    ("status", "title"), [("warming up", "Warming up"), ("unavailable", "No comparison available")]
)
def test_a_gain_that_is_not_there_yet_is_said(opened: Open, standing: Any, status: str, title: str) -> None:
    """No numbers are shown before there are any."""
    standing.world.gain = {"status": status, "method": "replay", "requests": 12, "actual": None, "fcfs": None}
    test = opened("latency")
    assert title in boxes(test)
    assert "Replay against replay" not in metrics(test)


def test_history_is_shown_while_the_controller_is_down(opened: Open, standing: Any, recorded: Path) -> None:
    """The store is enough."""
    standing.stop()
    test = opened("history", recorded)
    assert metrics(test)["Requests"] == "300"
    assert charts(test) == 4
    assert len(test.dataframe[0].value) == 12
    assert boxes(test) == ""


def test_history_says_when_it_is_empty_absent_or_unknown(opened: Open, empty_history: Path, tmp_path: Path) -> None:
    """Three states, three texts."""
    assert "No history is known" in boxes(opened("history"))
    assert "No history yet" in boxes(opened("history", tmp_path / "nowhere"))
    test = opened("history", empty_history)
    assert "No finished request is recorded yet" in boxes(test)
    assert metrics(test)["Requests"] == "0"


def test_sql_runs_a_saved_query_and_offers_its_answer(opened: Open, recorded: Path) -> None:
    """The statement is in the editor, its answer a table with downloads and a chart; the schema stands beside."""
    test = opened("sql", recorded)
    assert "No statement has been run yet." in captions(test)
    test.selectbox(key="sql_saved").set_value(3).run()
    assert "time_bucket" in test.text_area(key="sql_text").value
    test.button[0].click().run()
    assert not test.exception, test.exception
    assert boxes(test) == ""
    rows = test.dataframe[0].value
    assert list(rows.columns) == ["hour", "reason", "requests"]
    assert rows["requests"].sum() == 300
    assert len(test.get("download_button")) == 2
    assert "Meaning" in test.dataframe[1].value.columns


def test_sql_refuses_a_forbidden_statement_in_clear_words(opened: Open, recorded: Path) -> None:
    """And keeps what was written."""
    test = opened("sql", recorded)
    test.text_area(key="sql_text").set_value("DROP VIEW requests")
    test.button[0].click().run()
    assert "The statement was refused" in boxes(test)
    assert "DROP statements are not allowed" in boxes(test)
    assert test.text_area(key="sql_text").value == "DROP VIEW requests"


def test_sql_without_a_history_says_so(opened: Open, tmp_path: Path) -> None:
    """No editor is offered where nothing can be asked."""
    assert "No history is known" in boxes(opened("sql"))
    test = opened("sql", tmp_path / "nowhere")
    assert "No history yet" in boxes(test)
    assert not test.text_area
