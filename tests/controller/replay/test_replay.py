"""Replays of small simulated runs with real histories, held against what the engine really did."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from controller.cli.main import run as command_line
from controller.policy.policies import Schedule, policy_named
from controller.replay.fidelity import fit_of, ratio_of
from controller.replay.read_history import Slice, read_latest_run, read_runs
from controller.replay.recorded_run import RecordedRun, Replayable
from controller.replay.replay import Replay, ReplaySpec, run_replay
from controller.replay.replay_engine import RecordedPredictions, replay_as_recorded, replay_under
from engine_adapter.virtual_time.engine import CompletedRequest
from online_learning.distribution import LengthDistribution
from online_learning.length_learner import Prompt
from store.entries import EngineSeen, Entry
from store.errors import BadInputError
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.records import Finished, Hello, Settings, Snapshot

Serve = Callable[..., Any]
START_S = 1.7e9
MEAN_TOLERANCE = 0.02
ONE_RUN_TOLERANCE = 0.05
"""Tables are there when the engine next asks, and the first prior is not recorded, so that steps may differ by one:
from there a run of so few requests goes another way, but neither always slower nor always faster."""
PREEMPTING_SEEDS = (4, 5, 9, 11, 13)
P99_TOLERANCE = 0.1


@pytest.fixture(scope="module")
def ran_on(tmp_path_factory: pytest.TempPathFactory, serve_small: Serve) -> Any:
    return serve_small(tmp_path_factory.mktemp("on") / "history", start_s=START_S)


@pytest.fixture(scope="module")
def ran_in_shadow(tmp_path_factory: pytest.TempPathFactory, serve_small: Serve) -> Any:
    return serve_small(tmp_path_factory.mktemp("shadow") / "history", mode="shadow", start_s=START_S)


def past(run: Any, **part: Any) -> RecordedRun:
    with open_history(run.store) as connection:
        (found,) = read_runs(connection, Slice(**part))
    return found


def replayed(run: RecordedRun, *policies: str) -> Replay:
    return run_replay(ReplaySpec(policies=policies, schedule=Schedule()), [run])


@pytest.mark.slow
def test_the_past_is_what_the_engine_did(ran_on: Any) -> None:
    """Each request that ended with an answer is there with its own times, tokens and losses; the aborted one beside."""
    run = past(ran_on)
    recorded = {request.request_id: request for request in run.requests}
    assert set(recorded) == set(ran_on.lives)
    for request_id, life in ran_on.lives.items():
        request = recorded[request_id]
        assert request.counted == (life.reason != "abort")
        assert request.completed().ttlt_s == pytest.approx(life.ttlt_s, abs=1e-6)
        assert request.completed().ttft_s == pytest.approx(life.ttft_s, abs=1e-6)
        assert request.priority == (0 if int(request_id[1:]) % 10 else -1)
        assert (request.output_tokens, request.preemptions) == (life.output_tokens, life.preemptions)
        assert [probability for probability, _ in request.quantiles] == [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]
    assert run.mode == "on"
    assert sum(run.modes.values()) == pytest.approx(1.0)


@pytest.mark.slow
def test_replaying_the_policy_that_ran_reproduces_it(tmp_path: Path, serve_small: Serve) -> None:
    """With the settings and tables of the record: the P99 within 10%, the mean within 5%, and over runs within 2%."""
    fits = [
        replayed(past(serve_small(tmp_path / str(seed), start_s=START_S, seed=seed))).fit for seed in PREEMPTING_SEEDS
    ]
    for fit in fits:
        assert abs(fit.p99_ttlt.error) < P99_TOLERANCE
        assert max(abs(fit.mean_ttlt.error), abs(fit.mean_ttft.error)) < ONE_RUN_TOLERANCE
        assert fit.poor == ()
    assert abs(fmean(fit.mean_ttlt.error for fit in fits)) < MEAN_TOLERANCE
    assert abs(fmean(fit.mean_ttft.error for fit in fits)) < MEAN_TOLERANCE


@pytest.mark.slow
def test_replaying_first_come_first_served_reproduces_it_exactly(ran_in_shadow: Any) -> None:
    """In shadow the engine served its own order: both replays of that give every request its recorded times."""
    replay = replayed(past(ran_in_shadow), "fcfs")
    assert replay.fit.request_error_s < 1e-3
    assert replay.policies["fcfs"].ttlt_s == pytest.approx(replay.recorded.ttlt_s, abs=1e-3)
    assert replay.ratio("fcfs").mean == pytest.approx(1.0, abs=1e-6)
    assert replay.reproduced.figures.preemptions == replay.recorded.figures.preemptions > 0


def test_the_latest_run_is_the_one_that_is_replayed_without_messages(ran_on: Any) -> None:
    """What the running controller compares is what the command line would, with each request's prompt cluster."""
    with open_history(ran_on.store) as connection:
        latest = read_latest_run(connection, last=2_000, fewest=100)
        assert read_latest_run(connection, last=2_000, fewest=1_000) is None
        few = read_latest_run(connection, last=20, fewest=10)
    assert latest == replace(past(ran_on), messages=())
    assert few is not None
    assert sum(request.counted for request in few.requests) in {19, 20}, "one client may have left"


def gap_between_steps_s(snapshots: Sequence[Snapshot]) -> float:
    """Mean time between two steps while a request ran all the while, so that the engine was never idle; 0 if unknown."""
    between_s = steps = 0.0
    since_s, ran, steps_since, step_s_since = 0.0, set[str](), 0, 0.0
    for snapshot in snapshots:
        steps_since += snapshot.steps
        step_s_since += snapshot.step_s
        if not snapshot.detailed:
            continue
        runs = {running.request_id for running in snapshot.running_requests}
        if steps_since and not ran.isdisjoint(runs):
            between_s += snapshot.time_s - since_s - step_s_since
            steps += steps_since
        since_s, ran, steps_since, step_s_since = snapshot.time_s, runs, 0, 0.0
    return max(0.0, between_s / steps) if steps else 0.0


@pytest.mark.slow
def test_what_the_host_takes_between_steps_is_replayed_too(tmp_path: Path, serve_small: Serve) -> None:
    """The device's step times alone would make the replayed engine faster than the recorded one was."""
    late = serve_small(tmp_path / "h", mode="shadow", start_s=START_S, host_s=0.01)
    run = past(late)
    assert run.gap_s == pytest.approx(0.01, rel=0.05)
    assert run.gap_s == pytest.approx(gap_between_steps_s(late.snapshots))
    assert abs(replayed(run).fit.mean_ttlt.error) < MEAN_TOLERANCE
    assert replayed(replace(run, gap_s=0.0, pace=())).fit.poor


def test_shadow_foretells_what_on_brings(ran_in_shadow: Any, ran_on: Any) -> None:
    """Of the same traffic, the replay of `sage` from a shadow's history is nearer to what `on` brought than to FCFS."""
    replay = replayed(past(ran_in_shadow), "sage", "srpt-oracle")
    really_s = np.mean([life.ttlt_s for life in ran_on.lives.values() if life.reason != "abort"])
    shadow_s = replay.recorded.figures.mean_ttlt_s
    predicted_s = replay.policies["sage"].figures.mean_ttlt_s
    assert abs(predicted_s - really_s) < abs(predicted_s - shadow_s)
    assert replay.policies["srpt-oracle"].figures.mean_ttlt_s < predicted_s < shadow_s


@pytest.mark.slow
def test_a_switch_of_modes_is_replayed_when_it_was_made(tmp_path: Path, serve_small: Serve) -> None:
    """From shadow to on in the middle: reproduced as a whole, and request by request by neither order alone."""
    switched = serve_small(tmp_path / "h", mode="shadow", start_s=START_S, switch=(12.0, "on"))
    run = past(switched)
    assert set(run.modes) == {"shadow", "on"}
    modes = [recorded.message.mode for recorded in run.messages if isinstance(recorded.message, Settings)]
    assert modes[-1] == "on"
    assert "shadow" in modes
    replay = replayed(run, "fcfs", "sage")
    assert abs(replay.fit.mean_ttlt.error) < 2 * MEAN_TOLERANCE
    off_s = {
        name: float(np.abs(served.ttlt_s - replay.recorded.ttlt_s).mean())
        for name, served in {"reproduced": replay.reproduced, **replay.policies}.items()
    }
    assert off_s["reproduced"] < 0.5 * min(off_s["fcfs"], off_s["sage"]), off_s


def test_a_slice_counts_its_own_and_replays_who_was_there_beside_them(ran_on: Any) -> None:
    """Figures are about arrivals in the slice; whoever was in the engine at the same time is served too."""
    since_s, until_s = START_S + 1.0, START_S + 4.0
    run = past(ran_on, since_s=since_s, until_s=until_s)
    last_s = max(request.finished_s for request in run.requests if request.counted)
    lives = {
        name: life for name, life in ran_on.lives.items() if life.arrival_s < last_s and life.finished_s > run.since_s
    }
    assert {request.request_id for request in run.requests} == set(lives)
    for request in run.requests:
        life = lives[request.request_id]
        assert request.counted == (since_s <= life.arrival_s < until_s and life.reason != "abort")
    replay = replayed(run)
    assert abs(replay.fit.mean_ttlt.error) < 0.1
    assert "took room beside these" in replay.notes[0]


def test_the_latest_are_the_last_to_arrive(ran_on: Any) -> None:
    """`last` takes so many of those that ended, by arrival."""
    run = past(ran_on, last=40)
    latest = sorted(ran_on.lives.values(), key=lambda life: life.arrival_s)[-40:]
    assert {r.request_id for r in run.requests if r.counted} == {life.request_id for life in latest}


def test_an_unfinished_request_takes_room_for_as_long_as_was_to_be_expected(ran_on: Any) -> None:
    """Its length is more than what it has, within its limit, and no figure is about it."""
    run = past(ran_on)
    first = run.requests[0]
    unfinished = [
        replace(
            first,
            request_id=f"u{attained}",
            finished_s=None,
            output_tokens=attained,
            max_tokens=800,
            quantiles=quantiles,
            counted=False,
        )
        for attained, quantiles in ((0, first.quantiles), (300, first.quantiles), (300, ()), (799, first.quantiles))
    ]
    replayable = Replayable.of(replace(run, requests=tuple(unfinished)))
    assert replayable.counted == {}
    for request in unfinished:
        assert request.output_tokens < replayable.length_tokens(request) <= 800


@pytest.mark.slow
def test_what_runs_when_the_record_ends_is_known_as_far_as_it_has_come(tmp_path: Path, serve_small: Serve) -> None:
    """Its length is not known, and nobody is counted who has not ended.

    What is still to come of them is expected and not known, so that the replay is nearer than a sixth, and no nearer.
    """
    known_until_s = START_S + 20.0
    cut = serve_small(tmp_path / "h", start_s=START_S, known_until_s=known_until_s)
    run = past(cut)
    recorded = {request.request_id: request for request in run.requests}
    came_far = 0
    for request_id, life in cut.lives.items():
        ended = life.finished_s <= known_until_s
        assert recorded[request_id].counted == (ended and life.reason != "abort")
        if not ended:
            assert recorded[request_id].finished_s is None
            assert recorded[request_id].output_tokens < life.output_tokens
            came_far += recorded[request_id].output_tokens > 10
    assert came_far > 3
    replay = replayed(run)
    assert abs(replay.fit.mean_ttlt.error) < 1 / 6
    assert "had not ended" in replay.notes[0]


def test_clients_who_went_away_go_when_they_did(ran_in_shadow: Any) -> None:
    """Whether they were served by then or not, and whatever the policy; the room that they took is free then."""
    run = past(ran_in_shadow)
    leaving = {
        request.request_id: replace(
            request, left=True, counted=False, output_tokens=0, finished_s=request.arrival_s + number
        )
        for number, request in enumerate(run.requests[::15])
    }
    changed = replace(run, requests=tuple(leaving.get(request.request_id, request) for request in run.requests))
    replayable = Replayable.of(changed)
    longest_step_s = 0.3
    for totals in (replay_as_recorded(replayable), replay_under(replayable, policy_named("sage"))):
        lives = {life.request_id: life for life in totals.completed}
        assert set(lives) == {request.request_id for request in run.requests}
        gone = [lives[request_id] for request_id in leaving if lives[request_id].reason == "abort"]
        assert len(gone) > 3
        for life in gone:
            left_s = leaving[life.request_id].finished_s
            assert left_s is not None
            assert left_s <= life.finished_s <= left_s + longest_step_s
    assert set(replayable.counted).isdisjoint(leaving)
    assert replayed(changed).reproduced.figures.mean_ttlt_s < replayed(run).reproduced.figures.mean_ttlt_s


def test_ids_that_no_engine_of_ours_recorded_are_replayed_as_others(
    ran_on: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program may have written longer ones, which the replay's engine cuts."""
    run = past(ran_on)
    named = replace(
        run, requests=tuple(replace(request, request_id=f"{request.request_id:x<280}") for request in run.requests)
    )
    totals = {
        name: replay_under(Replayable.of(one), policy_named("sage")) for name, one in (("own", run), ("long", named))
    }
    assert "policy failed" not in caplog.text
    own_s, long_s = ([life.finished_s for life in totals[name].completed] for name in ("own", "long"))
    assert long_s == own_s


def test_what_makes_the_figures_doubtful_is_noted(ran_in_shadow: Any) -> None:
    """Few snapshots, prompts from the prefix cache and missing predictions; nothing of it where it is not so."""
    run = past(ran_in_shadow)
    assert not any("snapshots" in note or "cache" in note or "prediction" in note for note in replayed(run).notes)
    doubtful = replace(
        run,
        samples=run.samples[:5],
        requests=tuple(
            replace(
                request,
                cached_prompt_tokens=request.prompt_tokens // 2,
                quantiles=request.quantiles if number % 2 else (),
            )
            for number, request in enumerate(run.requests)
        ),
    )
    notes = " ".join(replayed(doubtful, "sage").notes)
    assert "Fewer than 20 snapshots measure the steps of simulated" in notes
    assert "50% of the prompt tokens came from the prefix cache" in notes
    assert "have a recorded prediction" in notes


def test_predictions_come_back_by_number() -> None:
    """Also for numbers that a 32-bit float cannot hold."""
    numbers = (0, 1, 65_535, 65_536, 2**24 + 1, 2**31)
    predictions = {
        number: LengthDistribution(np.array([place + 1]), np.array([1.0])) for place, number in enumerate(numbers)
    }
    prior = LengthDistribution(np.array([99]), np.array([1.0]))
    learner = RecordedPredictions(prior, predictions)

    def predicted(number: int) -> LengthDistribution:
        prompt = Prompt(
            token_ids=np.array([number], dtype=np.uint32), prompt_tokens=1, max_tokens=1, temperature=1.0, model="m"
        )
        return learner.predict_one(learner.features(prompt), "m").distribution

    assert [predicted(number) for number in numbers] == list(predictions.values())
    assert predicted(7) is prior is learner.prior("m")


def _lives(ttlt_s: list[float]) -> list[CompletedRequest]:
    return [
        CompletedRequest(
            request_id=str(number),
            arrival_s=0.0,
            scheduled_s=0.0,
            first_token_s=span_s / 2,
            finished_s=span_s,
            prompt_tokens=1,
            output_tokens=2,
            reason="stop",
            preemptions=0,
            recomputed_tokens=0,
        )
        for number, span_s in enumerate(ttlt_s)
    ]


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=200), st.floats(0.3, 3.0))
def test_a_fit_is_poor_when_and_only_when_the_mean_or_the_tail_is_off(ttlt_s: list[float], factor: float) -> None:
    """All times times a factor: every error is that factor, and more than a tenth is called out."""
    recorded = _lives(ttlt_s)
    fit = fit_of(recorded, _lives([factor * span_s for span_s in ttlt_s]))
    assert [figure.error for figure in fit.figures] == pytest.approx([factor - 1.0] * 4, abs=1e-9)
    if abs(abs(factor - 1.0) - 0.1) > 1e-9:
        assert bool(fit.poor) == (abs(factor - 1.0) > 0.1)
    assert fit_of(recorded, recorded).poor == ()
    assert fit_of(recorded, recorded).request_error_s == 0.0


@given(st.lists(st.tuples(st.floats(0.1, 100.0), st.floats(0.1, 100.0)), min_size=1, max_size=300))
def test_a_ratio_lies_between_the_lowest_and_the_highest(pairs: list[tuple[float, float]]) -> None:
    """The ratio of the means, and an interval within the ratios of single requests."""
    ours_s, theirs_s = (np.array(side) for side in zip(*pairs, strict=True))
    ratio = ratio_of(ours_s, theirs_s)
    assert ratio.mean == pytest.approx(ours_s.mean() / theirs_s.mean())
    lowest, highest = float((ours_s / theirs_s).min()), float((ours_s / theirs_s).max())
    assert lowest - 1e-9 <= ratio.low <= ratio.high <= highest + 1e-9


def test_the_interval_of_a_ratio_holds_the_truth() -> None:
    """Of 200 samples in which ours takes 0.8 of theirs on average, about nine in ten intervals hold 0.8."""
    chance = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        theirs_s = chance.exponential(10.0, 300)
        ratio = ratio_of(theirs_s * chance.uniform(0.4, 1.2, 300), theirs_s)
        held += ratio.low <= 0.8 <= ratio.high
    assert 150 <= held <= 196


def test_the_command_says_how_good_it_is_before_it_says_what_would_have_been(
    ran_on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table, JSON and a page that stands on its own."""
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    arguments = ["replay", "--store", str(ran_on.store), "--policies", "fcfs,sage-tail", "--quiet", *files]
    assert command_line(arguments) == 0
    said = capsys.readouterr().out
    assert said.index("149 requests that arrived from 2023-11-14T22:13:20") < said.index("reproduced well")
    assert said.index("reproduced well") < said.index("sage-tail")
    report = json.loads((tmp_path / "r.json").read_text())
    assert set(report["policies"]) == {"fcfs", "sage-tail"}
    assert report["requests"] == 149
    assert abs(report["reproduction"]["mean_ttlt"]["error"]) < ONE_RUN_TOLERANCE
    assert report["policies"]["fcfs"]["ratio"]["low"] <= report["policies"]["fcfs"]["ratio"]["mean"]
    page = (tmp_path / "r.html").read_text()
    assert page.count("<table>") == 2
    assert "plotly" in page


@pytest.mark.slow
def test_a_setting_changes_what_would_have_been(ran_on: Any, tmp_path: Path) -> None:
    """`--set` and `--objective` reach the policy: no gate and another boost give other figures than the default."""

    def mean_s(*flags: str) -> float:
        file = tmp_path / "r.json"
        arguments = ["replay", "--store", str(ran_on.store), "--policies", "sage", "--quiet", "--json", str(file)]
        assert command_line([*arguments, *flags]) == 0
        return float(json.loads(file.read_text())["policies"]["sage"]["mean_ttlt_s"])

    default_s = mean_s()
    assert mean_s("--set", "policy.overtaking=30") == default_s
    others = [
        mean_s("--set", "policy.gate=false"),
        mean_s("--set", "policy.overtaking=0.5"),
        mean_s("--objective", "tail"),
    ]
    assert default_s not in others


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "gpu-7"], ("engine 'gpu-7'", "simulated")),
        (["--model", "gpt"], ("model 'gpt'", "small")),
        (["--since", "2023-11-15"], ("--since 2023-11-15T00:00:00", "0 ended requests", "wider slice")),
        (["--since", "yesterday"], ("--since", "yesterday", "2h")),
        (["--policies", "fcfs,lifo"], ("lifo", "sage")),
        (["--policies", "fcfs,fcfs"], ("fcfs,fcfs", "once")),
        (["--set", "gate_margin=2"], ("gate_margin=2", "policy.KEY=VALUE")),
        (["--set", "policy.gate_margin=9"], ("policy.gate_margin", "9")),
        (["--json", "/nowhere/x.json"], ("/nowhere/x.json",)),
    ],
)
def test_bad_input_is_one_clear_line_and_code_2(
    ran_on: Any, flags: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """It names what is wrong and what to do, and prints nothing as if it had worked."""
    assert command_line(["replay", "--store", str(ran_on.store), "--quiet", *flags]) == 2
    out, complaint = capsys.readouterr()
    assert out == ""
    assert len(complaint.strip().splitlines()) == 1
    for word in words:
        assert word in complaint


@pytest.mark.slow
def test_a_history_without_what_a_replay_needs_says_so(
    tmp_path: Path, serve_small: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """None at all, one without an engine, and one without predictions, of which first come, first served can be asked."""
    assert command_line(["replay", "--store", str(tmp_path / "none")]) == 2
    with HistoryWriter(tmp_path / "empty"):
        pass
    assert command_line(["replay", "--store", str(tmp_path / "empty")]) == 2
    serve_small(tmp_path / "blind", policy="fcfs")
    assert command_line(["replay", "--store", str(tmp_path / "blind")]) == 2
    recent_warnings = capsys.readouterr().err
    for words in ("holds no history", "history knows no engine", "policy 'sage' needs predictions"):
        assert words in recent_warnings
    assert command_line(["replay", "--store", str(tmp_path / "blind"), "--policies", "fcfs", "--quiet"]) == 0


@pytest.mark.slow
def test_an_engine_whose_requests_end_before_they_arrive_is_left_out(tmp_path: Path, serve_small: Serve) -> None:
    """What one engine says of itself costs no other its replay; alone, there is too little to replay."""
    store, now_s = serve_small(tmp_path / "history", start_s=START_S).store, START_S + 3600.0
    hello = Hello(
        engine_id="odd",
        session_id="odd",
        model="m",
        engine="simulated",
        engine_version="1",
        kv_blocks=100,
        block_size_tokens=16,
        max_num_seqs=8,
        token_budget=512,
        max_model_len_tokens=4096,
        prefix_caching=False,
        started_s=START_S,
    )
    records = [
        EngineSeen(time_s=now_s, event="connected", hello=hello),
        *(
            Finished(
                request_id=f"r{number}",
                time_s=START_S,
                reason="stop",
                arrival_s=now_s,
                prompt_tokens=9,
                output_tokens=9,
                max_tokens=9,
                cached_prompt_tokens=0,
                preemptions=0,
                recomputed_tokens=0,
            )
            for number in range(50)
        ),
    ]
    with HistoryWriter(store, clock=lambda: now_s) as writer:
        writer.append([Entry(engine_id="odd", session_id="odd", batch=None, record=record) for record in records])
    with open_history(store) as connection:
        assert [run.engine_id != "odd" for run in read_runs(connection, Slice())] == [True]
        assert read_latest_run(connection, last=20, fewest=10) is None
        with pytest.raises(BadInputError, match="are needed"):
            read_runs(connection, Slice(engine_id="odd"))
