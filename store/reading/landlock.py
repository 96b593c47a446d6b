"""What a process gives up for good by Landlock, Linux 5.13 and later: https://docs.kernel.org/userspace-api/landlock.html."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_NO_NEW_PRIVS = 38
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_CHANGES = 0b0_0001_1111_1111_0010
"""Access rights WRITE_FILE and REMOVE_DIR (bit 4) to MAKE_SYM (bit 12): all that change something."""
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
"""Rights that the second, the third and the fifth version of the interface know."""
_EXECUTE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_ABSTRACT_SOCKETS, _SIGNALS = 1 << 0, 1 << 1


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def confine(readable: Iterable[Path]) -> bool:
    """Give up, for this process and for good, all of the file system but reading these; False where Linux cannot.

    From the fourth version on TCP goes too, from the sixth on signals and abstract sockets of other processes.
    Must come before the process has a second thread, which would keep its rights.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    if version < 1:
        return False
    rules, size = _rules(version)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow_reading(libc, ruleset, path)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0)
    finally:
        os.close(ruleset)


def _rules(version: int) -> tuple[_Ruleset, int]:
    """What is given up, as far as this version of the interface knows it, and how long it takes the structure to be."""
    files = _CHANGES | _EXECUTE | _READ_FILE | _READ_FOLDER
    files |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (_IOCTL if version >= 5 else 0)
    if version >= 6:
        return _Ruleset(files, _BIND_TCP | _CONNECT_TCP, _ABSTRACT_SOCKETS | _SIGNALS), 24
    return _Ruleset(files, _BIND_TCP | _CONNECT_TCP, 0), 16 if version >= 4 else 8


def _allow_reading(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    """Except a file, or a folder with all that is in it; what is not there needs no exception."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        allowed = _EXECUTE | _READ_FILE | (_READ_FOLDER if path.is_dir() else 0)
        rule = _PathBeneath(allowed, descriptor)
        libc.syscall(
            _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0)
        )
    finally:
        os.close(descriptor)
