"""Workload files of every format, damaged in every way: rows that make sense, or one `WorkloadError`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapter.workloads.fields import MAX_TIME_S, MAX_TOKENS_PER_ROW
from engine_adapter.workloads.formats import load_workload
from engine_adapter.workloads.parquet import COLUMNS
from store.errors import WorkloadError


def read(suffix: str, content: bytes) -> None:
    """Read a file of this content; what comes back must make sense."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        try:
            workload = load_workload(file.name)
        except WorkloadError as error:
            assert Path(file.name).stem in str(error)
            assert len(str(error)) < 1000
            return
    for row in workload.rows:
        assert 1 <= row.prompt_len_tokens <= MAX_TOKENS_PER_ROW
        assert 1 <= row.response_len_tokens <= MAX_TOKENS_PER_ROW
        assert row.arrival_s is None or 0.0 <= row.arrival_s <= MAX_TIME_S


NUMBERS = st.one_of(
    st.integers(-5, 5000),
    st.integers(),
    st.floats(),
    st.just(10**400),
    st.sampled_from(["", "nan", "-1", "inf", "1e9", "12", "x", "٣", "1_000", " 7 ", "0x1F"]),
)
ANY = st.one_of(NUMBERS, st.none(), st.booleans(), st.text(max_size=20), st.lists(st.integers(), max_size=3))


def csv_of(header: list[str]) -> st.SearchStrategy[bytes]:
    cell = st.one_of(
        NUMBERS.map(str), st.text(max_size=15), st.sampled_from(["2023-11-16 18:15:46.68", "0001-01-01", "9999-12-31"])
    )
    rows = st.lists(st.lists(cell, min_size=0, max_size=len(header) + 2), max_size=5)
    return rows.map(
        lambda lines: "\n".join([",".join(header), *(",".join(line) for line in lines)]).encode("utf-8", "replace")
    )


AZURE = csv_of(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
BURSTGPT = csv_of(["Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"])


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def lines(values: list[Any]) -> bytes:
    return b"\n".join(dumped(value) for value in values)


MOONCAKE = st.lists(
    st.fixed_dictionaries(
        {"timestamp": ANY, "input_length": ANY, "output_length": ANY},
        optional={"hash_ids": st.one_of(ANY, st.lists(ANY, max_size=3)), "conversations": ANY},
    ),
    max_size=4,
).map(lines)
TURNS = st.one_of(
    ANY,
    st.lists(st.one_of(ANY, st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), ANY)), max_size=4),
)
SHAREGPT = st.one_of(ANY, st.lists(st.one_of(ANY, st.fixed_dictionaries({"conversations": TURNS})), max_size=4)).map(
    dumped
)
ODD = [
    b"", b"\x00" * 50, b"\xff\xfe", b"PAR1", b"PAR1" * 20, b"[" * 100_000, b"{" * 100_000, b'{"a":' * 50_000, b"\n" * 1000,
    b'"' * 999, b"null", b"[]", b"{}", b"[[]]", b'[{"conversations": []}]', b"TIMESTAMP,ContextTokens,GeneratedTokens",
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"," * 5000, b"x" * 300_000, b"\xef\xbb\xbf[]", b'{"timestamp": 1e999}',
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_files_that_are_none_of_their_format(suffix: str) -> None:
    """Empty, binary, endless nesting, a header alone, one endless line."""
    for content in ODD:
        read(suffix, content)


@pytest.mark.parametrize(
    ("suffix", "contents"),
    [(".csv", AZURE), (".csv", BURSTGPT), (".jsonl", MOONCAKE), (".json", SHAREGPT), (".jsonl", SHAREGPT)],
    ids=["azure", "burstgpt", "mooncake", "sharegpt", "sharegpt lines"],
)
def test_values_that_make_no_sense(suffix: str, contents: st.SearchStrategy[bytes]) -> None:
    """Wrong types, negative, NaN, huge, missing and superfluous."""

    @settings(max_examples=120, deadline=None)
    @given(contents)
    def holds(content: bytes) -> None:
        read(suffix, content)

    holds()


GOOD: dict[str, Callable[[], bytes]] = {
    ".csv": lambda: (
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:50.99,396,109\n2023-11-16 18:15:51,5,9\n"
    ),
    ".jsonl": lambda: lines([{"timestamp": 5, "input_length": 3, "output_length": 9, "hash_ids": [1]}] * 3),
    ".json": lambda: dumped([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]),
    ".parquet": lambda: parquet(
        dict.fromkeys(COLUMNS[:3], ["x"] * 9) | dict.fromkeys(COLUMNS[3:6], [7] * 9) | {"client": ["c"] * 9}
    ),
}


def parquet(columns: dict[str, list[Any]]) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), stream)
    return bytes(stream.getvalue().to_pybytes())


@pytest.mark.parametrize("suffix", GOOD)
def test_a_file_that_breaks_off_or_has_a_wrong_byte(suffix: str) -> None:
    """At every place of the cut, and with bytes changed at random."""
    whole = GOOD[suffix]()
    for cut in range(0, len(whole), max(1, len(whole) // 60)):
        read(suffix, whole[:cut])

    @settings(max_examples=80, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=4))
    def holds(place: int, bytes_: bytes) -> None:
        read(suffix, whole[:place] + bytes_ + whole[place + len(bytes_) :])

    holds()


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from([*COLUMNS, "more"]), st.lists(ANY, min_size=2, max_size=2), max_size=8))
def test_parquet_with_other_columns_or_types(columns: dict[str, list[Any]]) -> None:
    """Missing, superfluous, nested and null columns."""
    try:
        content = parquet(columns)
    except (pa.ArrowException, OverflowError):
        return  # Arrow cannot write it, so nobody can have it.
    read(".parquet", content)
