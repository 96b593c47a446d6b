"""The virtual GPU: a device that keeps a profile's time and ends answers at their true length, under real requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from engine_adapter.transport.link import NoLink
from engine_adapter.virtual_time.engine import END_OF_SEQUENCE_ID, TraceRequest, serve
from engine_adapter.virtual_time.profiles import PROFILES, Profile
from engine_adapter.vllm.virtual_gpu import FIRST_PLAIN_TOKEN_ID, Device, VirtualGpu, virtual_gpu_settings
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from store.errors import ConfigError

pytestmark = pytest.mark.vllm

PROFILE = Profile(
    name="tight",
    base_s=0.01,
    prefill_token_s=0.001,
    decode_seq_s=0.0005,
    kv_token_s=0.00001,
    kv_tokens=192,
    block_size_tokens=16,
    max_num_seqs=6,
    token_budget=32,
    max_model_len_tokens=96,
)


def _request(
    request_id: str, *, prompt_tokens: int, true_len: object, max_tokens: int = 90, token_id: int = 5
) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, extra_args={"true_len": true_len} if true_len else None)
    sampling.update_from_generation_config({}, END_OF_SEQUENCE_ID)
    return Request(request_id, [token_id] * prompt_tokens, sampling, None)


@pytest.fixture
def device() -> Iterator[VirtualGpu]:
    """A virtual GPU at a hundred times the pace, as vLLM would make it."""
    scheduler = VllmVirtualTimeEngine(PROFILE, link=NoLink(), scheduler_class=AsyncScheduler).scheduler
    config = scheduler.vllm_config
    config.additional_config = {"virtual_gpu": {"profile": "h800-qwen3-32b-24k", "speed": 100}}
    gpu = VirtualGpu(config)
    yield gpu
    gpu.shutdown()


def _serve(gpu: VirtualGpu, requests: list[Request], *, steps_ahead: int) -> dict[str, list[int]]:
    """Serve as vLLM's engine core does, with so many steps in flight; the answers' tokens by request."""
    scheduler = VllmVirtualTimeEngine(PROFILE, link=NoLink(), scheduler_class=AsyncScheduler).scheduler
    flying: list[tuple[SchedulerOutput, Future[object]]] = []
    for request in requests:
        scheduler.add_request(request)
    while scheduler.has_requests() or flying:
        if scheduler.has_requests():
            output = scheduler.schedule()
            future = gpu.execute_model(output, non_block=True)
            if output.total_num_scheduled_tokens:
                assert future.result() is None
                future = gpu.sample_tokens(None, non_block=True)
            flying.append((output, future))
        if len(flying) > steps_ahead or not scheduler.has_requests():
            output, future = flying.pop(0)
            scheduler.update_from_output(output, future.result())
    return {request.request_id: list(request.output_token_ids) for request in requests}


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_answers_end_at_their_true_length_through_chunks_and_preemptions(device: VirtualGpu, steps_ahead: int) -> None:
    """Six requests outgrow twelve blocks: prompts in chunks, preempted and computed again, with steps ahead or not."""
    lengths = {str(number): 30 + 5 * number for number in range(6)}
    requests = [_request(name, prompt_tokens=35, true_len=str(length)) for name, length in lengths.items()]
    answers = _serve(device, requests, steps_ahead=steps_ahead)
    assert {name: len(tokens) for name, tokens in answers.items()} == lengths
    assert sum(request.num_preemptions for request in requests) > 0
    for request in requests:
        assert request.status == RequestStatus.FINISHED_STOPPED
        assert answers[request.request_id].count(END_OF_SEQUENCE_ID) == 1
        assert min(answers[request.request_id][:-1]) >= FIRST_PLAIN_TOKEN_ID


def test_equal_prompts_get_equal_answers(device: VirtualGpu) -> None:
    """Whatever they are called, alone or among others, preempted or not; another prompt gets another answer."""
    (alone,) = _serve(device, [_request("x", prompt_tokens=35, true_len="50")], steps_ahead=0).values()
    requests = [_request(str(n), prompt_tokens=35, true_len="50", token_id=5 + n % 2) for n in range(6)]
    answers = list(_serve(device, requests, steps_ahead=1).values())
    assert sum(request.num_preemptions for request in requests) > 0
    assert answers[0::2] == [alone] * 3
    assert answers[1] == answers[3] == answers[5] != alone


@pytest.mark.parametrize("true_len", [None, "many", ""])
def test_without_a_true_length_an_answer_runs_to_its_limit(device: VirtualGpu, true_len: object) -> None:
    """And a client's nonsense counts as none: it must not stop the engine."""
    request = _request("a", prompt_tokens=4, true_len=true_len, max_tokens=7)
    assert len(_serve(device, [request], steps_ahead=1)["a"]) == 7
    assert request.status == RequestStatus.FINISHED_LENGTH_CAPPED


def test_steps_queue_behind_one_another_and_take_the_profiles_time(device: VirtualGpu) -> None:
    """Two steps at once end one after the other, each after what the profile says divided by the speed."""
    scheduler = VllmVirtualTimeEngine(PROFILE, link=NoLink(), scheduler_class=AsyncScheduler).scheduler
    scheduler.add_request(_request("a", prompt_tokens=32, true_len="9"))
    began_s = time.monotonic()
    futures = []
    for _ in range(2):
        device.execute_model(scheduler.schedule(), non_block=True)
        futures.append(device.sample_tokens(None, non_block=True))
    ended_s = []
    for future in futures:
        future.result()
        ended_s.append(time.monotonic() - began_s)
    profile = PROFILES["h800-qwen3-32b-24k"]
    first_s = profile.step_s(prefill_tokens=32, decode_seqs=0, kv_tokens=32) / 100
    second_s = profile.step_s(prefill_tokens=0, decode_seqs=1, kv_tokens=33) / 100
    assert ended_s[0] >= first_s
    assert ended_s[1] >= first_s + second_s


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=8))
def test_a_devices_load_is_what_the_harness_counts(lengths: list[tuple[int, int]]) -> None:
    """The virtual GPU sees only what vLLM sends it, and comes to the harness's step times all the same."""
    device = Device(vocabulary_tokens=100)
    durations: list[float] = []
    engine = VllmVirtualTimeEngine(PROFILE, link=NoLink(), scheduler_class=AsyncScheduler)
    schedule = engine.scheduler.schedule

    def overheard() -> SchedulerOutput:
        output = schedule()
        step = device.step(output)
        if step.token_ids:
            durations.append(
                PROFILE.step_s(
                    prefill_tokens=step.prefill_tokens, decode_seqs=step.decode_seqs, kv_tokens=step.kv_tokens
                )
            )
        return output

    engine.scheduler.schedule = overheard
    works = [
        TraceRequest(
            request_id=str(number),
            arrival_s=0.0,
            token_ids=tuple(range(3, 3 + prompt)),
            max_tokens=30,
            true_output_tokens=output,
        )
        for number, (prompt, output) in enumerate(lengths)
    ]
    serve(engine, works)
    assert sum(durations) == pytest.approx(engine.now_s)
    engine.step()
    assert device._sequences == {}


def test_the_kv_cache_has_the_profiles_blocks(device: VirtualGpu) -> None:
    """And the null block that vLLM takes for itself."""
    (specs,) = device.collective_rpc("get_kv_cache_spec")
    (available_bytes,) = device.collective_rpc("determine_available_memory")
    (spec,) = specs.values()
    assert available_bytes // spec.page_size_bytes == 24_000 // spec.block_size + 1


@pytest.mark.parametrize(
    ("given_config", "said"),
    [
        ({"virtual_gpu": {"profile": "h100"}}, "unknown profile 'h100'"),
        ({"virtual_gpu": {"speed": "fast"}}, "virtual GPU speed 'fast'"),
        ({"virtual_gpu": {"speed": float("inf")}}, "virtual GPU speed inf"),
        ({"virtual_gpu": {"sped": 1}}, "'sped'"),
        ({"virtual_gpu": 3}, "is 3"),
    ],
)
def test_bad_settings_are_named(given_config: dict[str, object], said: str) -> None:
    """What is wrong, and its value."""
    with pytest.raises(ConfigError, match=said):
        virtual_gpu_settings(given_config, {})
