"""Which files pytest imports to look for doctests."""

from __future__ import annotations

from pathlib import Path


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out modules without a doctest: importing vLLM and Streamlit to find that there is none takes seconds."""
    if collection_path.suffix != ".py" or collection_path.name.startswith(("test_", "conftest")):
        return None
    return ">>>" not in collection_path.read_text(encoding="utf-8") or None
