"""``python -m dashboard``: runs Streamlit with this application and its options.

Streamlit replaces this process, so it can be stopped by the same process id.
The token of the controller's API is read from ``SAGESCHED_HTTP__TOKEN``, not from a flag: other users can read flags.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ENTRY = Path(__file__).with_name("app.py")


def command(arguments: Sequence[str]) -> list[str]:
    """Return Streamlit's command line for these arguments.

    The theme comes from ``.streamlit/config.toml``, which Streamlit reads from the script's folder.
    """
    given = _parser().parse_args(arguments)
    options = {
        "server.port": str(given.port),
        "server.address": given.host,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    ours = {"--api": given.api, "--store": given.store}
    script = [word for flag, value in ours.items() if value is not None for word in (flag, value)]
    return [sys.executable, "-m", "streamlit", "run", str(ENTRY), *flags, "--", *script]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dashboard", description="The dashboard of SageSched.")
    parser.add_argument("--api", metavar="URL", help="the controller (http://127.0.0.1:8700)")
    parser.add_argument("--store", metavar="DIR", help="folder of the history (default: as the controller names it)")
    parser.add_argument("--port", type=int, default=8501, help="port of the dashboard (8501)")
    parser.add_argument("--host", default="127.0.0.1", help="address of the dashboard, which has no login (127.0.0.1)")
    return parser


def main() -> None:
    """Replace this process with Streamlit."""
    line = command(sys.argv[1:])
    os.execv(line[0], line)  # noqa: S606 - our own command line


if __name__ == "__main__":
    main()
