"""Allows one controller for each ``ipc://`` endpoint, and tells a controller when its socket file has been replaced.

libzmq removes an existing socket file and binds its own in its place, even while another process listens on the former.
The file therefore does not show who owns the endpoint; a lock file beside it does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from store.errors import ConfigError

log = logging.getLogger(__name__)

_RELEASED = -1
LOOK_S = 1.0
"""Seconds between two looks at the socket file."""


class EndpointOwner:
    """Holds the lock of an endpoint, and binds it anew when its socket file was removed or replaced.

    Args:
        file: the socket.
        bind: makes the private folder if need be, and binds.
        timer: seconds of a clock that never jumps.

    Raises `ConfigError` when another controller holds the lock.
    """

    def __init__(self, file: Path, bind: Callable[[], None], timer: Callable[[], float] = time.monotonic) -> None:
        self.deaf: str | None = None
        """Why no engine can connect; None while engines can."""
        self._file = file
        self._lock_file = file.with_name(f"{file.name}.lock")
        self._bind = bind
        self._timer = timer
        self._lock = self._locked()
        self._bound: tuple[int, ...] | None = None
        self._next_look_s = 0.0

    def bind(self) -> None:
        """Bind the socket and remember which file it is."""
        self._bind()
        self._bound = _identity(self._file)
        self._next_look_s = self._timer() + LOOK_S

    def look(self) -> None:
        """See whether the socket file is still the one that was bound; if not, bind anew where the lock allows it."""
        if self._timer() < self._next_look_s:
            return
        self._next_look_s = self._timer() + LOOK_S
        if _identity(self._file) == self._bound:
            self.deaf = None
            return
        try:
            self._take_back()
        except (ConfigError, OSError) as error:
            if self.deaf is None:
                log.error("socket %s is not this controller's any more: %s", self._file, error)  # noqa: TRY400 - one line
            self.deaf = f"Its socket {self._file} was removed or replaced: {error}"

    def release(self) -> None:
        """Let another controller in; once is enough."""
        lock, self._lock = self._lock, _RELEASED
        if lock != _RELEASED:
            os.close(lock)

    def _take_back(self) -> None:
        if _identity(self._lock_file) != _status(os.fstat(self._lock)):
            fresh = self._locked()
            os.close(self._lock)
            self._lock = fresh
        self.bind()
        self.deaf = None
        log.warning("socket %s was removed or replaced; it is bound anew", self._file)

    def _locked(self) -> int:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise ConfigError(
                f"endpoint ipc://{self._file} is served by process {holder}: stop that controller, or choose another "
                "endpoint (--endpoint)"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return descriptor


def _identity(file: Path) -> tuple[int, ...] | None:
    try:
        return _status(file.stat())
    except OSError:
        return None


def _status(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino
