"""Runs seeds of the simulation: ``make simulate`` for many, ``make simulate SEED=123`` for one again.

Prints each seed that fails with the command that replays it, then what was injected; exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from harness.faults import KINDS
from harness.world import Result, World, simulate

REAL_STORE_EVERY = 40
"""One seed in so many keeps its history in DuckDB and Parquet on a real file system, which takes ten times as long."""


def run_seed(seed: int, focus: frozenset[str] = frozenset()) -> Result:
    """Run one seed in a folder of its own, with these faults or its own; in memory, where the system has a file system there."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a private folder is made within
    with tempfile.TemporaryDirectory(dir=base, prefix="simulation-") as folder:
        return simulate(seed, Path(folder), real_store=seed % REAL_STORE_EVERY == 0, focus=focus)


def run_seeds(seeds: range, workers: int) -> Iterator[Result]:
    """Run seeds on so many processes, in order."""
    if workers == 1:
        yield from map(run_seed, seeds)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(run_seed, seeds, chunksize=10)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one alone, and let what it raises come out")
    parser.add_argument("--seeds", type=int, default=300, help="run so many (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default one for each core)"
    )
    options = parser.parse_args()
    World.raise_errors = options.seed is not None
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    began_s = time.monotonic()
    return report(list(_told(run_seeds(seeds, min(options.workers, len(seeds))))), time.monotonic() - began_s)


def _told(results: Iterator[Result]) -> Iterator[Result]:
    for result in results:
        if result.failure is not None:
            _say(f"seed {result.seed} fails: {result.failure}\n  replay it with: make simulate SEED={result.seed}")
        yield result


def report(results: list[Result], wall_s: float) -> int:
    """Print what was run and injected; the exit code."""
    failures = sum(result.failure is not None for result in results)
    injected = sum((result.injected for result in results), Counter[str]())
    modes = sum((result.modes for result in results), Counter[str]())
    simulated_s = sum(result.simulated_s for result in results)
    _say(
        f"{len(results)} seeds, {sum(result.real_store for result in results)} of them with the store on disk, "
        f"{failures} failed; {simulated_s / 3600:.1f} simulated hours, {sum(r.events for r in results)} events, "
        f"{sum(r.served for r in results)} requests, {sum(modes.values())} steps "
        f"({', '.join(f'{mode} {count}' for mode, count in modes.most_common())}), {wall_s:.0f} s"
    )
    for kind in KINDS:
        _say(f"  {kind:32} {injected[kind]:9}")
    if len(results) == 1:
        _say(f"digest {results[0].digest}")
    return 1 if failures else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
