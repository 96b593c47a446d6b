"""Known vulnerabilities of the locked packages, without a network: ``make audit-offline``.

``docs/advisories.json`` holds what the Python Packaging Advisory Database (CC-BY 4.0) said about these packages at the
commit and date that it names; ``python docs/audit.py --update CLONE`` writes it anew from a clone of that database.
It misses what was published after that date; `make audit` asks the live database.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
ADVISORIES = Path(__file__).with_name("advisories.json")


@dataclass(frozen=True, slots=True)
class Finding:
    """A locked package with a known vulnerability."""

    package: str
    version: str
    advisory: str
    fixed: tuple[str, ...]


def locked() -> dict[str, str]:
    """The packages of ``constraints.txt`` and their versions, without local parts such as ``+cpu``."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version.split("+")[0].strip() for name, version in pairs}


def audit(packages: Mapping[str, str], advisories: Mapping[str, list[dict[str, Any]]]) -> Iterator[Finding]:
    """What the advisories say about these versions."""
    for name, version in packages.items():
        for advisory in advisories.get(name, ()):
            if is_affected(version, advisory):
                fixed = (limit for _, limit in advisory["ranges"] if limit)
                yield Finding(name, version, advisory["id"], tuple(fixed))


def is_affected(version: str, advisory: Mapping[str, Any]) -> bool:
    """Whether a version is listed, or lies in a range: from its first version on, and before the one that mended it.

    >>> known = {"versions": ["1.0.post1"], "ranges": [["2.0", "2.3.2"], ["3.0", None]]}
    >>> [is_affected(version, known) for version in ("1.0.post1", "2.0", "2.3.2", "3.9", "1.0")]
    [True, True, False, True, False]
    """
    if version in advisory["versions"]:
        return True
    here = Version(version)
    return any(_is_in(here, since, until) for since, until in advisory["ranges"])


def _is_in(version: Version, since: str, until: str | None) -> bool:
    try:
        return Version(since) <= version and (until is None or version < Version(until))
    except InvalidVersion:
        return False  # Such versions are listed one by one.


def collected(clone: Path) -> dict[str, Any]:
    """The advisories about the locked packages in a clone of the database, with its commit and date."""
    commit, date = _git(clone, "log", "-1", "--format=%H %cI").split()
    wanted = locked()
    found: dict[str, list[dict[str, Any]]] = {}
    for path in _git(clone, "ls-tree", "-r", "--name-only", "HEAD", "vulns/").splitlines():
        name = canonicalize_name(path.split("/")[1])
        if name in wanted and (advisory := _read(_git(clone, "show", f"HEAD:{path}"))) is not None:
            found.setdefault(name, []).append(advisory)
    about = {"database": "https://github.com/pypa/advisory-database", "licence": "CC-BY-4.0"}
    return {**about, "commit": commit, "date": date, "advisories": dict(sorted(found.items()))}


def _read(text: str) -> dict[str, Any] | None:
    """An advisory in short; None if it was withdrawn."""
    import yaml  # type: ignore[import-untyped]  # noqa: PLC0415 - only to write the list anew

    advisory = yaml.safe_load(text)
    if advisory.get("withdrawn"):
        return None
    versions = [str(version) for affected in advisory["affected"] for version in affected.get("versions", ())]
    spans = [span for affected in advisory["affected"] for each in affected.get("ranges", ()) for span in _spans(each)]
    short = {"id": advisory["id"], "aliases": advisory.get("aliases", []), "versions": [], "ranges": spans}
    return {**short, "versions": [version for version in versions if not _is_known(version, short)]}


def _is_known(version: str, advisory: Mapping[str, Any]) -> bool:
    try:
        return is_affected(version, advisory)
    except InvalidVersion:
        return False


def _spans(given: Mapping[str, Any]) -> Iterator[list[str | None]]:
    """Pairs of the first affected version and the one that mended it, of a range over versions."""
    since: str | None = None
    for event in given["events"] if given["type"] == "ECOSYSTEM" else ():
        if "introduced" in event:
            since = str(event["introduced"])
        elif since is not None and "fixed" in event:
            yield [since, str(event["fixed"])]
            since = None
    if since is not None:
        yield [since, None]


def _git(clone: Path, *arguments: str) -> str:
    command = ["git", "-C", str(clone), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Check, or write the list anew; 1 if a locked package is known to be vulnerable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", type=Path, metavar="CLONE", help="write the list anew from a clone of the database")
    clone = parser.parse_args().update
    if clone is not None:
        ADVISORIES.write_text(json.dumps(collected(clone), indent=1) + "\n")
    known = json.loads(ADVISORIES.read_text())
    found = list(audit(locked(), known["advisories"]))
    for each in found:
        remedy = f"mended in {', '.join(each.fixed)}" if each.fixed else "not mended"
        sys.stdout.write(f"{each.package} {each.version}: {each.advisory}, {remedy}\n")
    days = (datetime.now(UTC) - datetime.fromisoformat(known["date"])).days
    number = sum(len(advisories) for advisories in known["advisories"].values())
    sys.stdout.write(
        f"{len(found)} found in {len(locked())} locked packages, by {number} advisories about them up to "
        f"{known['date'][:10]}; nothing is known here of the {days} days since: run `make audit` where there is a network\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
