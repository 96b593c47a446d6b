"""Files that a command was asked to write: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from store.errors import BadInputError


def write_whole(file: Path, content: str | bytes) -> None:
    """Put a file in place when all of it is on the disk; what was there before stays until then.

    What is no plain file, such as ``/dev/stdout``, is written to as it is.
    Raises `BadInputError` where that cannot be.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    try:
        if file.exists() and not file.is_file():
            file.write_bytes(data)
        else:
            _replace(file.resolve(), data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"cannot write {str(file)!r} ({reason}): give a path that can be written") from None


def _replace(file: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name[:100]}.", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~_umask())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
