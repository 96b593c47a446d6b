import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from dashboard.__main__ import ENTRY
from dashboard.access import sessions
from dashboard.access.sessions import Person
from dashboard.access.settings import AccessSettings
from dashboard.data import live
from store.entries import Entry, ModeSwitched
from store.history.writer import HistoryWriter
from store.rules import RULES

Open = Callable[..., AppTest]
PAGES = ("now", "latency", "service", "gain", "predictions", "prompts", "history", "sql", "settings", "glossary")


def run_page(page: str) -> None:
    """Stand alone: `AppTest` writes this function's text into a script of its own."""
    import importlib

    importlib.import_module(f"dashboard.screens.{page}").page()


@pytest.fixture
def opened(standing: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open a page of a dashboard that asks the stand-in for the controller."""
    monkeypatch.setenv("SAGESCHED_DASHBOARD_API", standing.url)
    monkeypatch.delenv("SAGESCHED_STORE__PATH", raising=False)

    def open_page(page: str, store: Path | None = None, address: dict[str, str] | None = None) -> AppTest:
        if store is not None:
            monkeypatch.setenv("SAGESCHED_STORE__PATH", str(store))
        test = AppTest.from_function(run_page, args=(page,), default_timeout=20)
        for name, value in (address or {}).items():
            test.query_params[name] = value
        return again(test)

    yield open_page
    streamlit.cache_resource.clear()


def again(test: AppTest) -> AppTest:
    streamlit.cache_resource.clear()
    streamlit.cache_data.clear()
    test.run()
    assert not test.exception, test.exception
    return test


def glances(test: AppTest) -> str:
    """What the page says in HTML of its own."""
    return "\n".join(element.proto.body for element in test.get("html"))


def boxes(test: AppTest) -> str:
    return "\n".join(box.value for box in (*test.error, *test.warning, *test.info))


def metrics(test: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in test.metric}


def charts(test: AppTest) -> int:
    return len(test.get("bidi_component"))


def first_chart(test: AppTest) -> str:
    """The figure as the browser gets it."""
    figure: str = json.loads(test.get("bidi_component")[0].proto.json)["figure"]
    return figure


def captions(test: AppTest) -> str:
    return "\n".join(caption.value for caption in test.caption)


def test_every_page_module_is_in_the_navigation(opened: Open) -> None:
    """The whole application runs from its entry script and offers each page."""
    test = again(AppTest.from_file(str(ENTRY), default_timeout=20))
    assert "Now" in [title.value for title in test.title]
    text = ENTRY.read_text()
    assert all(f"{page}.page" in text for page in PAGES)


def test_now_shows_queue_memory_and_throughput(opened: Open) -> None:
    """Counts, three charts, the waiting in order and the running."""
    test = opened("now")
    assert metrics(test)["Waiting"] == "137"
    assert metrics(test)["Running"] == "48"
    assert charts(test) == 3
    waiting, running = (frame.value for frame in test.dataframe)
    assert list(waiting["position"]) == list(range(1, 138))
    assert {"request_id", "index_s", "age_s", "expected_remaining_tokens"} <= set(waiting.columns)
    assert "priority" not in waiting.columns, "all are of one class"
    assert set(waiting["service_class"].dropna()) == {"chat"}
    assert "TTFT 2 s, TPOT 100 ms" in set(waiting["targets"])
    assert len(running) == 48
    assert "Admission holds room for each request to grow by its next 256 tokens." in captions(test)
    assert "the last request in the order is preempted" in captions(test)
    assert "The peak of KV memory predicted" in captions(test)
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
    assert "sagesched serve --store DIR" in boxes(test)
    assert charts(test) == 0
    standing.start()
    again(test)
    assert boxes(test) == ""
    assert charts(test) == 3


def test_what_was_known_last_is_shown_while_the_controller_is_gone(
    opened: Open, standing: Any, left_behind: Path
) -> None:
    """The state, the latencies and the events of the last minutes that the history has, marked with their age."""
    standing.stop()
    test = opened("now", left_behind)
    assert "The controller does not answer" in boxes(test)
    titles = [markdown.value for markdown in test.markdown]
    assert re.fullmatch(r"## Last known state, \d+ days ago", titles[0])
    assert "2025-12-31 23:59:59" in captions(test)
    shown = glances(test)
    assert "<small>waiting</small> 7" in shown
    assert "<small>P50</small> 1 s" in shown
    assert "fallback</td>" in shown
    assert "engine-1</td>" not in shown, "it has never reported"
    expected = ["serves first come, first served: no heartbeat", "mode of all engines: on (trial)", "cluster 1 changed"]
    assert sorted(expected, key=shown.index) == expected, "the latest first"
    assert charts(test) == 3
    test = opened("now", left_behind, {"model": "small"})
    assert "Last known state" not in "".join(markdown.value for markdown in test.markdown)
    standing.start()
    assert boxes(opened("now", left_behind)) == ""


def test_the_charts_of_now_show_a_chosen_span_of_the_past(opened: Open, standing: Any, left_behind: Path) -> None:
    """Of the history, also without a controller; all else is of the present."""
    address = {"from": "2025-12-31T23:58Z", "to": "2025-12-31T23:59Z"}
    test = opened("now", left_behind, address)
    assert metrics(test)["Waiting"] == "137"
    assert "The charts show the chosen time" in captions(test)
    shown = json.loads(first_chart(test))
    assert shown["layout"]["xaxis"]["range"] == ["2025-12-31T23:58:00", "2025-12-31T23:59:00"]
    used = [value for value in shown["data"][0]["y"] if value is not None]
    assert used
    assert max(shown["data"][0]["x"]) < "2025-12-31T23:59:01"
    standing.stop()
    again(test)
    assert json.loads(first_chart(test))["layout"]["xaxis"]["range"][1] == "2025-12-31T23:59:00"


LOST = {
    "rule": "engine_lost",
    "level": "red",
    "subject": "engine-0",
    "text": "Its last message came 9 s ago.",
    "do": "Restart `vllm`.",
}


def test_the_verdict_stands_first_with_its_reason_and_what_to_do(opened: Open, standing: Any) -> None:
    """The worst as the heading, what else is amiss below it, and green as one word."""
    assert "Green: All is well" in glances(opened("now"))
    behind = {"rule": "behind", "level": "amber", "text": "5,000 tasks are pending.", "do": "Give it a core."}
    standing.world.findings = [behind, LOST]
    shown = glances(opened("now"))
    assert 'data-level="red"' in shown
    assert "Red: Engine engine-0 is lost</h2><div>Its last message came 9 s ago. <b>Restart vllm.</b>" in shown
    assert "<li>Amber: The controller is behind with learning. 5,000 tasks are pending." in shown
    standing.world.findings = [behind, LOST, *(LOST | {"subject": f"engine-{number}"} for number in range(1, 5))]
    assert "and 3 more" in glances(opened("now"))


def test_tiles_say_latency_demand_and_gain_with_its_trust(opened: Open, standing: Any) -> None:
    """Figures with their trend and their targets; a replay that reproduces poorly is not to be believed."""
    standing.world.gain["reproduction"]["poor"] = []
    shown = glances(opened("now"))
    assert "<small>P50</small> 300 ms" in shown
    assert "<small>P99</small> 2.7 s" in shown
    assert "↘ median was 450 ms, 840 requests in a minute" in shown
    assert "chat: 94% within targets, wanted 95%" in shown
    assert "The queue of 137 does not grow." in shown
    assert "<small>mean</small> −" in shown
    assert "90% sure" in shown
    standing.world.gain["reproduction"]["poor"] = ["its mean is off by 24%"]
    assert "Do not trust it yet: its mean is off by 24%." in glances(opened("now"))
    standing.world.no_gain = {"status": "warming up", "reason": "too few requests"}
    assert "Too few requests." in glances(opened("now"))


def test_engines_and_events_stand_on_now(opened: Open) -> None:
    """A row for each engine, what happened lately, and the same as marks on the charts over time."""
    test = opened("now")
    shown = glances(test)
    assert "engine-0</td>" in shown
    assert "--share: " in shown
    assert "mode of all engines: on (asked for)" in shown
    memory = json.loads(first_chart(test))["layout"]
    assert [mark["text"] for mark in memory["annotations"]] == ["mode"], "the other is older than the chart"
    assert len(memory["shapes"]) == 1


def test_a_queue_says_when_each_is_expected_to_start_and_to_end_and_why(opened: Open) -> None:
    """In seconds from now, with a word; the first is number 1."""
    waiting = opened("now").dataframe[0].value
    assert list(waiting["position"][:3]) == [1, 2, 3]
    assert list(waiting["starts_in_s"][:2]) == [0.5, 1.5]
    assert (waiting["ends_in_s"] > waiting["starts_in_s"]).all()
    assert set(waiting["because"]) == {"short", "has waited"}


def test_text_from_outside_is_text_on_now(opened: Open, standing: Any) -> None:
    """A fallback's reason, an engine's name and a model cannot become part of the page."""
    engines = standing.world.engines

    def fallen(now_s: float, waiting: int) -> list[dict[str, Any]]:
        (engine,) = engines(now_s, waiting)
        changes = {"fallback": "no prior", "mode": "off"}
        return [engine | {"snapshot": engine["snapshot"] | changes, "model": "<img src=x onerror=alert(1)>"}]

    standing.world.engines = fallen
    standing.world.findings = [
        {
            "rule": "engine_fallback",
            "level": "amber",
            "subject": "<b>e</b>",
            "text": "Reason: <script>alert(1)</script>.",
            "do": "",
        }
    ]
    test = opened("now")
    assert metrics(test)["In force"] == "fallback"
    shown = glances(test)
    assert "&lt;b&gt;e&lt;/b&gt; has fallen back to first come, first served" in shown
    assert "&lt;img src=x" in shown
    assert "<script" not in shown
    assert "<img src=x" not in shown


def test_bounds_of_the_step_are_said_in_plain_words(opened: Open, standing: Any) -> None:
    """Who wonders why a long prompt is slow finds the reason on the page."""
    engines = standing.world.engines

    def bounded(now_s: float, waiting: int) -> list[dict[str, Any]]:
        changes = {"step_tokens": 2048, "chunk_tokens": 512}
        return [engine | {"snapshot": engine["snapshot"] | changes} for engine in engines(now_s, waiting)]

    standing.world.engines = bounded
    assert "a step computes at most 2,048 tokens, and of one prompt at most 512" in captions(opened("now"))


def test_no_engine_is_a_state_with_a_next_step(opened: Open, standing: Any) -> None:
    """A fresh controller tells how to connect an engine and draws no empty charts."""
    standing.world.engines = lambda *_: []
    standing.world.empty = True
    rule = RULES["no_engine"]
    standing.world.findings = [{"rule": "no_engine", "level": "amber", "text": "Nothing reports.", "do": rule.do}]
    test = opened("now")
    assert "Amber: No engine is connected" in glances(test)
    assert "--scheduler-cls" in glances(test)
    assert charts(test) == 0


@pytest.mark.slow
def test_filters_hold_across_pages_and_stand_in_the_address(opened: Open, standing: Any) -> None:
    """All engines at first; one alone when chosen, from the address too; an unknown one is said."""
    engines = standing.world.engines

    def two(now_s: float, waiting: int) -> list[dict[str, Any]]:
        other = {"engine_id": "engine-1", "model": "small"}
        return [*engines(now_s, 100), *(engine | other for engine in engines(now_s, 11))]

    standing.world.engines = two
    test = again(AppTest.from_file(str(ENTRY), default_timeout=20))
    assert metrics(test)["Waiting"] == "111"
    test.selectbox(key="filter_engine").set_value("engine-1")
    test.selectbox(key="filter_range").set_value("2 min")
    again(test)
    assert metrics(test)["Waiting"] == "11"
    assert (test.query_params["engine"], test.query_params["range"]) == ("engine-1", "2 min")
    assert metrics(opened("now", None, {"model": "small"}))["Waiting"] == "11"
    assert "No engine is both connected and chosen" in boxes(opened("now", None, {"engine": "engine-9"}))
    assert metrics(opened("now", None, {"range": "nonsense"}))["Waiting"] == "111"


def test_predictions_lead_with_a_verdict(opened: Open, recorded: Path) -> None:
    """Whether they can be relied on, from the answers themselves; figures for operators; the learner's below."""
    test = opened("predictions", recorded)
    assert "Predictions are good" in test.info[0].value
    assert "of answers are inside the predicted 90% range (ideal: 90%), and half are within ±52%" in boxes(test)
    assert metrics(test)["Inside the 50% range"] == "52%"
    assert metrics(test)["Inside the 90% range"] == "90%"
    assert metrics(test)["Half are within"] == "±52%"
    assert metrics(test)["Coverage of 50%"] == "51%"
    assert charts(test) == 2


def test_predictions_that_are_too_confident_or_not_used_are_a_warning(opened: Open, standing: Any) -> None:
    """Of a model that the guard distrusts the reason is given."""
    standing.world.pit = lambda number: 0.01 if number % 4 == 0 else 0.5
    standing.world.learner = {"models": [standing.world.measured("qwen", trusted=False, reason="coverage fell")]}
    test = opened("predictions")
    warned = [box.value for box in test.warning]
    assert any("Predictions are too confident" in text for text in warned)
    assert any("Predictions are not used at present" in text and "qwen (coverage fell)" in text for text in warned)


@pytest.mark.slow
def test_predictions_over_time_come_from_the_history(opened: Open, standing: Any, recorded: Path) -> None:
    """Score, coverage, experts' weights and what changed; the comparison too where the range is long."""
    test = opened("predictions", recorded, {"range": "all"})
    assert charts(test) == 6
    events = test.dataframe[0].value
    assert list(events["What"]) == ["merged", "drift"]
    assert list(events["Clusters"]) == ["4", "1"]
    assert not test.error
    standing.stop()
    test = opened("predictions", recorded, {"range": "all"})
    assert charts(test) == 6
    assert "The controller does not answer" in boxes(test)


@pytest.mark.slow
def test_predictions_by_model_say_whom_they_are_trusted_for(opened: Open, standing: Any) -> None:
    """One row for each model that was measured; that there is none breaks nothing."""
    assert not opened("predictions").dataframe
    measured = standing.world.measured
    standing.world.learner = {"models": [measured("qwen", trusted=False), measured("new", crps_tokens=8.0)]}
    [table] = opened("predictions").dataframe
    rows = table.value.to_dict("records")
    assert [row["Model"] for row in rows] == ["qwen", "new"]
    assert rows[0]["Trusted"] == "no"
    assert rows[0]["Coverage of 90%"] == "91%"
    assert rows[0]["Better than the prior by"] == "+0.40 nats"
    assert (rows[1]["Trusted"], rows[1]["CRPS (tokens)"]) == ("yes", "8")


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
    assert "Inside the 50% range" not in metrics(test)


def test_latency_has_first_last_and_each_token(opened: Open) -> None:
    """A sentence, figures, percentiles and heatmaps of the last minutes, where the time goes, and tenants compared."""
    test = opened("latency")
    assert "Half of the requests have their first token within **1 s**" in test.markdown[0].value
    assert metrics(test)["TTFT, P99"] == "4 s"
    assert charts(test) == 8
    assert "in the last 10 min" in captions(test)
    assert list(test.dataframe[0].value["Tenant"]) == ["t0", "t1"]
    test.segmented_control(key="latency_compared").set_value("class").run()
    assert list(test.dataframe[0].value["Priority"]) == ["0", "1"]


def test_latency_compares_engines_where_there_are_several(opened: Open, recorded: Path, standing: Any) -> None:
    """The slowest is named with the factor, and one engine can be chosen."""
    standing.stop()
    test = opened("latency", recorded, {"range": "all"})
    rows = test.dataframe[0].value
    assert list(rows["Engine"]) == ["engine-0", "engine-1"]
    assert "Requests on" in captions(test) or "All engines are alike" in captions(test)
    one = opened("latency", recorded, {"range": "all", "part": "engine:engine-1"})
    assert "30 ran to their end" in captions(one)


@pytest.mark.slow
def test_latency_of_one_part_stands_in_the_address(opened: Open) -> None:
    """Chosen from what there is, or given by the address; one that nobody belongs to is shown as empty."""
    test = opened("latency")
    everything = int(captions(test).split(" ran to their end")[0].split()[-1])
    test.selectbox(key="filter_part").set_value("tenant:t1").run()
    assert not test.exception, test.exception
    mine = int(captions(test).split(" ran to their end")[0].split()[-1])
    assert 0 < mine < everything
    assert test.query_params["part"] == "tenant:t1"
    again_mine = int(captions(opened("latency", None, {"part": "tenant:t1"})).split(" ran to their end")[0].split()[-1])
    assert 0 < again_mine < everything, "the same part, a moment later"
    nobody = opened("latency", None, {"part": "tenant:nobody"})
    assert "0 ran to their end" in captions(nobody)
    assert "all requests" not in nobody.selectbox(key="filter_part").format_func(
        nobody.selectbox(key="filter_part").value
    )


@pytest.mark.slow
def test_while_the_disk_is_broken_pages_of_the_last_minutes_say_so(opened: Open, standing: Any) -> None:
    """Nothing old is shown in their place, and they are back with the disk."""
    standing.world.disk_error = "the recent past is unknown while history /h cannot be written: No space left"
    for page in ("latency", "predictions"):
        test = opened(page)
        assert "No space left" in boxes(test)
        assert charts(test) == 0
    test = opened("now")
    assert metrics(test)["Waiting"] == "137"
    assert "No snapshots in this window" in first_chart(test)
    standing.world.disk_error = None
    for page, drawn in (("latency", 8), ("predictions", 2)):
        test = opened(page)
        assert not test.error
        assert charts(test) == drawn


@pytest.mark.slow
def test_latency_of_a_longer_range_comes_from_the_history(opened: Open, standing: Any, recorded: Path) -> None:
    """Also while the controller is down; with a table by class, tenant, model and cluster."""
    standing.stop()
    address = {"from": "2025-12-31T23:00Z", "to": "2026-01-01T00:00Z", "model": "small"}
    test = opened("latency", recorded, address)
    assert charts(test) == 8
    assert boxes(test) == ""
    rows = test.dataframe[0].value
    assert list(rows["Tenant"]) == ["none"]
    assert set(rows["Requests"]) == {30}


def test_clusters_are_called_by_what_they_are_like(opened: Open, standing: Any, of_one_model: Path) -> None:
    """Typical prompt and answer on Latency and Gain as on Prompts; a cluster that the history does not know: its number."""
    parts = standing.world.gain["parts"]
    standing.world.gain["parts"] = [*parts, parts[-1] | {"name": "1"}]
    test = opened("gain", of_one_model)
    groups = list(test.dataframe[1].value["Group"])
    assert groups[-2:] == ["cluster 3", "cluster 100 → 40, no tenant (#1)"]
    test = opened("latency", of_one_model, {"from": "2025-12-31T23:00Z", "to": "2026-01-01T00:00Z"})
    [choice] = [box for box in test.selectbox if box.label == "Filter by"]
    assert [each for each in choice.options if " → " in each and each.startswith("cluster ")]
    test.segmented_control(key="latency_compared").set_value("cluster").run()
    assert list(test.dataframe[0].value["Cluster"]) == ["100 → 40, no tenant (#1)"]


@pytest.mark.slow
def test_a_cluster_number_of_two_models_stays_a_number(opened: Open, recorded: Path) -> None:
    """The numbers are counted by model; with the model chosen it is clear which cluster is meant."""
    address = {"from": "2025-12-31T23:00Z", "to": "2026-01-01T00:00Z"}
    for model, name in (({}, "1"), ({"model": "small"}, "100 → 40, no tenant (#1)")):
        test = opened("latency", recorded, address | model)
        test.segmented_control(key="latency_compared").set_value("cluster").run()
        assert list(test.dataframe[0].value["Cluster"]) == [name]


@pytest.mark.slow
def test_what_is_live_comes_from_the_history_while_the_controller_is_gone(
    opened: Open, standing: Any, recorded: Path
) -> None:
    """Under a banner that says so; the range means the clock, and the last traffic is one click away."""
    standing.stop()
    for page, drawn in (("latency", 8), ("service", 4), ("predictions", 6), ("history", 4), ("prompts", 4)):
        test = opened(page, recorded)
        assert ("The controller does not answer" in boxes(test)) == (page in {"latency", "service", "predictions"})
        assert "No request finished in this range" in boxes(test)
        assert "days ago, at 2026-01-01 00:00:00" in boxes(test)
        assert charts(test) == 0
        test.button(key="last_traffic").click().run()
        assert not test.exception, test.exception
        again(test)
        assert charts(test) == drawn, page
        assert "from 2025-12-31 23:50:00 to 2026-01-01 00:00:00" in captions(test)


def test_a_range_ends_where_it_says(opened: Open, recorded: Path) -> None:
    """What ended later is not in a range of the past."""
    address = {"from": "2025-12-31T23:50Z", "to": "2025-12-31T23:55Z"}
    assert metrics(opened("history", recorded, address))["Requests ended"] == "61"
    assert "61 ran to their end" in captions(opened("latency", recorded, address))
    assert metrics(opened("predictions", recorded, address))["Answers compared"] == "61"
    whole = {"from": "2025-12-31T23:50Z", "to": "2026-01-01T00:00Z"}
    assert metrics(opened("history", recorded, whole))["Requests ended"] == "121"


def test_gain_says_what_it_brings_how_sure_that_is_and_who_loses(opened: Open) -> None:
    """The change from replay to replay with its interval, P99, who loses, objectives, the parts, and the method."""
    test = opened("gain")
    assert charts(test) == 2
    shown = metrics(test)
    assert (shown["Mean TTLT"], shown["P99 TTLT"], shown["Recompute saved"], shown["Faster / slower"]) == (
        "−34%",
        "+17%",
        "50,100",
        "70% / 12%",
    )
    assert "SageSched lowers latency" in boxes(test)
    assert "−39% to −28%), P99 +17%" in boxes(test)
    assert "Slower: answers of 1,024 to 4,095 tokens (+20%)" in boxes(test).replace("\\", "")
    objectives, parts = (frame.value for frame in test.dataframe)
    assert "Objective `mean` would change the mean by −42%, P99 by +5% and the longest request by +70%." in "".join(
        markdown.value for markdown in test.markdown
    )
    assert list(objectives["Objective"]) == ["mean", "balanced (in use)", "tail"]
    verdicts = dict(zip(parts["Group"], parts["Verdict"], strict=True))
    assert verdicts["answers of 16 to 63 tokens"] == "gains"
    assert verdicts["answers of 1,024 to 4,095 tokens"] == "loses"
    assert verdicts["priority 5"] == "undecided"
    assert "replay of finished requests through the simulated engine" in captions(test)
    assert "Only *measured* really happened" in captions(test)
    assert r"is off by −2%" in captions(test)


def test_gain_in_shadow_says_what_on_would_bring(opened: Open, standing: Any) -> None:
    """From the mode in force in the engines; a replay that reproduces poorly is warned of."""
    engines = standing.world.engines
    standing.world.engines = lambda now_s, waiting: [
        engine | {"snapshot": engine["snapshot"] | {"mode": "shadow"}} for engine in engines(now_s, waiting)
    ]
    standing.world.gain["reproduction"] |= {"mode": "shadow"}
    test = opened("gain")
    assert "Mode `on`, which is not in force, would lower latency" in boxes(test)
    assert "replay, mode on (not in force)" in first_chart(test)


def test_a_gain_that_the_replay_does_not_bear_is_uncertain_from_its_first_word_on(opened: Open, standing: Any) -> None:
    """The verdict says by how much the replay misses, and claims nothing."""
    poor = {"mean_ttlt_error": -0.21, "poor": ["the mean TTLT is off by -21%"]}
    standing.world.gain["reproduction"] |= poor
    test = opened("gain")
    (verdict,) = test.warning
    assert "Uncertain: the replay misses the measured mean by 21%" in verdict.value
    assert not test.info
    assert metrics(test)["Mean TTLT, estimated"] == "−34%"


def test_the_last_comparison_stays_while_the_controller_is_gone(opened: Open, standing: Any) -> None:
    """With its moment; without one the command that replays the history is given."""
    test = opened("gain")
    standing.stop()
    time.sleep(live.KEPT_S)
    test.run()
    assert charts(test) == 2
    assert "The last comparison that the controller gave, from 1970-01-01" in captions(test)
    again(test)
    assert charts(test) == 0
    assert "sagesched replay" in captions(test)


@pytest.mark.parametrize(
    ("status", "title"), [("warming up", "Warming up"), ("unavailable", "No comparison available")]
)
def test_a_gain_that_is_not_there_yet_is_said(opened: Open, standing: Any, status: str, title: str) -> None:
    """No numbers are shown before there are any."""
    standing.world.no_gain = {"status": status, "reason": "the replay failed"}
    test = opened("gain")
    assert title in boxes(test)
    assert "the replay failed" in boxes(test)
    assert not metrics(test)


@pytest.mark.slow
def test_settings_show_engines_errors_history_and_configuration(opened: Open, recorded: Path) -> None:
    """Text from the log is shown as it is; the reasons of tuned settings stand beside them."""
    test = opened("settings", recorded)
    assert metrics(test)["Engines connected"] == "1 of 1"
    assert metrics(test)["Records to write"] == "0"
    engines, recent_warnings, history, configuration, versions = (frame.value for frame in test.dataframe)
    assert list(engines["Engine"]) == ["engine-0"]
    assert list(engines["Check of vLLM"]) == ["all names and 15 behaviours hold"]
    assert list(recent_warnings["What"]) == ["tick failed: [x](y)"]
    assert set(history["Why"]) == {"reserve more on engine-0", "reserve more on engine-1"}
    assert list(configuration["Setting"]) == ["mode", "http.token"]
    assert list(configuration["In force"]) == ["on", "**********"]
    assert list(versions["Of"])[-2:] == ["vllm (beside the controller)", "engine engine-0"]
    assert "Prompts left out" not in metrics(test), "there is no encoder"
    test.button(key="settings_examine").click().run()
    text = "\n".join(markdown.value for markdown in test.markdown)
    assert "make room" in text
    assert "1 to put right" in captions(test)


def test_an_encoder_that_does_not_keep_up_is_shown(opened: Open, standing: Any) -> None:
    """What it read, what waits, what it left out, and its failures."""
    standing.world.health["encoder"] = {"encoded": 1200, "dropped": 34, "errors": 1, "waiting": 5}
    found = metrics(opened("settings"))
    assert [found[name] for name in ("Prompts read", "Prompts waiting", "Prompts left out", "Failures")] == [
        "1,200",
        "5",
        "34",
        "1",
    ]


def test_a_mode_is_switched_only_with_a_reason_and_a_confirmation(opened: Open, standing: Any) -> None:
    """The button stays dead until both are there; then the controller has the order."""
    test = opened("settings")
    test.radio(key="settings_wanted_on").set_value("shadow").run()
    assert test.button(key="settings_do").disabled
    test.checkbox(key="settings_sure_on_shadow").check().run()
    assert test.button(key="settings_do").disabled
    test.text_input(key="settings_reason_on").set_value("incident 42").run()
    assert not test.button(key="settings_do").disabled
    test.button(key="settings_do").click().run()
    assert standing.world.orders == [{"mode": "shadow", "reason": "incident 42"}]


def test_whoever_may_only_look_is_told_so_and_has_nothing_to_switch(opened: Open) -> None:
    """By the session of each page; a page without one shows nothing."""
    settings = AccessSettings(token="zebra-token-0123456789abcdef", read_token="mouse-token-0123456789abcdef")
    held = sessions.Sessions(settings, time.time)
    sessions.install(held)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "person", lambda _session: Person("look"))
        test = opened("settings")
        assert "This login can view and not switch" in boxes(test)
        assert not [button for button in test.button if button.key == "settings_do"]
    test = opened("settings")
    assert "Nobody is logged in here" in boxes(test)
    assert not test.radio


def test_who_switched_the_mode_is_shown(opened: Open, tmp_path: Path) -> None:
    """The latest first, with what they said and how they showed that they may."""
    about = {"reason": "drill", "who": "Ada", "credential": "token", "address": "10.0.0.9"}
    switches = [
        ModeSwitched(time_s=1.0, before="on", mode="off", **about),
        ModeSwitched(time_s=2.0, before="off", mode="on", **about | {"who": None, "credential": "loopback"}),
    ]
    with HistoryWriter(tmp_path / "h") as writer:
        writer.append([Entry(engine_id="", session_id="", batch=None, record=switched) for switched in switches])
    test = opened("settings", tmp_path / "h")
    (shown,) = (frame.value for frame in test.dataframe if "Credential" in frame.value.columns)
    assert shown["Mode"].tolist() == ["off → on", "on → off"]
    assert shown["Credential"].tolist() == ["none (same machine)", "http.token"]
    assert shown["Name given"].tolist() == ["", "Ada"]


@pytest.mark.slow
def test_settings_without_a_controller_still_have_the_history(opened: Open, standing: Any, recorded: Path) -> None:
    """The trouble is said once, and the settings history is read from the store."""
    standing.stop()
    test = opened("settings", recorded)
    assert boxes(test).count("The controller does not answer") == 1
    assert len(test.dataframe) == 1


@pytest.mark.slow
def test_prompts_show_clusters_and_one_of_them_near_by(opened: Open, standing: Any, recorded: Path) -> None:
    """Also while the controller is down; what is not stored is said."""
    standing.stop()
    test = opened("prompts", recorded, {"range": "all"})
    assert boxes(test) == ""
    assert charts(test) == 4
    clusters, samples = (frame.value for frame in test.dataframe)
    assert list(clusters["Answers"]) == [270, 30]
    assert len(samples) == 12
    assert "`store.prompts` is off" in captions(test)


@pytest.mark.slow
def test_prompts_say_when_there_are_none(opened: Open, empty_history: Path, recorded: Path) -> None:
    """No history, an empty one, and one in which the filters leave nothing."""
    assert "No history is known" in boxes(opened("prompts"))
    assert "No finished request is recorded yet" in boxes(opened("prompts", empty_history))
    assert "No finished request is recorded yet" in boxes(opened("prompts", recorded, {"engine": "engine-9"}))


@pytest.mark.slow
def test_history_is_shown_while_the_controller_is_down(opened: Open, standing: Any, recorded: Path) -> None:
    """The store is enough."""
    standing.stop()
    test = opened("history", recorded, {"range": "all"})
    assert metrics(test)["Requests"] == "300"
    assert metrics(test)["Ran to their end"] == "100%"
    assert charts(test) == 4
    assert len(test.dataframe[0].value) == 15
    assert boxes(test) == ""


@pytest.mark.slow
def test_history_stays_readable_for_who_comes_when_the_controller_is_gone(
    opened: Open, standing: Any, recorded: Path
) -> None:
    """The controller named the folder to somebody while it was there."""
    standing.world.store_path = recorded
    assert metrics(opened("history"))["Requests"] == "300"
    standing.stop()
    live.forget()
    newcomer = AppTest.from_function(run_page, args=("history",), default_timeout=20).run()
    assert metrics(newcomer)["Requests"] == "300"
    assert not newcomer.error


@pytest.mark.slow
def test_history_says_when_it_is_empty_absent_or_unknown(opened: Open, empty_history: Path, tmp_path: Path) -> None:
    """Three states, three texts."""
    assert "No history is known" in boxes(opened("history"))
    assert "No history yet" in boxes(opened("history", tmp_path / "nowhere"))
    test = opened("history", empty_history)
    assert "No finished request is recorded yet" in boxes(test)
    assert metrics(test)["Requests"] == "0"


@pytest.mark.slow
def test_sql_runs_a_saved_query_and_offers_its_answer(opened: Open, recorded: Path) -> None:
    """The statement is in the editor, its answer a table with downloads and a chart; the schema stands beside."""
    test = opened("sql", recorded)
    assert "No statement has been run yet." in captions(test)
    test.selectbox(key="sql_saved").set_value(3).run()
    assert "time_bucket" in test.text_area(key="sql_text").value
    test.button[0].click().run()
    assert not test.exception, test.exception
    assert "time_bucket" in test.query_params["q"], "the address can be shared"
    assert boxes(test) == ""
    rows = test.dataframe[0].value
    assert list(rows.columns) == ["hour", "reason", "requests"]
    assert rows["requests"].sum() == 300
    assert len(test.get("download_button")) == 2
    assert "Meaning" in test.dataframe[1].value.columns


@pytest.mark.slow
def test_sql_of_an_address_is_answered_at_once_and_coloured_by_engine(opened: Open, recorded: Path) -> None:
    """A shared address shows what its sender saw; rows of several engines are told apart."""
    statement = "SELECT time_bucket(INTERVAL 1 HOUR, arrival) AS hour, engine_id, count(*) AS requests FROM requests GROUP BY ALL"
    test = opened("sql", recorded, {"q": statement})
    assert test.text_area(key="sql_text").value == statement
    assert set(test.dataframe[0].value["engine_id"]) == {"engine-0", "engine-1"}
    (by,) = (box for box in test.selectbox if box.label == "Colour by")
    assert by.value == "engine_id"
    assert {"engine-0", "engine-1"} <= set(re.findall(r'"name":"([^"]+)"', first_chart(test)))


@pytest.mark.slow
def test_a_row_of_an_answer_with_request_ids_opens_the_request(opened: Open, recorded: Path) -> None:
    """The table lets a row be chosen where it names a request."""
    test = opened("sql", recorded, {"q": "SELECT request_id FROM requests ORDER BY request_id LIMIT 3"})
    assert "Select a row to see the whole request." in captions(test)
    plain = opened("sql", recorded, {"q": "SELECT count(*) AS n FROM requests"})
    assert "Select a row to see the whole request." not in captions(plain)


@pytest.mark.slow
def test_sql_refuses_a_forbidden_statement_in_clear_words(opened: Open, recorded: Path) -> None:
    """And keeps what was written."""
    test = opened("sql", recorded)
    test.text_area(key="sql_text").set_value("DROP VIEW requests")
    test.button[0].click().run()
    assert "The statement was refused" in boxes(test)
    assert "DROP statements are not allowed" in boxes(test)
    assert test.text_area(key="sql_text").value == "DROP VIEW requests"


@pytest.mark.slow
def test_sql_without_a_history_says_so(opened: Open, tmp_path: Path) -> None:
    """No editor is offered where nothing can be asked."""
    assert "No history is known" in boxes(opened("sql"))
    test = opened("sql", tmp_path / "nowhere")
    assert "No history yet" in boxes(test)
    assert not test.text_area


def test_service_says_first_which_class_misses_its_objective(opened: Open) -> None:
    """The verdict with its cause, the worst class's budget, four charts, and who misses what."""
    test = opened("service")
    (verdict,) = test.warning
    assert "chat misses its objective" in verdict.value
    assert "80% of 3,000 requests met all their targets (objective 99%)" in verdict.value
    assert "its error budget is spent 20 times" in verdict.value
    assert "Most often (90% of the misses): queued" in verdict.value
    assert metrics(test) == {
        "Met all targets": "89%", "Error budget left": "20× spent", "Burn rate": "20", "Burn rate lately": "40",
        "Jain's index": "0.98",
    }  # fmt: skip
    assert charts(test) == 4
    classes, misses, tenants = (frame.value for frame in test.dataframe)
    assert list(classes["Targets"]) == ["TTFT 2 s, TPOT 80 ms to 100 ms", "end to end 1 h"]
    assert list(misses["Why"]) == ["queued", "paced", "too long anyway"]
    assert list(tenants["Fair share"]) == ["75%", "25%"]


def test_service_without_classes_judges_by_assumed_targets(opened: Open, recorded: Path) -> None:
    """A recorded history of requests to which nobody promised anything."""
    test = opened("service", recorded, {"range": "all"})
    assert "No service class is configured" in boxes(test)
    assert "(TTFT 2 s, TPOT 100 ms): 43% of 300 requests met all their targets." in boxes(test)
    assert charts(test) == 4
    assert list(test.dataframe[0].value["Class"]) == ["default (not configured)"]


def test_service_without_requests_or_controller_says_so(opened: Open, standing: Any, empty_history: Path) -> None:
    """In the live range, in an empty history, and while nobody answers."""
    standing.world.empty = True
    assert "No finished request is recorded yet" in boxes(opened("service", empty_history))
    assert "No finished request is recorded yet" in boxes(opened("service", empty_history, {"range": "all"}))
    standing.stop()
    assert "The controller does not answer" in boxes(opened("service"))
