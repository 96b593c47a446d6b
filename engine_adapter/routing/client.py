"""HTTP client of a router: asks the controller for a request's forecast on each engine, or for its output length."""

from __future__ import annotations

import http.client
import queue
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from store.errors import ConfigError, EngineError
from store.http_routing import LengthForecast, PredictOrder, RouteForecast, RouteOrder

Answer = TypeVar("Answer", RouteForecast, LengthForecast)
LONGEST_ANSWER_BYTES = 4 << 20


class RouteClient:
    """Asks for forecasts over a few open connections; thread-safe.

    Args:
        controller: URL of the controller's API.
        token: Bearer token of the API, if it needs one.
        timeout_s: Timeout of the connection, in seconds.
        connections: Largest number of idle connections that are kept open.

    Raises:
        ConfigError: ``controller`` is no http URL.
    """

    def __init__(self, controller: str, *, token: str | None, timeout_s: float, connections: int) -> None:
        address = urlsplit(controller)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise ConfigError(f"controller is {controller!r}: give http://HOST:PORT")
        self._address = address
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue(maxsize=connections)

    def ask(self, order: RouteOrder) -> RouteForecast:
        """Return the forecast; raise `EngineError` when none comes within the timeout."""
        return self._answer("/api/route", order, RouteForecast)

    def predict(self, order: PredictOrder) -> LengthForecast:
        """Return the predicted output length; raise `EngineError` when none comes within the timeout."""
        return self._answer("/api/predict", order, LengthForecast)

    def _answer(self, path: str, order: msgspec.Struct, kind: type[Answer]) -> Answer:
        try:
            status, answer = self._exchange(path, msgspec.json.encode(order))
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self._address.geturl()} does not answer: {error or type(error).__name__}") from None
        if status != http.client.OK:
            raise EngineError(f"{self._address.geturl()} answers {status}: {answer[:200].decode(errors='replace')}")
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise EngineError(f"{self._address.geturl()} answers with an invalid forecast: {error}") from None

    def close(self) -> None:
        """Close the idle connections."""
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def _exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Ask over an open connection, or over a new one if the controller has closed it."""
        try:
            open_already = self._idle.get_nowait()
        except queue.Empty:
            return self._over(self._new(), path, body)
        try:
            return self._over(open_already, path, body)
        except (ConnectionError, http.client.RemoteDisconnected):
            return self._over(self._new(), path, body)

    def _over(self, connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            connection.request("POST", path, body, self._headers)
            response = connection.getresponse()
            answer = response.read(LONGEST_ANSWER_BYTES)
        except BaseException:
            connection.close()
            raise
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()
        return response.status, answer

    def _new(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        return kind(self._address.hostname or "", self._address.port, timeout=self._timeout_s)
