from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from store.reader import last_batches, open_history
from store.writer import HistoryWriter

TRIALS = int(os.environ.get("SAGESCHED_KILL_TRIALS", "15"))
FACTS = 3

CHILD = """
import sys, time
from pathlib import Path
from store import segments
from store.records import Entry, FirstToken, Outcome
from store.writer import HistoryWriter
segments.FAN_IN = 3
writer = HistoryWriter(Path(sys.argv[1]), seal_interval_s=0.03, commit_interval_s=0.002, grace_s=0.05).start()
batch = writer.last_batches.get("s", 0)
said = 0
positions = {}
while True:
    batch += 1
    facts = [FirstToken(request_id=f"{batch}-{n}", time_s=1.0, scheduled_s=1.0, cached_prompt_tokens=0) for n in range(3)]
    outcome = Outcome(request_id=f"{batch}", time_s=1.0, output_tokens=1, censored=False, cluster=None, pit=0.5,
                      crps_tokens=1.0, log_score=1.0, within_50=True, within_90=True)
    entries = [Entry(engine_id="e", session_id="s", batch=batch, record=fact) for fact in facts]
    positions[writer.append([*entries, Entry(engine_id="e", session_id="s", batch=None, record=outcome)])] = batch
    durable = writer.durable_position
    for position in [p for p in positions if p <= durable]:
        said = max(said, positions.pop(position))
    sys.stdout.write(f"{said}\\n")
    sys.stdout.flush()
    time.sleep(0.002)
"""


def first_word(child: subprocess.Popen[bytes]) -> None:
    """Wait until the child has opened the history and begun to write."""
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], 60.0)
    assert ready, "the child never began"


def killed(child: subprocess.Popen[bytes]) -> int:
    """Kill the child and return the last batch that it acknowledged."""
    child.send_signal(signal.SIGKILL)
    said, _ = child.communicate()
    whole_lines = said.decode().split("\n")[:-1]
    return int(whole_lines[-1]) if whole_lines else 0


def check_whole(path: Path, acknowledged: int) -> None:
    """Every acknowledged batch is there, whole and once, none in part, and there is no gap before the last."""
    with open_history(path) as connection:
        (durable,) = connection.sql("SELECT coalesce(max(batch), 0) FROM sessions").fetchall()[0]
        assert durable >= acknowledged
        facts = connection.sql(
            "SELECT count(*), count(DISTINCT request_id), count(DISTINCT batch), coalesce(max(batch), 0) FROM first_tokens"
        ).fetchall()
        assert facts == [(FACTS * durable, FACTS * durable, durable, durable)]
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
            first_word(child)
            check_whole(tmp_path, acknowledged)
            time.sleep(chance.uniform(0.0, 0.3))
            acknowledged = killed(child)
    with HistoryWriter(tmp_path):
        assert last_batches(tmp_path)["s"] >= acknowledged > 0
        check_whole(tmp_path, acknowledged)
    assert not list(tmp_path.rglob("*.tmp"))
