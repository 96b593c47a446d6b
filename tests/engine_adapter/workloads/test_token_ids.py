from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.workloads.token_ids import (
    FIRST_TOKEN_ID,
    PREFIX_BLOCK_TOKENS,
    VOCABULARY_SIZE,
    block_token_ids,
    count_tokens,
    random_token_ids,
    token_ids,
)


@given(text=st.text(max_size=200), prompt_tokens=st.integers(0, 3000))
def test_a_prompt_has_exactly_its_tokens_within_the_vocabulary(text: str, prompt_tokens: int) -> None:
    """For any text, lone surrogates and control characters included; the same text gives the same ids."""
    ids = token_ids(text, prompt_tokens)
    assert len(ids) == prompt_tokens
    assert all(FIRST_TOKEN_ID <= token < VOCABULARY_SIZE for token in ids)
    assert ids == token_ids(text, prompt_tokens)


@given(text=st.text(max_size=100), vocabulary_size=st.integers(FIRST_TOKEN_ID + 1, 200))
def test_ids_stay_below_a_small_models_vocabulary(text: str, vocabulary_size: int) -> None:
    """Text, drawn and block ids alike."""
    for ids in (
        token_ids(text, 50, vocabulary_size=vocabulary_size),
        random_token_ids(50, (1, 2), vocabulary_size=vocabulary_size),
        block_token_ids((3,), 50, vocabulary_size=vocabulary_size),
    ):
        assert all(FIRST_TOKEN_ID <= token < vocabulary_size for token in ids)


def test_a_short_text_gets_the_shared_system_prompt_in_front() -> None:
    """Two prompts that are 150 tokens longer than their texts share those 150 and keep their own ends."""
    one, other = "Name three rivers in Spain.", "Why do cats purr?"
    ids_one, ids_other = token_ids(one, count_tokens(one) + 150), token_ids(other, count_tokens(other) + 150)
    assert ids_one[:150] == ids_other[:150]
    assert ids_one[150:] == token_ids(one, count_tokens(one))
    assert len(set(ids_one[:150])) > 140


def test_system_prompts_of_different_length_begin_alike() -> None:
    """A prompt with 40 tokens in front shares those 40 with a prompt that has 1,500."""
    assert token_ids("one thing", 42)[:40] == token_ids("another matter", 1502)[:40]


def test_a_long_text_loses_its_end() -> None:
    """What is left is the beginning."""
    text = "alpha beta gamma delta"
    assert token_ids(text, 2) == token_ids(text, 4)[:2]


def test_texts_that_share_words_share_ids() -> None:
    """A learner can see that two prompts ask alike."""
    one, other = (
        set(token_ids(text, count_tokens(text)))
        for text in ("Summarise this report about bread.", "Summarise this report about jazz.")
    )
    assert len(one & other) == len(one) - 1


def test_drawn_prompts_share_nothing_and_depend_on_their_seed_alone() -> None:
    """Requests of unknown text find no common prefix."""
    assert random_token_ids(600, (1, 7)) == random_token_ids(600, (1, 7))
    assert random_token_ids(600, (1, 7))[:16] != random_token_ids(600, (1, 8))[:16]
    assert random_token_ids(0, (1, 7)) == ()


def test_prompts_with_the_same_leading_hashes_have_the_same_leading_ids() -> None:
    """Two prompts that share two of three blocks share exactly those tokens; lengths are exact."""
    one, other = block_token_ids((4, 5, 6), 1300), block_token_ids((4, 5, 9), 1500)
    assert (len(one), len(other)) == (1300, 1500)
    shared = 2 * PREFIX_BLOCK_TOKENS
    assert one[:shared] == other[:shared]
    assert one[shared : shared + 16] != other[shared : shared + 16]
    assert len(block_token_ids((4,), 2000)) == 2000
