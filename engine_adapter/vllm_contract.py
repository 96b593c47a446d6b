"""Which vLLM releases the plugin knows, and what it leans on in them."""

from __future__ import annotations

KNOWN_VERSIONS = ("0.32", "0.33")


def known_version(version: str) -> bool:
    """Whether the plugin was tested with this vLLM release.

    >>> known_version("0.32.0"), known_version("0.33.1+cu130"), known_version("0.34.0"), known_version("0.3.2")
    (True, True, False, False)
    """
    return ".".join(version.split(".")[:2]) in KNOWN_VERSIONS
