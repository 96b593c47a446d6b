"""Whether the five import names are this project's: they are common words, which a folder or another package may have.

Imports nothing but Python's own modules, because any other import may already be somebody else's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

NAMES = ("controller", "dashboard", "engine_adapter", "online_learning", "store")
DISTRIBUTION = "sagesched-controller"


def foreign_packages() -> dict[str, str]:
    """The names that Python would import from elsewhere than this installation, and from where."""
    root = Path(__file__).resolve().parents[1]
    found = {}
    for name in NAMES:
        places = _places(name)
        if root / name not in places[:1]:
            found[name] = str(places[0]) if places else "nowhere"
    return found


def other_owners() -> dict[str, str]:
    """The names under which another installed distribution has put files too, and which one; takes a moment."""
    owners = importlib.metadata.packages_distributions()
    return {name: other for name in NAMES for other in owners.get(name, ()) if other != DISTRIBUTION}


def complaint() -> str | None:
    """What is wrong with the five names, in one line with the remedy; None when nothing is."""
    parts = [f"{name!r} is {place}" for name, place in foreign_packages().items()]
    parts += [f"{name!r} has files of the package {other}" for name, other in other_owners().items()]
    if not parts:
        return None
    return (
        f"not SageSched's own: {', '.join(parts)}; start from another directory, rename what is in the way, "
        "or install sagesched-controller in an environment of its own"
    )


def _places(name: str) -> list[Path]:
    """Where a package would be imported from, the first first."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    locations: Iterator[str] = iter(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))
    return [Path(location).resolve() for location in locations]
