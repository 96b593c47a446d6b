"""Plans: the bisection, the resamples, and a small history planned from the command line."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from controller.cli.main import run as command_line
from controller.policy.policies import EngineOrder, Schedule
from controller.replay import plan as planning
from controller.replay.plan import (
    HIGHEST,
    LOWEST,
    STEP,
    PlanSpec,
    bearable_load,
    make_plan,
    rate_rps,
    resampled,
    scaled,
)
from controller.replay.read_history import Slice, read_runs
from controller.replay.recorded_run import RecordedRun, Replayable
from controller.replay.replay_engine import replay_under
from controller.reports.service_figures import ServedRequest, service_figures
from store.errors import BadInputError
from store.history.reader import open_history
from store.records import Targets
from store.service_levels import DEFAULT_TARGETS, NOT_CONFIGURED

CHAT = Targets(ttft_s=1.5, tpot_s=0.05, e2e_s=60.0)


def past(store: Path) -> RecordedRun:
    """The run of a history."""
    with open_history(store) as connection:
        (found,) = read_runs(connection, Slice())
    return found


@given(st.floats(0.04, 30.0), st.floats(0.04, 30.0))
def test_the_load_that_is_borne_is_found_from_wherever_the_search_starts(limit: float, start: float) -> None:
    """To the step, never above the limit, in some twenty looks."""
    looks = []

    def attained(load: float) -> float:
        looks.append(load)
        return 1.0 if load <= limit else 0.0

    found = bearable_load(attained, 0.95, start)
    assert limit / (1.0 + STEP) <= found <= limit
    assert len(looks) <= 30


def test_what_is_never_or_always_met_ends_at_the_bounds() -> None:
    """Nought where not even the lowest load is borne, the highest where it still is."""
    assert bearable_load(lambda _load: 0.5, 0.95) == 0.0
    assert bearable_load(lambda _load: 1.0, 0.95) == HIGHEST
    assert bearable_load(lambda load: float(load <= LOWEST), 0.95) == pytest.approx(LOWEST)


def test_a_resample_has_blocks_of_the_record_at_about_its_rate(promised: Any) -> None:
    """Neighbours stay neighbours; ids are its own; the same seed draws the same; the first is the record itself."""
    replayable = Replayable.of(past(promised.store))
    record = list(replayable.counted.values())
    assert resampled(replayable, 0).requests == tuple(record)
    found = resampled(replayable, 5)
    assert found.requests == resampled(replayable, 5).requests != resampled(replayable, 6).requests
    arrivals_s = [request.arrival_s for request in found.requests]
    assert arrivals_s == sorted(arrivals_s)
    assert len({request.request_id for request in found.requests}) == len(found.requests)
    assert rate_rps(found.requests) == pytest.approx(rate_rps(record), rel=0.15)
    numbers = {request.request_id: number for number, request in enumerate(record)}
    places = [numbers[request.request_id.partition("/")[2]] for request in found.requests]
    follows = [later == earlier + 1 for earlier, later in pairwise(places)]
    assert sum(follows) >= len(places) - planning.BLOCKS
    assert {request.output_tokens for request in found.requests} <= {request.output_tokens for request in record}


def test_a_multiple_of_the_load_moves_the_arrivals_alone(promised: Any) -> None:
    """Twice the load in half the time."""
    replayable = resampled(Replayable.of(past(promised.store)), 0)
    faster = scaled(replayable, 2.0)
    assert rate_rps(faster.requests) == pytest.approx(2.0 * rate_rps(replayable.requests))
    start_s = replayable.requests[0].arrival_s
    assert [structs.replace(request, arrival_s=0.0) for request in faster.requests] == [
        structs.replace(request, arrival_s=0.0) for request in replayable.requests
    ]
    assert faster.requests[-1].arrival_s - start_s == pytest.approx(
        (replayable.requests[-1].arrival_s - start_s) / 2.0, rel=1e-3
    )


def test_the_load_of_the_record_is_the_one_at_which_enough_targets_are_met(promised: Any) -> None:
    """At it they are, and a little above they are not; replicas follow from it, the fewest from the highest load."""
    run = past(promised.store)
    spec = PlanSpec(policies=("fcfs",), schedule=Schedule(), attainments=(0.8,), resamples=1, load_rps=40.0)
    plan = make_plan(spec, run)
    (found,) = plan.bearable
    assert len(found.multiples) == 2
    record = resampled(Replayable.of(run.with_default_targets()), 0)

    def attained(multiple: float) -> float:
        at_load = scaled(record, multiple)
        levels = {request.request_id: request.level for request in at_load.requests}
        totals = replay_under(at_load, EngineOrder())
        return service_figures(
            [
                ServedRequest(one, levels[one.request_id].service_class, levels[one.request_id].targets)
                for one in totals.completed
            ]
        ).goodput

    assert attained(found.multiples[0]) >= 0.8 > attained(found.multiples[0] * (1.0 + STEP))
    mean_rps, low_rps, high_rps = found.rps
    assert low_rps <= mean_rps <= high_rps
    engines, fewest, most = found.replicas
    assert engines is not None
    assert fewest is not None
    assert most is not None
    assert fewest <= engines <= most
    assert (engines - 1) * mean_rps < 40.0 <= engines * mean_rps
    assert plan.costs == ()


def test_what_a_class_costs_is_found_by_not_telling_its_targets(promised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are judged by their targets in every row; ours alone is told them."""
    told: list[set[Targets | None]] = []

    def watched(replayable: Replayable, *arguments: Any, targets: bool) -> Any:
        told.append({request.targets if targets else None for request in replayable.requests})
        return replay_under(replayable, *arguments, targets=targets)

    monkeypatch.setattr(planning, "replay_under", watched)
    spec = PlanSpec(policies=("sage",), schedule=Schedule(), attainments=(0.5,), resamples=0)
    plan = make_plan(spec, past(promised.store))
    assert [cost.without for cost in plan.costs] == [None, "chat", NOT_CONFIGURED]
    assert told[-3:] == [{CHAT, DEFAULT_TARGETS}, {DEFAULT_TARGETS, None}, {CHAT, None}]
    for cost in plan.costs:
        assert cost.service.all.asked == cost.service.all.requests
        assert set(cost.service.classes) == {"chat", NOT_CONFIGURED}


def test_the_command_prints_and_writes_a_plan(
    promised: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its interval, its replicas and how well the past is reproduced."""
    arguments = ["plan", "--store", str(promised.store), "--policies", "fcfs", "--attainment", "0.5,0.8", "--quiet"]
    assert command_line([*arguments, "--resamples", "1", "--load", "100", "--json", str(tmp_path / "p.json")]) == 0
    said = capsys.readouterr().out
    assert "What happened is reproduced well." in said
    assert "replicas for 100/s" in said
    report = json.loads((tmp_path / "p.json").read_text())
    assert [one["attainment"] for one in report["bearable"]] == [0.5, 0.8]
    assert all(one["rps_low"] <= one["rps"] <= one["rps_high"] for one in report["bearable"])
    assert report["bearable"][0]["rps"] >= report["bearable"][1]["rps"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--attainment", "95"], ("95", "0.95")),
        (["--load", "-1"], ("-1", "above 0")),
        (["--policies", "fcfs,lifo"], ("lifo", "sage")),
        (["--last", "50"], ("50 answers", "100")),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    promised: Any, flags: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that says what to give."""
    assert command_line(["plan", "--store", str(promised.store), "--quiet", *flags]) == 2
    complaint = capsys.readouterr().err
    assert len(complaint.strip().splitlines()) == 1
    assert all(word in complaint for word in words)


def test_attainment_must_be_a_share() -> None:
    """All of them is no share that can be promised."""
    with pytest.raises(BadInputError, match="between 0 and 1"):
        PlanSpec(policies=("fcfs",), schedule=Schedule(), attainments=(1.0,))
