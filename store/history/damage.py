"""Segments that are missing or not as they were written: found, left out of the history, and taken back when they are whole.

A file carries the checksum of its bytes in its name, so that a copy of it can be judged anywhere.
What is left out is not removed: whoever puts a good copy in its place has it back with the next sealing.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

READ_BYTES = 1 << 20
_NAMED = re.compile(r"\d+-([0-9a-f]{8})\.parquet")


class Listed(Protocol):
    """What must be known of a segment to judge it."""

    @property
    def sequence(self) -> int:
        """Its number."""
        ...

    @property
    def path(self) -> str:
        """Its file, relative to the history."""
        ...

    @property
    def rows(self) -> int:
        """Rows in it."""
        ...

    @property
    def bytes(self) -> int:
        """Its size when it was written."""
        ...


class _Finding(NamedTuple):
    fault: str
    seen: tuple[int, ...] | None
    """Size, time of change and inode of the file as it was judged; None when it was not there."""


class Damage:
    """What is wrong with the segments of one history."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[int, _Finding] = {}
        self._unverified: deque[Listed] | None = None

    def __len__(self) -> int:
        """Segments that are left out."""
        return len(self._found)

    def __contains__(self, sequence: int) -> bool:
        """Whether a segment is left out."""
        return sequence in self._found

    def look(self, listed: Iterable[Listed]) -> bool:
        """See at a glance which files are gone or have another size, or are there again; whether that has changed."""
        before = set(self._found)
        segments = list(listed)
        if self._unverified is None:
            self._unverified = deque(segments)
        for segment in segments:
            self._glance(segment)
        gone = before - {segment.sequence for segment in segments}
        for sequence in gone:
            del self._found[sequence]
        return set(self._found) != before

    def doubt(self, listed: Iterable[Listed]) -> None:
        """Mark all these segments as unverified."""
        self._unverified = deque(listed)

    def verify(self, budget_bytes: int) -> bool:
        """Read the next unverified segments, at most ``budget_bytes``; return whether one is damaged."""
        before = len(self._found)
        while self._unverified and budget_bytes > 0:
            segment = self._unverified.popleft()
            budget_bytes -= segment.bytes
            self.is_whole(segment)
        return len(self._found) > before

    def is_whole(self, segment: Listed) -> bool:
        """Read all of a segment; one that is not as it was written is left out from then on."""
        if segment.sequence in self._found:
            return False
        seen = self._seen(segment)
        fault = self._fault(segment, seen) or (None if self._reads_well(segment) else "does not read as it was written")
        if fault is not None:
            self._leave_out(segment, _Finding(fault, seen))
        return fault is None

    def _glance(self, segment: Listed) -> None:
        seen = self._seen(segment)
        known = self._found.get(segment.sequence)
        if known is not None and known.seen == seen:
            return
        fault = self._fault(segment, seen)
        if fault is not None:
            self._leave_out(segment, _Finding(fault, seen))
        elif known is not None and self._reads_well(segment):
            del self._found[segment.sequence]
            log.warning("segment %s is whole again and back in the history", segment.path)

    def _leave_out(self, segment: Listed, finding: _Finding) -> None:
        if segment.sequence not in self._found:
            log.error(
                "segment %s %s: the history goes on without its %d rows; put a copy of it in its place to have them back",
                segment.path,
                finding.fault,
                segment.rows,
            )
        self._found[segment.sequence] = finding

    def _seen(self, segment: Listed) -> tuple[int, ...] | None:
        try:
            status = (self._folder / segment.path).stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns, status.st_ino

    def _fault(self, segment: Listed, seen: tuple[int, ...] | None) -> str | None:
        if seen is None:
            return "is missing"
        return None if seen[0] == segment.bytes else f"has {seen[0]} bytes instead of {segment.bytes}"

    def _reads_well(self, segment: Listed) -> bool:
        file = self._folder / segment.path
        named = _NAMED.fullmatch(file.name)
        try:
            return named is not None and checksum(file) == named[1]
        except OSError:
            return False


def checksum(file: Path) -> str:
    """CRC-32 of a file's bytes, eight hexadecimal digits."""
    value = 0
    with file.open("rb") as stream:
        while part := stream.read(READ_BYTES):
            value = zlib.crc32(part, value)
    return f"{value:08x}"
