"""Child processes that never outlive their parent, waiting until they are ready, and free ports for them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from store.errors import EngineError

STOP_S = 15.0
"""Time in which a child may shut down before it is killed."""
POLL_S = 0.2
OTHER_PORTS = range(22_000, 32_000)
"""Below the ephemeral range of Linux."""
_CLAIMS = 20
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """A child process and the file of its output."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path
    ask_group: bool = True
    """Whether all processes of its group are asked to end, or only the child, which ends the others itself."""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def last_lines(self, count: int = 20) -> str:
        """The end of its output, for an error message."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    def end(self, wait_s: float = STOP_S) -> int:
        """Ask it to end, then kill its whole group; return its exit code."""
        if self.ask_group:
            self._signal_group(signal.SIGTERM)
        else:
            self.process.terminate()
        try:
            self.process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal_group(signal.SIGKILL)
        return self.process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


@dataclass(slots=True)
class Children:
    """Child processes in start order; all are stopped, in reverse order, whatever happens.

    Args:
        log_folder: Folder of their output files.
    """

    log_folder: Path
    children: list[Child] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        ask_group: bool = True,
    ) -> Child:
        """Start a child in its own session; its output goes to ``NAME.log``."""
        log_path = self.log_folder / f"{name}.log"
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one call into the kernel, no lock is taken
            )
        child = Child(name, process, log_path, ask_group)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raise `EngineError` when a child has ended by itself."""
        for child in self.children:
            if not child.running:
                code = child.process.returncode
                ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                raise EngineError(f"{child.name} {ended}: see {child.log_path}\n{child.last_lines()}")

    def await_ready(
        self,
        child: Child,
        ready: Callable[[], bool],
        *,
        timeout_s: float,
        clock: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        """Wait until ``ready`` is true; raise `EngineError` after ``timeout_s`` or when a child ends by itself."""
        until_s = clock() + timeout_s
        while not ready():
            self.check()
            if clock() > until_s:
                raise EngineError(
                    f"{child.name} is not ready after {timeout_s:g} s: see {child.log_path}\n{child.last_lines()}"
                )
            pause(POLL_S)

    def stop(self) -> None:
        """Stop all children, the last first."""
        while self.children:
            self.children.pop().end()


def free_port(preferred: int, host: str = "127.0.0.1") -> int:
    """Return the preferred port if it is free (0: none is preferred), else one of those that no outgoing connection is given.

    A service that is restarted finds such a port free again: the system lends ports of the ephemeral range, from 32768
    on Linux, to any client meanwhile.
    """
    others = random.SystemRandom().sample(OTHER_PORTS, _CLAIMS)
    for port in [preferred, *others] if preferred else others:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EngineError(f"no free port on {host}")


@contextlib.contextmanager
def claimed_port(preferred: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Claim the preferred port for a child that will listen there, else any free one.

    Between the choice and the child's listening another process may choose the same port. The claim is the UDP port of
    that number: the system gives it to one process only, and releases it however that process ends.
    """
    for _ in range(_CLAIMS):
        port = free_port(preferred, host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as claim:
            try:
                claim.bind((host, port))
            except OSError:
                preferred = 0
                continue
            yield port
            return
    raise EngineError(f"no free port on {host}")


def die_with_parent() -> None:
    """Run in the child before its program: let the kernel end it when the thread that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
