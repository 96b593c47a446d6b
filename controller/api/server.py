"""Uvicorn in a thread, on a socket that is bound before anything else starts."""

from __future__ import annotations

import logging
import socket
import threading

import uvicorn
from fastapi import FastAPI

from store.errors import ConfigError

STOP_S = 3.0
CONNECTIONS = 256
"""Requests answered at a time; more get 503."""
HEADER_BYTES = 16 << 10
"""Longest request line and headers; more get 400."""
BACKLOG = 128
"""Connections that may wait until the server starts, because the port is bound before."""


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
            http="h11",
            h11_max_incomplete_event_size=HEADER_BYTES,
            server_header=False,
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
            ws="none",
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
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
