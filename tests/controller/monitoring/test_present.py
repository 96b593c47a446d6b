"""The present: what the loop counts, what the rules find in it, and what a reader is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from prometheus_client import CollectorRegistry, generate_latest

from controller.core.in_process import InProcessController
from controller.monitoring.live_state import EngineView, Live, LiveSnapshot
from controller.monitoring.present.demand import present_demand
from controller.monitoring.present.metrics import PresentCollector
from controller.monitoring.present.overview import overview
from controller.monitoring.present.pulse import BIN_S, BINS, Bin, EngineBin, Pulse
from controller.monitoring.request_tracker import RequestTracker
from controller.policy.policies import policy_named
from controller.policy.policy import EngineFacts
from online_learning.evaluation.global_learner import GlobalLearner
from store.history.writer_stats import WriterStats
from store.http_api import DegradedState
from store.http_now import NowView
from store.records import Arrived, EngineRules, Facts, Finished, Hello, Settings, Snapshot
from store.rules import LEVELS, RULES
from store.service_levels import NOT_CONFIGURED

NOW_S = 1_000_000.0
PLENTY = 10**12

HELLO = Hello(
    engine_id="gpu-a",
    session_id="s",
    model="m",
    engine="vllm",
    engine_version="0.32.0",
    kv_blocks=100,
    block_size_tokens=16,
    max_num_seqs=8,
    token_budget=2048,
    max_model_len_tokens=4096,
    prefix_caching=False,
    started_s=0.0,
)


def said(**changes: Any) -> Snapshot:
    made = Snapshot(
        time_s=NOW_S,
        waiting=0,
        running=3,
        kv_blocks_used=40,
        kv_blocks=100,
        mode="on",
        steps=9,
        step_s=0.1,
        prefill_tokens=10,
        decode_tokens=90,
        kv_tokens_read=0,
        preemptions=0,
        recomputed_tokens=0,
    )
    return structs.replace(made, **changes)


def engine(**changes: Any) -> EngineView:
    made = EngineView(
        hello=HELLO,
        connected=True,
        last_seen_s=NOW_S - 0.1,
        unfinished=3,
        tables_sent=0,
        clock_s=NOW_S,
        snapshot=said(),
        detailed=None,
        requests=(),
        engine=EngineFacts(kv_tokens=1600, block_size_tokens=16, max_num_seqs=8, base_s=0.02, prefill_token_s=0.0),
    )
    return replace(made, **changes)


def live(*engines: EngineView, **changes: Any) -> LiveSnapshot:
    made = LiveSnapshot(
        time_s=NOW_S,
        settings=Settings(revision=1, mode="on", lease_s=2.0, rules=EngineRules()),
        policy="sage",
        counts={},
        quality=None,
        clusters=0,
        calibration=(),
        drifts=(),
        engines=engines or (engine(),),
        store=WriterStats(),
        loop={},
    )
    return replace(made, **changes)


def bins(fill: Callable[[int, EngineBin], None] = lambda _place, _engine: None, number: int = BINS) -> tuple[Bin, ...]:
    """Bins up to now, each with ten requests that came and ended and a thousand tokens; ``fill`` changes what it will."""
    made = []
    for place in range(number):
        one = EngineBin(arrived=10, ended=10, waiting=2, computed_tokens=1000, output_tokens=900)
        fill(place, one)
        made.append(Bin(end_s=NOW_S - BIN_S * (number - 1 - place), engines={"gpu-a": one}))
    return tuple(made)


def seen(snapshot: LiveSnapshot | None = None, recent: tuple[Bin, ...] | None = None, free: int = PLENTY) -> NowView:
    return overview(snapshot or live(), bins() if recent is None else recent, free_bytes=free, now_s=NOW_S)


def grows(by: int, *, within: int) -> Callable[[int, EngineBin], None]:
    """A queue that grows in each of the last bins."""

    def fill(place: int, one: EngineBin) -> None:
        one.waiting = by * max(0, place - (BINS - 1 - within))

    return fill


def loses(tokens: int) -> Callable[[int, EngineBin], None]:
    def fill(_place: int, one: EngineBin) -> None:
        one.recomputed_tokens = tokens

    return fill


def shares(**seconds: float) -> tuple[Bin, ...]:
    """Bins in which the loop lost this many seconds each."""
    made = bins()
    for each in made:
        for name, value in seconds.items():
            setattr(each, name, value)
    return made


def judged(name: str, objective: float, judged_: int, missed: int) -> tuple[Bin, ...]:
    made = bins()
    made[-3].judged[name, objective] = [judged_, missed]
    return made


def test_all_is_well_is_one_word() -> None:
    """An engine that serves, and one that is idle, with nothing amiss."""
    for view in (engine(), engine(snapshot=said(running=0, steps=0))):
        now = seen(live(view))
        assert (now.verdict.level, now.verdict.text, now.verdict.findings) == ("green", "All is well", ())
    assert seen(live(engine(snapshot=said(running=0, steps=0)))).engines[0].state == "idle"


TROUBLES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "overload": ("red", "demand is 2.5 of what the engines serve", {"recent": bins(grows(15, within=6))}),
    "queue_growing": ("amber", "grows", {"recent": bins(grows(1, within=120))}),
    "recompute": ("amber", "20%", {"recent": bins(loses(200))}),
    "slow_host": ("amber", "60% of the last minute", {"recent": shares(held_s=0.6 * BIN_S)}),
    "late_controller": ("amber", "10% of the last minute", {"recent": shares(late_s=0.1 * BIN_S)}),
    "disk_full": ("amber", "1 GB are free", {"free": 10**9}),
    "missed_targets": ("amber", "half", {"recent": judged("chat", 0.95, 100, 50)}),
    "history_not_written": ("red", "No space left", {"snapshot": live(store=WriterStats(last_error="No space left"))}),
    "damaged_history": ("amber", "2 files", {"snapshot": live(store=WriterStats(damaged_segments=2))}),
    "engine_lost": (
        "red", "1 min ago", {"snapshot": live(engine(connected=False, gone="lost", last_seen_s=NOW_S - 60.0))}
    ),
    "engine_silent": ("amber", "9 s ago", {"snapshot": live(engine(last_seen_s=NOW_S - 9.0))}),
    "engine_fallback": ("amber", "no prior", {"snapshot": live(engine(snapshot=said(mode="off", fallback="no prior")))}),
    "impossible_requests": ("amber", "1 request needs", {"snapshot": live(engine(snapshot=said(impossible=1)))}),
    "behind": ("amber", "5,000 tasks", {"snapshot": live(loop={"backlog": 5000.0})}),
    "loop_stuck": ("red", "9 s ago", {"snapshot": live(engine(last_seen_s=NOW_S), time_s=NOW_S - 9.0)}),
    "no_engine": ("amber", "ready", {"snapshot": live(engine(connected=False, gone="left"))}),
    "learner_failing": (
        "red", "see the log", {"snapshot": live(degraded=(DegradedState(kind="learner_failing", text="see the log"),))}
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", TROUBLES)
def test_each_trouble_turns_the_verdict_and_says_what_to_do(rule: str) -> None:
    """Named, with its number, and nothing else is found in its place."""
    level, words, given = TROUBLES[rule]
    now = seen(**given)
    assert [found.rule for found in now.verdict.findings] == [rule]
    (found,) = now.verdict.findings
    assert (now.verdict.level, found.level) == (level, level)
    assert now.verdict.text == found.title
    assert words.replace("half", "50% of 100 requests missed") in found.text
    assert found.do or rule == "learner_failing", "a degraded state's text says what to do"


def test_worse_troubles_are_red() -> None:
    """The same numbers, further beyond their limits."""
    for given in (
        {"recent": bins(loses(500))},
        {"recent": shares(late_s=0.6 * BIN_S)},
        {"free": 10**8},
        {"recent": judged("chat", 0.95, 100, 80)},
    ):
        assert seen(**given).verdict.level == "red"  # type: ignore[arg-type]


def test_requests_that_wait_beyond_their_target_have_missed_it_already() -> None:
    """In a melting system only those end that did not wait: the others must not be forgotten."""
    recent = judged(NOT_CONFIGURED, 0.95, 100, 0)
    assert seen(recent=recent).verdict.level == "green"
    recent[-1].overdue[NOT_CONFIGURED, 0.95] = 300
    (found,) = seen(recent=recent).verdict.findings
    assert (found.rule, found.level) == ("missed_targets", "red")
    assert "75% of 400 requests missed a target within ten minutes (assumed: TTFT 2 s" in found.text
    assert "`[classes]`" in found.do, "nobody promised these"


def test_chance_is_no_overload() -> None:
    """A queue that goes up and down, one that has just filled the engine, an engine that comes with a queue."""
    swings = bins(lambda place, one: setattr(one, "waiting", 4 * (place % 3)))
    assert seen(recent=swings).verdict.level == "green"
    comes = bins(number=6)
    for each in comes[:3]:
        each.engines["gpu-a"].waiting = None
    for each in comes[3:]:
        each.engines["gpu-a"].waiting = 400
    demand = present_demand(comes)
    assert demand is not None
    assert (demand.ratio, demand.waiting, demand.grown) == (1.0, 400, 0)


def test_an_overload_shows_in_work_where_short_requests_go_first() -> None:
    """The number in the queue hardly grows, for the short ones are served; its work does."""

    def fill(place: int, one: EngineBin) -> None:
        one.waiting, one.waiting_s = 100, 10.0 + 2.5 * max(0, place - BINS + 25)

    (found,) = seen(recent=bins(fill)).verdict.findings
    assert (found.rule, found.level) == ("overload", "red")
    assert found.text == "The queue of 100 grows in work: demand is 2.0 of what the engines serve."
    assert seen(recent=bins(fill)[:-26]).verdict.level == "green", "before it began"


def test_the_worst_comes_first() -> None:
    """Red before amber, and of equals the cause before what follows from it."""
    recent = bins(grows(15, within=6))
    for each in recent:
        each.held_s = 0.6 * BIN_S
    recent[-1].overdue["chat", 0.95] = 100
    found = [(each.rule, each.level) for each in seen(recent=recent).verdict.findings]
    assert found == [("overload", "red"), ("missed_targets", "red"), ("slow_host", "amber")]


class Rig:
    """A core and what the loop shows of it, on a clock of its own."""

    def __init__(self) -> None:
        self.core = InProcessController(GlobalLearner(), policy_named("sage")).core
        self.pulse, self.tracker, self.now_s, self.batch = Pulse(), RequestTracker(), NOW_S, 0
        self.core.handle(b"c", HELLO, self.now_s)

    def tell(self, *facts: Arrived | Finished) -> None:
        self.batch += 1
        message = Facts(batch=self.batch, oldest=1, facts=facts)
        self.core.handle(b"c", message, self.now_s)
        self.show()

    def pass_time(self, seconds: float, **changes: Any) -> None:
        """Tenths of a second, in each of which the engine says the same."""
        for _ in range(round(10 * seconds)):
            self.now_s += 0.1
            self.core.handle(b"c", said(time_s=self.now_s, **changes), self.now_s)
            self.show()
            self.pulse.close_due(self.core.sessions, self.now_s)

    def show(self) -> None:
        for entry in self.core.drain_entries():
            self.pulse.observe(entry, self.tracker.observe(entry), self.now_s)


def came(number: int, now_s: float) -> Arrived:
    return Arrived(
        request_id=str(number), arrival_s=now_s, prompt_tokens=9, token_ids=b"", max_tokens=100, temperature=1.0
    )


def ended(number: int, now_s: float, ttft_s: float) -> Finished:
    return Finished(
        request_id=str(number),
        time_s=now_s,
        reason="stop",
        arrival_s=now_s - 5.0,
        prompt_tokens=9,
        output_tokens=50,
        max_tokens=100,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
        scheduled_s=now_s - 5.0,
        first_token_s=now_s - 5.0 + ttft_s,
    )


def test_what_passes_the_loop_is_counted_and_kept_for_a_quarter_of_an_hour() -> None:
    """Latencies, demand, tokens and the queue of an engine; bounded whatever time passes."""
    rig = Rig()
    rig.pass_time(10.0, waiting=0)
    rig.tell(*(came(number, rig.now_s) for number in range(40)))
    rig.pass_time(6.0, waiting=30, preemptions=1)
    rig.tell(*(ended(number, rig.now_s, 0.5 if number else 4.0) for number in range(10)))
    rig.pass_time(4.0, waiting=30)
    view = engine(snapshot=said(waiting=30, time_s=rig.now_s), last_seen_s=rig.now_s)
    now = overview(live(view, time_s=rig.now_s), rig.pulse.bins, free_bytes=PLENTY, now_s=rig.now_s)
    assert now.ttft.requests == 10
    assert now.ttft.p50_s == pytest.approx(0.5, rel=0.03)
    assert now.ttft.p99_s == pytest.approx(4.0, rel=0.03)
    assert now.ttlt.p50_s == pytest.approx(5.0, rel=0.03)
    assert now.demand is not None
    assert (now.demand.waiting, round(now.demand.arrived_per_s * 15)) == (30, 40)
    (one,) = now.engines
    assert (one.state, one.waiting, one.kv_share, one.preemptions_per_minute) == ("on", 30, 0.4, 60.0)
    assert one.output_tokens_per_s == pytest.approx(900.0, rel=0.3)
    (assumed,) = now.attained
    assert (assumed.service_class, assumed.judged, assumed.missed) == (NOT_CONFIGURED, 40, 31)
    rig.pass_time(1000.0)
    assert len(rig.pulse.bins) == BINS
    assert overview(live(view), rig.pulse.bins, free_bytes=PLENTY, now_s=rig.now_s).ttft.requests == 0


def test_what_was_asked_of_one_engine_is_of_that_one_and_the_verdict_of_all() -> None:
    """Another engine's loss stays in the verdict."""
    other = engine(hello=structs.replace(HELLO, engine_id="gpu-b", model="n"), connected=False, gone="lost")
    for chosen in ({"engine_id": "gpu-a"}, {"model": "m"}):
        now = overview(live(engine(), other), bins(), free_bytes=PLENTY, now_s=NOW_S, **chosen)
        assert [each.engine_id for each in now.engines] == ["gpu-a"]
        assert now.verdict.level == "red"


def test_metrics_say_what_the_rules_say() -> None:
    """Each rule's level, the worst, and the numbers that alerts compare with the same limits."""
    registry, published, pulse = CollectorRegistry(), Live(), Pulse()
    published.live_snapshot, pulse.bins = live(), bins(grows(15, within=6))
    registry.register(PresentCollector(published, pulse, "/", lambda: NOW_S))  # type: ignore[arg-type]
    page = generate_latest(registry).decode()
    assert 'sagesched_demand_ratio{window="now"} 2.5' in page
    assert 'sagesched_finding{rule="overload"} 2.0' in page
    assert 'sagesched_finding{rule="recompute"} 0.0' in page
    assert "sagesched_verdict 2.0" in page
    assert page.count("sagesched_finding{") == len(RULES)


def test_every_rule_has_a_level_or_limits_in_their_order() -> None:
    """And says what to do, unless the state itself does."""
    for name, rule in RULES.items():
        limits = [limit for limit in (rule.amber, rule.red) if limit is not None]
        assert bool(limits) != bool(rule.level), name
        assert limits == sorted(limits, reverse=rule.below), name
        assert [rule.judge(limit) for limit in limits if not rule.below] == list(LEVELS[2:])[: len(limits)] or (
            rule.below or rule.level or rule.amber is None
        ), name
        assert rule.title, name
