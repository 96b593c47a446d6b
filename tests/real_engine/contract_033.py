"""Runs the plugin's tests on the Python files of vLLM 0.33.0, whose compiled parts want a GPU.

``python tests/real_engine/contract_033.py`` fetches the wheel once (336 MB), keeps its Python files under ``.cache/``
and puts them before the installed vLLM. Scheduler and KV manager are pure Python, so this is the real thing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.33.0"
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / ".cache" / f"vllm-{VERSION}"
FOLDER = "tests/engine_adapter/vllm"
TESTS = tuple(
    f"{FOLDER}/test_{name}.py"
    for name in ("contract", "request_events", "scheduler", "block_memory", "step_shape", "waiting_requests")
)


def main() -> int:
    """Fetch what is missing, run the tests, return their exit code."""
    if not (SOURCES / "vllm" / "version.py").exists():
        _fetch()
    environment = os.environ | {
        "PYTHONPATH": str(SOURCES),
        "SAGESCHED_VLLM_ON_CPU": "1",
        "SAGESCHED_VLLM_EXPECTED": VERSION,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--show-capture=no", *TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _fetch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", folder]
        # The constraints pin the CPU release; they are not meant for this download.
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([*pip, f"vllm=={VERSION}"], env=environment, check=True)
        (wheel,) = Path(folder).glob("vllm-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [
                name for name in archive.namelist() if name.startswith("vllm/") and name.endswith((".py", ".json"))
            ]
            archive.extractall(SOURCES, names)


if __name__ == "__main__":
    sys.exit(main())
