from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.request_progress import Load, RequestProgress, ending, load_of
from engine_adapter.virtual_time.simulated_scheduler import SimulatedRequest
from store.bounds import MAX_PROMPT_TOKENS_SENT, packed_tokens
from store.records import FinishReason

PROFILE = PROFILES["h800-qwen3-32b-24k"]
WORK = TraceRequest(request_id="r", arrival_s=1.0, token_ids=(5,) * 100, max_tokens=50, true_output_tokens=40)


@pytest.mark.parametrize(
    ("prompt", "output", "computed", "tokens", "load"),
    [
        (10, 3, 13, 1, Load(0, 1, 13)),
        (10, 0, 10, 10, Load(10, 0, 10)),
        (10, 0, 10, 1, Load(1, 0, 10)),
        (10, 5, 12, 1, Load(1, 0, 12)),
        (10, 5, 15, 15, Load(15, 0, 15)),
    ],
    ids=["decode", "prefill", "last prompt token alone", "recompute in part", "recompute whole"],
)
def test_only_the_newest_output_token_alone_is_decoding(
    prompt: int, output: int, computed: int, tokens: int, load: Load
) -> None:
    """Everything else costs as prefill, the answer computed again after a preemption included."""
    request = SimulatedRequest("r", 0.0, prompt, num_output_tokens=output, num_computed_tokens=computed)
    assert load_of([(request, tokens)]) == load
    assert load.duration_s(PROFILE) == PROFILE.step_s(
        prefill_tokens=load.prefill_tokens, decode_seqs=load.decode_seqs, kv_tokens=load.kv_tokens
    )


@pytest.mark.parametrize(
    ("work", "output", "reason"),
    [
        (WORK, 39, None),
        (WORK, 40, "stop"),
        (replace(WORK, true_output_tokens=50), 50, "stop"),
        (replace(WORK, true_output_tokens=51), 50, "length"),
        (replace(WORK, token_ids=(5,) * (PROFILE.max_model_len_tokens - 7)), 7, "length"),
        (replace(WORK, abort_after_tokens=12), 11, None),
        (replace(WORK, abort_after_tokens=12), 12, "abort"),
        (replace(WORK, abort_after_tokens=40), 40, "stop"),
    ],
)
def test_an_answer_ends_for_the_first_reason_that_holds(
    work: TraceRequest, output: int, reason: FinishReason | None
) -> None:
    """End of sequence before the cut at max_tokens or at the model's length, and both before the client's leaving."""
    assert ending(work, output, PROFILE) == reason


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.booleans())
def test_token_ids_cross_the_border_as_little_endian_words(some: list[int], long: bool) -> None:
    """A long prompt keeps its head and its tail."""
    token_ids = tuple(some) + (3,) * (MAX_PROMPT_TOKENS_SENT if long else 0) + tuple(some[::-1])
    kept = token_ids
    if len(token_ids) > MAX_PROMPT_TOKENS_SENT:
        half = MAX_PROMPT_TOKENS_SENT // 2
        kept = token_ids[:half] + token_ids[-half:]
    assert packed_tokens(token_ids) == struct.pack(f"<{len(kept)}I", *kept)


def test_what_the_prefix_cache_finds_again_was_not_computed_again() -> None:
    """Recomputed tokens are those lost less those found; only the first start says what of the prompt was cached."""
    progress = RequestProgress(WORK)
    progress.start(2.0, cached_tokens=16)
    progress.preempt(120)
    progress.start(3.0, cached_tokens=96)
    progress.preempt(130)
    progress.start(4.0)
    assert progress.cached_prompt_tokens == 16
    assert progress.recomputed_tokens == (120 - 96) + 130
    assert progress.scheduled_s == 2.0


def test_a_life_that_never_began_ends_where_it_was_aborted() -> None:
    """Scheduled and first token count as of the end; the fact says that they never were."""
    progress = RequestProgress(WORK)
    completed = progress.completed(9.0, "abort")
    assert (completed.scheduled_s, completed.first_token_s, completed.finished_s, completed.output_tokens) == (
        9.0,
        9.0,
        9.0,
        0,
    )
    fact = progress.finished(9.0, "abort")
    assert fact.scheduled_s is None
    assert fact.first_token_s is None
