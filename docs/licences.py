"""The licences of what the controller and the dashboard need, from the packages' own metadata: ``make licences``."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "sagesched-controller"
EXTRAS = ("", "controller", "dashboard", "oidc")
ALLOWED = re.compile(
    r"Apache|MIT|BSD|ISC|PSF|Python Software|MPL|Mozilla|Unlicense|HPND|Zlib|0BSD|Historical", re.IGNORECASE
)
"""Licences under which a package may be used beside ours without a duty on our own code."""


def needed() -> dict[str, str]:
    """Every installed package that the base and the extras need, at any depth, with its licence."""
    found: dict[str, str] = {}
    waiting = [(PROJECT, extra) for extra in EXTRAS]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue  # For another system or Python.
        if name not in (PROJECT, "editables"):  # Editable installs alone add the latter.
            found[name] = licence(name)
        waiting += [each for line in lines for each in _wanted(line, extra)]
    return dict(sorted(found.items()))


def licence(name: str) -> str:
    """What a package's metadata says, in one line."""
    metadata = distribution(name).metadata
    expression = _first(metadata, "License-Expression")
    classifiers = [
        line.rsplit(" :: ", 1)[1] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")
    ]
    text = _first(metadata, "License").strip().splitlines()
    return expression or ", ".join(classifiers) or (text[0][:80] if text else "not stated")


def _first(metadata: PackageMetadata, field: str) -> str:
    return next(iter(metadata.get_all(field, [])), "")


def page() -> str:
    """The document."""
    rows = "\n".join(f"| {name} | {text} |" for name, text in needed().items())
    return (
        "# Licences\n\nWhat the controller and the dashboard need (with the extra `oidc`), and under which licence each package stands by its own "
        f"metadata; `make licences` writes this page.\n\n| package | licence |\n|---|---|\n{rows}\n"
    )


def _wanted(line: str, extra: str) -> list[tuple[str, str]]:
    """The package, and its extras, that a requirement names where its marker is met."""
    requirement = Requirement(line)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return []
    name = canonicalize_name(requirement.name)
    return [(name, each) for each in ("", *sorted(requirement.extras))]


if __name__ == "__main__":
    (Path(__file__).parent / "licences.md").write_text(page())
    sys.stdout.write("docs/licences.md is up to date\n")
