"""The demo's real engine: vLLM's own server over a virtual GPU, and a load generator that keeps it busy over HTTP."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from engine_adapter.serving.processes import Children
from engine_adapter.serving.simulated_server import synthetic_capacity_rps
from engine_adapter.serving.tiny_model import VOCABULARY_TOKENS
from engine_adapter.serving.vllm_server import VllmServer
from engine_adapter.virtual_time.profiles import Profile, profile_named
from store.errors import EngineError

REQUESTS_PER_LOAD = 5000
MAX_TOKENS = 8192


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    profile = profile_named(options.profile)
    rate_rps = options.load * synthetic_capacity_rps(profile, seed=options.seed)
    try:
        _serve(options, profile, rate_rps)
    except KeyboardInterrupt:
        return 130
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _serve(options: argparse.Namespace, profile: Profile, rate_rps: float) -> None:
    server = VllmServer(
        endpoint=options.endpoint,
        engine_id="vllm",
        profile=profile,
        speed=options.speed,
        log_path=options.log_folder / "vllm.log",
    )
    with server, Children(options.log_folder) as children:
        seed = options.seed
        while server.alive:
            load = children.start("load", _load_command(server, options, rate_rps, seed))
            load.process.wait()
            if load.process.returncode:
                raise EngineError(f"load generator ended with code {load.process.returncode}: {load.last_lines()}")
            seed += 1
        raise EngineError(f"vLLM ended by itself: see {server.log_path}")


def _load_command(server: VllmServer, options: argparse.Namespace, rate_rps: float, seed: int) -> list[str]:
    return [
        *(sys.executable, "-m", "engine_adapter.serving.load_generator", "--base-url", server.base_url),
        *("--workload", "synthetic", "--requests", str(REQUESTS_PER_LOAD), "--seed", str(seed)),
        *(
            "--rate",
            f"{rate_rps:.4f}",
            "--cv",
            str(options.cv),
            "--wave-depth",
            str(options.wave_depth),
            "--speed",
            str(options.speed),
        ),
        *("--max-tokens", str(MAX_TOKENS), "--tell-true-length", "--send-tenant"),
        *("--vocabulary-size", str(VOCABULARY_TOKENS)),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m controller.demo.vllm_engine", description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--log-folder", type=Path, required=True)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--load", type=float, required=True)
    parser.add_argument("--cv", type=float, required=True)
    parser.add_argument("--wave-depth", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
