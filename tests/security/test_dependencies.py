"""Locked packages against the pinned advisories, and the bill of materials."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def audit(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("audit")


def test_no_locked_package_is_known_to_be_vulnerable(audit: ModuleType) -> None:
    """By the advisories that are kept here, whose date and source are with them."""
    known = json.loads((DOCS / "advisories.json").read_text())
    assert datetime.fromisoformat(known["date"]) < datetime.now(UTC)
    assert len(known["commit"]) == 40
    assert sum(len(advisories) for advisories in known["advisories"].values()) > 100
    assert set(known["advisories"]) <= set(audit.locked())
    assert list(audit.audit(audit.locked(), known["advisories"])) == []


@pytest.mark.parametrize(
    ("package", "version", "vulnerable"),
    [
        ("jinja2", "2.10", True),
        ("requests", "2.30.0", True),
        ("requests", "2.32.0", False),
        ("starlette", "0.24.0", True),
    ],
)
def test_an_older_version_is_found(audit: ModuleType, package: str, version: str, *, vulnerable: bool) -> None:
    """By the same list: before the version that mended it, and not from that on."""
    known = json.loads((DOCS / "advisories.json").read_text())["advisories"]
    assert bool(list(audit.audit({package: version}, known))) is vulnerable


def test_the_bill_of_materials_is_valid_and_whole(tmp_path: Path) -> None:
    """CycloneDX' own schema accepts it; it names each package that the licences' page names, at its locked version."""
    file = tmp_path / "bill.json"
    subprocess.run([sys.executable, "docs/sbom.py", str(file)], cwd=DOCS.parent, check=True, timeout=120)
    text = file.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["name"] == "sagesched-controller"
    named = {component["name"] for component in bill["components"]}
    rows = [
        line.split("|")[1].strip() for line in (DOCS / "licences.md").read_text().splitlines() if line.startswith("| ")
    ]
    assert named == set(rows) - {"package"}
    assert all(component["licenses"] and component["purl"] for component in bill["components"])
