"""Creates an engine's key file on the engine's machine, so that the secret key never leaves it.

Needs the base installation only: ``python -m engine_adapter.engine_key ENGINE_ID --controller KEY --output FILE``.
Prints the public key, which the controller's operator authorizes with ``sagesched keys authorize``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine_adapter.transport.keys import create_engine_key, save_engine_key
from store.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the key file; return 2 for invalid input."""
    options = _parser().parse_args(arguments)
    try:
        key = create_engine_key(options.engine_id, options.controller)
        save_engine_key(options.output, key, replace=options.replace)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"sagesched keys authorize {key.engine_id} '{key.pair.public}'\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine_adapter.engine_key",
        description="Create an engine's key file on this machine; print the command that authorizes the engine, to be "
        "run on the controller's machine.",
        epilog="Example: python -m engine_adapter.engine_key gpu-1 --controller "
        "'rq:rM>}U?@Lns47E1%%kR.o@n%%FcmmsL/@{H8]yf7' --output /etc/sagesched/gpu-1.key",
    )
    parser.add_argument("engine_id", help="the engine's name")
    parser.add_argument("--controller", required=True, metavar="KEY", help="the controller's public key (keys list)")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="path of the key file")
    parser.add_argument("--replace", action="store_true", help="replace an existing key file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
