"""Report of the overhead: one table for each of its three parts."""

from __future__ import annotations

from rich.table import Table

from controller.benchmark.system.arrival_latency import ArrivalTimes
from controller.benchmark.system.overhead import AllocationGrowth, CallCost, EngineCost, OverheadResult
from controller.reports.tables import text_table


def overhead_tables(result: OverheadResult) -> list[Table]:
    """Time added to vLLM's scheduler, memory that grows with history, and arrival to table in the controller."""
    return [_engine_table(result.engine), _allocation_table(result.allocations), _arrival_table(result.controller)]


def _engine_table(costs: tuple[EngineCost, ...]) -> Table:
    calls = (f"{call} {what}" for call in ("schedule", "update") for what in ("stock ms", "sage ms", "added"))
    rows = ((str(cost.running), str(cost.waiting), *_cells(cost.schedule), *_cells(cost.update)) for cost in costs)
    return text_table("vLLM's scheduler, CPU time of a call (median)", ("running", "waiting", *calls), rows)


def _cells(cost: CallCost) -> tuple[str, str, str]:
    return f"{1e3 * cost.stock_s:.3f}", f"{1e3 * cost.sage_s:.3f}", f"{cost.added:+.1%}"


def _allocation_table(growth: AllocationGrowth) -> Table:
    pairs = zip(growth.finished, growth.held_bytes, strict=True)
    rows = ((str(finished), f"{held_bytes:,}") for finished, held_bytes in pairs)
    table = text_table("Bytes that the plugin holds", ("requests finished", "held"), rows)
    table.caption = f"{growth.bytes_per_finished:+.1f} bytes for each finished request"
    return table


def _arrival_table(times: tuple[ArrivalTimes, ...]) -> Table:
    headings = ("unfinished", "arrivals", "P50 ms", "P99 ms")
    rows = (
        (str(level.unfinished), str(level.arrivals), f"{1e3 * level.p50_s:.2f}", f"{1e3 * level.p99_s:.2f}")
        for level in times
    )
    return text_table("Controller, from arrival to table in the engine's hands", headings, rows)
