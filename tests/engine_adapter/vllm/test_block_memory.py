"""What the plan is told about vLLM's blocks: free ones, prefix hits, what a victim frees, what each layer keeps."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import vllm
from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, FullAttentionSpec, KVCacheSpec, SlidingWindowSpec
from vllm.v1.request import Request

from engine_adapter.transport.link import DirectLink, NoLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from engine_adapter.vllm import contract
from engine_adapter.vllm.block_memory import BlockMemory
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler
from store.records import Gate

pytestmark = pytest.mark.vllm

Script = Callable[..., Any]

BLOCK = 16
WINDOW = 64

PROFILE = Profile(
    name="one-second-steps",
    base_s=1.0,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=64 * BLOCK,
    block_size_tokens=BLOCK,
    max_num_seqs=8,
    token_budget=256,
    max_model_len_tokens=512,
)

_SHAPE: dict[str, Any] = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 16, "dtype": torch.float32}
FULL = FullAttentionSpec(**_SHAPE)
WINDOWED = SlidingWindowSpec(**_SHAPE, sliding_window=WINDOW)
HYBRID: tuple[KVCacheSpec, ...] = (FULL, *(WINDOWED,) * 5)
"""As in Gemma: of six groups one keeps every token."""


def engine(profile: Profile = PROFILE, **more: Any) -> VllmVirtualTimeEngine:
    """VLLM's scheduler with the plugin and no controller."""
    return VllmVirtualTimeEngine(profile, link=NoLink(), scheduler_class=SageScheduler, **more)


def work(request_id: str, token_ids: tuple[int, ...], output_tokens: int = 40, **more: Any) -> TraceRequest:
    """A request with this prompt."""
    return TraceRequest(
        request_id=request_id,
        arrival_s=0.0,
        token_ids=token_ids,
        max_tokens=output_tokens,
        true_output_tokens=output_tokens,
        **more,
    )


def waiting(served: VllmVirtualTimeEngine, request_id: str) -> Request:
    """A request in the engine."""
    return served.scheduler.requests[request_id]


def test_a_hit_names_cached_tokens_and_the_blocks_that_running_requests_hold() -> None:
    """Eight blocks are shared with one that runs, four more with one that has ended; the last token is computed."""
    served = engine(prefix_caching=True)
    prefix = tuple(range(100, 228))
    served.submit(work("ends", prefix + tuple(range(300, 364)), output_tokens=1))
    served.step()
    served.submit(work("runs", prefix + tuple(range(400, 440))))
    served.step()
    served.submit(work("waits", prefix + tuple(range(300, 364))))
    memory = BlockMemory(served.scheduler)
    hit = memory.hit(waiting(served, "waits"))
    assert (hit.tokens, hit.held_blocks) == (11 * BLOCK, 8.0), "192 tokens would be 12 blocks: the last is computed"
    assert memory.freed_blocks(waiting(served, "runs")) == 11, "nobody else runs"
    served.step()
    assert memory.freed_blocks(waiting(served, "runs")) == 3
    assert memory.expected_tokens("waits") == 11 * BLOCK
    assert memory.expected_tokens("waits") is None


@pytest.mark.parametrize("seed", range(5))
def test_hits_are_those_of_vllms_own_look_up(seed: int) -> None:
    """Over a random run with eviction the search by halves finds what vLLM's own walk finds, and changes nothing."""
    chance = random.Random(seed)
    served = engine(replace(PROFILE, kv_tokens=512), prefix_caching=True)
    memory, manager = BlockMemory(served.scheduler), served.scheduler.kv_cache_manager
    seen = set()
    for number in range(60):
        shared = chance.randrange(3)
        prompt = tuple(1000 * shared + token for token in range(chance.randrange(1, 200)))
        served.submit(work(str(number), prompt + (7,) * chance.randrange(3), output_tokens=chance.randrange(1, 30)))
        free = [block.block_id for block in manager.block_pool.free_block_queue.get_all_free_blocks()]
        for request in served.scheduler.waiting:
            groups, tokens, _ = manager.coordinator.find_longest_cache_hit(request.block_hashes, request.num_tokens - 1)
            held = sum(block.ref_cnt > 0 for block in groups[0])
            hit = memory.hit(request)
            assert (hit.tokens, hit.held_blocks) == (tokens, held)
            seen.add((tokens > 0, held > 0))
        assert free == [block.block_id for block in manager.block_pool.free_block_queue.get_all_free_blocks()]
        served.step()
    assert seen == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("kind", [VllmVirtualTimeEngine, SimulatedEngine])
def test_both_engines_report_expected_beside_found_tokens(scripted: Script, kind: Any) -> None:
    """The second of two equal prompts waits for the first: the plan expects what the engine then finds."""
    script = scripted(gate=Gate(horizon_tokens=32))
    more = {"scheduler_class": SageScheduler} if kind is VllmVirtualTimeEngine else {}
    served = kind(PROFILE, link=DirectLink(script), prefix_caching=True, **more)
    served.step()
    served.step()
    for number in range(2):
        served.submit(work(str(number), tuple(range(100, 180)), output_tokens=4))
        served.step()
    while served.unfinished:
        served.step()
    facts = script.finished()
    assert [(fact.expected_cached_tokens, fact.cached_prompt_tokens) for fact in facts.values()] == [(0, 0), (64, 64)]
    script = scripted(mode="shadow")
    served = kind(PROFILE, link=DirectLink(script), prefix_caching=True, **more)
    served.submit(work("a", tuple(range(100, 180)), output_tokens=4))
    while served.unfinished:
        served.step()
    assert script.finished()["a"].expected_cached_tokens is None, "no plan looks it up"


def test_without_prefix_caching_or_where_a_request_declines_it_nothing_is_hit() -> None:
    """As vLLM itself does."""
    for caching in (False, True):
        served = engine(prefix_caching=caching)
        served.submit(work("runs", tuple(range(100, 200))))
        served.step()
        served.submit(work("waits", tuple(range(100, 200))))
        request = waiting(served, "waits")
        request.skip_reading_prefix_cache = caching
        assert BlockMemory(served.scheduler).hit(request).tokens == 0


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize(
    "layers",
    [HYBRID, (WINDOWED,), (FULL, ChunkedLocalAttentionSpec(**_SHAPE, attention_chunk_size=WINDOW)), (FULL, FULL)],
    ids=["hybrid", "windowed", "chunked", "two full"],
)
def test_blocks_are_what_each_group_really_holds(layers: tuple[KVCacheSpec, ...], prefix_caching: bool) -> None:
    """A request alone, step by step: never more than said, and after its prompt at most a block of a group fewer.

    Chunked local attention drops a whole chunk at once, so that it may hold less for a while.
    """
    try:
        served = engine(layers=layers, prefix_caching=prefix_caching)
    except AssertionError as error:
        if "at least two attention groups" in str(error) and contract.release_of(vllm.__version__) < (0, 29):
            pytest.skip("this release does not start two equal groups with prefix caching")
        raise
    memory = BlockMemory(served.scheduler)
    served.submit(work("a", tuple(range(100, 140)), output_tokens=200))
    while served.unfinished:
        before = memory.unused_blocks
        step = served.step()
        if "a" not in served.scheduler.requests:
            break
        held = memory.all_blocks - before
        said = memory.blocks(waiting(served, "a").num_computed_tokens)
        assert step.kv_blocks_used <= said
        if held and not any(isinstance(layer, ChunkedLocalAttentionSpec) for layer in layers):
            assert step.kv_blocks_used >= said - len(layers)


def test_of_a_hybrid_model_the_tokens_of_the_longest_request_measure_a_block() -> None:
    """512 tokens take 32 blocks of full attention and 5 of each window: 57, so that a block has 9 tokens."""
    served = engine(layers=HYBRID)
    hello = served.scheduler._sage.agent._hello
    assert (hello.kv_blocks, hello.block_size_tokens) == (64, 9)
    plain = engine()
    assert plain.scheduler._sage.agent._hello.block_size_tokens == BLOCK


def test_the_gate_counts_the_growth_of_a_hybrid_model_by_its_layers(scripted: Script) -> None:
    """Each answer ends with 14 blocks of full attention and 25 of windows: four of 160 blocks fit, nobody is preempted.

    Were every group to keep every token, two would.
    """
    script = scripted(gate=Gate(horizon_tokens=160), growth_tokens=160.0)
    served = VllmVirtualTimeEngine(
        replace(PROFILE, kv_tokens=160 * BLOCK, max_num_seqs=16),
        link=DirectLink(script),
        scheduler_class=SageScheduler,
        layers=HYBRID,
    )
    served.step()
    served.step()
    for number in range(12):
        served.submit(work(str(number), tuple(range(100, 164)), output_tokens=160))
    steps = []
    while served.unfinished:
        steps.append(served.step())
    assert max(step.running for step in steps) == 4
    assert not any(step.preempted for step in steps)
    assert {snapshot.policy_errors for snapshot in script.snapshots()} == {0}
    assert {running.kv_blocks for snapshot in script.snapshots() for running in snapshot.running_requests} >= {24, 39}
