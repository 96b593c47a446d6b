"""The catalog: a small database of views over explicit lists of segments, replaced whole so that readers never wait.

Whoever opened an earlier catalog keeps it, and the segments that it lists stay on the disk for a grace period.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from store.history import views
from store.history.files import Folder, publish
from store.history.schema import VERSION, Table
from store.history.segments import Segment
from store.history.tables import parquet_rows, quoted


def publish_catalog(
    live: duckdb.DuckDBPyConnection,
    folder: Folder,
    tables: Sequence[Table],
    active: Sequence[Segment],
    *,
    now_s: float,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Build the catalog of what is sealed now and put it in the place of the last one.

    Args:
        live: connection to the live file, of which the sessions are copied.
        folder: the history's.
        tables: all that are sealed.
        active: the segments that the catalog lists.
        now_s: when it is built, Unix seconds.
        known: the text of each table's view in the catalog that lies there now; empty or None if that is not known to be
            whole and of this release. It is copied, and only views that differ are made again: a view and the comments
            of its columns take a millisecond for each column.

    Returns:
        The text of each table's view, to be ``known`` the next time.
    """
    folder.building.mkdir(mode=0o700, exist_ok=True)
    growing = folder.building / folder.catalog.name
    for remnant in (growing, growing.with_name(growing.name + ".wal")):
        remnant.unlink(missing_ok=True)
    texts = _view_texts(tables, active, root_of_views(folder.path))
    if known:
        shutil.copyfile(folder.catalog, growing)
    with duckdb.connect(growing, config={"threads": "1"}) as connection:
        connection.execute(search_in([folder.path]))
        connection.begin()
        for statement in _statements(tables, texts, known or {}):
            connection.execute(statement)
        connection.execute("INSERT INTO catalog_info VALUES (?, ?)", [VERSION, now_s])
        if sessions := live.execute("SELECT session_id, batch, received_s FROM sessions").fetchall():
            connection.executemany("INSERT INTO sealed_batches VALUES (?, ?, ?)", sessions)
        connection.commit()
    publish(growing, folder.catalog)
    return texts


CATALOG_INFO = """
CREATE TABLE catalog_info (schema_version BIGINT NOT NULL, built_s DOUBLE NOT NULL);
COMMENT ON TABLE catalog_info IS 'Version of the schema and when this catalog was built; one row.';
COMMENT ON COLUMN catalog_info.schema_version IS 'Version of the schema that the release which built it writes.';
COMMENT ON COLUMN catalog_info.built_s IS 'When it was built, Unix seconds; it shows what was sealed by then.'
"""

SEALED_BATCHES = """
CREATE TABLE sealed_batches (session_id VARCHAR NOT NULL, batch BIGINT NOT NULL, received_s DOUBLE NOT NULL);
COMMENT ON TABLE sealed_batches IS 'The last sealed batch of each session of an engine and when it came.';
COMMENT ON COLUMN sealed_batches.session_id IS 'Session of the engine.';
COMMENT ON COLUMN sealed_batches.batch IS 'Highest batch of facts that is sealed.';
COMMENT ON COLUMN sealed_batches.received_s IS 'When it came, Unix seconds of the controller''s clock.'
"""


def root_of_views(folder: Path) -> Path:
    """What the paths in a catalog begin with: nothing, so that the folder may be copied, moved and read anywhere.

    DuckDB finds them in its working directory and in ``file_search_path``, which cannot name a folder with a comma: there
    paths are absolute, and a copy is read once a controller has started on it.
    """
    return folder if "," in str(folder) else Path()


def search_in(folders: Sequence[Path]) -> str:
    """The statement by which a connection finds the segments of these histories."""
    return f"SET file_search_path = {quoted(','.join(str(folder) for folder in folders if ',' not in str(folder)))}"


def _view_texts(tables: Sequence[Table], active: Sequence[Segment], root: Path) -> dict[str, str]:
    of_table: dict[str, list[Segment]] = {}
    for segment in active:
        of_table.setdefault(segment.table_name, []).append(segment)
    return {table.name: sealed_rows(table, of_table.get(table.name, []), root) for table in tables}


def _statements(tables: Sequence[Table], texts: Mapping[str, str], known: Mapping[str, str]) -> list[str]:
    """What makes a catalog of these views from nothing, or from one whose views are known."""
    found = ["DELETE FROM catalog_info", "DELETE FROM sealed_batches"] if known else [CATALOG_INFO, SEALED_BATCHES]
    for table in tables:
        if known.get(table.name) == texts[table.name]:
            continue
        found.append(f"CREATE OR REPLACE VIEW {table.name} AS {texts[table.name]}")
        found.append(f"COMMENT ON VIEW {table.name} IS {quoted(table.comment)}")
        found.extend(
            f"COMMENT ON COLUMN {table.name}.{column.name} IS {quoted(column.comment)}" for column in table.columns
        )
    if not known:
        for view in views.VIEWS:
            found.extend(views.statements(view))
    return found


def sealed_rows(table: Table, segments: Sequence[Segment], root: Path) -> str:
    """A table's sealed rows; segments written before a column existed have NULL in it."""
    names = ", ".join(column.name for column in table.columns)
    empty = ", ".join(f"NULL::{column.type} AS {column.name}" for column in table.columns)
    if not segments:
        return f"SELECT {empty} WHERE false"
    files = [os.path.join(root, segment.path) for segment in segments]  # noqa: PTH118 - a quarter of the time
    if all(segment.schema_version == VERSION for segment in segments):
        return f"SELECT {names} FROM {parquet_rows(files, union_by_name=False)}"
    return f"SELECT {names} FROM (SELECT {empty} WHERE false UNION ALL BY NAME SELECT * FROM {parquet_rows(files)})"
