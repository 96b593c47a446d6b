"""What tests of more than one machine share: machines as network namespaces, with a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine_adapter.serving.processes import Child, Children
from store.errors import StoreError
from store.history.reader import open_history

QUIET = {"OMP_NUM_THREADS": "1"}


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = 120.0) -> None:
    """Poll; the machine may be busy, so limits are generous and the usual wait is short."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.2)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Machine:
    """A network namespace with an address, and a name by which ``ip`` knows it."""

    name: str
    address: str
    children: Children

    def start(self, label: str, command: list[str], **environment: str) -> Child:
        """Start a process that has this machine's network and no other."""
        # `ip netns exec` becomes the command, so that the child is the process itself.
        return self.children.start(
            label, ["ip", "netns", "exec", self.name, *command], environment={**QUIET, **environment}
        )


@dataclass(frozen=True)
class Machines:
    """Two machines and the cable between them."""

    controller: Machine
    engines: Machine

    def plug(self, *, connected: bool) -> None:
        """Pull the cable, without a word to either side, or put it in again."""
        ip("-n", self.engines.name, "link", "set", "cable", "up" if connected else "down")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Two network namespaces; skipped, with the reason, where this user may not make any."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command (Debian: iproute2): two machines cannot be made of namespaces")
    names = [f"sagesched-{os.getpid()}-{end}" for end in ("c", "e")]
    try:
        _lay(names)
    except OSError as error:
        _remove(names)
        pytest.skip(f"this user may not make network namespaces ({error})")
    try:
        with Children(tmp_path) as children:
            yield Machines(*(Machine(n, f"10.77.0.{i}", children) for i, n in enumerate(names, 1)))
    finally:
        _remove(names)


def _lay(names: list[str]) -> None:
    for name in names:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
    for number, name in enumerate(names, 1):
        ip("-n", name, "address", "add", f"10.77.0.{number}/30", "dev", "cable")
        ip("-n", name, "link", "set", "cable", "up")


def _remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=30)


class History:
    """What a controller's history shows while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query; none while there is no history."""
        try:
            with open_history(self.path) as history:
                return history.execute(query).fetchall()
        except StoreError:
            return []

    def modes(self) -> dict[str, str]:
        """The mode in force in each engine, by its last snapshot."""
        return dict(self.rows("SELECT engine_id, arg_max(mode, received_s) FROM snapshots GROUP BY ALL"))

    def events(self, engine_id: str) -> list[str]:
        """What the controller saw of an engine, in order."""
        query = f"SELECT event FROM engines WHERE engine_id = '{engine_id}' ORDER BY received_s"
        return [event for (event,) in self.rows(query)]


@pytest.fixture
def history(tmp_path: Path) -> History:
    """The history in the test's folder."""
    return History(tmp_path / "history")


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`wait_until`."""
    return wait_until


@pytest.fixture
def python() -> list[str]:
    """Start of a command line of ours."""
    return [sys.executable, "-m"]
