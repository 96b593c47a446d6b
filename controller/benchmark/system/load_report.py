"""Report of a load test: its figures with their requirements, and their course over time."""

from __future__ import annotations

from rich.table import Table

from controller.benchmark.system.load_test import PAUSE_S, LoadResult, Window
from controller.reports.tables import text_table

SHORTEST_TREND_S = 600.0
"""No trend is shown of shorter runs, in which the warm-up of caches looks like growth."""
ROWS = 20
"""Largest number of windows in the table of the course; of a long run they are evenly spaced."""


def load_tables(result: LoadResult) -> list[Table]:
    """Tables of the figures and of their course."""
    return [_figures(result), _pauses(result), _course(result)]


def _figures(result: LoadResult) -> Table:
    spec = result.spec
    load = f"bursts {spec.burst}" if spec.burst is not None else f"{spec.rate_rps:g} requests/s each"
    rows = [
        ("arrival to table in the engine, P50 ms", _ms(result.p50_s), _ms(result.slope_per_hour("p50_s"))),
        ("P99 ms", _ms(result.p99_s), _ms(result.slope_per_hour("p99_s"))),
        ("P99.9 ms", _ms(result.p999_s), ""),
        ("longest ms", _ms(result.longest_s), ""),
        ("requests", str(result.requests), ""),
        ("messages dropped", str(result.dropped), ""),
        ("facts not durable at the end", str(result.unacknowledged), ""),
        ("controller, share of a core", _share(result.mean("cpu_share")), _share(result.slope_per_hour("cpu_share"))),
        ("its helpers, at lowest priority", _share(result.mean("helpers_share")), ""),
        ("controller's memory MB", _mb(result.measured[-1].rss_bytes), _mb(result.slope_per_hour("rss_bytes"))),
        ("history MB", _mb(result.measured[-1].store_bytes), _mb(result.slope_per_hour("store_bytes"))),
        ("mean prediction ms", _ms(result.predict_s), ""),
        ("mean turn of the loop ms", _ms(result.turn_s), ""),
        ("load behind its plan, P99 ms", _ms(result.late_p99_s), ""),
        ("machine busy, all cores", _share(result.mean("host_share")), ""),
    ]
    if spec.watch:
        watched, alone = (result.mean("cpu_share", watched=seen) for seen in (True, False))
        rows.append(("a dashboard costs, share of a core", f"{100 * (watched - alone):+.1f}%", ""))
    title = f"{spec.engines} engines, {load}, {spec.seconds:g} s after {spec.warmup_s:g} s of warm-up"
    if spec.seconds < SHORTEST_TREND_S:
        return text_table(title, ("figure", "measured"), [row[:2] for row in rows], left=1)
    return text_table(title, ("figure", "measured", "grows in an hour by"), rows, left=1)


def _pauses(result: LoadResult) -> Table:
    headings = ("cause", "number", f"longer than {1e3 * PAUSE_S:g} ms", "P99.9 ms at most")
    rows = [
        (cause, str(pauses.count), f"{100 * pauses.longer_share:.3f}%", _ms(pauses.p999_s))
        for cause, pauses in result.pauses.items()
    ]
    return text_table("What held the control loop up, since its start", headings, rows, left=1)


def _course(result: LoadResult) -> Table:
    times = ("P50 ms", "P99 ms", "longest ms")
    headings = ("s", "arrivals", *times, "core", "machine", "memory MB", "history MB", "no table")
    every = -(-len(result.windows) // ROWS)
    return text_table("Over time", headings, map(_cells, result.windows[::every]))


def _cells(window: Window) -> tuple[str, ...]:
    return (
        f"{window.time_s:.0f}",
        str(window.arrivals),
        *(_ms(window.p50_s), _ms(window.p99_s), _ms(window.longest_s)),
        *(_share(window.cpu_share), _share(window.host_share)),
        *(_mb(window.rss_bytes), _mb(window.store_bytes)),
        str(window.without_table),
    )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def _share(share: float) -> str:
    return f"{100 * share:.1f}%"


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.1f}"
