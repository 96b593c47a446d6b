import numpy as np
import pytest

from online_learning.features.informative_ngrams import InformativeNgrams
from online_learning.features.prompt_features import grams, prompt_features
from online_learning.length_learner import Features, Prompt

SHARED = np.arange(1_000, 1_030)


def features_of(number: int, *, shared: bool = True, tenant: str | None = None) -> Features:
    own = np.random.default_rng(number).integers(2_000, 30_000, 10)
    tokens = (np.concatenate((SHARED, own)) if shared else own).astype(np.uint32)
    prompt = Prompt(
        token_ids=tokens, prompt_tokens=tokens.size, max_tokens=99, temperature=0.7, model="m", tenant=tenant
    )
    return prompt_features(prompt)


def taught(count: int) -> InformativeNgrams:
    ngrams = InformativeNgrams()
    for number in range(count):
        ngrams.learn(features_of(number))
    return ngrams


def test_what_every_prompt_shares_is_left_out() -> None:
    """Of a prompt behind a common beginning its own n-grams remain, of unit length together."""
    rows, weights = taught(100).of(features_of(1_000))
    own = set(grams(features_of(1_000, shared=False))[0].tolist())
    assert len(own - set(rows.tolist())) <= 1, "but for the n-gram of a prompt's first tokens"
    assert rows.size < 0.5 * grams(features_of(1_000))[0].size
    assert float(weights @ weights) == pytest.approx(1.0, abs=1e-5)


def test_the_first_prompts_keep_all_ngrams() -> None:
    """A few prompts say nothing about what is common."""
    np.testing.assert_array_equal(taught(49).of(features_of(7))[0], grams(features_of(7))[0])


@pytest.mark.slow
def test_a_common_beginning_of_long_ago_is_forgotten() -> None:
    """After 10,000 prompts without it, it is informative again."""
    ngrams = taught(3_000)
    for number in range(10_000):
        ngrams.learn(features_of(number, shared=False))
    assert ngrams.of(features_of(1))[0].size == grams(features_of(1))[0].size


def test_prompts_that_are_all_the_same_have_no_ngrams() -> None:
    """And that is no error."""
    ngrams = InformativeNgrams()
    for _ in range(60):
        ngrams.learn(features_of(1))
    rows, weights = ngrams.of(features_of(1))
    assert rows.size == weights.size == 0


def test_the_tenant_counts_as_an_ngram() -> None:
    """Two tenants with the same prompt differ by one row."""
    ngrams = InformativeNgrams()
    one, other = (set(ngrams.of(features_of(1, tenant=name))[0].tolist()) for name in ("a", "b"))
    assert len(one - other) == 1
