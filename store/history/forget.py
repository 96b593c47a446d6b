"""Deleting stored prompts: of one request, of a tenant, or all; what else is known of the requests stays.

The segments that hold such prompts are rewritten without them, the old files are removed at once, and the live file
is copied into a new one, because DuckDB leaves what was deleted in the file until it needs the space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import duckdb

from store.bounds import bounded_name, bounded_request_id, id_in_engine
from store.errors import StoreError
from store.history.catalog import publish_catalog
from store.history.files import Folder, WriterLock
from store.history.reader import open_history, require_catalog
from store.history.schema import copy_database, open_live, sealed_tables
from store.history.segments import Segments
from store.history.tables import quoted

_TABLE = "arrivals"


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """Whose prompts are meant; with neither all of them."""

    request_id: str | None = None
    """Its id in the engine, or the id that its client knows; then all answers of that request are meant."""
    tenant: str | None = None

    def condition(self) -> str:
        """As SQL over an arrival, by the names under which both are recorded."""
        conditions = ["true"]
        if self.request_id is not None:
            recorded, of_client = quoted(bounded_request_id(self.request_id)), quoted(id_in_engine(self.request_id))
            conditions.append(f"(request_id = {recorded} OR regexp_full_match(request_id, {of_client}))")
        if self.tenant is not None:
            conditions.append(f"tenant = {quoted(bounded_name(self.tenant))}")
        return " AND ".join(conditions)


def forget_prompts(path: Path, whose: Whose, *, now_s: float) -> int:
    """Delete stored prompts for good; returns of how many arrivals. May be repeated, also after an interruption.

    Raises `StoreLockedError` while a controller writes the history, `StoreError` where there is none, or where it has no
    arrival of such a request or tenant.
    """
    require_catalog(path)
    folder = Folder(Path(path).absolute())
    lock = WriterLock(folder)
    try:
        forgotten = _forget(folder, whose, now_s)
        _copy_live(folder)
    except (duckdb.Error, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"prompts in {path} could not all be deleted ({reason}): repeat the command") from error
    finally:
        lock.release()
    if not forgotten and not _is_recorded(path, whose):
        raise StoreError(f"no request of that id or tenant is recorded in {path}: nothing was deleted")
    return forgotten


def _forget(folder: Folder, whose: Whose, now_s: float) -> int:
    connection = open_live(folder.live, now_s=now_s)
    try:
        segments = Segments(connection, folder)
        segments.heal()
        segments.seal(now_s)
        try:
            forgotten = segments.blank(_TABLE, "token_ids", f"token_ids IS NOT NULL AND {whose.condition()}", now_s)
        finally:
            publish_catalog(connection, folder, sealed_tables(connection), segments.active(), now_s=now_s)
            segments.remove_retired(math.inf)
            connection.execute("CHECKPOINT")
    finally:
        connection.close()
    return forgotten


def _is_recorded(path: Path, whose: Whose) -> bool:
    if whose == Whose():
        return True
    with open_history(path) as connection:
        return bool(connection.execute(f"SELECT 1 FROM {_TABLE} WHERE {whose.condition()} LIMIT 1").fetchall())


def _copy_live(folder: Folder) -> None:
    """Put a copy of what the live file holds in its place; what it held before is not copied."""
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"ATTACH {quoted(str(folder.live))} AS old (READ_ONLY)")
        copy_database(connection, folder.live, "old")
