"""The process in which `store.reading.sandbox` runs a statement; reads the question from standard input, answers in Arrow."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa

from store.errors import BadInputError, SageError
from store.history.files import Folder
from store.history.reader import open_history
from store.history.tables import quoted
from store.reading.landlock import confine
from store.reading.sandbox import AGAIN, REFUSED, Question

_BATCH_ROWS = 1_024
_NICENESS = 10
"""Statements give way to the controller and to the engine."""
_SYSTEM = (
    *("/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime"),
    # From these DuckDB learns how many processors and how much memory it has; it aborts where it may not read them.
    *("/proc/self", "/proc/stat", "/proc/meminfo", "/proc/cpuinfo", "/sys/fs/cgroup", "/sys/devices/system/cpu"),
)


def main() -> int:
    """Answer one question; returns the exit code."""
    os.nice(_NICENESS)
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    catalog = Folder(Path(question.path)).catalog
    known = catalog.stat().st_ino
    os.chdir(question.path)  # The catalog's paths are relative, and DuckDB checks them before it searches.
    confine(_readable(Folder(Path(question.path))))
    try:
        _answer(question)
    except (MemoryError, duckdb.OutOfMemoryException):
        return _refuse(_out_of_memory(question))
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # DuckDB's errors in the midst of a stream come as Arrow's, with DuckDB's words.
        text = str(error)
        return _refuse(_out_of_memory(question) if "Out of Memory" in text else f"query is wrong: {_first_part(text)}")
    except SageError as error:
        # The writer has put a new catalog in place of the one that may be read.
        return AGAIN if catalog.stat().st_ino != known else _refuse(str(error))
    return 0


def _readable(folder: Folder) -> list[Path]:
    """The catalog, the segments, and what Python and DuckDB may still load; nothing else of the history."""
    of_python = {Path(place) for place in (sys.prefix, sys.base_prefix, Path(__file__).parents[1])}
    return [folder.catalog, folder.segments, *of_python, *(Path(place) for place in _SYSTEM)]


def _answer(question: Question) -> None:
    _check(question.statement)
    with open_history(Path(question.path)) as connection:
        _lock(connection, question)
        _limit_process(question.memory_bytes)
        answer = connection.sql(f"SELECT * FROM query({quoted(question.statement)}) LIMIT {question.row_limit + 1}")
        _send(_in_arrow(answer).to_arrow_reader(_BATCH_ROWS), question.result_bytes)


_AS_TEXT = re.compile(r"\b(BIT|BIGNUM|VARINT|VARIANT|UNION|INTERVAL|UHUGEINT)\b|TIME WITH TIME ZONE|TIMETZ")
"""Types that Arrow has not, or has with other values."""


def _in_arrow(answer: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The answer with DuckDB's own text in place of values, and of nested ones, that Arrow cannot carry as they are."""
    columns = [
        f"CAST(#{place} AS VARCHAR) AS {_named(name)}" if _AS_TEXT.search(str(kind)) else f"#{place} AS {_named(name)}"
        for place, (name, kind) in enumerate(zip(answer.columns, answer.types, strict=True), start=1)
    ]
    return answer.project(", ".join(columns))


def _named(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


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
    """DuckDB's message without its quotation of the statement, whose line numbers are not the user's."""
    return " ".join(line.strip() for line in text.split("\nLINE ", maxsplit=1)[0].splitlines() if line.strip())


if __name__ == "__main__":
    sys.exit(main())
