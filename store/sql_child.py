"""The process in which `store.sql` runs a statement; reads the question from standard input, answers in Arrow."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa

from store.errors import BadInputError, SageError
from store.files import Folder
from store.reader import open_history
from store.sql import REFUSED, Question
from store.tables import quoted

_BATCH_ROWS = 1_024


def main() -> int:
    """Answer one question; returns the exit code."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    forbid_file_changes()
    try:
        _answer(question)
    except (MemoryError, duckdb.OutOfMemoryException):
        return _refuse(_out_of_memory(question))
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # DuckDB's errors in the midst of a stream come as Arrow's, with DuckDB's words.
        text = str(error)
        return _refuse(_out_of_memory(question) if "Out of Memory" in text else f"query is wrong: {_first_part(text)}")
    except SageError as error:
        return _refuse(str(error))
    return 0


def _answer(question: Question) -> None:
    _check(question.statement)
    with open_history(Path(question.path)) as connection:
        _lock(connection, question)
        _limit_process(question.memory_bytes)
        answer = connection.sql(
            f"SELECT * FROM query({quoted(question.statement)}) LIMIT {question.row_limit + 1}"  # noqa: S608 - the very purpose
        )
        _send(answer.to_arrow_reader(_BATCH_ROWS), question.result_bytes)


def _check(statement: str) -> None:
    """Raise `BadInputError` for anything but one query."""
    found = duckdb.extract_statements(statement)
    if len(found) != 1:
        raise BadInputError(f"{len(found)} statements were given: give exactly one query")
    if found[0].type != duckdb.StatementType.SELECT:
        raise BadInputError(
            f"{found[0].type.name} statements are not allowed: the history is only read, give a SELECT, DESCRIBE or SHOW"
        )


def _lock(connection: duckdb.DuckDBPyConnection, question: Question) -> None:
    """From here on the connection reaches the segments, in little memory, and nothing else."""
    segments = str(Folder(Path(question.path)).segments)
    connection.execute("SET threads = 2")
    connection.execute(f"SET memory_limit = '{question.memory_bytes * 3 // 4 >> 20} MiB'")
    connection.execute("SET temp_directory = ''")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute(f"SET allowed_directories = [{quoted(segments)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _limit_process(memory_bytes: int) -> None:
    """No more memory than this on top of the present, not a byte into any file, no core dump."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(reader: pa.RecordBatchReader, result_bytes: int) -> None:
    sent_bytes = 0
    with pa.PythonFile(sys.stdout.buffer, mode="w") as sink, pa.ipc.new_stream(sink, reader.schema) as stream:
        for batch in reader:
            sent_bytes += batch.nbytes
            if sent_bytes > result_bytes:
                raise BadInputError(
                    f"the answer is larger than {result_bytes >> 20} MiB: ask for fewer rows or columns"
                )
            stream.write_batch(batch)


def _out_of_memory(question: Question) -> str:
    return f"query needs more memory than {question.memory_bytes >> 20} MiB: ask for fewer rows or columns"


def _refuse(text: str) -> int:
    sys.stderr.write(text[:2_000])
    return REFUSED


def _first_part(text: str) -> str:
    """DuckDB's message without its picture of the statement, whose line numbers are not the user's."""
    return " ".join(line.strip() for line in text.split("\nLINE ", maxsplit=1)[0].splitlines() if line.strip())


# --- Landlock, Linux 5.13 and later: https://docs.kernel.org/userspace-api/landlock.html ------------

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_PR_SET_NO_NEW_PRIVS = 38
_VERSION_FLAG = 1
_CHANGES = 0b0_0001_1111_1111_0010
"""Access rights WRITE_FILE and REMOVE_DIR (bit 4) to MAKE_SYM (bit 12): all that change something."""
_REFER, _TRUNCATE = 1 << 13, 1 << 14
"""Rights that the second and the third version of the interface know."""


def forbid_file_changes() -> bool:
    """Give up, for this process and for good, every right to change a file or folder; False where Linux cannot.

    Must come before the process has a second thread, which would keep its rights.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    if version < 1:
        return False
    rights = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    handled = ctypes.c_uint64(rights)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0)
    finally:
        os.close(ruleset)


if __name__ == "__main__":
    sys.exit(main())
