"""Several controllers' histories as one: for SQL, replay and learning over engines that different controllers served.

The merged history is a history like any other: it holds copies, so that its sources may go on, move or go away.

Rows that several sources hold are merged once. An engine whose controller died resends the unacknowledged facts to the
next one, which may then hold facts that the first had already written. A batch of facts is identified by its session
and number, the outcome of a request by its name, and any other row by all its values.

Prompt clusters are numbered by each learner for itself: those of the second source begin at `CLUSTERS_APART`, and so on.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from store.errors import BadInputError, StoreError, StoreLockedError, StoreSchemaError
from store.history.files import Folder, WriterLock
from store.history.live_file import LiveFile
from store.history.reader import require_catalog
from store.history.retention import Retention
from store.history.schema import VERSION
from store.history.tables import SEALED_TABLES

CLUSTERS_APART = 1_000_000
"""More than a learner ever numbers."""

_EVERYTHING = Retention(days=1e6, bytes=1 << 62, grace_s=600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge brought together."""

    rows: dict[str, int]
    """Rows by table."""
    left_out: int
    """Rows that another source had already."""
    running: tuple[Path, ...]
    """Sources that a controller was writing: they are in it as far as it had sealed them."""


def merge_histories(sources: Sequence[Path], target: Path, *, now_s: float) -> Merged:
    """Write a new history into ``target`` with all that the ``sources`` hold; they lose nothing and keep their places.

    What a dead controller left unsealed is sealed first, as its next start would.
    Where a batch or an outcome is in several sources, it is taken from the first that has it.

    Raises:
        BadInputError: fewer than two different sources, or a target that is not empty.
        StoreError: a source is no history or cannot be read; nothing is left in the target.
        StoreSchemaError: a source is of a version that this release does not know.
    """
    folders = _checked(sources, target)
    running = tuple(folder.path for folder in folders if not _seal(folder, now_s))
    for folder in folders:
        _refuse_newer(require_catalog(folder.path))
    goal = Folder(target.absolute())
    existed = goal.path.exists()
    try:
        goal.create()
        lock = WriterLock(goal)
        try:
            counts = _fill(goal, folders, now_s)
        finally:
            lock.release()
    except BaseException:
        _clear(goal.path, keep=existed)
        raise
    taken = {table: taken for table, (taken, _) in counts.items()}
    return Merged(rows=taken, left_out=sum(held - taken for taken, held in counts.values()), running=running)


def _checked(sources: Sequence[Path], target: Path) -> list[Folder]:
    paths = [source.absolute().resolve() for source in sources]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise BadInputError(f"{', '.join(map(repr, missing))}: no such folder: give folders of histories")
    if len(set(paths)) < len(paths):
        raise BadInputError("a history was given twice: give each once")
    if len(paths) < 2:
        raise BadInputError("only one history was given: give two or more to merge")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInputError(f"{str(target)!r} is not an empty folder: give a new one for the merged history")
    for source in sources:
        try:
            require_catalog(source)
        except StoreError as error:
            raise BadInputError(str(error)) from None
    return [Folder(path) for path in paths]


def _seal(folder: Folder, now_s: float) -> bool:
    """Have the catalog show all that is durable; False where a controller is writing, which does that itself."""
    try:
        lock = WriterLock(folder)
    except StoreLockedError:
        return False
    try:
        LiveFile(folder, secrets.token_hex(8), _EVERYTHING, now_s).close()
    finally:
        lock.release()
    return True


def _refuse_newer(catalog: Path) -> None:
    try:
        with duckdb.connect(catalog, read_only=True) as connection:
            (version,) = connection.execute("SELECT schema_version FROM catalog_info").fetchall()[0]
    except duckdb.Error as error:
        raise StoreError(
            f"catalog {catalog} cannot be read: {str(error).splitlines()[0]}: start its controller once, it rebuilds it"
        ) from error
    if version > VERSION:
        raise StoreSchemaError(
            f"history {catalog.parent} has schema version {version}, this release knows {VERSION}: "
            "merge with the newest release in use"
        )


def _fill(goal: Folder, folders: Sequence[Folder], now_s: float) -> dict[str, tuple[int, int]]:
    """Rows taken and rows held by the sources, by table."""
    live = LiveFile(goal, secrets.token_hex(8), _EVERYTHING, now_s)
    try:
        return live.adopt({f"source_{n}": folder.catalog for n, folder in enumerate(folders)}, _selects(len(folders)))
    except duckdb.Error as error:
        raise StoreError(f"histories cannot be merged: {str(error).splitlines()[0]}") from error
    finally:
        live.close()


def _selects(sources: int) -> dict[str, tuple[str, str]]:
    """For each table what is taken of all sources, and what they hold; sources are attached as ``source_0`` and so on."""
    return {table: (_select(table, sources), _held(table, sources)) for table in SEALED_TABLES}


def _held(table: str, sources: int) -> str:
    """The rows of all sources, with the number of their source in ``source``."""
    parts = (
        f"SELECT *{_clusters_apart(table, number)}, {number} AS source FROM source_{number}.{table}"
        for number in range(sources)
    )
    return " UNION ALL BY NAME ".join(parts)


_CLUSTER_COLUMNS = {
    "predictions": ("cluster",),
    "outcomes": ("cluster",),
    "calibration": ("cluster",),
    "drift_events": ("cluster",),
    "cluster_changes": ("cluster", "other_cluster"),
}


def _clusters_apart(table: str, number: int) -> str:
    moved = ", ".join(f"{column} + {number * CLUSTERS_APART} AS {column}" for column in _CLUSTER_COLUMNS.get(table, ()))
    return f" REPLACE ({moved})" if moved else ""


def _select(table: str, sources: int) -> str:
    held = _held(table, sources)
    if table == "outcomes":
        return _outcomes(held)
    # Of equal rows one: a source may be a copy of a part of another.
    once = f"SELECT * EXCLUDE (source), min(source) AS source FROM ({held}) GROUP BY ALL"
    if table in _DERIVED:
        return _of_first(once, ("session_id", "request_id"), f"({_held('arrivals', sources)}) WHERE NOT resent")
    if table in _WITHOUT_BATCH:
        return f"SELECT * EXCLUDE (source) FROM ({once})"
    return _of_first(once, ("session_id", "batch"), f"({_held('batches', sources)})")


def _of_first(rows: str, key: tuple[str, str], books: str) -> str:
    """Those rows of which no earlier source has the key in its books, if the rows' own source has it there."""
    same = " AND ".join(f"r.{column} = b.{column}" for column in (*key, "source"))
    first = f"SELECT DISTINCT {', '.join(key)}, source, min(source) OVER (PARTITION BY {', '.join(key)}) AS first"
    return (
        f"SELECT r.* EXCLUDE (source) FROM ({rows}) AS r"
        f" LEFT JOIN ({first} FROM {books}) AS b ON {same} WHERE coalesce(b.first, r.source) = r.source"
    )


_DERIVED = frozenset({"predictions", "decisions", "promises"})
"""Tables that a controller derives from an arrival; of an arrival that two received, those of the first are kept."""

_WITHOUT_BATCH = frozenset(
    {
        "snapshots",
        "engines",
        "predictions",
        "decisions",
        "drift_events",
        "settings_history",
        "calibration",
        "cluster_changes",
    }
)
"""Tables whose rows no engine sent in a batch."""


def _outcomes(held: str) -> str:
    """Select each request's outcome once, renumbered in the order in which the controllers recorded them."""
    first = (
        f"SELECT * FROM ({held}) QUALIFY row_number() OVER"
        " (PARTITION BY session_id, request_id ORDER BY source, received_s) = 1"
    )
    number = "row_number() OVER (ORDER BY received_s, answer, time_s, session_id, request_id) - 1"
    return f"SELECT * EXCLUDE (source) REPLACE ({number} AS answer) FROM ({first})"


def _clear(path: Path, *, keep: bool) -> None:
    """Remove what was written; the folder itself stays if it was there before."""
    if not keep:
        shutil.rmtree(path, ignore_errors=True)
        return
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
