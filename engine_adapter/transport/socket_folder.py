"""The folder of an ``ipc://`` socket: whoever can change it could listen in the controller's place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from store.errors import ConfigError


def prepare_folder(folder: Path, group: int | None = None) -> None:
    """Make a folder for the owner only where it is missing, and check who can change it and those above it.

    Args:
        folder: The folder of the socket.
        group: A group of this process whose members are all trusted: they may write to the folder, and root may own it,
            as in a volume of Kubernetes with this ``fsGroup``. Without one only the owner may.

    Raises:
        ConfigError: The folder cannot be made, or its owner, its mode or a folder above it lets others change it.
    """
    if group is not None and group not in {os.getegid(), *os.getgroups()}:
        raise ConfigError(f"this process is not in group {group}, which is to share the socket (engine.socket_group)")
    _make_private(folder)
    status = folder.stat()
    _check_owner(folder, status, group)
    _check_mode(folder, status, group)
    for parent in folder.resolve().parents:
        _check_parent(parent)


def group_id(text: str) -> int:
    """Return the number of a group; raise `ConfigError` for anything else.

    >>> group_id("2000")
    2000
    """
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"socket group {text!r:.40} is no number: give a group's id, as `id -g` prints it")
    return int(text)


def share_with(file: Path, group: int | None) -> None:
    """Let the owner use a socket, and the members of a group that is trusted; nobody else."""
    if group is not None:
        os.chown(file, -1, group)
    file.chmod(0o600 if group is None else 0o660)


def system_users() -> set[int]:
    """Root, and in a user namespace, where the system's folders belong to another, the owner of the root folder."""
    return {0, Path("/").stat().st_uid}


def _make_private(folder: Path) -> None:
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.is_dir():
                part.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"directory {folder} of the endpoint cannot be made ({error.strerror})") from None


def _check_owner(folder: Path, status: os.stat_result, group: int | None) -> None:
    owner, user = status.st_uid, os.getuid()
    if owner == user or (group is not None and status.st_gid == group and owner in system_users()):
        return
    if status.st_mode & 0o002:
        raise ConfigError(_open_to_all(folder, status.st_mode))
    raise ConfigError(
        f"directory {folder} of the endpoint belongs to user {owner}, and this process is user {user}: run engine and "
        "controller as one user, or share a directory of root's with a group of both (engine.socket_group)"
    )


def _check_mode(folder: Path, status: os.stat_result, group: int | None) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o002:
        raise ConfigError(_open_to_all(folder, mode))
    if mode & 0o020 and status.st_gid != group:
        raise ConfigError(
            f"directory {folder} of the endpoint can be written by others: by group {status.st_gid} (mode {mode:04o}): "
            f"chmod 700 {folder}, or trust the whole group (engine.socket_group = {status.st_gid})"
        )


def _open_to_all(folder: Path, mode: int) -> str:
    cure = (
        f"name one of its own below it, which is made at the start (ipc://{folder}/own/engine.sock)"
        if mode & stat.S_ISVTX
        else f"choose one that belongs to you alone (chmod 700 {folder}); of a pod, a folder below an emptyDir with medium: Memory"
    )
    return f"directory {folder} of the endpoint can be written by others: by everybody (mode {stat.S_IMODE(mode):04o}): {cure}"


def _check_parent(parent: Path) -> None:
    """Check a folder above the socket's: a user who can rename one could put another socket there."""
    status = parent.stat()
    if status.st_uid not in {os.getuid(), *system_users()}:
        raise ConfigError(
            f"directory {parent} above the endpoint's belongs to user {status.st_uid}, who could put another socket there: "
            "choose a path of your own"
        )
    if status.st_mode & 0o002 and not status.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"directory {parent} above the endpoint's can be written by everybody (mode {stat.S_IMODE(status.st_mode):04o}, "
            "no sticky bit), who could put another socket there: choose a path of your own; of a pod, below an emptyDir "
            "with medium: Memory"
        )
