from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_adapter.workloads.formats import load_workload
from engine_adapter.workloads.parquet import COLUMNS
from engine_adapter.workloads.requests import to_requests
from engine_adapter.workloads.rows import Workload, WorkloadRow
from engine_adapter.workloads.token_ids import count_tokens
from store.errors import WorkloadError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:51.2224670,879,0
"""

AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.017335+00:00,2399,6
"""

BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,API log
"""

BURSTGPT_SESSIONS = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5.5,session-1,1.2,ChatGPT,472,18,490,Conversation log
"""

MOONCAKE = """{"timestamp": 27482, "input_length": 1955, "output_length": 52, "hash_ids": [46, 47, 48, 49]}

{"timestamp": 30535, "input_length": 1300, "output_length": 26, "hash_ids": [46, 47, 11]}
"""

SHAREGPT = [
    {
        "id": "a_0",
        "conversations": [
            {"from": "human", "value": "Name a colour."},
            {"from": "gpt", "value": "Blue."},
            {"from": "human", "value": "Another one, please."},
            {"from": "gpt", "value": "Red, as in roses."},
        ],
    },
    {"id": "b_0", "conversations": [{"from": "gpt", "value": "An answer to nothing."}]},
    {"id": "c_0", "conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]},
]

ROWS = (
    WorkloadRow(task="chat", model="m", prompt="Hello there", prompt_len_tokens=2, response_len_tokens=9),
    WorkloadRow(
        task="tool", model="m", prompt=None, prompt_len_tokens=70, response_len_tokens=1, arrival_s=1.5, client="c"
    ),
)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(**changes: object) -> dict[str, object]:
    columns: dict[str, object] = {
        "task": ["chat", "chat"],
        "model": ["m", "m"],
        "prompt": ["one", None],
        "prompt_len_tokens": [1, 5],
        "response_len_tokens": [3, 0],
        "arrival_s": [None, 2.5],
        "client": pa.nulls(2),
    }
    return columns | changes


def test_our_parquet_comes_back_as_it_was_written(
    tmp_path: Path, write_parquet: Callable[[Workload, Path], None]
) -> None:
    """Texts, nulls, lengths, times and clients."""
    write_parquet(Workload(name="small", rows=ROWS), tmp_path / "small.parquet")
    assert load_workload(tmp_path / "small.parquet") == Workload(name="small", rows=ROWS)


def test_an_answer_of_no_token_counts_as_one(tmp_path: Path) -> None:
    """Its end-of-sequence token had to be computed."""
    pq.write_table(pa.table(table()), tmp_path / "w.parquet")
    assert [row.response_len_tokens for row in load_workload(tmp_path / "w.parquet").rows] == [3, 1]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("response_len_tokens", [4, -7], "row 2: response_len_tokens is -7"),
        ("response_len_tokens", [4, None], "row 2: response_len_tokens is None"),
        ("response_len_tokens", [4.0, float("nan")], "row 2: response_len_tokens is nan"),
        ("response_len_tokens", [4.5, 1.0], "row 1: response_len_tokens is 4.5"),
        ("prompt_len_tokens", [2**40, 1], "row 1: prompt_len_tokens is 1099511627776"),
        ("prompt_len_tokens", ["many", "few"], "row 1: prompt_len_tokens is 'many'"),
        ("arrival_s", [1.0, float("nan")], "row 2: arrival_s is nan"),
        ("arrival_s", [float("inf"), 1.0], "row 1: arrival_s is inf"),
        ("arrival_s", [-0.5, 1.0], "row 1: arrival_s is -0.5"),
        ("prompt", [1, 2], "row 1: prompt is 1"),
        ("task", [None, "x"], "row 1: task is None"),
        ("client", [3, 4], "row 1: client is 3"),
        ("hash_ids", [[1], [-2]], "row 2: hash_ids is -2"),
        ("hash_ids", [3, 4], "row 1: hash_ids is 3"),
        ("block_size_tokens", [0, 16], "row 1: block_size_tokens is 0"),
        ("session", [1, 2], "row 1: session is 1"),
        ("expected_output_tokens", [5, 0], "row 2: expected_output_tokens is 0"),
    ],
)
def test_a_senseless_value_is_named_with_file_row_column_and_remedy(
    tmp_path: Path, column: str, values: list[object], message: str
) -> None:
    """Nothing is guessed or left out in silence."""
    pq.write_table(pa.table(table(**{column: values})), tmp_path / "w.parquet")
    with pytest.raises(WorkloadError) as caught:
        load_workload(tmp_path / "w.parquet")
    assert f"{tmp_path / 'w.parquet'}, {message}" in str(caught.value)
    assert ": give " in str(caught.value)


def test_parquet_carries_sessions_and_expected_lengths(tmp_path: Path) -> None:
    """Where there are such columns, and the value is not null; the requests have them too."""
    columns = table(session=["a", None], expected_output_tokens=[None, 70])
    pq.write_table(pa.table(columns), tmp_path / "w.parquet")
    rows = load_workload(tmp_path / "w.parquet").rows
    assert [(row.session, row.expected_output_tokens) for row in rows] == [("a", None), (None, 70)]
    made = to_requests(rows, [0.0, 0.0], seed=1)
    assert [(request.session, request.expected_output_tokens) for request in made] == [("a", None), (None, 70)]


def test_parquet_carries_block_hashes(tmp_path: Path) -> None:
    """Of 512 tokens each, as in Mooncake's traces, or of the size that the file says; a row may have none."""
    pq.write_table(pa.table(table(hash_ids=[[4, 5], None])), tmp_path / "w.parquet")
    first, second = load_workload(tmp_path / "w.parquet").rows
    assert (first.block_hashes, first.block_size_tokens, second.block_hashes) == ((4, 5), 512, ())
    pq.write_table(pa.table(table(hash_ids=[[4, 5], []], block_size_tokens=[16, None])), tmp_path / "w.parquet")
    first, second = load_workload(tmp_path / "w.parquet").rows
    assert (first.block_size_tokens, second.block_size_tokens) == (16, 512)


def test_a_mooncake_trace_may_be_parquet(tmp_path: Path) -> None:
    """Its own columns, with lengths named as in our workloads; times are milliseconds."""
    trace = {
        "timestamp_ms": [27482, 30535],
        "prompt_len_tokens": [1955, 1300],
        "response_len_tokens": [52, 26],
        "hash_ids": [[46, 47, 48, 49], [46, 47, 11]],
    }
    pq.write_table(pa.table(trace), tmp_path / "w.parquet")
    (tmp_path / "w.jsonl").write_text(MOONCAKE, encoding="utf-8")
    rows = load_workload(tmp_path / "w.parquet").rows
    lines = {row.response_len_tokens: row for row in load_workload(tmp_path / "w.jsonl").rows}
    assert [(row.prompt_len_tokens, row.block_hashes) for row in rows] == [
        (lines[answer].prompt_len_tokens, lines[answer].block_hashes) for answer in (52, 26)
    ]
    assert [row.arrival_s for row in rows] == pytest.approx([0.0, 3.053])


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    """The message lists what a workload has."""
    pq.write_table(pa.table(table()).drop_columns([column]), tmp_path / "w.parquet")
    with pytest.raises(WorkloadError, match=f"has no column {column}: a workload has the columns task, "):
        load_workload(tmp_path / "w.parquet")


def test_an_azure_trace_is_ordered_and_starts_at_zero(tmp_path: Path) -> None:
    """Lengths and times as in the file, no text, an empty answer as one token."""
    rows = load_workload(written(tmp_path, "azure.csv", AZURE)).rows
    assert [row.prompt_len_tokens for row in rows] == [374, 396, 879]
    assert [row.response_len_tokens for row in rows] == [44, 109, 1]
    assert [row.arrival_s for row in rows] == pytest.approx([0.0, 4.314579, 4.541877], abs=1e-5)
    assert {row.prompt for row in rows} == {None}


def test_an_azure_trace_of_2024_is_read_too(tmp_path: Path) -> None:
    """Its times name their zone."""
    rows = load_workload(written(tmp_path, "azure.csv", AZURE_2024)).rows
    assert [row.arrival_s for row in rows] == pytest.approx([0.0, 1.007405], abs=1e-5)


def test_burstgpt_tells_models_and_kinds_of_request(tmp_path: Path) -> None:
    """With and without sessions, which become clients."""
    rows = load_workload(written(tmp_path, "burst.csv", "\ufeff" + BURSTGPT)).rows
    assert [(row.model, row.task) for row in rows] == [
        ("ChatGPT", "Conversation log"),
        ("ChatGPT", "Conversation log"),
        ("GPT-4", "API log"),
    ]
    assert [row.arrival_s for row in rows] == [0.0, 40.0, 113.0]
    (row,) = load_workload(written(tmp_path, "sessions.csv", BURSTGPT_SESSIONS)).rows
    assert (row.client, row.prompt_len_tokens, row.response_len_tokens) == ("session-1", 472, 18)


def test_mooncake_keeps_block_hashes_and_reads_milliseconds(tmp_path: Path) -> None:
    """Blank lines do not matter."""
    first, second = load_workload(written(tmp_path, "trace.jsonl", MOONCAKE)).rows
    assert first.block_hashes == (46, 47, 48, 49)
    assert (second.prompt_len_tokens, second.response_len_tokens) == (1300, 26)
    assert second.arrival_s == pytest.approx(3.053)


def test_sharegpt_gives_one_request_for_each_answer_with_the_dialogue_before_it(tmp_path: Path) -> None:
    """Lengths are estimated from the texts; an answer without a prompt is none; JSON lines read alike."""
    whole = load_workload(written(tmp_path, "chat.json", json.dumps(SHAREGPT))).rows
    lines = load_workload(written(tmp_path, "chat.jsonl", "\n".join(map(json.dumps, SHAREGPT)))).rows
    assert whole == lines
    assert [row.prompt for row in whole] == [
        "Name a colour.",
        "Name a colour.\n\nassistant: Blue.\n\nuser: Another one, please.",
        "Hi",
    ]
    assert [row.response_len_tokens for row in whole] == [2, count_tokens("Red, as in roses."), 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.csv", "a,b\n1,2\n", "has the columns a, b: give an Azure"),
        ("w.csv", "", "has the columns (none)"),
        ("w.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no rows"),
        ("w.csv", AZURE.replace("2023-11-16 18:15:46.6805900", "yesterday"), "row 2: TIMESTAMP is 'yesterday'"),
        ("w.csv", AZURE.replace(",44", ""), "row 2: GeneratedTokens is None"),
        ("w.csv", AZURE.replace(",44", ",-44"), "row 2: GeneratedTokens is '-44'"),
        ("w.csv", BURSTGPT.replace("45,", "nan,"), "row 2: Timestamp is 'nan'"),
        ("w.csv", b"\xff\xfe\x00TIMESTAMP", "cannot be read as CSV"),
        ("w.jsonl", "", "has no rows"),
        ("w.jsonl", MOONCAKE.replace("27482", '"soon"'), "row 1: timestamp is 'soon'"),
        ("w.jsonl", MOONCAKE.replace("[46, 47, 11]", "[46, -1]"), "row 3: hash_ids is -1"),
        ("w.jsonl", MOONCAKE.replace('"output_length": 26, ', ""), "row 3: has no output_length"),
        ("w.jsonl", MOONCAKE[:-9], "row 3: is not JSON"),
        ("w.jsonl", "[1]", "row 1: the line is [1]"),
        ("w.json", "[]", "holds no answer"),
        ("w.json", "{}", "holds no list"),
        ("w.json", json.dumps(SHAREGPT)[:-5], "is not JSON"),
        ("w.json", '[{"conversations": [{"from": "human"}]}]', "row 1: value is None"),
        ("w.json", '[{"id": 1}]', "row 1: conversations is None"),
        ("w.json", "[" * 100_000, "is not JSON"),
        ("w.parquet", b"", "cannot be read as Parquet"),
        ("w.parquet", b"PAR1 and more PAR1", "cannot be read as Parquet"),
        ("w.txt", "x", "nor a file of .parquet"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_its_name_and_a_remedy(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    """One line that names file, place and what to give instead."""
    path = written(tmp_path, name, content)
    with pytest.raises(WorkloadError) as caught:
        load_workload(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if "has no rows" not in message:
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["none.parquet", "none.csv", "none.json", "none.jsonl"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    """As any other file that cannot be read."""
    with pytest.raises(WorkloadError, match=name):
        load_workload(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(WorkloadError, match=name):
        load_workload(tmp_path / name)


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(table()), sink)
    return sink.getvalue().to_pybytes()


SAMPLES: dict[str, Callable[[], bytes]] = {
    "w.parquet": parquet_bytes,
    "azure.csv": AZURE.encode,
    "burst.csv": BURSTGPT.encode,
    "trace.jsonl": MOONCAKE.encode,
    "chat.json": lambda: json.dumps(SHAREGPT).encode(),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Cut anywhere, with bytes changed or put in anywhere: either a workload of sound rows or a `WorkloadError`."""
    content = bytearray(SAMPLES[name]())
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    cut = data.draw(st.integers(0, len(content)))
    path = written(tmp_path, name, bytes(content[:cut]) if data.draw(st.booleans()) else bytes(content))
    try:
        workload = load_workload(path)
    except WorkloadError:
        return
    assert all(row.prompt_len_tokens >= 1 and row.response_len_tokens >= 1 for row in workload.rows)
    assert all(row.arrival_s is None or row.arrival_s >= 0.0 for row in workload.rows)
