"""Names that clients choose: bounded, never confused with another, and found again by the id that the client knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.bounds import MAX_NAME, MAX_REQUEST_ID, bounded_name, bounded_request_id
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.reading.request_timeline import read_timeline

TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(), max_size=20).map(lambda text: 40 * text),
    st.text(st.sampled_from("a\x1b\x07\ud800\n\u200d"), max_size=300),
)


@given(TEXTS)
def test_a_bounded_name_is_short_and_can_be_encoded_and_shown(text: str) -> None:
    """Of whatever the client sent; a bounded name is its own bounded form."""
    name = bounded_name(text)
    assert len(name) <= MAX_NAME
    assert name.encode().decode() == name
    assert not any(character < " " or "\x7f" <= character < "\xa0" for character in name)
    assert bounded_name(name) == name
    assert len(bounded_request_id(f"3_{text}-12-0a1b2c3d")) <= MAX_REQUEST_ID


@given(TEXTS, TEXTS)
def test_two_names_stay_two(one: str, other: str) -> None:
    """However alike their heads are."""
    assert (bounded_name(one) == bounded_name(other)) == (one == other)
    alike = 300 * "x"
    assert (bounded_request_id(alike + one) == bounded_request_id(alike + other)) == (one == other)


@given(TEXTS, st.sampled_from(["", "0_", "12_"]), st.sampled_from(["-0a1b2c3d", "-0-0a1b2c3d", "-15-0a1b2c3d"]))
def test_the_id_that_the_client_knows_is_the_middle_of_the_one_that_the_engine_reports(
    text: str, choice: str, end: str
) -> None:
    """So that one is found by the other."""
    known = f"cmpl-{text}"
    assert bounded_request_id(f"{choice}{known}{end}") == f"{choice}{bounded_name(known)}{end}"


@pytest.mark.parametrize("client", ["abc", "a.b*c-20261129", 5000 * "y", "esc\x1b]0;x\x07", 300 * "z" + "-20261129"])
def test_a_request_is_found_by_the_id_of_its_answer(tmp_path: Path, make: Any, client: str) -> None:
    """By the engine's own id too, whole or cut; of several choices the latest."""
    answer_id = f"cmpl-{client}"
    whole = [f"{choice}{answer_id}-0-0a1b2c3d" for choice in ("0_", "1_")]
    with HistoryWriter(tmp_path) as writer:
        writer.append([make.entry(make.engine())])
        for place, request_id in enumerate([*whole, "cmpl-abcd-0-0a1b2c3d"]):
            writer.append([make.entry(make.arrived(bounded_request_id(request_id), 100.0 + place % 2))])
    with open_history(tmp_path) as connection:
        by_answer = read_timeline(connection, answer_id)
        by_id = [read_timeline(connection, name) for name in (whole[0], bounded_request_id(whole[0]))]
        assert read_timeline(connection, "cmpl-ab") is None
    assert by_answer is not None
    assert by_answer.request_id == bounded_request_id(whole[1])
    assert [found.request_id for found in by_id if found] == 2 * [bounded_request_id(whole[0])]
