from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine_adapter.serving.processes import OTHER_PORTS, Children, claimed_port, free_port
from store.errors import EngineError

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def test_children_end_with_their_group(tmp_path: Path) -> None:
    """Leaving the group ends every child, also one that ignores the request to end, and its children."""
    nest = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); time.sleep(60)"
    with Children(tmp_path) as children:
        child = children.start("nest", [sys.executable, "-c", nest])
        until_s = time.monotonic() + 20.0
        while "up" not in child.last_lines():
            assert time.monotonic() < until_s
            time.sleep(0.05)
        grandchildren = Path(f"/proc/{child.process.pid}/task/{child.process.pid}/children").read_text().split()
        assert len(grandchildren) == 1
    assert not child.running
    until_s = time.monotonic() + 5.0
    while _alive(grandchildren[0]):
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_a_child_that_ends_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    """The error names the child, its code and where its output is."""
    with Children(tmp_path) as children:
        child = children.start("poet", [sys.executable, "-c", "print('last words'); raise SystemExit(3)"])
        child.process.wait()
        with pytest.raises(EngineError, match=r"poet ended with code 3: see .*poet\.log\nlast words"):
            children.check()


def test_a_taken_port_is_not_chosen() -> None:
    """The preferred port is taken when it is free, and another one when it is not."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) in OTHER_PORTS
    assert free_port(port) == port


def test_a_port_that_is_not_chosen_by_number_is_no_clients() -> None:
    """Connections to elsewhere are never given it, so that a service that is started again gets it again."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as clients:
        port = free_port(0)
        for _ in range(100):
            client = clients.enter_context(socket.create_connection(server.getsockname()))
            assert client.getsockname()[1] not in OTHER_PORTS
        assert port in OTHER_PORTS


def test_a_claimed_port_is_nobody_elses_before_anything_listens_there() -> None:
    """Who asks for the same port meanwhile gets another; afterwards it is to be had again."""
    port = free_port(0)
    with claimed_port(port) as mine, claimed_port(port) as theirs:
        assert mine == port
        assert theirs != port
        with socket.create_server(("127.0.0.1", mine)), socket.create_server(("127.0.0.1", theirs)):
            pass
    with claimed_port(port) as again:
        assert again == port


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
