"""How the dashboard is started: the command line and the environment, without importing Streamlit.

The command line is ``python -m streamlit run .../dashboard/app.py --server.port PORT --server.address HOST``;
the theme comes from ``dashboard/.streamlit/config.toml``, which Streamlit reads because it lies beside the script.
The controller must not import this package; it may build the same line from the location of ``dashboard``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dashboard.addresses import API, STORE, TOKEN

ENTRY = Path(__file__).with_name("app.py")
"""The script that ``streamlit run`` takes."""


def command(api_url: str, store: Path | str | None, port: int, host: str = "127.0.0.1") -> list[str]:
    """Give the argument list that starts the dashboard with this interpreter.

    Args:
        api_url: base address of the controller's HTTP API.
        store: folder of the history; None takes the one that the running controller names.
        port: TCP port to listen on.
        host: address to listen on; loopback by default, because the dashboard has no login of its own.

    The addresses follow ``--`` as arguments of the script; `environment` gives the same as variables, which is the
    only way for the token, since other users can read an argument list.
    """
    options = {
        "server.port": str(port),
        "server.address": host,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    script = ["--api", api_url] + (["--store", str(store)] if store is not None else [])
    return [sys.executable, "-m", "streamlit", "run", str(ENTRY), *flags, "--", *script]


def environment(api_url: str, store: Path | str | None, token: str | None = None) -> dict[str, str]:
    """Give the variables to add to the child's environment.

    >>> environment("http://127.0.0.1:8700", None)
    {'SAGESCHED_DASHBOARD_API': 'http://127.0.0.1:8700'}
    """
    variables = {API: api_url, STORE: None if store is None else str(store), TOKEN: token}
    return {name: value for name, value in variables.items() if value}
