"""Engines that may connect over TCP: one line each in ``authorized_engines``, with name and public key.

The controller reads the file again when it changes, so an authorization or a revocation applies at once.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from engine_adapter.transport.keys import REPLICAS, checked_engine_id, checked_key, make_private_folder, write_private
from store.errors import ConfigError

log = logging.getLogger(__name__)

AUTHORIZED_FILE = "authorized_engines"
_HEAD = "# Engines that may connect, by name and public key; written by 'sagesched keys'.\n"


class AuthorizedEngines:
    """The contents of the file; `refresh` applies its changes."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / AUTHORIZED_FILE
        self._seen: tuple[int, ...] | None = None
        self._engines: dict[str, str] = {}
        self._keys: frozenset[str] = frozenset()
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed; no engine is authorized while it is missing."""
        seen = _signature(self._file)
        if seen != self._seen:
            self._seen = seen
            self._engines = read_authorized(self._file.parent)
            self._keys = frozenset(self._engines.values())

    def knows(self, public: str) -> bool:
        """Whether an engine with this key may connect."""
        return public in self._keys

    def speaks_for(self, public: str, engine_id: str) -> bool:
        """Whether a key may use an engine id: its own, that of a data-parallel rank of it (``NAME-dp3``), or a replica's.

        A key for replicas (``NAME-*``) may use every id that begins with ``NAME-`` and goes on. An id that has its own
        key belongs to that key only.
        """
        if engine_id in self._engines:
            return self._engines[engine_id] == public
        if any(
            key == public and name.endswith(REPLICAS) and engine_id.startswith(name[:-1]) and engine_id != name[:-1]
            for name, key in self._engines.items()
        ):
            return True
        name, _, rank = engine_id.rpartition("-dp")
        return rank.isascii() and rank.isdigit() and self._engines.get(name) == public


def read_authorized(folder: Path) -> dict[str, str]:
    """Return public keys by engine; an invalid line authorizes no engine and is logged."""
    try:
        text = (folder / AUTHORIZED_FILE).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.error("%s cannot be read (%s): no engine may connect", folder / AUTHORIZED_FILE, error.strerror)  # noqa: TRY400 - the cause is in the line
        return {}
    engines: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            engine_id, public = line.split()
            engines[checked_engine_id(engine_id)] = checked_key(public)
        except (ValueError, ConfigError):
            log.error("%s: line %d is no engine id and public key: ignored", folder / AUTHORIZED_FILE, number)  # noqa: TRY400 - as above
    return engines


def authorize(folder: Path, engine_id: str, public: str, *, replace: bool = False) -> None:
    """Authorize an engine; raise `ConfigError` when the name or the key is taken.

    ``replace`` revokes the engine's old key at the same time.
    """
    checked_engine_id(engine_id)
    checked_key(public)
    with _changing(folder) as engines:
        if engine_id in engines and engines[engine_id] != public and not replace:
            raise ConfigError(f"engine {engine_id!r} has another key: revoke it first, or give --replace")
        holder = next((name for name, key in engines.items() if key == public and name != engine_id), None)
        if holder is not None:
            raise ConfigError(f"this key belongs to engine {holder!r}: make one for {engine_id!r} alone")
        engines[engine_id] = public


def revoke(folder: Path, engine_id: str) -> None:
    """Revoke an engine's authorization; raise `ConfigError` when it has none."""
    with _changing(folder) as engines:
        if engine_id not in engines:
            known = ", ".join(sorted(engines)) or "none"
            raise ConfigError(f"engine {engine_id!r:.140} is not authorized (authorized: {known}): nothing to revoke")
        del engines[engine_id]


@contextmanager
def _changing(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the engines to be changed, by one command at a time; write them unless an exception was raised."""
    make_private_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        engines = read_authorized(folder)
        yield engines
        write_private(folder / AUTHORIZED_FILE, _HEAD + _lines(engines))
    finally:
        os.close(descriptor)


def _lines(engines: Mapping[str, str]) -> str:
    return "".join(f"{engine_id} {public}\n" for engine_id, public in sorted(engines.items()))


def _signature(file: Path) -> tuple[int, ...] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
