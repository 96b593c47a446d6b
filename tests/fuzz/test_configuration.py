"""Configuration from a file, the environment and flags: a tree, or one clear line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.config import Config, described, load_config, printed
from store.errors import ConfigError

KEYS = [key for key, _ in described()]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=50),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=2),
    st.sampled_from(["nan", "-1", "1e999", "\x00", "on"]),
)
NAMES = st.one_of(st.sampled_from(KEYS), st.text("abc._", max_size=12))


def built(flags: dict[str, Any], file: Path | None, environment: dict[str, str]) -> None:
    try:
        config = load_config(flags, file=file, environment=environment)
    except ConfigError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert isinstance(config, Config)
        assert printed(config)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_any_flags_are_a_tree_or_one_clear_line(values: dict[str, Any]) -> None:
    """Known and unknown settings with values of every type."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            inner = node.setdefault(section, {})
            node = inner if isinstance(inner, dict) else {}
        node[last] = value
    built(tree, None, {})


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(NAMES, st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=40), max_size=5)
)
def test_any_environment_is_a_tree_or_one_clear_line(values: dict[str, str]) -> None:
    """Names that are nearly right above all."""
    built({}, None, {f"SAGESCHED_{key.upper().replace('.', '__')}": value for key, value in values.items()})


TOML = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
    st.builds(
        lambda key, value: f"{key} = {value}\n".encode(),
        NAMES,
        st.sampled_from(["1", "nan", "'x'", "[1]", "{a = 1}", "1979-05-27T07:32:00Z", "0x10", "inf", "[[", "'''"]),
    ),
    st.just(b"[" * 3000),
    st.just(b"a = " + b"[" * 3000 + b"]" * 3000),
    st.just(b"a" + b".a" * 3000 + b" = 1"),
)


@settings(max_examples=150, deadline=None)
@given(TOML)
def test_any_file_is_a_tree_or_one_clear_line(content: bytes) -> None:
    """Bytes, text, TOML of the wrong types and deep nesting."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        built({}, Path(file.name), {})
