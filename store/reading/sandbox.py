"""One ad-hoc statement over the history, in a fresh process that can do nothing but read it.

What holds it in (`store.reading.sandbox_child`): the statement is parsed and must be one query; it runs inside ``query()``, where DuckDB
allows no ``COPY``, ``INSERT`` or the like in a ``WITH``; the catalog is attached read-only; external access is limited
to the segments and the configuration is locked; the kernel denies the process every change of the file system,
all reading but of the catalog, the segments and Python, and TCP (Landlock, where there is one), and every byte written
to a file, and limits its address space; the caller kills it at the deadline.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa

from store.errors import BadInputError
from store.history.reader import require_catalog

REFUSED = 3
"""Exit code of a child that says on its standard error what is wrong with the statement."""
AGAIN = 4
"""Exit code of a child that found the catalog replaced before it could open it."""
_ATTEMPTS = 5

TRUNCATED = b"truncated"
"""Key in the schema's metadata: ``b"true"`` when there were more rows than the limit."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is asked."""

    path: str
    statement: str
    row_limit: int
    memory_bytes: int
    result_bytes: int


def run_sql(
    path: Path,
    statement: str,
    *,
    row_limit: int = 10_000,
    timeout_s: float = 30.0,
    memory_bytes: int = 1 << 30,
    result_bytes: int = 256 << 20,
) -> pa.Table:
    """The answer to one query over the catalog of the history in ``path``, at most ``row_limit`` rows of it.

    The schema's metadata says whether there were more (`TRUNCATED`).

    Raises:
        BadInputError: the statement is not one query, is wrong, or takes too long or too much memory.
        StoreError: there is no history.
    """
    require_catalog(path)
    question = Question(
        path=str(Path(path).absolute()),
        statement=statement,
        row_limit=row_limit,
        memory_bytes=memory_bytes,
        result_bytes=result_bytes,
    )
    for _ in range(_ATTEMPTS):
        child = _asked(question, timeout_s)
        if child.returncode != AGAIN:
            break
    if child.returncode != 0:
        raise BadInputError(_complaint(child, memory_bytes))
    return _limited(child.stdout, row_limit)


def _asked(question: Question, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            [sys.executable, "-P", "-m", "store.reading.sandbox_child"],
            input=msgspec.json.encode(question),
            capture_output=True,
            timeout=timeout_s,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BadInputError(
            f"query took longer than {timeout_s:g} s and was stopped: ask for a shorter time span, or raise the limit"
        ) from error


def _environment() -> dict[str, str]:
    """Only what Python needs to start, and allocators that reserve no address space ahead of need."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    return kept | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


def _complaint(child: subprocess.CompletedProcess[bytes], memory_bytes: int) -> str:
    said = child.stderr.decode("utf-8", "replace").strip()
    if child.returncode == REFUSED:
        return said
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return (
            f"query ended its process ({name}), most likely for want of memory beyond {memory_bytes >> 20} MiB: "
            "ask for fewer rows or columns"
        )
    return f"query failed: {said.splitlines()[-1] if said else 'its process said nothing'}"


def _limited(stream: bytes, row_limit: int) -> pa.Table:
    with pa.ipc.open_stream(stream) as reader:
        table = reader.read_all()
    truncated = b"true" if table.num_rows > row_limit else b"false"
    return table.slice(0, row_limit).replace_schema_metadata({TRUNCATED: truncated})
