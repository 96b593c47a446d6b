"""The software bill of materials of a release (CycloneDX 1.6): what controller and dashboard need, ``make sbom``."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from licences import PROJECT, needed
from packageurl import PackageURL


def bill() -> Bom:
    """The project, and every package that the base installation and both extras bring."""
    root = _component(PROJECT, "Apache-2.0", ComponentType.APPLICATION)
    bom = Bom()
    bom.metadata.component = root
    parts = [_component(name, licence, ComponentType.LIBRARY) for name, licence in needed().items()]
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(root, parts)
    return bom


def _component(name: str, licence: str, kind: ComponentType) -> Component:
    release = version(name)
    return Component(
        name=name,
        version=release,
        type=kind,
        bom_ref=f"{name}@{release}",
        purl=PackageURL("pypi", name=name, version=release),
        licenses=[LicenseFactory().make_from_string(licence)],
    )


def main() -> None:
    """Write it to the given file, or where a release's files lie."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("dist") / f"{PROJECT}-{version(PROJECT)}.cdx.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    bom = bill()
    file.write_text(JsonV1Dot6(bom).output_as_string(indent=1) + "\n")
    sys.stdout.write(f"{file}: {len(bom.components)} packages\n")


if __name__ == "__main__":
    main()
