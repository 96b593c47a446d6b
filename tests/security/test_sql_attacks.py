"""Everything that a statement could try: refused with a clear line or bounded, and the history is the same afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from store.entries import Entry
from store.errors import BadInputError
from store.history.writer import HistoryWriter
from store.reading.sandbox import REFUSED, Question, run_sql
from store.records import FirstToken

SECRET = "the-secret-of-another-file"

ZYGOTE = '''
"""Answers questions in forks of itself, so that a hundred attacks do not import DuckDB a hundred times."""
import json, os, signal, sys
from store.reading import sandbox_child
for line in sys.stdin:
    pipes = [os.pipe() for _ in range(3)]
    child = os.fork()
    if child == 0:
        for number, (read, write) in enumerate(pipes):
            os.dup2(write if number else read, number)
            os.close(read)
            os.close(write)
        signal.alarm(60)
        code = sandbox_child.main()
        sys.stderr.flush()
        os._exit(code)
    (question, ask), (hear, out), (listen, err) = pipes
    for end in (question, out, err):
        os.close(end)
    with open(ask, "w") as stream:
        stream.write(line)
    with open(hear, "rb") as stdout, open(listen, "rb") as stderr:
        answer = {"out": stdout.read().hex(), "err": stderr.read().decode("utf-8", "replace")}
    answer["code"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(answer), flush=True)
'''


class Sandbox:
    """The child process of `store.reading.sandbox`, kept warm; everything after its imports is as ever."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": "", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"},
        )

    def ask(self, statement: str) -> dict[str, Any]:
        question = Question(
            path=str(self._path), statement=statement, row_limit=100, memory_bytes=1 << 29, result_bytes=1 << 20
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(question).decode() + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small history beside a secret; no byte of all that may have changed at the end, and nothing may have come."""
    top = tmp_path_factory.mktemp("attacked")
    with HistoryWriter(top / "history") as writer:
        facts = [FirstToken(request_id=f"{n}", time_s=1.0, scheduled_s=0.5, cached_prompt_tokens=n) for n in range(20)]
        writer.append([Entry(engine_id="e", session_id="s", batch=1, record=fact) for fact in facts])
    (top / "secret.csv").write_text(f"{SECRET}\n")
    (top / "history" / "prompt_hash.key").write_text(SECRET)
    before = contents(top)
    yield top / "history"
    assert contents(top) == before


@pytest.fixture(scope="module")
def sandbox(history: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(history)
    yield sandbox
    sandbox.close()


NOT_ALLOWED = "statements are not allowed"
NO_FILES = "disabled by configuration"
UNKNOWN = "does not exist|not in the catalog"
WRONG = "syntax error|Parser Error|Binder Error"

REFUSED_ATTACKS = {
    "statements": (
        NOT_ALLOWED,
        [
            "COPY first_tokens TO '{top}/leak.csv'",
            "COPY first_tokens FROM '/etc/passwd'",
            "COPY (SELECT 1) TO '/dev/stdout'",
            "EXPORT DATABASE '{top}/leak'",
            "IMPORT DATABASE '/tmp'",
            "ATTACH ':memory:' AS x",
            "ATTACH '{history}/live.duckdb' AS live",
            "ATTACH '{history}/catalog.duckdb' AS c2 (READ_WRITE)",
            "DETACH catalog",
            "USE memory",
            "INSTALL httpfs",
            "LOAD httpfs",
            "LOAD '/tmp/evil.so'",
            "SET memory_limit = '100GB'",
            "SET GLOBAL threads = 64",
            "SET lock_configuration = false",
            "RESET lock_configuration",
            "SET VARIABLE x = 1",
            "PRAGMA database_list",
            "PRAGMA threads = 64",
            "PRAGMA enable_external_access = true",
            "CALL pragma_version()",
            "CREATE TABLE x AS SELECT 1",
            "CREATE TEMP TABLE x AS SELECT 1",
            "CREATE OR REPLACE VIEW first_tokens AS SELECT 1",
            "CREATE MACRO m() AS 1",
            "CREATE MACRO m() AS TABLE SELECT * FROM read_text('/etc/passwd')",
            "CREATE FUNCTION f(x) AS x",
            "CREATE TYPE t AS ENUM ('a')",
            "CREATE SEQUENCE q",
            "CREATE SCHEMA evil",
            "CREATE SECRET s (TYPE s3)",
            "DROP VIEW first_tokens",
            "ALTER TABLE sessions RENAME TO x",
            "TRUNCATE sessions",
            "DELETE FROM first_tokens",
            "UPDATE first_tokens SET request_id = 'x'",
            "VACUUM",
            "ANALYZE",
            "CHECKPOINT",
            "INSERT INTO first_tokens SELECT * FROM first_tokens",
            "COMMENT ON VIEW first_tokens IS 'x'",
            "MERGE INTO first_tokens USING (SELECT 1) ON true WHEN MATCHED THEN DELETE",
            "BEGIN",
            "COMMIT",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "DEALLOCATE p",
            "EXPLAIN ANALYZE DELETE FROM first_tokens",
            "/* SELECT */ SET threads = 1",
            "-- SELECT\nSET threads = 1",
            "\ufeffSET threads = 1",
            "\u00a0SET threads = 1",
        ],
    ),
    "several": (
        "2 statements were given|3 statements",
        [
            "SELECT 1; SELECT 2",
            "SELECT 1;;SELECT 2",
            "SELECT 1; DROP VIEW first_tokens; --",
            "LOAD json; SELECT 1",
            "SELECT 1;\n\n/* x */ SET threads = 1",
            "SELECT ';'; DROP VIEW first_tokens",
        ],
    ),
    "changes inside a query": (
        WRONG,
        [
            "WITH x AS (INSERT INTO sessions VALUES ('a', 1, 1) RETURNING *) SELECT * FROM x",
            "WITH x AS (UPDATE sessions SET batch = 0 RETURNING *) SELECT * FROM x",
            "WITH x AS MATERIALIZED (DELETE FROM sealed_batches RETURNING *) SELECT * FROM x",
            "WITH RECURSIVE x AS (DELETE FROM sealed_batches RETURNING *) SELECT * FROM x",
            "SELECT * FROM (DELETE FROM sealed_batches RETURNING *)",
            "SELECT (COPY (SELECT 1) TO '{top}/leak')",
            "DESCRIBE (DELETE FROM sealed_batches RETURNING *)",
            "SELECT 1) AS a, (SELECT 2",
            "SELECT * FROM query('SET threads = 5')",
            "SELECT * FROM query('SELECT 1; DROP VIEW first_tokens')",
            "SELECT * FROM query('COPY (SELECT 1) TO ''{top}/leak''')",
            "SELECT * FROM query($$ATTACH '{history}/live.duckdb' AS l$$)",
        ],
    ),
    "files and network": (
        NO_FILES,
        [
            "SELECT * FROM read_parquet('/etc/passwd')",
            "SELECT * FROM read_json('/etc/hostname')",
            "SELECT * FROM read_csv('{top}/secret.csv')",
            "SELECT * FROM '{top}/secret.csv'",
            "SELECT * FROM read_text('{history}/prompt_hash.key')",
            "SELECT * FROM read_blob('{history}/live.duckdb')",
            "SELECT * FROM read_text('{history}/segments/../prompt_hash.key')",
            "SELECT * FROM parquet_metadata('/etc/passwd')",
            "SELECT * FROM read_blob('/proc/self/environ')",
            "SELECT content FROM read_text('/proc/self/cmdline')",
            "SELECT * FROM read_text('/dev/stdin')",
            "SELECT * FROM glob('/etc/*')",
            "SELECT * FROM glob('{history}/*')",
            "SELECT * FROM glob('/proc/self/**')",
            "SELECT * FROM read_csv('https://example.com/x.csv')",
            "SELECT * FROM read_parquet('s3://bucket/x')",
            "SELECT * FROM 'https://example.com/x.parquet'",
            "SELECT * FROM read_duckdb('{history}/live.duckdb')",
            "SELECT * FROM duckdb_secrets()",
            "SELECT * FROM duckdb_extensions()",
            "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
            "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''/etc/passwd'')'))",
        ],
    ),
    "functions": (
        UNKNOWN,
        [
            "SELECT getenv('HOME')",
            "SELECT set_config('threads', '64', false)",
            "SELECT * FROM sqlite_scan('/tmp/x.db', 't')",
            "SELECT * FROM postgres_scan('host=localhost', 'a', 'b')",
            "SELECT * FROM question",
            "SELECT * FROM connection",
            "SELECT * FROM '/etc/passwd'",
            "SELECT * FROM query_table(['/etc/passwd'])",
        ],
    ),
    "configuration": (
        "locked|configuration",
        [
            "SELECT * FROM enable_logging()",
            "SELECT * FROM enable_logging(storage = 'file', storage_path = '{history}')",
            "SELECT * FROM enable_profiling()",
        ],
    ),
    "odd texts": (
        r"query is wrong|0 statements|give exactly one",
        [
            "",
            ";",
            ";;;",
            "\x00",
            "SELECT \x00 1",
            "SELECT ?",
            "SELECT $1",
            "SELECT :x",
            "'",
            '"',
            "/*",
            "--",
            "$$",
            "(" * 5000,
            "SELECT " + "(" * 3000 + "1" + ")" * 3000,
            "SELECT 1 " + "UNION ALL SELECT 1 " * 3 + "UNION",
            "\ud7ff" * 10,
            "💥",
            "SELECT 1 FROM 💥",
        ],
    ),
}


@pytest.mark.parametrize("kind", REFUSED_ATTACKS)
def test_attacks_are_refused_in_one_clear_line(history: Path, sandbox: Sandbox, kind: str) -> None:
    """The history's fixture checks that no byte changed; nothing of what a statement may not see is in the answer."""
    message, statements = REFUSED_ATTACKS[kind]
    for statement in statements:
        answer = sandbox.ask(statement.replace("{top}", str(history.parent)).replace("{history}", str(history)))
        said = answer["err"]
        assert answer["code"] == REFUSED, (statement[:200], answer["code"], said)
        assert answer["out"] == "", statement[:200]
        with pytest.raises(BadInputError, match=message):
            raise BadInputError(said)
        assert "\n" not in said.strip(), (statement[:200], said)
        assert SECRET not in said


HARMLESS = [
    "SELECT name, value FROM duckdb_settings()",
    "SELECT * FROM duckdb_databases()",
    "SELECT current_setting('threads')",
    "SELECT * FROM duckdb_variables()",
    "SHOW ALL TABLES",
    "SELECT * FROM glob('{history}/segments/**')",
    "SELECT * FROM duckdb_logs()",
    "SELECT write_log('x')",
    "SELECT * FROM checkpoint('catalog')",
    "SELECT * FROM pragma_database_size()",
    "SELECT * FROM query_table('first_tokens')",
    "SUMMARIZE first_tokens",
    "SELECT 1 /* ; DROP VIEW first_tokens */",
    "SELECT 1 -- ; DROP",
    "SELECT '; DROP VIEW x'",
    "SELECT $$; DROP VIEW x$$",
    "SELECT 1） UNION SELECT 2",
    "SELECT * FROM duckdb_functions() LIMIT 5",
    "SELECT 'ａ' AS \"DROP VIEW\"",
]


def test_what_may_be_asked_about_duckdb_itself_tells_no_secret(history: Path, sandbox: Sandbox) -> None:
    """Settings, databases and functions may be looked at; of the environment and of other files there is nothing."""
    for statement in HARMLESS:
        answer = sandbox.ask(statement.replace("{history}", str(history)))
        assert answer["code"] == 0, (statement, answer["err"])
        with pa.ipc.open_stream(bytes.fromhex(answer["out"])) as reader:
            text = str(reader.read_all().to_pylist())
        assert SECRET not in text
        assert "prompt_hash.key" not in text


MEMORY_BOMBS = [
    "SELECT repeat('x', 2000000000)",
    "SELECT list(range) FROM range(2000000000)",
    "SELECT range(100000000000)",
    "SELECT string_agg(repeat('x', 100000), '') FROM range(100000)",
    "SELECT array_agg(a.range) FROM range(100000) AS a, range(100000) AS b",
    "SELECT repeat(repeat('x', 10000), 10000), repeat(repeat('y', 10000), 10000) FROM range(100)",
]


@pytest.mark.parametrize("statement", MEMORY_BOMBS)
def test_a_memory_bomb_ends_with_a_clear_line(sandbox: Sandbox, statement: str) -> None:
    """In the sandbox's half gigabyte; the process may refuse or be ended, the machine notices nothing."""
    answer = sandbox.ask(statement)
    assert answer["code"] == REFUSED or answer["code"] < 0, answer["err"]
    assert (
        answer["code"] < 0
        or "memory" in answer["err"]
        or "larger than" in answer["err"]
        or "out of range" in answer["err"].lower()
    )


CPU_BOMBS = [
    "SELECT * FROM range(1000000) AS a, range(1000000) AS b ORDER BY random()",
    "SELECT lpad('', 2000000000, 'x')",
    "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
    "SELECT count(*) FROM range(1000000000000000000) AS a",
    "SELECT count(*) FROM range(10000000) AS a, range(10000000) AS b WHERE a.range * b.range = -1",
    "SELECT count(*) FROM range(100000000) AS a WHERE regexp_matches(repeat('a', 10000), '(a*)*b' || a.range)",
    "SELECT pg_sleep(1000)",
    "SELECT count(*) FROM (SELECT md5(a.range::VARCHAR) FROM range(100000000000) AS a)",
]


@pytest.mark.parametrize("statement", CPU_BOMBS)
def test_an_endless_query_is_stopped_at_its_deadline(history: Path, statement: str) -> None:
    """With its process; or it is refused before, for its memory or its pattern."""
    with pytest.raises(BadInputError, match=r"longer than 2 s|memory|invalid"):
        run_sql(history, statement, timeout_s=2.0, memory_bytes=1 << 29)
