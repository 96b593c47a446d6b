"""The names under which an engine reports: its own, given or by host, port and data-parallel rank, and its model's."""

from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Sequence

from vllm.config import ModelConfig, ParallelConfig

from engine_adapter.transport.keys import REPLICAS, EngineKey
from store.errors import ConfigError

DEFAULT_PORT = 8000
"""Where vLLM's server listens without ``--port``."""

_SERVERS = ("openai.api_server", "openai/api_server.py")


def engine_name(given: str | None, key: EngineKey | None, parallel: ParallelConfig) -> str:
    """Return the name of one engine core.

    Args:
        given: The name that was configured, if any.
        key: The key that authenticates the engine. The name is the key's; with a key for replicas (``NAME-*``) each
            replica has a name of its own that begins with ``NAME-``, and one that does not is put behind it.
        parallel: Where the engine core stands among data-parallel ranks.

    Raises:
        ConfigError: Another name than the key's was configured.
    """
    own = given or default_name(sys.argv, os.getpid())
    if key is None:
        return ranked_name(own, parallel)
    if key.engine_id.endswith(REPLICAS):
        prefix = key.engine_id.removesuffix("*")
        return ranked_name(own if own.startswith(prefix) else prefix + own, parallel)
    if given not in {None, key.engine_id}:
        raise ConfigError(f"engine id {given!r} is not the one of its key, {key.engine_id!r}: leave engine_id out")
    return ranked_name(key.engine_id, parallel)


def default_name(command: Sequence[str], process_id: int) -> str:
    """Return host and the server's port, which stay over a restart; host and process where no port is known.

    Engine cores are children of the server and have its command line.

    >>> default_name(["vllm", "serve", "MODEL", "--port", "8001"], 42) == f"{socket.gethostname()}-8001"
    True
    """
    port = _port(command)
    return f"{socket.gethostname()}-{f'pid{process_id}' if port is None else port}"


def _port(command: Sequence[str]) -> int | None:
    """The port that a server's command line says; None where it may stand elsewhere, or nothing listens."""
    if "serve" not in command[1:2] and not any(server in command[0] for server in _SERVERS):
        return None
    words = [word for argument in command for word in argument.split("=", 1)]
    for flag, value in itertools.pairwise(words):
        if flag == "--port":
            return int(value) if value.isdigit() and int(value) > 0 else None
    return None if {"--config", "--uds", "--headless"} & set(words) else DEFAULT_PORT


def ranked_name(name: str, parallel: ParallelConfig) -> str:
    """Return the name of one data-parallel rank: each rank has its own engine core and scheduler.

    vLLM configures each rank of a dense model as alone, with size 1 and rank 0, and passes only its index:
    the first rank has the plain name.
    """
    index = parallel.data_parallel_index
    return f"{name}-dp{index}" if index > 0 or parallel.data_parallel_size > 1 else name


def model_name(model_config: ModelConfig) -> str:
    """Return the first name under which the model is served."""
    served = model_config.served_model_name
    if isinstance(served, (list, tuple)):
        served = served[0] if served else None
    return str(served or model_config.model)
