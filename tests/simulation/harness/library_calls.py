"""Exceptions out of library calls, deep inside the product: at any call that a room makes into a library, chosen by number.

A call counts where the source of a room calls something that is neither the room's own, nor a builtin, nor a method of a
list, a dictionary or a deque: of numpy, sklearn, river, DuckDB, pyarrow, threadpoolctl and the operating system.
"""

from __future__ import annotations

import ast
import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[3]

_CONTAINERS = frozenset(
    name for kind in (list, dict, set, str, tuple) for name in dir(kind) if not name.startswith("_")
) - {"copy", "sort", "update"} | {"appendleft", "popleft", "extendleft", "move_to_end"}
_LIBRARY_FUNCTIONS = frozenset({"KMeans", "AdaptiveWindowing", "threadpool_limits", "betaln", "copy", "deepcopy"})
_LIBRARY_OBJECTS = ("connection", "cursor", "_adwin", "np", "pa", "duckdb")
"""Names whose methods are a library's, whatever they are called."""


class LibraryCalls:
    """Counts the calls of some rooms into libraries, and raises in place of one of them.

    Args:
        rooms: folders of the product, as ``online_learning``.
        strike: number of the call that fails, from 0; None to count only.
        error: makes what it raises, anew each time: an exception keeps alive whatever the frames held that it passed.
    """

    def __init__(
        self, rooms: tuple[str, ...], strike: int | None = None, error: Callable[[], Exception] = MemoryError
    ) -> None:
        self.calls = 0
        self.struck: str | None = None
        """File and line of the call that failed."""
        self._folders = tuple(f"{ROOT / room}/" for room in rooms)
        self._strike = strike
        self._error = error

    @contextmanager
    def armed(self) -> Iterator[LibraryCalls]:
        """Count, and fail, within the context, in this thread."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield self
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self._folders) or not _places(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._look

    def _look(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "opcode" and frame.f_lasti in _places(frame.f_code):
            self.calls += 1
            if self.calls - 1 == self._strike:
                self.struck = f"{frame.f_code.co_filename.removeprefix(str(ROOT))}:{frame.f_lineno}"
                raise self._error()
        return self._look


@cache
def _places(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions of a function that call a library."""
    calls = _library_calls(code.co_filename)
    found = set()
    for instruction in dis.get_instructions(code):
        at = instruction.positions
        if instruction.opname in {"CALL", "CALL_FUNCTION_EX"} and at is not None:
            span = (at.lineno, at.col_offset, at.end_lineno, at.end_col_offset)
            if span in calls:
                found.add(instruction.offset)
    return frozenset(found)


@cache
def _library_calls(file: str) -> frozenset[tuple[int | None, ...]]:
    """Where the source of a file calls a library."""
    tree = ast.parse(Path(file).read_text())
    return frozenset(
        (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _is_of_library(node.func)
    )


def _is_of_library(called: ast.expr) -> bool:
    match called:
        case ast.Name(id=name):
            return name in _LIBRARY_FUNCTIONS
        case ast.Attribute(value=owner, attr=name):
            text = ast.unparse(owner)
            if text.endswith(_LIBRARY_OBJECTS):
                return True
            return text not in {"self", "cls"} and name not in _CONTAINERS | _own_functions()
    return False


@cache
def _own_functions() -> frozenset[str]:
    """Names of all functions and classes of the product."""
    return frozenset(
        node.name
        for room in ("online_learning", "store", "controller")
        for file in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    )
