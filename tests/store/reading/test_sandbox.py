from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.errors import BadInputError, StoreError
from store.history.writer import HistoryWriter
from store.reading.sandbox import TRUNCATED, run_sql


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small sealed history, which must be the same afterwards, byte by byte."""
    from store.entries import Entry
    from store.records import FirstToken

    path = tmp_path_factory.mktemp("history")
    with HistoryWriter(path) as writer:
        facts = [FirstToken(request_id=f"{n}", time_s=1.0, scheduled_s=0.5, cached_prompt_tokens=n) for n in range(20)]
        writer.append([Entry(engine_id="e", session_id="s", batch=1, record=fact) for fact in facts])
    before = contents(path)
    yield path
    assert contents(path) == before


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_query_is_answered_up_to_the_limit(history: Path) -> None:
    """In its order, with a note whether there was more; comments and semicolons do no harm."""
    table = run_sql(
        history, "SELECT request_id, cached_prompt_tokens AS c FROM first_tokens ORDER BY c DESC; -- all", row_limit=3
    )
    assert table.to_pylist() == [{"request_id": f"{n}", "c": n} for n in (19, 18, 17)]
    assert table.schema.metadata[TRUNCATED] == b"true"
    counted = run_sql(history, "SELECT count(*) AS n FROM first_tokens", row_limit=1)
    assert counted.to_pylist() == [{"n": 20}]
    assert counted.schema.metadata[TRUNCATED] == b"false"
    assert run_sql(history, "DESCRIBE requests").num_rows > 20


def test_where_there_is_no_history_the_message_says_so(tmp_path: Path) -> None:
    """Before any process is started."""
    with pytest.raises(StoreError, match="holds no history"):
        run_sql(tmp_path, "SELECT 1")


WRITE = "COPY (SELECT 1 AS a) TO '{segments}/mine.parquet' (FORMAT parquet)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM nowhere", "nowhere does not exist"),
        ("", "0 statements"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("SELECT 1) AS a, (SELECT 2", "syntax error"),
        (WRITE, "COPY statements are not allowed"),
        ("EXPLAIN ANALYZE " + WRITE, "EXPLAIN statements are not allowed"),
        ("WITH d AS (" + WRITE + ") SELECT 1", "must be at the top level"),
        ("WITH d AS (DELETE FROM sealed_batches RETURNING *) SELECT * FROM d", "must be at the top level"),
        ("FROM query('WITH d AS (" + WRITE.replace("'", "''") + ") SELECT 1')", "must be at the top level"),
        ("ATTACH '/tmp/other.duckdb'", "ATTACH statements are not allowed"),
        ("SET enable_external_access = true", "SET statements are not allowed"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("SELECT * FROM read_text('{segments}/../writer.lock')", "disabled by configuration"),
        ("SELECT * FROM read_blob('/proc/self/environ')", "disabled by configuration"),
        ("SELECT * FROM glob('/etc/*')", "disabled by configuration"),
        ("SELECT * FROM enable_logging(storage = 'file', storage_path = '{segments}')", "locked"),
        ("SELECT * FROM question", "question does not exist"),
        ("SELECT repeat('x', 2000000000)", "memory"),
        ("SELECT list(range) FROM range(2000000000)", "memory"),
        ("SELECT repeat('x', 100000) FROM range(10000)", "answer is larger than 256 MiB"),
    ],
)
def test_whatever_is_asked_nothing_is_changed_reached_or_exhausted(history: Path, statement: str, message: str) -> None:
    """Each is refused with a line that names the problem; the fixture checks that no byte of the history changed."""
    with pytest.raises(BadInputError, match=message):
        run_sql(history, statement.replace("{segments}", str(history / "segments")), timeout_s=60.0)


def test_an_endless_query_ends(history: Path) -> None:
    """At the deadline, with its process."""
    began_s = time.monotonic()
    with pytest.raises(BadInputError, match=r"longer than 1\.5 s"):
        run_sql(history, "SELECT count(*) FROM range(1000000000000) AS a", timeout_s=1.5)
    assert time.monotonic() - began_s < 10.0


RESTRICTED = """
import os, socket, sys
from pathlib import Path
from store.reading.landlock import confine
from store.reading.sandbox_child import _limit_process
folder = Path(sys.argv[1])
restricted = confine([folder, Path("/proc/self"), Path(sys.prefix), Path(sys.base_prefix)])
_limit_process(1 << 30)
attempts = {
    "write": lambda: (folder / "new").write_text("x"),
    "truncate": lambda: os.truncate(folder / "old", 0),
    "remove": lambda: (folder / "old").unlink(),
    "rename": lambda: (folder / "old").rename(folder / "other"),
    "folder": lambda: (folder / "sub").mkdir(),
    "read": lambda: (folder.parent / "secret").read_text(),
    "look": lambda: os.listdir(folder.parent),
    "connect": lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=5.0),
    "listen": lambda: socket.create_server(("127.0.0.1", 0)),
    "run": lambda: os.execv("/bin/true", ["true"]),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        continue
    print(name)
print((folder / "old").read_text() if restricted else "NO LANDLOCK")
"""


def test_the_process_of_a_query_reaches_nothing_even_if_duckdb_lets_it(tmp_path: Path) -> None:
    """The kernel refuses every change, reading elsewhere, TCP and other programs; reading its own goes on."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "old").write_text("still here")
    (tmp_path / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(tmp_path / "mine"), str(server.getsockname()[1])]
        done = subprocess.run(
            [sys.executable, "-c", RESTRICTED, *arguments], capture_output=True, text=True, check=True
        )
    if "NO LANDLOCK" in done.stdout:
        pytest.fail("this kernel has no Landlock: the test of the last line of defence cannot run here")
    assert done.stdout == "still here\n"
