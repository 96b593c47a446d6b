"""Where the dashboard finds the controller and the history: from the environment, with defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dashboard.access.settings import READ_TOKEN, TOKEN

API = "SAGESCHED_DASHBOARD_API"
STORE = "SAGESCHED_STORE__PATH"
DEFAULT_API = "http://127.0.0.1:8700"


@dataclass(frozen=True)
class Addresses:
    """Base address of the controller's API, folder of its history, and the token that its API may want: the one that may most."""

    api_url: str = DEFAULT_API
    store_path: Path | None = None
    """None: take the path that the running controller names."""
    token: str | None = field(default=None, repr=False)


def from_environment(environment: Mapping[str, str]) -> Addresses:
    """Read the addresses; an empty variable counts as absent.

    >>> from_environment({"SAGESCHED_DASHBOARD_API": "http://127.0.0.1:9000/"}).api_url
    'http://127.0.0.1:9000'
    """
    store = environment.get(STORE) or None
    return Addresses(
        api_url=(environment.get(API) or DEFAULT_API).rstrip("/"),
        store_path=Path(store) if store else None,
        token=environment.get(TOKEN) or environment.get(READ_TOKEN) or None,
    )
