"""Makes an engine's key file on the engine's own machine, so that its secret key never leaves it.

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
    """Make the file; 2 for bad input."""
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
        description="Make an engine's key file here; prints the command that lets the engine in, for the controller's "
        "machine.",
        epilog="Example: python -m engine_adapter.engine_key gpu-1 --controller "
        "'rq:rM>}U?@Lns47E1%%kR.o@n%%FcmmsL/@{H8]yf7' --output /etc/sagesched/gpu-1.key",
    )
    parser.add_argument("engine_id", help="the engine's name")
    parser.add_argument("--controller", required=True, metavar="KEY", help="the controller's public key (keys list)")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="where to")
    parser.add_argument("--replace", action="store_true", help="put the new key in the place of an old one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
