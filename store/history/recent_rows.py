"""Reading the recent past within the writer's process: durable rows that are not sealed yet, united with the segments.

A reader copies the unsealed rows in one short transaction on a cursor of the writer's own connection; its queries then
run on a database of their own, so that they share neither memory nor a transaction with the writer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from store.errors import StoreError
from store.history.catalog import sealed_rows
from store.history.schema import Table
from store.history.segments import Segment

READERS = 2
"""Reads at a time; each takes a core while it lasts."""
READ_S = 20.0
"""A read that takes longer is interrupted."""
MEMORY = "512MB"


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableRows:
    """The rows of some tables at one moment, each once: unsealed ones as they are, sealed ones by their files."""

    root: Path
    tables: Sequence[Table]
    unsealed: Mapping[str, pa.Table]
    segments: Sequence[Segment]


class RecentRows:
    """Reads a history with what its writer has committed; for any thread but the writer's and the control loop's.

    Args:
        copy: gives the rows of the named tables that were received since a moment (None: all).
    """

    def __init__(self, copy: Callable[[Sequence[str], float | None], DurableRows]) -> None:
        self._copy = copy
        self._places = threading.BoundedSemaphore(READERS)

    @contextmanager
    def open(self, tables: Sequence[str], since_s: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection on which the tables have their plain names.

        Args:
            tables: the only ones that there are on the connection.
            since_s: leaves out segments in which all was received earlier, Unix seconds; None reads all.

        Raises:
            StoreError: the history cannot be written at this moment, so that nothing recent is known; or the read
                took too long.
        """
        if not self._places.acquire(timeout=READ_S):
            raise StoreError("history is being read by others: try again in a few seconds")
        try:
            rows = self._copy(tables, since_s)
            with duckdb.connect(":memory:", config={"threads": "1", "memory_limit": MEMORY}) as connection:
                limit = threading.Timer(READ_S, connection.interrupt)
                limit.start()
                try:
                    _show(connection, rows)
                    yield connection
                finally:
                    limit.cancel()
        except duckdb.Error as error:
            raise StoreError(f"history cannot be read: {str(error).splitlines()[0]}: try again") from error
        finally:
            self._places.release()


def _show(connection: duckdb.DuckDBPyConnection, rows: DurableRows) -> None:
    for table in rows.tables:
        unsealed = f"unsealed_{table.name}"
        connection.register(unsealed, rows.unsealed[table.name])
        sealed = [segment for segment in rows.segments if segment.table_name == table.name]
        names = ", ".join(column.name for column in table.columns)
        # Names and paths of our own.
        connection.execute(
            f"CREATE VIEW {table.name} AS SELECT {names} FROM {unsealed} UNION ALL {sealed_rows(table, sealed, rows.root)}"
        )
