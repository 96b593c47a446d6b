"""What no line of the code may do, and under which licences it stands."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("controller", "online_learning", "store", "dashboard", "engine_adapter")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(package: str) -> None:
    """No such import, no such call, no ``shell=True``, and no unsafe Markdown or HTML in the dashboard."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not {name.name.split(".")[0] for name in node.names} & FORBIDDEN_MODULES, where
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES, where
            elif isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                assert name not in FORBIDDEN_CALLS, where
                given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                assert not given.get("shell"), where
                assert not given.get("unsafe_allow_html"), where
                assert not given.get("allow_pickle"), where


def test_the_linter_holds_the_same_rules() -> None:
    """Ruff's security rules are on, but for the three that the configuration gives reasons for."""
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert ruff["select"] == ["ALL"]
    assert {rule for rule in ruff["ignore"] if rule.startswith("S")} == {"S101", "S311"}


@pytest.fixture(scope="module")
def licences(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("licences")


def test_every_package_that_is_needed_is_listed_under_an_allowed_licence(licences: ModuleType) -> None:
    """The document is what `make licences` writes; a new dependency has to be looked at."""
    needed = licences.needed()
    assert {"msgspec", "pyzmq", "duckdb", "streamlit", "numpy"} <= set(needed)
    assert {name: text for name, text in needed.items() if not licences.ALLOWED.search(text)} == {}
    assert (ROOT / "docs" / "licences.md").read_text() == licences.page()
