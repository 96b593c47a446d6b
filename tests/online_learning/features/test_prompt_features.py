import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.features.prompt_features import (
    DIMENSIONS,
    GRAM_ROWS,
    HEAD_TOKENS,
    IDENTITIES,
    MAX_GRAMS,
    TAIL_TOKENS,
    TEXT_DIMENSIONS,
    grams,
    has_hints,
    hints,
    prompt_features,
)
from online_learning.length_learner import Features, Prompt


def _features(tokens: list[int], *, max_tokens: int = 512, temperature: float = 0.7) -> Features:
    ids = np.asarray(tokens, dtype=np.uint32)
    return prompt_features(
        Prompt(token_ids=ids, prompt_tokens=len(tokens), max_tokens=max_tokens, temperature=temperature, model="m")
    )


def _identities(tokens: list[int], tenant: str | None = None) -> tuple[int, ...]:
    ids = np.asarray(tokens, dtype=np.uint32)
    prompt = Prompt(token_ids=ids, prompt_tokens=9, max_tokens=9, temperature=0.7, model="m", tenant=tenant)
    return tuple(prompt_features(prompt)[DIMENSIONS : DIMENSIONS + IDENTITIES].astype(np.int64).tolist())


def _cosine(left: list[int], right: list[int]) -> float:
    return float(_features(left)[:TEXT_DIMENSIONS] @ _features(right)[:TEXT_DIMENSIONS])


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=700),
    max_tokens=st.integers(0, 10**6),
    temperature=st.floats(-1.0, 100.0),
)
def test_features_are_normalised_whatever_the_prompt(tokens: list[int], max_tokens: int, temperature: float) -> None:
    """The text part has length 1, or 0 without tokens; scalars stay small; everything is finite float32."""
    vector = _features(tokens, max_tokens=max_tokens, temperature=temperature)
    assert DIMENSIONS + IDENTITIES <= vector.size <= DIMENSIONS + IDENTITIES + MAX_GRAMS
    assert vector.dtype == np.float32
    assert bool(np.isfinite(vector).all())
    norm = float(np.linalg.norm(vector[:TEXT_DIMENSIONS]))
    assert abs(norm - (1.0 if tokens else 0.0)) < 1e-4
    assert float(np.abs(vector[TEXT_DIMENSIONS:DIMENSIONS]).max()) < 4.0


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=300),
    tenant=st.none() | st.text(max_size=5),
    session=st.none() | st.text(max_size=9),
    expected=st.none() | st.integers(1, 2**40),
)
def test_hints_stand_behind_features_that_are_otherwise_the_same(
    tokens: list[int], tenant: str | None, session: str | None, expected: int | None
) -> None:
    """They are read as they were written, and no n-gram is taken for one; without hints nothing is added."""
    ids = np.asarray(tokens, dtype=np.uint32)
    plain = Prompt(token_ids=ids, prompt_tokens=9, max_tokens=9, temperature=0.7, model="m", tenant=tenant)
    told = replace(plain, session=session, expected_output_tokens=expected)
    without, hinted = prompt_features(plain), prompt_features(told)
    assert np.array_equal(hinted[: without.size], without)
    assert hinted.size - without.size == 2 * (session is not None) + (expected is not None)
    assert not has_hints(without)
    assert has_hints(hinted) == (hinted.size > without.size)
    read = hints(hinted)
    assert read.expected_tokens == (None if expected is None else min(expected, 2**22 - 1))
    assert (read.session is None) == (session is None)
    for one, other in zip(grams(without), grams(hinted), strict=True):
        assert np.array_equal(one, other)


def test_a_session_is_that_of_its_tenant() -> None:
    """Two tenants may name their sessions alike."""
    ids = np.arange(9, dtype=np.uint32)
    named = [
        hints(
            prompt_features(
                Prompt(
                    token_ids=ids,
                    prompt_tokens=9,
                    max_tokens=9,
                    temperature=0.7,
                    model="m",
                    tenant=tenant,
                    session=session,
                )
            )
        ).session
        for tenant, session in (("a", "1"), ("b", "1"), ("a", "2"), (None, "1"), ("a", "1"))
    ]
    assert len(set(named[:4])) == 4
    assert named[0] == named[4]


def test_prompts_that_share_words_are_nearer_than_unrelated_ones() -> None:
    """Two thirds of the words shared: cosine well above that of unrelated prompts."""
    generator = np.random.default_rng(0)
    words = generator.integers(0, 100_000, size=(200, 60))
    related = [_cosine(row.tolist(), [*row[:40].tolist(), *range(200_000, 200_020)]) for row in words]
    unrelated = [_cosine(row.tolist(), other.tolist()) for row, other in pairwise(words)]
    assert min(related) > 0.4
    assert np.mean(related) > 0.6
    assert abs(float(np.mean(unrelated))) < 0.05


def test_word_order_counts() -> None:
    """The same words in another order are another prompt, though a near one."""
    tokens = list(range(100, 160))
    assert 0.3 < _cosine(tokens, tokens[::-1]) < 0.9


def test_a_shared_beginning_counts() -> None:
    """The same words after the same leading tokens are nearer than the same words shuffled throughout."""
    generator = np.random.default_rng(1)
    gains = []
    for _ in range(50):
        tokens = generator.integers(0, 100_000, 80)
        head, tail = tokens[:40], tokens[40:]
        same_head = [*head, *generator.permutation(tail)]
        same_tail = [*generator.permutation(head), *tail]
        gains.append(_cosine(tokens.tolist(), same_head) - _cosine(tokens.tolist(), same_tail))
    assert np.mean(gains) > 0.005


def test_a_long_prompt_counts_by_its_head_and_tail() -> None:
    """What lies between the first and the last tokens costs no time and changes nothing."""
    head, tail = list(range(HEAD_TOKENS)), list(range(10_000, 10_000 + TAIL_TOKENS))
    one, other = _features(head + [7] * 5_000 + tail), _features(head + [9] * 5_000 + tail)
    np.testing.assert_array_equal(one, other)


def test_features_are_the_same_in_another_process() -> None:
    """Stored features stay comparable: nothing in them depends on the process that made them."""
    program = (
        "import numpy as np\n"
        "from online_learning.features.prompt_features import prompt_features\n"
        "from online_learning.length_learner import Prompt\n"
        "ids = np.arange(50, dtype=np.uint32) * 37\n"
        "p = Prompt(token_ids=ids, prompt_tokens=50, max_tokens=512, temperature=0.7, model='m')\n"
        "print(prompt_features(p).tobytes().hex())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _features([37 * n for n in range(50)]).tobytes().hex()


def test_features_never_change_between_releases() -> None:
    """A history holds features for ever: changing how they are made needs a migration, and this test to say so."""
    vector = _features([37 * n for n in range(50)])
    expected = [-0.06298, -0.100618, -0.081799, -0.068755, -0.044161, -0.362659, -0.253892, -0.3]
    np.testing.assert_allclose(vector[[0, 1, 2, 64, 127, 128, 129, 130]], expected, atol=1e-5)


def test_identities_and_grams_never_change_between_releases() -> None:
    """As above, for the parts behind the dense one."""
    assert _identities([37 * n for n in range(50)], "acme") == (13756968, 11150794, 0, 378042)
    rows, weights = grams(_features([37 * n for n in range(50)]))
    assert (int(rows.sum()), rows.size) == (830962, 100)
    assert abs(float(weights @ weights) - 1.0) < 1e-5


@settings(deadline=None, max_examples=50)
@given(tokens=st.lists(st.integers(0, 2**32 - 1), max_size=400))
def test_grams_are_rows_with_weights(tokens: list[int]) -> None:
    """Distinct rows of the table, no more than the bound, with weights of unit length; none without tokens."""
    rows, weights = grams(_features(tokens))
    assert rows.size == np.unique(rows).size <= MAX_GRAMS
    assert bool(((rows >= 0) & (rows < GRAM_ROWS)).all())
    assert bool((weights > 0.0).all())
    assert abs(float(weights @ weights) - (1.0 if tokens else 0.0)) < 1e-5


def test_one_template_is_one_identity_at_every_depth_that_it_fills() -> None:
    """40 leading tokens shared: the same template at depths of 8 and 32, another at 128; a short prompt has none."""
    head = list(range(40))
    one, other = _identities([*head, *range(500, 600)]), _identities([*head, *range(900, 1_000)])
    assert one[:2] == other[:2]
    assert one[2] != other[2]
    assert 0 not in one[:3]
    assert _identities([1, 2, 3]) == (0, 0, 0, 0)


def test_a_tenant_has_an_identity() -> None:
    """Its own, the same for every prompt; none is 0."""
    assert _identities([1], "a")[3] == _identities([2], "a")[3] != _identities([1], "b")[3]
    assert _identities([1], "a")[3] > 0
    assert _identities([1])[3] == 0


def test_a_dense_vector_alone_has_no_grams() -> None:
    """A history of dense vectors alone still teaches."""
    vector = _features(list(range(50)))[:DIMENSIONS]
    assert grams(vector)[0].size == 0


def test_a_long_beginning_does_not_hide_the_question() -> None:
    """Behind 300 tokens of system prompt, all words of a question of 40 tokens are still listed."""
    question = [50_000 + number for number in range(40)]
    alone = set(grams(_features(question))[0].tolist())
    behind = set(grams(_features([*range(300), *question]))[0].tolist())
    words = set(grams(_features(question[:1]))[0].tolist()) & alone
    assert words
    assert len(alone & behind) >= len(alone) - 3
