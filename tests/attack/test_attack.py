"""``make attack`` with a fixed seed: one fault after another, on a real vLLM with everything on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from attack import FAULTS, SHORT, Plan, attack
from chaos.faults import Fault

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    "kinds", [pytest.param(SHORT, id="short"), pytest.param(FAULTS, id="all", marks=pytest.mark.long)]
)
def test_nothing_that_must_hold_is_broken_by_an_attack(tmp_path: Path, kinds: Sequence[type[Fault]]) -> None:
    """Answers are stock's, each is in SQL once, memory is bounded, the order comes back, and each trouble is told."""
    folder = tmp_path / "a"
    folder.mkdir(mode=0o700)
    report = attack(Plan(seed=1, seconds=0.0, kinds=kinds, pages=60), folder)
    assert not report.findings.violations, report.text()
    assert set(report.injected) >= {kind.name for kind in kinds} - set(report.left_out)
