"""The structure of the code in figures: ``python docs/structure.py``, with ``--trace`` also what runs.

Counts lines, files, floors, import circles and exceptions from lint over the files that git knows.
``--trace`` serves one request by a real controller (its own socket, history and HTTP) and counts the product files of
which a function runs: from arrival to the index table in the engine, from the last token to the acknowledged fact,
for one view of the page *Now*, and for a small ``bench``.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType

from streamlit.testing.v1 import AppTest

from controller.cli.main import app as command_line
from controller.config import load_config
from controller.service.service import service
from engine_adapter.transport.zmq_sockets import ZmqLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine

ROOT = Path(__file__).parents[1]
PRODUCT = ("controller", "online_learning", "store", "dashboard", "engine_adapter")
LONGEST_S = 30.0


def main() -> None:
    """Print one figure a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", action="store_true", help="serve a request and count the files that it passes")
    figures = dict(static_figures())
    if parser.parse_args().trace:
        figures |= dict(traced_figures(Tracer()))
    for name, figure in figures.items():
        print(f"{name:<58} {figure}")  # noqa: T201 - a script's output


def static_figures() -> Iterator[tuple[str, str]]:
    """What can be counted without running anything."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in listed.stdout.split()}
    product = {file: text for file, text in texts.items() if file.startswith(PRODUCT)}
    tests = {file: text for file, text in texts.items() if file.startswith("tests/")}
    modules = {file: text for file, text in product.items() if not file.endswith("__init__.py")}
    yield "lines of product code", f"{_lines(product):,}"
    yield "lines of test code", f"{_lines(tests):,}"
    yield "files of product code, without __init__.py", str(len(modules))
    folders = Counter(str(Path(file).parent) for file in modules)
    largest, count = folders.most_common(1)[0]
    yield "files in the largest folder", f"{count} ({largest})"
    names = Counter(Path(file).name for file in modules)
    twice = sorted(name for name, times in names.items() if times > 1)
    yield "file names that stand more than once", f"{len(twice)} ({', '.join(twice)})"
    packages = Counter(_package(file) for file in modules)
    yield (
        "file names that stand more than once in one package",
        str(sum(times > 1 for times in Counter((_package(file), Path(file).name) for file in modules).values())),
    )
    graph = import_graph(product)
    yield "import circles", str(len(circles(graph)))
    for package in PRODUCT:
        inside = {node: {to for to in found if _package(to) == package} for node, found in graph.items()}
        within = {node: found for node, found in inside.items() if _package(node) == package}
        yield f"floors of {package} ({packages[package]} files)", str(floors(within))
    everything = "\n".join(texts.values())
    yield "noqa", str(len(re.findall(r"#\s*noqa", everything)))
    yield "fmt: skip", str(len(re.findall(r"#\s*fmt:\s*skip", everything)))


def import_graph(product: dict[str, str]) -> dict[str, set[str]]:
    """Files of ours that each file imports, wherever in it."""
    names = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in product}
    graph: dict[str, set[str]] = {file: set() for file in product}
    for file, text in product.items():
        for node in ast.walk(ast.parse(text)):
            found = []
            if isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            graph[file] |= {names[name] for name in found if name in names} - {file}
    bare = {file for file in graph if file.endswith("__init__.py")}
    return {file: imported - bare for file, imported in graph.items() if file not in bare}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Circles of imports, found one by one, each broken at one import before the next is looked for."""
    graph, found = {node: set(imported) for node, imported in graph.items()}, []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle: list[str] = error.args[1]
            found.append(circle)
            graph[circle[1]].discard(circle[0])
        else:
            return found


def floors(graph: dict[str, set[str]]) -> int:
    """Length of the longest chain of imports."""
    broken = {node: set(imported) for node, imported in graph.items()}
    for circle in circles(graph):
        broken[circle[1]].discard(circle[0])
    heights: dict[str, int] = {}
    for node in TopologicalSorter(broken).static_order():
        heights[node] = 1 + max((heights[below] for below in broken.get(node, ())), default=0)
    return max(heights.values())


def traced_figures(tracer: Tracer) -> Iterator[tuple[str, str]]:
    """What runs for one request, one page and one benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _request_figures(Path(folder), tracer)
    arguments = [
        "bench",
        "--requests",
        "20",
        "--warmup",
        "20",
        "--processes",
        "1",
        "--quiet",
        "--policies",
        "fcfs,sage",
    ]
    with tracer.watch() as files:
        command_line(arguments, standalone_mode=False)
    yield "files that a bench run passes", str(len(files))


def _request_figures(folder: Path, tracer: Tracer) -> Iterator[tuple[str, str]]:
    flags = {
        "store": {"path": folder / "history"},
        "engine": {"endpoint": f"ipc://{folder}/e.sock"},
        "http": {"port": 0},
    }
    with service(load_config(flags, environment={}), clock=time.time, timer=time.perf_counter) as running:
        loop = running.loop
        loop.startup()
        link = ZmqLink(running.endpoint)
        engine = SimulatedEngine(PROFILES["h800-qwen3-32b"], link=link, start_s=time.time())
        agent = engine.agent

        def serve_until(done: Callable[[], bool]) -> None:
            deadline_s = time.monotonic() + LONGEST_S
            while not done():
                assert time.monotonic() < deadline_s, "the request does not get through"
                engine.step()
                loop.turn()
                engine.advance_to(max(engine.now_s, time.time()))

        serve_until(lambda: agent.mode(engine.now_s) == "on")
        request = TraceRequest(
            request_id="r",
            arrival_s=engine.now_s,
            token_ids=tuple(range(50)),
            max_tokens=20_000,
            true_output_tokens=400,
        )
        with tracer.watch() as files:
            engine.submit(request)
            serve_until(lambda: agent._tables_applied > 0)  # noqa: SLF001 - nothing else tells of it at once
        yield "files that an arrival passes", str(len(files))
        with tracer.watch() as files:
            serve_until(lambda: not engine.unfinished and not agent.unacknowledged)
        yield "files that an answer passes", str(len(files))
        address = f"http://127.0.0.1:{running.web.port}"
        with tracer.watch() as files:
            page = AppTest.from_file(str(ROOT / "dashboard/app.py"), default_timeout=LONGEST_S)
            sys.argv = ["app.py", "--api", address]
            page.run()
        assert not page.exception, page.exception
        yield "files that the page Now passes", str(len(files))
        loop.shutdown()


class Tracer:
    """Notes in which product files functions are called, in every thread that starts after it."""

    def __init__(self) -> None:
        self._files: set[str] | None = None
        threading.setprofile(self._look)
        sys.setprofile(self._look)

    @contextmanager
    def watch(self) -> Iterator[set[str]]:
        """The files of the functions that are called in the meantime."""
        self._files = files = set[str]()
        try:
            yield files
        finally:
            self._files = None

    def _look(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if self._files is None or event != "call" or code.co_name == "<module>":
            return
        file = code.co_filename.removeprefix(f"{ROOT}/")
        if file.startswith(PRODUCT):
            self._files.add(file)


def _lines(texts: dict[str, str]) -> int:
    return sum(text.count("\n") for text in texts.values())


def _package(file: str) -> str:
    return file.split("/", 1)[0]


if __name__ == "__main__":
    main()
