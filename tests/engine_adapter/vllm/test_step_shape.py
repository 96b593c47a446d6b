"""The plan bounds vLLM's step: within the operator's own bounds, above what keeps prompts going, and given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from engine_adapter.ordering.ordering import Ordering, Plan
from engine_adapter.transport.link import DirectLink, NoLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm.step_shape import StepShape
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler

pytestmark = pytest.mark.vllm

Script = Callable[..., Any]

PROFILE = Profile(
    name="one-second-steps",
    base_s=1.0,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=4096,
    block_size_tokens=16,
    max_num_seqs=4,
    token_budget=512,
    max_model_len_tokens=1024,
)


def scheduler(**changes: Any) -> Any:
    """VLLM's scheduler, with these values of its configuration."""
    stock = VllmVirtualTimeEngine(PROFILE, link=NoLink(), scheduler_class=SageScheduler).scheduler
    for name, value in changes.items():
        setattr(stock.scheduler_config, name, value)
    return stock


@pytest.mark.parametrize(
    ("own_chunk", "asked", "in_force"),
    [
        (0, (256, 64), (256, 64)),
        (0, (None, None), (512, 0)),
        (0, (4096, 4096), (512, 0)),
        (0, (0, 0), (17, 16)),
        (48, (256, 64), (256, 48)),
        (48, (256, 32), (256, 32)),
    ],
)
def test_a_bound_is_never_above_the_operators_own_nor_below_what_a_prompt_needs(
    own_chunk: int, asked: tuple[int | None, int | None], in_force: tuple[int, int]
) -> None:
    """A step of a block and of a token for the one that runs, a chunk of a block, are the least."""
    steered = scheduler(long_prefill_token_threshold=own_chunk)
    steered.running.append(object())
    shape = StepShape(steered)
    shape.apply(*asked)
    assert (steered.max_num_scheduled_tokens, steered.scheduler_config.long_prefill_token_threshold) == in_force
    assert shape.step_tokens == (None if in_force[0] == 512 else in_force[0])
    assert shape.chunk_tokens == (None if in_force[1] == own_chunk else in_force[1])
    shape.give_back()
    assert (steered.max_num_scheduled_tokens, steered.scheduler_config.long_prefill_token_threshold) == (512, own_chunk)


def test_the_floors_lie_above_mambas_alignment() -> None:
    """A chunk that ends before the state's next boundary would compute nothing, for ever."""
    steered = scheduler()
    steered.mamba_prefill_checkpoint_alignment = 128
    shape = StepShape(steered)
    shape.apply(16, 16)
    assert (shape.step_tokens, shape.chunk_tokens) == (128, 128)


@pytest.mark.parametrize("change", [{"enable_chunked_prefill": False}, {"disable_chunked_mm_input": True}])
def test_what_cannot_be_computed_in_parts_is_not_bounded(change: dict[str, bool]) -> None:
    """A prompt that does not fit into the step would never start."""
    shape = StepShape(scheduler(**change))
    shape.apply(64, 64)
    assert (shape.step_tokens, shape.chunk_tokens) == (None, None)


class _Shaped(Ordering):
    """Bounds every step, as a rule of the order might."""

    def plan(self, now_s: float, **more: Any) -> Plan[Any]:
        plan = super().plan(now_s, **more)
        return Plan(plan.waiting, plan.running, plan.admission_limit, 0, step_tokens=128, chunk_tokens=32)


def test_the_plans_bounds_shape_vllms_steps_are_in_snapshots_and_are_given_back(scripted: Script) -> None:
    """A short prompt gets its first token beside a long one, which takes 32 tokens of each step; then all is as before."""
    script = scripted()
    served = VllmVirtualTimeEngine(
        PROFILE, link=DirectLink(script), scheduler_class=SageScheduler, make_ordering=_Shaped
    )
    served.step()
    served.step()
    for request_id, tokens in (("long", 600), ("short", 40)):
        served.submit(
            TraceRequest(
                request_id=request_id,
                arrival_s=served.now_s,
                token_ids=tuple(range(100, 100 + tokens)),
                max_tokens=40,
                true_output_tokens=40,
            )
        )
    assert served.step().scheduled_tokens == {"long": 32, "short": 32}
    assert served.step().scheduled_tokens == {"long": 32, "short": 8}
    assert script.snapshots()[-1].step_tokens == 128
    assert script.snapshots()[-1].chunk_tokens == 32
    script.push.append(structs.replace(script.settings("shadow"), lease_s=1e9))
    served.step()
    assert max(served.step().scheduled_tokens.values()) > 400
    assert served.scheduler.max_num_scheduled_tokens == 512
    assert script.snapshots()[-1].step_tokens is None
