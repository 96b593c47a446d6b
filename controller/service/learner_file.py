"""The file beside the history that holds what the learner has learnt, so that a restart need not learn all of it again.

It is a copy: the history is the one memory of the past, and whatever is wrong with the file, the history takes its place.
It holds a checksum of all that follows, a manifest that says for whom it is good, and plain data, no code. A state that was
learnt by other code, with other settings or libraries, or beside another history would predict otherwise, and is not used.
"""

from __future__ import annotations

import hashlib
import platform
from importlib import resources
from importlib.metadata import version
from importlib.resources.abc import Traversable
from pathlib import Path

import msgspec

FILE = "learner.state"
_FORMAT = 1
_LIBRARIES = ("numpy", "river", "scikit-learn", "msgspec")
_LARGEST_BYTES = 1 << 30


class UnusableStateError(Exception):
    """A file that is not to be used, and why."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """For whom a state is good."""

    format: int = _FORMAT
    history: str
    """Of the history beside which it was learnt: a hash of its key."""
    settings: str
    """Hash of the settings that the learner follows from."""
    code: str
    """Hash of the learner's source."""
    versions: dict[str, str]
    """Of Python and of the libraries that the learner computes with."""
    next_answer: int = 0
    """Number of the first answer that it has not learnt."""


def manifest_of(history_key: bytes, settings: str) -> Manifest:
    """The manifest of states that a controller with this history and these settings writes, and can use."""
    return Manifest(
        history=_hash(b"history", history_key),
        settings=_hash(b"settings", settings.encode()),
        code=_hash(b"code", *_sources(resources.files("online_learning"))),
        versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    )


def packed(manifest: Manifest, state: bytes) -> bytes:
    """The content of the file."""
    rest = b"\n".join((msgspec.json.encode(manifest), state))
    return b"\n".join((hashlib.sha256(rest).hexdigest().encode(), rest))


def unpacked(content: bytes, ours: Manifest) -> tuple[Manifest, bytes]:
    """Manifest and state of a file, if it is whole and good for ``ours``, whose next answer is the history's.

    Raises `UnusableStateError`, which says why not.
    """
    checksum, _, rest = content.partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != checksum:
        raise UnusableStateError("its checksum is wrong: it is damaged, or was not written to its end")
    described, _, state = rest.partition(b"\n")
    try:
        found = msgspec.json.decode(described, type=Manifest)
    except msgspec.DecodeError as error:
        raise UnusableStateError("its manifest is of another release") from error
    differing = [name for name in _WHY_NOT if getattr(found, name) != getattr(ours, name)]
    if differing:
        raise UnusableStateError(_WHY_NOT[differing[0]])
    if found.next_answer > ours.next_answer:
        raise UnusableStateError(
            f"it knows {found.next_answer - ours.next_answer} answers that the history does not hold: the history was put back"
        )
    return found, state


def content_of(file: Path) -> bytes | None:
    """The content of a file; None where there is none. Raises `UnusableStateError` where it cannot be read."""
    try:
        if file.stat().st_size > _LARGEST_BYTES:
            raise UnusableStateError("it is too large to be one")
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableStateError(error.strerror or str(error)) from error


_WHY_NOT = {
    "format": "it is of another format",
    "history": "it was learnt beside another history",
    "settings": "it was learnt with other settings",
    "code": "it was learnt by another release of the learner",
    "versions": "it was learnt with other versions of Python or of its libraries",
}


def _sources(folder: Traversable) -> list[bytes]:
    """The source of a package, by name; a change of the learner makes other predictions of the same answers."""
    found: list[bytes] = []
    for item in sorted(folder.iterdir(), key=lambda part: part.name):
        if item.is_dir():
            found += _sources(item)
        elif item.name.endswith(".py"):
            found += [item.name.encode(), item.read_bytes()]
    return found


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
