"""Progress, tables and result files of the commands that measure."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.atomic_file import write_whole
from store.errors import BadInputError
from store.formatting import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.progress import Progress


def say(line: str) -> None:
    """Print a line, whatever the text in it came from."""
    sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


class PrintableFormatter(logging.Formatter):
    """Writes a message on one line, so that no client's text can forge a line of the log or drive a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The message's line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - logging's own name and type
        """The traceback's lines; the exception's text is in the last of them."""
        return printable(super().formatException(ei), keep="\n")


class Printable:
    """A Rich renderable whose text cannot drive the terminal; its own styles stay."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The same segments, with printable text."""
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress]:
    """A progress bar on standard error, so that standard output holds results only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        yield bar


def print_table(table: RenderableType) -> None:
    """Print a Rich table, at its full width if no terminal bounds it."""
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else 220).print(Printable(table))


def known_workload(name: str) -> str:
    """A value of ``--workload`` as it is; raises `WorkloadError` before any work if there is no such workload."""
    from engine_adapter.workloads.requests import require_workload

    if name:
        require_workload(name)
    return name


def require_writable(*files: Path | None) -> None:
    """Raise `BadInputError` if a result file cannot be written, before minutes of work."""
    for file in files:
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise BadInputError(f"cannot write {str(file)!r}: give a file in a folder that exists")


def fresh_folder(wanted: Path | None) -> Path:
    """The given empty folder, made if needed, or a new temporary one; raises `BadInputError`."""
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="sagesched-live-"))
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        empty = not any(wanted.iterdir())
    except OSError as error:
        raise BadInputError(f"folder {str(wanted)!r} cannot be had ({error.strerror}): choose another") from None
    if not empty:
        raise BadInputError(f"folder {str(wanted)!r} is not empty: choose another")
    return wanted.absolute()


def write_figures(file: Path | None, text: str) -> None:
    """Write figures to the given file, if any. If that fails, print them and raise `BadInputError`."""
    if file is None:
        return
    try:
        write_whole(file, text)
    except BadInputError as error:
        sys.stdout.write(text)
        raise BadInputError(f"{error}; the figures are printed instead") from None
