from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from store.history.reader import open_history
from store.history.writer import HistoryWriter

pytestmark = pytest.mark.slow

TRIALS = int(os.environ.get("SAGESCHED_KILL_TRIALS", "8"))
FACTS = 3

CHILD = """
import sys, time
from pathlib import Path
from store.history import segments
from store.entries import Entry, Outcome
from store.records import FirstToken
from store.history.writer import HistoryWriter
segments.FAN_IN = 3
writer = HistoryWriter(Path(sys.argv[1]), seal_interval_s=0.03, commit_interval_s=0.002, grace_s=0.05).start()
batch = writer.last_batches.get("s", 0)
said = 0
positions = {}
while True:
    batch += 1
    facts = [FirstToken(request_id=f"{batch}-{n}", time_s=float(batch), scheduled_s=1.0, cached_prompt_tokens=0) for n in range(3)]
    outcome = Outcome(request_id=f"{batch}", time_s=1.0, output_tokens=1, censored=False, cluster=None, pit=0.5,
                      crps_tokens=1.0, log_score=1.0, within_50=True, within_90=True, answer=batch)
    entries = [Entry(engine_id="e", session_id="s", batch=batch, record=fact) for fact in facts]
    positions[writer.append([*entries, Entry(engine_id="e", session_id="s", batch=None, record=outcome)])] = batch
    durable = writer.durable_position
    for position in [p for p in positions if p <= durable]:
        said = max(said, positions.pop(position))
    sys.stdout.write(f"{said}\\n")
    sys.stdout.flush()
    time.sleep(0.002)
"""


def hear(child: subprocess.Popen[bytes], batch: int) -> int:
    """Wait until the child has acknowledged so many batches; returns the last one that it named."""
    assert child.stdout is not None
    while line := child.stdout.readline():
        if int(line) >= batch:
            return int(line)
    raise AssertionError("the child ended by itself")


def killed(child: subprocess.Popen[bytes], heard: int) -> int:
    """Kill the child and return the last batch that it acknowledged."""
    child.send_signal(signal.SIGKILL)
    assert child.stdout is not None
    whole_lines = child.stdout.read().decode().split("\n")[:-1]
    return int(whole_lines[-1]) if whole_lines else heard


def check_whole(path: Path, acknowledged: int) -> None:
    """Every acknowledged batch is there, whole and once, none in part, and there is no gap before the last."""
    with open_history(path) as connection:
        (durable,) = connection.sql("SELECT coalesce(max(batch), 0) FROM sealed_batches").fetchall()[0]
        assert durable >= acknowledged
        facts = connection.sql(
            "SELECT count(*), count(DISTINCT request_id), count(DISTINCT batch), coalesce(max(batch), 0) FROM first_tokens"
        ).fetchall()
        assert facts == [(FACTS * durable, FACTS * durable, durable, durable)]
        strange = connection.sql(
            "SELECT count(*) FROM first_tokens WHERE time_s <> batch OR scheduled_s <> 1.0 OR session_id <> 's'"
            " OR request_id NOT IN (batch || '-0', batch || '-1', batch || '-2')"
        ).fetchall()
        assert strange == [(0,)], "every value is the one that was sent"
        batches = connection.sql("SELECT count(*), count(DISTINCT batch) FROM batches").fetchall()
        assert batches == [(durable, durable)]
        outcomes = connection.sql("SELECT count(*), count(DISTINCT request_id) FROM outcomes").fetchall()
        assert outcomes == [(durable, durable)]


def test_kill_9_loses_nothing_acknowledged_and_doubles_nothing(tmp_path: Path) -> None:
    """Killed at any moment (also while it seals, compacts and removes files), the history opens again whole.

    ``SAGESCHED_KILL_TRIALS`` sets how many times.
    """
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(TRIALS):
        with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE) as child:
            hear(child, 0)
            check_whole(tmp_path, acknowledged)
            heard = hear(child, acknowledged + chance.randint(1, 30))
            time.sleep(chance.uniform(0.0, 0.1))
            acknowledged = killed(child, heard)
    with HistoryWriter(tmp_path):
        with open_history(tmp_path) as connection:
            ((batch,),) = connection.execute("SELECT batch FROM sealed_batches WHERE session_id = 's'").fetchall()
        assert batch >= acknowledged >= TRIALS
        check_whole(tmp_path, acknowledged)
    assert not list(tmp_path.rglob("*.tmp"))
