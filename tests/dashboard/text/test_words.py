import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from dashboard.text import notices, words
from store.history.writer_stats import WriterStats
from store.http_api import ControllerView, EngineView, LearnerView, StateView
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


def test_notices_come_worst_first() -> None:
    """A lost engine stands above one that merely fell back."""
    fallen = engine(snapshot=snapshot(mode="off", fallback="no prior"))
    shown = state(fallen, engine(engine_id="b", connected=False))
    assert [notice.level for notice in notices.state_notices(shown, None)] == ["error", "warning"]
    assert [notice.level for notice in notices.state_notices(shown, "a")] == ["warning"]
    assert words.in_force(shown.engines) == "fallback"


def test_all_is_well_says_nothing() -> None:
    """No box without a reason."""
    shown = state(engine())
    assert notices.state_notices(shown, None) == []
    assert words.in_force(shown.engines) == "on"
    assert words.no_prediction_notice(shown.learner) is None


def test_trouble_with_the_history_comes_before_all_else() -> None:
    """A disk that takes nothing, and segments that are left out, whether an engine is there or not."""
    store = WriterStats(last_error="No space left on device", damaged_segments=2)
    [failing, damaged, *_] = notices.state_notices(state(store=store), None)
    assert (failing.level, damaged.level) == ("error", "warning")
    assert "No space left on device" in failing.text
    assert "2 files of the history are damaged" in damaged.title


def test_a_controller_that_is_behind_with_learning_says_so_until_it_is_not() -> None:
    """How much waits and was left out, and what to do."""
    behind = learner(backlog=5000, not_learnt=1234, not_predicted=56)
    [*_, notice] = notices.state_notices(state(engine(), learner=behind), None)
    assert (notice.level, notice.title) == ("warning", "The controller is behind with learning")
    assert "5,000 tasks are pending, and 1,234 answers were left out" in notice.text
    assert "56 of them ended before it had time to predict them" in notice.text
    caught_up = learner(backlog=3, not_learnt=1234)
    assert notices.state_notices(state(engine(), learner=caught_up), None) == []
