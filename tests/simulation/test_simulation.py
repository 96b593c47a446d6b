"""The whole loop under faults, seed by seed, and the proof that a defect of ours would show."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import count, islice
from pathlib import Path

import pytest
from harness.faults import DISK, KINDS, Faults
from harness.mutants import MUTANTS, Mutant
from harness.world import simulate
from simulate import REAL_STORE_EVERY, run_seed

SEEDS = 100
CHUNK = 20

injected: Counter[str] = Counter()
seeds_run: list[int] = []


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_whatever_happens_nothing_that_must_hold_is_broken(first: int) -> None:
    """No request is forgotten or served twice, no fact lost or doubled, no bound passed, and all is well again after."""
    for seed in range(first, first + CHUNK):
        result = run_seed(seed)
        assert result.failure is None, f"{result.failure}: replay it with: make simulate SEED={seed}"
        injected.update(result.injected)
        seeds_run.append(seed)


def test_every_kind_of_fault_was_injected() -> None:
    """None of the faults is only in the list; skipped where only some of the seeds were run."""
    if len(seeds_run) < SEEDS:
        pytest.skip("not all seeds were run")
    assert set(KINDS) == {kind for kind in KINDS if injected[kind]}


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    """The command that replays a seed does so, whatever Python hashes strings to."""
    outputs = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, str(Path(__file__).with_name("simulate.py")), "--seed", "13"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        outputs.add(told.splitlines()[-1])
    assert len(outputs) == 1
    assert outputs.pop().startswith("digest ")


def test_the_history_in_memory_is_what_the_real_one_would_be(tmp_path: Path) -> None:
    """Where no fault strikes the disk itself, a seed goes the same way on both, crashes and restarts included."""
    untouched = (
        seed for seed in count(1) if not Faults(seed).rates.keys() & {*DISK, "controller killed within a turn"}
    )
    for seed in islice((seed for seed in untouched if "controller killed" in Faults(seed).rates), 2):
        digests = set()
        for real_store in (False, True):
            folder = tmp_path / f"{seed}-{real_store}"
            folder.mkdir()
            result = simulate(seed, folder, real_store=real_store)
            assert result.failure is None
            digests.add(result.digest)
        assert len(digests) == 1


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_defect_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any of these defects in the product some seed fails, and without it the same seed does not."""
    with monkeypatch.context() as patch:
        mutant.spoil(patch)
        failing = (seed for seed in range(1, REAL_STORE_EVERY) if run_seed(seed, mutant.focus).failure is not None)
        found = next(failing, None)
    assert found is not None, "the defect went unnoticed"
    assert run_seed(found, mutant.focus).failure is None
