"""Reader and writer of the project's own workload format in Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine_adapter.workloads import fields
from engine_adapter.workloads.rows import Workload, WorkloadRow, trace_of
from store.errors import WorkloadError

COLUMNS = ("task", "model", "prompt", "prompt_len_tokens", "response_len_tokens", "arrival_s", "client")
"""Required columns; prompt, arrival_s and client may be null."""

OPTIONAL_COLUMNS = ("hash_ids", "block_size_tokens", "session", "expected_output_tokens")
"""A list of hashes of the prompt's blocks for prompts without text, and the tokens of a block, 512 without that column;
the session that the request belongs to, and the length that its client expects. All may be null; further columns are ignored."""

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "model", "prompt")),
        *((name, pa.int64()) for name in ("prompt_len_tokens", "response_len_tokens")),
        ("arrival_s", pa.float64()),
        *((name, pa.string()) for name in ("client", "session")),
        ("hash_ids", pa.list_(pa.int64())),
        *((name, pa.int64()) for name in ("block_size_tokens", "expected_output_tokens")),
    ]
)

TRACE_COLUMNS = ("timestamp_ms", "prompt_len_tokens", "response_len_tokens", "hash_ids")
"""Columns of a Mooncake trace in Parquet, all required."""


def read_parquet(path: Path) -> Workload:
    """Read a workload or a Mooncake trace; raise `WorkloadError`, which names file, row and column, for an invalid value."""
    columns = _columns(path)
    rows = [
        (fields.Place(path, number), dict(zip(columns, values, strict=True)))
        for number, values in enumerate(zip(*columns.values(), strict=True), 1)
    ]
    if "task" not in columns:
        return trace_of(path.stem, [_trace_row(place, values) for place, values in rows])
    return Workload(name=path.stem, rows=tuple(_row(place, values) for place, values in rows))


def write_parquet(path: Path, rows: Sequence[WorkloadRow], about: Mapping[str, object]) -> None:
    """Write a workload; ``about`` (source, licence, hash, seed) is kept in the file's metadata under ``sagesched``.

    Raises `WorkloadError` if the file cannot be written, or a row follows another's end, which the format cannot say.
    """
    if any(row.continues is not None for row in rows):
        raise WorkloadError("a closed loop has no times of its own, and cannot be written: run it by its name")
    columns = {
        **{name: [getattr(row, name) for row in rows] for name in COLUMNS},
        "session": [row.session for row in rows],
        "hash_ids": [list(row.block_hashes) for row in rows],
        "block_size_tokens": [row.block_size_tokens for row in rows],
        "expected_output_tokens": [row.expected_output_tokens for row in rows],
    }
    table = pa.table([pa.array(columns[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA)
    table = table.replace_schema_metadata({"sagesched": json.dumps(about, sort_keys=True)})
    try:
        pq.write_table(table, path, compression="zstd")
    except OSError as error:
        raise WorkloadError(f"{path} cannot be written ({error.strerror or error}): choose another file") from error


def about_parquet(path: Path) -> dict[str, object]:
    """What a workload's metadata say of it; empty if they say nothing."""
    metadata = pq.read_schema(path).metadata or {}
    found: dict[str, object] = json.loads(metadata.get(b"sagesched", b"{}"))
    return found


def _columns(path: Path) -> dict[str, list[object]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if set(TRACE_COLUMNS) <= set(names) and "task" not in names:
                wanted = [*TRACE_COLUMNS, *(name for name in ("dataset", "block_size_tokens") if name in names)]
            else:
                missing = [name for name in COLUMNS if name not in names]
                if missing:
                    raise WorkloadError(
                        f"{path} has no column {', '.join(missing)}: a workload has the columns {', '.join(COLUMNS)}, "
                        f"and a trace with block hashes {', '.join(TRACE_COLUMNS)}"
                    )
                wanted = [*COLUMNS, *(name for name in OPTIONAL_COLUMNS if name in names)]
            table = file.read(columns=wanted)
            return {name: table.column(name).to_pylist() for name in wanted}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WorkloadError(f"{path} cannot be read as Parquet ({reason}): give a whole Parquet file") from error


def _row(place: fields.Place, values: dict[str, object]) -> WorkloadRow:
    arrival_s = values["arrival_s"]
    return WorkloadRow(
        task=fields.text(place, "task", values["task"]),
        model=fields.text(place, "model", values["model"]),
        prompt=fields.text_or_none(place, "prompt", values["prompt"]),
        prompt_len_tokens=fields.prompt_tokens(place, "prompt_len_tokens", values["prompt_len_tokens"]),
        response_len_tokens=fields.response_tokens(place, "response_len_tokens", values["response_len_tokens"]),
        arrival_s=None if arrival_s is None else fields.seconds(place, "arrival_s", arrival_s),
        client=fields.text_or_none(place, "client", values["client"]),
        session=fields.text_or_none(place, "session", values.get("session")),
        expected_output_tokens=fields.some_tokens(
            place, "expected_output_tokens", values.get("expected_output_tokens")
        ),
        block_hashes=fields.block_hashes(place, "hash_ids", values.get("hash_ids") or []),
        block_size_tokens=fields.block_size_tokens(place, values.get("block_size_tokens")),
    )


def _trace_row(place: fields.Place, values: dict[str, object]) -> WorkloadRow:
    """A row of `TRACE_COLUMNS`; ``dataset`` names the task."""
    return WorkloadRow(
        task=fields.text(place, "dataset", values.get("dataset", "mooncake")),
        model="served",
        prompt=None,
        prompt_len_tokens=fields.prompt_tokens(place, "prompt_len_tokens", values["prompt_len_tokens"]),
        response_len_tokens=fields.response_tokens(place, "response_len_tokens", values["response_len_tokens"]),
        arrival_s=fields.milliseconds(place, "timestamp_ms", values["timestamp_ms"]),
        block_hashes=fields.block_hashes(place, "hash_ids", values["hash_ids"]),
        block_size_tokens=fields.block_size_tokens(place, values.get("block_size_tokens")),
    )
