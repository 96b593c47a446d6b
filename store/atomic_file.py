"""Atomic writing of files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from store.errors import BadInputError


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file atomically; an earlier file stays until the new one is completely on the disk.

    A path that is no plain file, such as ``/dev/stdout``, is written to directly.
    Raises `BadInputError` when the file cannot be written.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    try:
        if file.exists() and not file.is_file():
            file.write_bytes(data)
        else:
            mode = file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~_umask()
            replace_file(file.resolve(), data, mode=mode)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"cannot write {str(file)!r} ({reason}): give a path that can be written") from None


def replace_file(file: Path, data: bytes, *, mode: int) -> None:
    """Write a file, or replace it in one step; a symbolic link is replaced, not followed.

    Until it is complete only its owner can read it, then whoever ``mode`` allows. Raises `OSError`.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name[:100]}.", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        put_in_place(temporary, file, mode=mode)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(temporary: Path, final: Path, *, mode: int) -> None:
    """Give a complete file its final name once its contents are on the disk."""
    temporary.chmod(mode)
    sync(temporary)
    temporary.replace(final)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
