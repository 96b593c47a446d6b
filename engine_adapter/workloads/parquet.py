"""Reader of the project's own workload format in Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine_adapter.workloads import fields
from engine_adapter.workloads.rows import Workload, WorkloadRow
from store.errors import WorkloadError

COLUMNS = ("task", "model", "prompt", "prompt_len_tokens", "response_len_tokens", "arrival_s", "client")
"""Required columns; prompt, arrival_s and client may be null. Further columns are ignored."""


def read_parquet(path: Path) -> Workload:
    """Read a workload; raise `WorkloadError`, which names file, row and column, for an invalid value."""
    columns = _columns(path)
    rows = tuple(
        _row(fields.Place(path, number), values) for number, values in enumerate(zip(*columns, strict=True), 1)
    )
    return Workload(name=path.stem, rows=rows)


def _columns(path: Path) -> list[list[object]]:
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise WorkloadError(
                    f"{path} has no column {', '.join(missing)}: a workload has the columns {', '.join(COLUMNS)}"
                )
            table = file.read(columns=list(COLUMNS))
            return [table.column(name).to_pylist() for name in COLUMNS]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WorkloadError(f"{path} cannot be read as Parquet ({reason}): give a whole Parquet file") from error


def _row(place: fields.Place, values: tuple[object, ...]) -> WorkloadRow:
    """A row of `COLUMNS`, in their order."""
    task, model, prompt, prompt_len_tokens, response_len_tokens, arrival_s, client = values
    return WorkloadRow(
        task=fields.text(place, "task", task),
        model=fields.text(place, "model", model),
        prompt=fields.text_or_none(place, "prompt", prompt),
        prompt_len_tokens=fields.prompt_tokens(place, "prompt_len_tokens", prompt_len_tokens),
        response_len_tokens=fields.response_tokens(place, "response_len_tokens", response_len_tokens),
        arrival_s=None if arrival_s is None else fields.seconds(place, "arrival_s", arrival_s),
        client=fields.text_or_none(place, "client", client),
    )
