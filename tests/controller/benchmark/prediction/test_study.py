"""`evaluate --drift` and `--upkeep`, in the small."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from controller.benchmark.prediction.drift import drift_study, drift_table
from controller.benchmark.prediction.rebuild_cost import measure_upkeep, upkeep_table
from controller.benchmark.prediction.study import task_prompts
from controller.cli.main import run
from controller.cli.output import print_table

pytestmark = pytest.mark.slow


def test_three_families_drift_and_each_has_blocks_from_the_change_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The most frequent becomes longer, the second shorter, the third new; blocks follow on each other."""
    blocks = drift_study(
        "synthetic", requests=600, seed=1, requests_per_token=0.0, clock=lambda: 0.0, progress=lambda _done: None
    )
    changes = {block.family: block.change for block in blocks}
    assert list(changes.values()) == ["x 3", "x 0.3", "new"]
    for family in changes:
        spans = [(block.first, block.last) for block in blocks if block.family == family]
        assert spans[0][0] == 0
        assert all(one[1] == other[0] for one, other in pairwise(spans))
    late = [block.last for block in blocks]
    tasks = [task for task, _, _ in task_prompts("synthetic", requests=600, seed=1)[300:]]
    assert max(late) == max(min(800, tasks.count(family)) for family in changes)
    print_table(drift_table(blocks))
    assert "new" in capsys.readouterr().out


def test_a_restart_rebuilds_the_same_predictions_from_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All answers that were served are taught again, and no probability in any prediction differs."""
    upkeep = measure_upkeep(
        "synthetic",
        tmp_path,
        answers=700,
        seed=1,
        clock=lambda: 0.0,
        cpu_clock=lambda: 0.0,
        progress=lambda _done: None,
    )
    assert upkeep.answers == 700
    assert upkeep.largest_difference == 0.0
    assert upkeep.memory_bytes > 1_000_000
    print_table(upkeep_table(upkeep))
    assert "700" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--drift", "--upkeep"], ("--drift", "--upkeep", "one of them")),
        (["--drift", "--html", "a.html"], ("a.html", "--json")),
    ],
)
def test_flags_that_exclude_each_other_are_named(
    arguments: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad usage is one line that says what to do, and exit 2."""
    assert run(["evaluate", *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)
