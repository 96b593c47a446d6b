"""The log of a long-running command, on standard error."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import sys
import threading

from controller.cli.output import PrintableFormatter

LINES_KEPT = 10_000
"""Lines that wait to be written at most; more are dropped, and counted in the log."""
FLUSH_S = 2.0
"""Time for which the end of the process waits until the last lines are written."""


def log_to_stderr(level: str) -> None:
    """Write what is logged from this severity on."""
    handler = PatientHandler(_own_stderr())
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class PatientHandler(logging.Handler):
    """Writes lines in a thread of its own: a pipe that nobody empties, or a disk that hangs, holds up no one who logs."""

    def __init__(self, stream: io.TextIOBase) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(LINES_KEPT)
        self._dropped = 0
        self._counting = threading.Lock()
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Let the line of a record wait to be written."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            with self._counting:
                self._dropped += 1
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all lines are written, for a moment at most."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, FLUSH_S)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with self._counting:
                dropped, self._dropped = self._dropped, 0
            with contextlib.suppress(OSError, ValueError):  # There is no other place to tell it.
                if dropped:
                    self._stream.write(f"{dropped} lines of the log were dropped: nothing read it for a while\n")
                self._stream.write(f"{line}\n")
                self._stream.flush()
            self._lines.task_done()


def _own_stderr() -> io.TextIOBase:
    """Standard error as a stream that nobody else locks: the end of the process would wait for a write that hangs."""
    stderr = sys.stderr
    try:
        return open(os.dup(stderr.fileno()), "w", encoding=stderr.encoding, errors="backslashreplace")  # noqa: PTH123 - as long as the process
    except (OSError, AttributeError):
        return stderr  # type: ignore[return-value]  # whatever stands in for it
