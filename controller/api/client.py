"""A small client of a running controller's API, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from controller.config import Config, load_config
from store.errors import BadInputError, SageError

TIMEOUT_S = 10.0


def client_of_child(base_url: str) -> ApiClient:
    """A client of a controller that this process started: it inherits the environment, and with it the token."""
    return ApiClient(base_url, token=load_config().http.credential)


def history_folder(config: Config) -> Path:
    """The history to read: the configured one, else that of the controller which runs here, else the default."""
    if "path" in config.store.model_fields_set:
        return config.store.path
    client = ApiClient(f"http://127.0.0.1:{config.http.port}", token=config.http.credential)
    try:
        path = client.get("/api/state")["controller"]["store_path"]
    except SageError:
        path = None
    finally:
        client.close()
    return Path(path) if path else config.store.path


class ApiClient:
    """A client of one controller; every error is one line with a remedy."""

    def __init__(self, base_url: str, *, token: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._client = httpx.Client(
                base_url=self.base_url, headers=headers, timeout=TIMEOUT_S, transport=httpx.HTTPTransport()
            )
        except httpx.InvalidURL as error:
            raise BadInputError(f"address {base_url!r} is no URL ({error}): give http://HOST:PORT") from None

    def get(self, path: str, **parameters: str | float) -> dict[str, Any]:
        """Fetch a JSON object."""
        return self._ask("GET", path, params=parameters)

    def answers(self, path: str) -> bool:
        """Whether the controller answers this path."""
        try:
            self.get(path)
        except SageError:
            return False
        return True

    def text(self, path: str) -> str:
        """Fetch a page as text."""
        try:
            return self._client.get(path).text
        except httpx.HTTPError as error:
            raise SageError(f"no answer from {self.base_url}{path} ({error})") from None

    def set_mode(self, mode: str, reason: str, who: str) -> dict[str, Any]:
        """Switch the mode; returns the settings then in force."""
        order = {"mode": mode, "reason": reason, "who": who}
        settings: dict[str, Any] = self._ask("POST", "/api/mode", json=order)["settings"]
        return settings

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, **options)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise BadInputError(f"address {self.base_url!r} cannot be used ({error}): give http://HOST:PORT") from None
        except httpx.HTTPError as error:
            raise SageError(
                f"no controller answers at {self.base_url} ({error}): start one with `serve`, or give its --api"
            ) from None
        try:
            body: dict[str, Any] = answer.json()
        except ValueError:
            raise SageError(f"{self.base_url}{path} is not the answer of a controller: check --api") from None
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise SageError(
                f"{self.base_url}{path}: {body.get('error')}: set SAGESCHED_HTTP__TOKEN to the controller's http.token "
                "(or SAGESCHED_HTTP__READ_TOKEN, to look), or give its --config"
            )
        if answer.is_error:
            kind = BadInputError if answer.status_code == httpx.codes.NOT_FOUND else SageError
            raise kind(f"{self.base_url}{path}: {body.get('error', answer.status_code)}: {body.get('remedy', '')}")
        return body
