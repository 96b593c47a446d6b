"""The short form of ``make attack``: a fixed seed, one fault after another, on a real vLLM with everything on."""

from __future__ import annotations

from pathlib import Path

import pytest
from attack import SHORT, Plan, attack

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_nothing_that_must_hold_is_broken_by_an_attack(tmp_path: Path) -> None:
    """Answers are stock's, each is in SQL once, memory is bounded, the order comes back, and each trouble is told."""
    folder = tmp_path / "a"
    folder.mkdir(mode=0o700)
    report = attack(Plan(seed=1, seconds=0.0, kinds=SHORT, pages=60), folder)
    assert not report.findings.violations, report.text()
    assert set(report.injected) >= {kind.name for kind in SHORT}
