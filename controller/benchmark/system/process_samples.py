"""Samples of a controller from outside: its process in ``/proc``, its folder, and its API."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from controller.api.client import client_of_child
from store.errors import SageError

LIVE_PAGE = ("/api/state", "/api/queue?limit=200", "/api/load", "/api/gain")
"""Paths that the dashboard's page *Now* requests at each refresh."""

REFRESH_S = 1.0
"""How often it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample of a process; CPU times are sums since its start."""

    time_s: float
    cpu_s: float
    helpers_s: float
    """CPU time of its children that have ended."""
    host_busy_s: float
    host_s: float
    """Time of all cores of the machine, busy or idle."""
    rss_bytes: int
    store_bytes: int


def sample_process(pid: int, store: Path, now_s: float) -> Sample:
    """Sample a process and the folder that it writes to; Linux only."""
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    user, system, children_user, children_system = (int(field) * tick_s for field in fields[11:15])
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    host = [
        int(field) * tick_s for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    ]
    idle_s = host[3] + host[4]
    return Sample(
        time_s=now_s,
        cpu_s=user + system,
        helpers_s=children_user + children_system,
        host_busy_s=sum(host) - idle_s,
        host_s=sum(host),
        rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        store_bytes=folder_bytes(store),
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder; a file that is removed meanwhile counts as 0."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


class Watcher:
    """Sends the requests of an open dashboard at its intervals while ``asks`` is true, from a separate thread."""

    def __init__(self, base_url: str) -> None:
        self.asks = False
        self.answers = 0
        self._base_url = base_url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        api = client_of_child(self._base_url)
        while not self._stopping.wait(REFRESH_S):
            for path in LIVE_PAGE if self.asks else ():
                try:
                    api.text(path)
                except SageError:
                    continue
                self.answers += 1
        api.close()
