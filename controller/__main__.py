"""``python -m controller``, installed as ``sagesched``: says in one line what is missing or in the way."""

import sys

from controller.own_packages import NAMES, complaint, foreign_packages


def main() -> None:
    """Run the command line, and exit with code 2 and one line where its packages are not all there."""
    if foreign_packages():
        sys.exit(_refuse(complaint()))
    try:
        from controller.cli.main import main as run  # noqa: PLC0415 - the base installation lacks what it imports
    except ImportError as error:
        name = error.name or ""
        if name.split(".")[0] in NAMES:
            sys.exit(_refuse(complaint() or f"{error}: install sagesched-controller again"))
        if not isinstance(error, ModuleNotFoundError):
            raise
        sys.exit(_refuse(f'{name} is missing: pip install "sagesched-controller[controller,dashboard]"'))
    run()


def _refuse(text: str | None) -> int:
    sys.stderr.write(f"sagesched: {text}\n")
    return 2


if __name__ == "__main__":
    main()
