"""Readers of workload files: the project's Parquet format, ShareGPT, Azure, BurstGPT and Mooncake."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec

from engine_adapter.workloads import fields
from engine_adapter.workloads.parquet import read_parquet
from engine_adapter.workloads.rows import Workload, WorkloadRow, trace_of
from engine_adapter.workloads.token_ids import count_tokens
from store.errors import WorkloadError

_CsvRow: TypeAlias = dict[str, str | None]

_UNKNOWN_MODEL = "served"
"""Model name of traces that name none."""


def load_workload(path: Path | str) -> Workload:
    """Read a workload; its suffix and then its content select the format.

    ``.parquet`` is the project's own format, or a Mooncake trace; ``.json`` is ShareGPT;
    ``.jsonl`` is a Mooncake trace, a generated ServeGen workload (timestamp, input_tokens, output_tokens), a data set for
    vLLM's benchmark (prompt, output_tokens), or ShareGPT with one conversation per line;
    ``.csv`` is an Azure LLM inference trace (2023 or 2024) or BurstGPT.
    Rows of traces without text have no prompts; arrival times count from the trace's first request.

    Args:
        path: The file.

    Raises:
        WorkloadError: The file cannot be read or a value is invalid; the message names file, row, column and remedy.
    """
    path = Path(path)
    require_format(path)
    return _READERS[path.suffix.lower()](path)


def known_source(workload: Workload) -> tuple[str, str] | None:
    """Address and licence of the public data set that a trace of this format comes from; None for other formats."""
    task = workload.rows[0].task
    return SOURCES.get("burstgpt" if task in {"Conversation log", "API log"} else task)


SOURCES = {
    "azure": ("https://github.com/Azure/AzurePublicDataset", "CC-BY-4.0"),
    "mooncake": ("https://github.com/kvcache-ai/Mooncake", "Apache-2.0"),
    "burstgpt": ("https://github.com/HPMLL/BurstGPT", "CC-BY-4.0"),
    "servegen": ("https://github.com/alibaba/ServeGen", "Apache-2.0"),
}
"""By the task that a format's rows are given."""


def require_format(path: Path) -> None:
    """Raise `WorkloadError` unless the suffix names a format that can be read and the file is there."""
    if path.suffix.lower() not in _READERS:
        raise WorkloadError(
            f"workload {str(path)!r} is neither built in nor a file of {', '.join(_READERS)}: give one of these"
        )
    if not path.is_file():
        raise WorkloadError(f"workload {str(path)!r} is not there: check the path")


# --- CSV traces -----------------------------------------------------------------------------------


def _read_csv(path: Path) -> Workload:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            row_of = _csv_row_reader(path, list(reader.fieldnames or []))
            rows = [row_of(fields.Place(path, number), values) for number, values in enumerate(reader, 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(f"{path} cannot be read as CSV ({error}): give a whole file of UTF-8 text") from error
    return trace_of(path.stem, rows)


def _csv_row_reader(path: Path, header: list[str]) -> Callable[[fields.Place, _CsvRow], WorkloadRow]:
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(header):
        return _azure_row
    if {"Timestamp", "Model", "Request tokens", "Response tokens"} <= set(header):
        return _burstgpt_row
    raise WorkloadError(
        f"{path} has the columns {', '.join(header)[:200] or '(none)'}: give an Azure LLM trace "
        "(TIMESTAMP, ContextTokens, GeneratedTokens) or BurstGPT (Timestamp, Model, Request tokens, Response tokens)"
    )


def _azure_row(place: fields.Place, values: _CsvRow) -> WorkloadRow:
    return WorkloadRow(
        task="azure",
        model=_UNKNOWN_MODEL,
        prompt=None,
        prompt_len_tokens=fields.prompt_tokens(place, "ContextTokens", values["ContextTokens"]),
        response_len_tokens=fields.response_tokens(place, "GeneratedTokens", values["GeneratedTokens"]),
        arrival_s=_moment_s(place, "TIMESTAMP", values["TIMESTAMP"]),
    )


def _moment_s(place: fields.Place, column: str, value: object) -> float:
    """Parse a date and time to Unix seconds; UTC if it names no zone."""
    written = fields.text(place, column, value)
    try:
        moment = datetime.fromisoformat(written)
        moment_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise place.error(column, value, "give a date and time such as 2023-11-16 18:15:46.680590") from None
    return fields.seconds(place, column, moment_s)


def _burstgpt_row(place: fields.Place, values: _CsvRow) -> WorkloadRow:
    return WorkloadRow(
        task=values.get("Log Type") or "burstgpt",
        model=fields.text(place, "Model", values["Model"]),
        prompt=None,
        prompt_len_tokens=fields.prompt_tokens(place, "Request tokens", values["Request tokens"]),
        response_len_tokens=fields.response_tokens(place, "Response tokens", values["Response tokens"]),
        arrival_s=fields.seconds(place, "Timestamp", values["Timestamp"]),
        client=values.get("Session ID") or None,
    )


# --- JSON -----------------------------------------------------------------------------------------


def _read_json_lines(path: Path) -> Workload:
    lines = [(number, line) for number, line in enumerate(_read_bytes(path).splitlines(), 1) if line.strip()]
    objects = [(fields.Place(path, number), _object(fields.Place(path, number), line)) for number, line in lines]
    if objects and "conversations" in objects[0][1]:
        return Workload(name=path.stem, rows=tuple(row for place, value in objects for row in _turns(place, value)))
    if objects and "prompt" in objects[0][1]:
        return Workload(name=path.stem, rows=tuple(_prompt_row(place, value) for place, value in objects))
    if objects and "input_tokens" in objects[0][1]:
        return trace_of(path.stem, [_servegen_row(place, value) for place, value in objects])
    return trace_of(path.stem, [_mooncake_row(place, value) for place, value in objects])


def _object(place: fields.Place, line: bytes) -> dict[str, object]:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WorkloadError(f"{place.file}, row {place.row}: is not JSON ({error}): give one object a line") from error
    if not isinstance(value, dict):
        raise place.error("the line", value, "give one object a line")
    return value


def _mooncake_row(place: fields.Place, value: dict[str, object]) -> WorkloadRow:
    missing = {"timestamp", "input_length", "output_length", "hash_ids"} - set(value)
    if missing:
        raise WorkloadError(
            f"{place.file}, row {place.row}: has no {', '.join(sorted(missing))}: "
            "a Mooncake trace has timestamp, input_length, output_length and hash_ids in every line"
        )
    return WorkloadRow(
        task="mooncake",
        model=_UNKNOWN_MODEL,
        prompt=None,
        prompt_len_tokens=fields.prompt_tokens(place, "input_length", value["input_length"]),
        response_len_tokens=fields.response_tokens(place, "output_length", value["output_length"]),
        arrival_s=fields.milliseconds(place, "timestamp", value["timestamp"]),
        block_hashes=fields.block_hashes(place, "hash_ids", value["hash_ids"]),
        block_size_tokens=fields.block_size_tokens(place, value.get("block_size_tokens")),
    )


def _prompt_row(place: fields.Place, value: dict[str, object]) -> WorkloadRow:
    """A line of a data set for vLLM's benchmark: a prompt, and how many tokens its answer has."""
    prompt = fields.text(place, "prompt", value.get("prompt"))
    name = "output_tokens" if "output_tokens" in value else "output_len"
    return WorkloadRow(
        task="prompts",
        model=_UNKNOWN_MODEL,
        prompt=prompt,
        prompt_len_tokens=count_tokens(prompt),
        response_len_tokens=fields.response_tokens(place, name, value.get(name)),
    )


def _servegen_row(place: fields.Place, value: dict[str, object]) -> WorkloadRow:
    """A line of a generated ServeGen workload."""
    return WorkloadRow(
        task="servegen",
        model=_UNKNOWN_MODEL,
        prompt=None,
        prompt_len_tokens=fields.prompt_tokens(place, "input_tokens", value["input_tokens"]),
        response_len_tokens=fields.response_tokens(place, "output_tokens", value.get("output_tokens")),
        arrival_s=fields.seconds(place, "timestamp", value.get("timestamp")),
    )


def _read_sharegpt(path: Path) -> Workload:
    try:
        conversations = msgspec.json.decode(_read_bytes(path))
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WorkloadError(f"{path} is not JSON ({error}): give a whole ShareGPT file") from error
    if not isinstance(conversations, list):
        raise WorkloadError(f"{path} holds no list of conversations: give a ShareGPT file, or JSON lines as .jsonl")
    rows = [row for number, value in enumerate(conversations, 1) for row in _turns(fields.Place(path, number), value)]
    if not rows:
        raise WorkloadError(f"{path} holds no answer to any prompt: give conversations of human and gpt turns")
    return Workload(name=path.stem, rows=tuple(rows))


def _turns(place: fields.Place, conversation: object) -> Iterator[WorkloadRow]:
    """Yield one row for each answer; its prompt is the whole preceding dialogue, as a server receives it."""
    turns = conversation.get("conversations") if isinstance(conversation, dict) else None
    if not isinstance(turns, list):
        raise place.error("conversations", turns, "give a list of turns")
    dialogue: list[str] = []
    for turn in turns:
        speaker, said = _said(place, turn)
        if speaker == "assistant" and dialogue:
            yield _sharegpt_row("\n\n".join(dialogue), said)
        dialogue.append(said if not dialogue else f"{speaker}: {said}")


_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
             "bard": "assistant", "assistant": "assistant", "model": "assistant", "system": "system"}  # fmt: skip


def _said(place: fields.Place, turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise place.error("a turn", turn, "give turns with from and value")
    speaker = fields.text(place, "from", turn.get("from", turn.get("role")))
    said = fields.text(place, "value", turn.get("value", turn.get("content")))
    return _SPEAKERS.get(speaker, "system"), said


def _sharegpt_row(prompt: str, answer: str) -> WorkloadRow:
    """Make a row with lengths estimated by `count_tokens`: the format holds text only."""
    return WorkloadRow(
        task="sharegpt",
        model=_UNKNOWN_MODEL,
        prompt=prompt,
        prompt_len_tokens=count_tokens(prompt),
        response_len_tokens=count_tokens(answer),
    )


# --- both -----------------------------------------------------------------------------------------


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WorkloadError(f"{path} cannot be read ({error.strerror}): give a readable file") from error


_READERS: dict[str, Callable[[Path], Workload]] = {
    ".parquet": read_parquet,
    ".json": _read_sharegpt,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
}
"""What reads a file, by its suffix."""
