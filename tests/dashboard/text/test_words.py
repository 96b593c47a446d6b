import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from dashboard.text import notices, words
from store.history.writer_stats import WriterStats
from store.http_api import ControllerView, EngineView, LearnerView, StateView
from store.http_now import Finding
from store.records import EngineRules, Settings, Snapshot


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
    made = EngineView(
        engine_id="a",
        session_id="s",
        model="m",
        engine="simulated",
        engine_version="1",
        connected=True,
        last_seen_s=100.0,
        kv_blocks=9,
        block_size_tokens=16,
        max_num_seqs=8,
        unfinished=0,
        tables_sent=0,
        snapshot=snapshot(),
    )
    return structs.replace(made, **changes)


def snapshot(**changes: object) -> Snapshot:
    made = Snapshot(
        time_s=100.0,
        waiting=0,
        running=0,
        kv_blocks_used=0,
        kv_blocks=9,
        mode="on",
        steps=1,
        step_s=0.1,
        prefill_tokens=0,
        decode_tokens=0,
        kv_tokens_read=0,
        preemptions=0,
        recomputed_tokens=0,
    )
    return structs.replace(made, **changes)


def learner(**changes: object) -> LearnerView:
    made = LearnerView(
        predictions=5,
        completions=1,
        censored=0,
        not_learnt=0,
        not_predicted=0,
        backlog=0,
        clusters=0,
        coverage_50=None,
        coverage_90=None,
        crps_tokens=None,
        log_score=None,
        pit_histogram=None,
        drift_events=0,
        drifts=(),
        models=(),
        distrusted_clusters=(),
    )
    return structs.replace(made, **changes)


def state(*engines: EngineView, learner: LearnerView = learner(), store: WriterStats = WriterStats()) -> StateView:  # noqa: B008 - frozen
    controller = ControllerView(
        controller_id="c",
        version="1",
        started_s=0.0,
        now_s=100.5,
        store_path=None,
        mode="on",
        policy="sage",
        settings=Settings(revision=1, mode="on", lease_s=2.0, rules=EngineRules()),
        loop={},
    )
    return StateView(controller=controller, learner=learner, store=store, engines=engines)


def test_findings_become_boxes_of_their_level() -> None:
    """What was found is text from outside, what to do is Markdown of ours."""
    lost = Finding(rule="engine_lost", level="red", subject="a*b", text="Its [x](y) is gone.", do="Start `vllm`.")
    past = Finding(rule="learning_past", level="amber", text="20 %.", do="")
    first, second = notices.finding_notices([lost, past])
    assert (first.level, first.title) == ("error", r"Engine a\*b is lost")
    assert first.text == r"Its \[x\]\(y\) is gone\. Start `vllm`."
    assert (second.level, second.title) == ("warning", "The past is still being learned")


def test_one_line_says_what_orders_the_requests() -> None:
    """Engines that left in order are not missed; lost ones are."""
    shown = state(engine(), engine(engine_id="b", connected=False, gone="left"))
    assert words.scheduling(shown.engines, shown.controller) == "Scheduling: on (sage). 1 of 1 engine connected."
    shown = state(engine(), engine(engine_id="b", connected=False, gone="lost"))
    assert words.scheduling(shown.engines, shown.controller) == "Scheduling: on (sage). 1 of 2 engines connected."
    fallen = state(engine(snapshot=snapshot(mode="off", fallback="no prior")))
    assert words.in_force(fallen.engines) == "fallback"
    assert "first come, first served" in words.scheduling(fallen.engines, fallen.controller)
    assert words.scheduling((), shown.controller) == "Requested mode: on (sage). No engine is connected."
