"""The catalog: a small database of views over explicit lists of segments, replaced whole so that readers never wait.

Whoever opened an earlier catalog keeps it, and the segments that it lists stay on the disk for a grace period.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import duckdb

from store.history import views
from store.history.files import Folder, publish
from store.history.schema import Table, schema_version
from store.history.segments import Segment
from store.history.tables import quoted


def publish_catalog(
    live: duckdb.DuckDBPyConnection,
    folder: Folder,
    tables: Sequence[Table],
    active: Sequence[Segment],
    *,
    now_s: float,
) -> None:
    """Build the catalog of what is sealed now and put it in the place of the last one."""
    folder.building.mkdir(mode=0o700, exist_ok=True)
    growing = folder.building / folder.catalog.name
    for remnant in (growing, growing.with_name(growing.name + ".wal")):
        remnant.unlink(missing_ok=True)
    with duckdb.connect(growing, config={"threads": "1"}) as connection:
        connection.execute(search_in([folder.path]))
        connection.begin()
        for statement in _statements(tables, active, root_of_views(folder.path)):
            connection.execute(statement)
        connection.execute("INSERT INTO catalog_info VALUES (?, ?)", [schema_version(), now_s])
        if sessions := live.execute("SELECT session_id, batch, received_s FROM sessions").fetchall():
            connection.executemany("INSERT INTO sessions VALUES (?, ?, ?)", sessions)
        connection.commit()
    publish(growing, folder.catalog)


CATALOG_INFO = """
CREATE TABLE catalog_info (schema_version BIGINT NOT NULL, built_s DOUBLE NOT NULL);
COMMENT ON TABLE catalog_info IS 'Version of the schema and when this catalog was built; one row.';
COMMENT ON COLUMN catalog_info.schema_version IS 'Version of the schema that the release which built it writes.';
COMMENT ON COLUMN catalog_info.built_s IS 'When it was built, Unix seconds; it shows what was sealed by then.'
"""

SESSIONS = """
CREATE TABLE sessions (session_id VARCHAR NOT NULL, batch BIGINT NOT NULL, received_s DOUBLE NOT NULL);
COMMENT ON TABLE sessions IS 'The last sealed batch of each session of an engine and when it came.';
COMMENT ON COLUMN sessions.session_id IS 'Session of the engine.';
COMMENT ON COLUMN sessions.batch IS 'Highest batch of facts that is sealed.';
COMMENT ON COLUMN sessions.received_s IS 'When it came, Unix seconds of the controller''s clock.'
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


def _statements(tables: Sequence[Table], active: Sequence[Segment], root: Path) -> list[str]:
    found = [CATALOG_INFO, SESSIONS]
    for table in tables:
        segments = [segment for segment in active if segment.table_name == table.name]
        found.append(f"CREATE VIEW {table.name} AS {sealed_rows(table, segments, root)}")
        found.append(f"COMMENT ON VIEW {table.name} IS {quoted(table.comment)}")
        found.extend(
            f"COMMENT ON COLUMN {table.name}.{column.name} IS {quoted(column.comment)}" for column in table.columns
        )
    for view in views.VIEWS:
        found.extend(views.statements(view))
    return found


def sealed_rows(table: Table, segments: Sequence[Segment], root: Path) -> str:
    """A table's sealed rows; segments written before a column existed have NULL in it."""
    names = ", ".join(column.name for column in table.columns)
    empty = ", ".join(f"NULL::{column.type} AS {column.name}" for column in table.columns)
    if not segments:
        return f"SELECT {empty} WHERE false"
    files = ", ".join(quoted(os.path.join(root, segment.path)) for segment in segments)  # noqa: PTH118 - a quarter of the time
    if all(segment.schema_version == schema_version() for segment in segments):
        return f"SELECT {names} FROM read_parquet([{files}])"
    return (
        f"SELECT {names} FROM (SELECT {empty} WHERE false UNION ALL BY NAME "
        f"SELECT * FROM read_parquet([{files}], union_by_name = true))"
    )
