"""Uvicorn in a thread, on a socket that is bound before anything else starts."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from controller.monitoring.surroundings import open_files_limit
from store.errors import ConfigError

STOP_S = 3.0
CONNECTIONS = 256
"""Connections of which requests are answered; of more they get 503, and twice as many are closed at once."""
FILES_SHARE = 4
"""A connection is closed at once too where connections would have more than this part of the files that may be open: the
history and engines need the rest."""
HEADER_BYTES = 16 << 10
"""Longest request line and headers; more get 400."""
BACKLOG = 128
"""Connections that may wait until the server starts, because the port is bound before, and that are accepted at once."""

REQUEST_S = 10.0
"""Time within which a request must arrive whole; then the connection is closed, so that silent ones keep nobody out."""
UNREAD_S = 10.0
"""Time after which a connection is closed if its caller has read nothing of an answer meanwhile, for the same reason."""
LINES_A_MINUTE = 10
"""Lines of the log a minute and kind about connections, which anybody who reaches the port can cause."""


class TimedConnection(H11Protocol):
    """A connection that is closed if its next request takes longer than `REQUEST_S` to arrive, or its answer is not read.

    The answer may take longer to make, and to read if the caller goes on reading.
    """

    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request, or close a connection that is one too many."""
        super().connection_made(transport)
        if len(self.connections) > _most_connections():
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in a part of a request; the time of a request goes from its first byte."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Wait for the caller to read what was sent."""
        super().pause_writing()
        self._watch_reading()

    def on_response_complete(self) -> None:
        """Wait for the caller to read the rest: a connection is not closed before."""
        super().on_response_complete()
        self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_watch()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        is_whole = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        if is_whole:
            self._stop_watch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self.transport.close)

    def _stop_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _watch_reading(self) -> None:
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes and self._reading is None:
            self._reading = self.loop.call_later(UNREAD_S, self._look_at_reading, unread_bytes)

    def _look_at_reading(self, before_bytes: int) -> None:
        self._reading = None
        if self.transport.get_write_buffer_size() >= before_bytes:
            self.transport.abort()
        else:
            self._watch_reading()


class FewLines(logging.Filter):
    """Lets through `LINES_A_MINUTE` of each kind of message in a minute.

    >>> few, line = FewLines(), logging.makeLogRecord({"msg": "Invalid request", "levelno": 30, "created": 0.0})
    >>> sum(few.filter(line) for _ in range(1000))
    10
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log this line."""
        minute = int(record.created // 60)
        if not any(each == minute for _, each in self._kinds):
            self._kinds.clear()
        kind = (str(record.msg)[:100], minute)
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        return self._kinds[kind] <= LINES_A_MINUTE or record.levelno >= logging.ERROR


class WebServer:
    """Serves one application; ``port`` is the actual port at once, also if 0 was given."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        self.host = host
        self.port = int(self._socket.getsockname()[1])
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Base address for callers on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def start(self, api: FastAPI) -> None:
        """Serve from now on."""
        config = uvicorn.Config(
            api,
            log_config=None,
            access_log=False,
            http=TimedConnection,
            h11_max_incomplete_event_size=HEADER_BYTES,
            server_header=False,
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            backlog=min(BACKLOG, _most_connections()),
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
            ws="none",
        )
        logger = logging.getLogger("uvicorn.error")
        logger.setLevel(logging.WARNING)
        if not any(isinstance(found, FewLines) for found in logger.filters):
            logger.addFilter(FewLines())
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_S)
        self._socket.close()


def _most_connections() -> int:
    return min(2 * CONNECTIONS, open_files_limit() // FILES_SHARE)


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"setting http.port = {port}: cannot listen on {host}:{port} ({error.strerror}): "
            "stop what listens there, or choose another port with --port (0 takes a free one)"
        ) from None
    return bound
