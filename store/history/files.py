"""The folder of a history on disk: names, permissions, durable renames and the writer's lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from store.atomic_file import put_in_place, sync
from store.errors import StoreError, StoreLockedError

_OWNER_ONLY = 0o600
_OWNER_ONLY_FOLDER = 0o700

_UNFIT = frozenset("?\\")
"""Characters of a path that DuckDB reads otherwise than the system."""

SPARE_FILES = 40
"""Files that the process must still be able to open before the history is written: a merge of segments opens up to 34."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the parts of one history lie."""

    path: Path

    @property
    def live(self) -> Path:
        """Rows that are not sealed yet; locked by the writer."""
        return self.path / "live.duckdb"

    @property
    def catalog(self) -> Path:
        """Views over the segments, for every reader."""
        return self.path / "catalog.duckdb"

    @property
    def segments(self) -> Path:
        """Immutable Parquet files by table and hour."""
        return self.path / "segments"

    @property
    def building(self) -> Path:
        """Where the next catalog grows, under the name that it will have."""
        return self.path / ".building"

    @property
    def lock(self) -> Path:
        """Held by the one writer; names its process."""
        return self.path / "writer.lock"

    def create(self) -> None:
        """Make the folder, for the owner's eyes only."""
        try:
            make_folder(self.path)
            if problem := folder_problem(self.path):
                raise StoreError(problem)
            self.path.chmod(_OWNER_ONLY_FOLDER)
        except OSError as error:
            raise StoreError(
                f"history folder {self.path} cannot be made or secured: {error.strerror}: "
                "choose a folder of your own with --store"
            ) from error


class WriterLock:
    """An exclusive lock on a history, released by the system when its process dies however it dies."""

    def __init__(self, folder: Folder) -> None:
        self._file = folder.lock
        self._descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise StoreLockedError(
                f"history {folder.path} is being written by process {holder}: "
                "stop that controller, or choose another folder with --store"
            ) from error
        with contextlib.suppress(OSError):  # A disk without room for the number: the lock holds all the same.
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    @property
    def in_place(self) -> bool:
        """Whether the locked file is still the one that others would lock."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._file.stat())
        except OSError:
            return False

    def renewed(self, folder: Folder) -> WriterLock:
        """This lock, or that of the folder's present file where it is another; raises `StoreLockedError`."""
        if self.in_place:
            return self
        fresh = WriterLock(folder)
        self.release()
        return fresh

    def release(self) -> None:
        """Let the next writer in."""
        os.close(self._descriptor)


def require_spare_files() -> None:
    """Raise the system's own `OSError` where fewer than `SPARE_FILES` can be opened.

    DuckDB ends the whole process if it runs out of them while it commits or seals, where no caller can catch it.
    """
    opened: list[int] = []
    try:
        while len(opened) < SPARE_FILES:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for each in opened:
            os.close(each)


def folder_problem(path: Path) -> str | None:
    """Why an existing folder cannot become a history of this user's alone, and what to do; None when it can."""
    if unfit := sorted(_UNFIT & set(str(path.resolve()))):
        return f"history folder {path} has a {unfit[0]} in its path, where DuckDB finds no file: choose another with --store"
    status = path.stat()
    if status.st_mode & stat.S_ISVTX:
        return (
            f"history folder {path} is shared by many: choose one of its own with --store, such as {path / 'history'}"
        )
    if os.getuid() not in {0, status.st_uid}:
        return (
            f"history folder {path} belongs to user {status.st_uid}, and this process is user {os.getuid()}: choose one "
            f"of its own with --store; in a volume that Kubernetes made, {path / 'history'}"
        )
    return None


def make_folder(path: Path) -> None:
    """Make a folder and those above it, for the owner's eyes only and durably."""
    for part in (*reversed(path.parents), path):
        if not part.is_dir():
            part.mkdir(mode=_OWNER_ONLY_FOLDER, exist_ok=True)
            sync(part.parent)


def publish(temporary: Path, final: Path) -> None:
    """Make a finished file appear under its final name, whole and durable, or not at all."""
    put_in_place(temporary, final, mode=_OWNER_ONLY)
    sync(final.parent)


def secure(path: Path) -> None:
    """Let only the owner read and write a file that may have gone meanwhile."""
    try:
        path.chmod(_OWNER_ONLY)
    except FileNotFoundError:
        return
