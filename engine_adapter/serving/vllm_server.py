"""Runs vLLM's own API server, with the plugin in it, as a child process.

No GPU is needed: it serves a tiny random model on the CPU, or runs on the virtual GPU with a profile's step times.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from engine_adapter.serving.processes import Child, Children, free_port
from engine_adapter.serving.tiny_model import VOCABULARY_TOKENS, make_tiny_model
from engine_adapter.virtual_time.profiles import PROFILES, Profile

MODEL_NAME = "tiny"
"""The name under which the server serves its model."""

_OURS = (
    *("--scheduler-cls", "engine_adapter.vllm_scheduler.SageScheduler"),
    *("--middleware", "engine_adapter.http_hints.HttpHints"),
)
_TINY_MODEL_LEN_TOKENS = 16_384
_DRAIN_S = 2
"""Without it vLLM kills its engine core before the plugin can disconnect."""


class VllmServer:
    """A running vLLM API server on a free local port; a context manager.

    Args:
        endpoint: The controller's endpoint.
        engine_id: The engine's name.
        profile: Profile of the virtual GPU; None computes the tiny model on the CPU.
        speed: Speed of the virtual GPU relative to real time.
        plugin: False for stock vLLM, without a controller and without what reads hints in requests.
        prefix_caching: Whether vLLM caches prompt prefixes, on the virtual GPU.
        vocabulary_tokens: Size of the tiny model's vocabulary.
        device_report: File of the virtual GPU's report.
        arguments: Further arguments of vLLM's command line.
        environment: Further variables of the server's environment.
        log_path: File of the log; None for one in the server's temporary folder.
        ready_s: Seconds within which the server must be ready.

    Raises:
        EngineError: The server is not ready within ``ready_s``; the message has the log's last lines.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        engine_id: str = "vllm",
        profile: Profile | None = None,
        speed: float = 1.0,
        plugin: bool = True,
        prefix_caching: bool = False,
        vocabulary_tokens: int = VOCABULARY_TOKENS,
        device_report: Path | None = None,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        ready_s: float = 180.0,
    ) -> None:
        own = {"endpoint": endpoint, "engine_id": engine_id}
        self._additional = {"sagesched": own}
        self._profile = profile
        self._speed = speed
        self._plugin = plugin
        self._prefix_caching = prefix_caching
        self._vocabulary_tokens = vocabulary_tokens
        self._device_report = device_report
        self._arguments = arguments
        self._environment = server_environment(environment or {})
        self._ready_s = ready_s
        self._folder = tempfile.TemporaryDirectory(prefix="sagesched-vllm-")
        self.log_path = log_path or Path(self._folder.name, "vllm.log")
        self.port = free_port(0)
        self._children = Children(self.log_path.parent)
        self._child: Child | None = None

    @property
    def base_url(self) -> str:
        """URL of the OpenAI API, without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        model = make_tiny_model(
            Path(self._folder.name, "model"),
            max_model_len_tokens=self._model_len_tokens(),
            vocabulary_tokens=self._vocabulary_tokens,
        )
        try:
            self._child = self._children.start(
                self.log_path.stem, self._command(model), environment=self._environment, ask_group=False
            )
            self._children.await_ready(
                self._child, self._answers, timeout_s=self._ready_s, clock=time.monotonic, pause=time.sleep
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server with all its processes; keep the log only if ``log_path`` was given.

        The server stops its engine core itself: another signal would kill that while it disconnects.
        """
        self._children.stop()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _model_len_tokens(self) -> int:
        return self._profile.max_model_len_tokens if self._profile else _TINY_MODEL_LEN_TOKENS

    def _command(self, model: Path) -> list[str]:
        return [
            *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", MODEL_NAME),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--load-format", "dummy", "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", str(self._model_len_tokens())),
            *(_OURS if self._plugin else ()),
            *("--disable-uvicorn-access-log", "--generation-config", "vllm"),
            *("--shutdown-timeout", str(_DRAIN_S)),
            *self._device_arguments(),
            *self._arguments,
        ]

    def _device_arguments(self) -> list[str]:
        profile = self._profile
        if profile is None:
            return ["--max-num-seqs", "16", "--additional-config", json.dumps(self._additional)]
        assert PROFILES.get(profile.name) == profile, "the device looks its profile up by name"
        device: dict[str, object] = {"profile": profile.name, "speed": self._speed}
        if self._device_report is not None:
            device["report"] = str(self._device_report)
        return [
            *("--distributed-executor-backend", "engine_adapter.vllm.virtual_gpu.VirtualGpu"),
            *("--additional-config", json.dumps({**self._additional, "virtual_gpu": device})),
            *("--block-size", str(profile.block_size_tokens)),
            *("--max-num-seqs", str(profile.max_num_seqs)),
            *("--max-num-batched-tokens", str(profile.token_budget)),
            "--enable-prefix-caching" if self._prefix_caching else "--no-enable-prefix-caching",
        ]

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.base_url}/health", timeout=2.0) as response:  # noqa: S310 - our own http address
                return bool(response.status == 200)
        except (URLError, OSError):
            return False


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a server on a small machine: offline, without telemetry, few threads, little memory."""
    ours = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    return {**environment, **ours}
