"""``python -m dashboard``: runs Streamlit with this application, its options and the gate before it.

The tokens of the controller's API are read from ``SAGESCHED_HTTP__TOKEN`` and ``SAGESCHED_HTTP__READ_TOKEN``, not from
flags: other users can read flags.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from dashboard.access.gate import Gate
from dashboard.access.sessions import Sessions, install
from dashboard.access.settings import NAMES, AccessSettings, access_settings
from dashboard.charts import library
from store.errors import ConfigError

ENTRY = Path(__file__).with_name("app.py")


def options(given: argparse.Namespace, settings: AccessSettings) -> dict[str, str | int | bool | list[str]]:
    """Streamlit's options; the theme comes from ``.streamlit/config.toml``, which it reads from this folder.

    With an address of its own to print Streamlit asks no other host for it, and the names that the gate lets in are
    Streamlit's own too.
    """
    return {
        "server.port": given.port,
        "server.address": given.host,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.allowedHosts": ["localhost", "127.0.0.1", "::1", *sorted(settings.names)],
        "server.maxUploadSize": 1,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": min(settings.names, default="localhost"),
    }


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m dashboard", description="The dashboard of SageSched.")
    parser.add_argument("--api", metavar="URL", help="the controller (http://127.0.0.1:8700)")
    parser.add_argument("--store", metavar="DIR", help="folder of the history (default: as the controller names it)")
    parser.add_argument("--port", type=int, default=8501, help="port of the dashboard (8501)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address of the dashboard; not loopback needs a token (127.0.0.1)"
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help=f"name that browsers open it by, such as a proxy's; repeatable ({NAMES})",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Serve until stopped; settings that would let anybody in end it with code 2."""
    given = parsed(sys.argv[1:])
    try:
        settings = access_settings(given.host, given.name, os.environ)
    except ConfigError as error:
        sys.exit(_fail(error))
    sessions = Sessions(settings, time.time)
    install(sessions)
    gate = Middleware(Gate, settings=settings, sessions=sessions, clock=time.time)
    st.App(ENTRY, middleware=[gate], routes=[library.route()]).run(config=options(given, settings))


def _fail(error: ConfigError) -> int:
    sys.stderr.write(f"dashboard: {error}\n")
    return 2


if __name__ == "__main__":
    main()
