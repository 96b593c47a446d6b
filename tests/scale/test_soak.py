"""Ten minutes of traffic in little time: what the history takes on the disk, and that nothing is left behind.

``make soak`` serves for an hour in real time, in processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.benchmark.system.process_samples import folder_bytes
from store.history.writer import HistoryWriter

TRAFFIC_S = 600.0
TURN_S = 20.0
RETAINED_BYTES = 300_000
LIVE_BYTES = 6_000_000
"""Unsealed rows, catalog and what is still kept for readers, whatever the bound on the history."""
GRACE_S = 30.0


@pytest.mark.long
def test_the_disk_is_bounded_over_ten_minutes_of_traffic(tmp_path: Path, quick_busy: Callable[..., Any]) -> None:
    """With a bound on the history its folder stops to grow, while every entry becomes durable and is sealed."""
    controller = quick_busy(engines=1, unfinished=24)
    writer = HistoryWriter(
        tmp_path / "h",
        seal_interval_s=TURN_S,
        retention_bytes=RETAINED_BYTES,
        grace_s=GRACE_S,
        clock=lambda: controller.now_s,
        timer=lambda: controller.now_s,
    )
    writer.open()
    controller.recorded = writer.append
    start_s, sizes = controller.now_s, []
    while controller.now_s < start_s + TRAFFIC_S:
        until_s = controller.now_s + TURN_S
        while controller.now_s < until_s:
            controller.serve_one()
        assert writer.turn()
        sizes.append(folder_bytes(tmp_path / "h"))
    stats = writer.stats
    assert stats.durable_position == stats.position > 10 * controller.served / 2
    assert (stats.dropped, stats.refused, stats.rejected, stats.errors) == (0, 0, 0, 0)
    half = len(sizes) // 2
    assert max(sizes[half:]) < 1.25 * max(sizes[:half]), sizes
    assert max(sizes) < RETAINED_BYTES + LIVE_BYTES, sizes
    assert stats.segments < 200
