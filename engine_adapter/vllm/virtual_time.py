"""vLLM's own scheduler and KV manager in virtual time: no model, no workers, no waiting.

As in vLLM's own scheduler tests, requests are added, ``schedule()`` decides a step, the clock advances by
the profile's step time, and ``update_from_output()`` receives the tokens that a device would have generated.
Steps do not overlap: each ends before the next is scheduled.
It is the reference for policies and for the simulated engine, with the stock class or with the plugin.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from engine_adapter.agent.hints import extra_args
from engine_adapter.ordering.ordering import Ordering, OrderingFactory
from engine_adapter.transport.keys import EngineKey
from engine_adapter.transport.link import EngineLink
from engine_adapter.virtual_time.engine import (
    END_OF_SEQUENCE_ID,
    CompletedRequest,
    Step,
    TraceRequest,
    answer_token_ids,
)
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.request_progress import RequestProgress, check_profile, check_request, ending, load_of
from engine_adapter.virtual_time.simulated_scheduler import Scheduling
from store.records import FinishReason


class VllmVirtualTimeEngine:
    """A `VirtualEngine` over vLLM's own scheduler; its clock starts at 0.

    Args:
        profile: Step times and sizes of the device.
        link: The connection to the controller, used by `SageScheduler` only.
        scheduler_class: ``AsyncScheduler`` or `engine_adapter.vllm_scheduler.SageScheduler`.
        engine_id: The engine's name.
        watermark: vLLM's KV cache watermark.
        scheduling: vLLM's ``--scheduling-policy``.
        reserve_full_prompt: Whether admission requires room for the whole prompt.
        chunk_tokens: vLLM's ``long_prefill_token_threshold``; None for none.
        prefix_caching: Whether vLLM caches prompt prefixes.
        data_parallel_rank: The rank's index, all that vLLM passes to a rank of a dense model.
        layers: The model's kinds of layers, a KV group of each, which share the profile's blocks; full attention alone
            when None.
        make_ordering: Makes the ordering that applies index tables.

    Raises:
        ConfigError: ``profile`` cannot hold one full request.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        link: EngineLink,
        scheduler_class: type[AsyncScheduler] = AsyncScheduler,
        engine_id: str = "vllm",
        watermark: float = 0.0,
        scheduling: Scheduling = "fcfs",
        reserve_full_prompt: bool = True,
        chunk_tokens: int | None = None,
        prefix_caching: bool = False,
        data_parallel_rank: int = 0,
        layers: Sequence[KVCacheSpec] | None = None,
        make_ordering: OrderingFactory = Ordering,
    ) -> None:
        check_profile(profile)
        self._profile = profile
        self._now_s = 0.0
        self._progress: dict[str, RequestProgress] = {}
        self._ended: list[CompletedRequest] = []
        self._preempted: list[tuple[str, int]] = []
        config = _vllm_config(
            profile,
            scheduler=SchedulerConfig(
                max_model_len=profile.max_model_len_tokens,
                is_encoder_decoder=False,
                max_num_seqs=profile.max_num_seqs,
                max_num_batched_tokens=profile.token_budget,
                policy=scheduling,
                watermark=watermark,
                scheduler_reserve_full_isl=reserve_full_prompt,
                long_prefill_token_threshold=chunk_tokens or 0,
                enable_chunked_prefill=True,
                async_scheduling=True,
            ),
            prefix_caching=prefix_caching,
            engine_id=engine_id,
        )
        config.parallel_config.data_parallel_index = data_parallel_rank
        harnessed = _harnessed(
            scheduler_class,
            now_s=lambda: self._now_s,
            link=link,
            make_ordering=make_ordering,
            preempted=self._record_preemption,
        )
        self.scheduler = harnessed(
            vllm_config=config,
            kv_cache_config=_kv_cache_config(profile, layers),
            structured_output_manager=StructuredOutputManager(config),
            block_size=profile.block_size_tokens,
        )
        init_none_hash(sha256_cbor)
        self._block_hasher = (
            get_request_block_hasher(profile.block_size_tokens, sha256_cbor) if prefix_caching else None
        )

    @property
    def now_s(self) -> float:
        """The engine's clock, in seconds."""
        return self._now_s

    @property
    def unfinished(self) -> int:
        """Requests that no step has returned as finished."""
        return len(self._progress) + len(self._ended)

    def submit(self, request: TraceRequest) -> None:
        """Add a request that arrives now; raise `WorkloadError` for one that the engine cannot serve."""
        assert request.request_id not in self._progress, f"request {request.request_id!r} is here already"
        check_request(request, self._profile)
        self._progress[request.request_id] = RequestProgress(request)
        sampling = SamplingParams(
            max_tokens=request.max_tokens, temperature=request.temperature, extra_args=extra_args(request) or None
        )
        sampling.update_from_generation_config({}, END_OF_SEQUENCE_ID)
        self.scheduler.add_request(
            Request(
                request_id=request.request_id,
                prompt_token_ids=list(request.token_ids),
                sampling_params=sampling,
                pooling_params=None,
                arrival_time=request.arrival_s,
                priority=request.priority,
                block_hasher=self._block_hasher,
            )
        )

    def abort(self, request_id: str) -> None:
        """Abort an unfinished request; the next step returns it as finished."""
        assert request_id in self._progress
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self._end(request_id, "abort")

    def step(self) -> Step:
        """Schedule and carry out one step; with nothing to compute, a step of zero duration."""
        start_s = self._now_s
        self._preempted.clear()
        output = self.scheduler.schedule()
        self._record_shed()
        blocks = self.scheduler.kv_cache_manager.block_pool
        blocks_used = blocks.num_gpu_blocks - 1 - blocks.get_num_free_blocks()
        tokens: dict[str, int] = dict(output.num_scheduled_tokens)
        self._record_places(output)
        requests = self.scheduler.requests
        load = load_of((requests[request_id], count) for request_id, count in tokens.items())
        duration_s = load.duration_s(self._profile) if tokens else 0.0
        self._now_s = start_s + duration_s
        self._carry_out(output)
        finished, self._ended = tuple(self._ended), []
        running, waiting = self.scheduler.get_request_counts()
        return Step(
            start_s=start_s,
            duration_s=duration_s,
            scheduled_tokens=tokens,
            preempted=tuple(request_id for request_id, _ in self._preempted),
            finished=finished,
            waiting=waiting,
            running=running,
            kv_blocks_used=blocks_used,
        )

    def advance_to(self, time_s: float) -> None:
        """Advance the clock to a later time."""
        self._now_s = max(self._now_s, time_s)

    def close(self) -> None:
        """Shut the scheduler down, which disconnects it from the controller."""
        self.scheduler.shutdown()

    def _record_preemption(self, request_id: str, lost_tokens: int) -> None:
        self._preempted.append((request_id, lost_tokens))

    def _record_shed(self) -> None:
        """Record the requests that the plugin has ended before the step."""
        for request_id in [request_id for request_id in self._progress if request_id not in self.scheduler.requests]:
            self._end(request_id, "abort")

    def _record_places(self, output: SchedulerOutput) -> None:
        """Record which requests were preempted and which were scheduled."""
        for request_id, lost_tokens in self._preempted:
            self._progress[request_id].preempt(lost_tokens)
        started = [new.req_id for new in output.scheduled_new_reqs]
        started += output.scheduled_cached_reqs.resumed_req_ids
        for request_id in started:
            scheduled = output.num_scheduled_tokens[request_id]
            cached_tokens = self.scheduler.requests[request_id].num_computed_tokens - scheduled
            self._progress[request_id].start(self._now_s, cached_tokens=cached_tokens)

    def _carry_out(self, output: SchedulerOutput) -> None:
        """Give vLLM the tokens of the step and record them."""
        request_ids = list(output.num_scheduled_tokens)
        requests = [self.scheduler.requests[request_id] for request_id in request_ids]
        sampled = [self._sample(request) for request in requests]
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=request_ids,
                req_id_to_index={request_id: place for place, request_id in enumerate(request_ids)},
                sampled_token_ids=sampled,
            ),
        )
        generated = [request_id for request_id, token_ids in zip(request_ids, sampled, strict=True) if token_ids]
        for request_id in [request_id for request_id in generated if self._generated(request_id)]:
            self.abort(request_id)

    def _sample(self, request: Request) -> list[int]:
        """Return the device's token: none before all are computed, end-of-sequence at the true length."""
        if request.num_computed_tokens < request.num_tokens:
            return []
        progress = self._progress[request.request_id]
        output_tokens = progress.output_tokens + 1
        if output_tokens >= progress.request.true_output_tokens:
            return [END_OF_SEQUENCE_ID]
        return [answer_token_ids(request.request_id)[output_tokens - 1]]

    def _generated(self, request_id: str) -> bool:
        """Record a token, and the end of a complete answer; whether the client leaves after this step."""
        progress = self._progress[request_id]
        progress.generate(self._now_s)
        reason = ending(progress.request, progress.output_tokens, self._profile)
        if reason == "abort":
            return True
        assert (reason is not None) == (request_id not in self.scheduler.requests), "vLLM ends answers differently"
        if reason is not None:
            self._end(request_id, reason)
        return False

    def _end(self, request_id: str, reason: FinishReason) -> None:
        self._ended.append(self._progress.pop(request_id).completed(self._now_s, reason))


def _harnessed(
    base: type[AsyncScheduler],
    *,
    now_s: Callable[[], float],
    link: EngineLink,
    make_ordering: OrderingFactory,
    preempted: Callable[[str, int], None],
) -> type[AsyncScheduler]:
    """Derive a scheduler class in virtual time; the plugin asks for clock, link and ordering during construction."""

    class Harnessed(base):  # type: ignore[misc]  # mypy does not follow vLLM
        def _now_s(self) -> float:
            return now_s()

        def _wall_s(self) -> float:
            return now_s()

        def _make_link(self, endpoint: str, key: EngineKey | None, group: int | None) -> EngineLink:
            return link

        def _make_ordering(self, block_size_tokens: int, max_num_seqs: int) -> Ordering:
            return make_ordering(block_size_tokens, max_num_seqs)

        def _preempt_request(self, request: Request, *args: object, **kwargs: object) -> None:
            preempted(request.request_id, request.num_computed_tokens)
            super()._preempt_request(request, *args, **kwargs)

    return Harnessed


def _vllm_config(profile: Profile, *, scheduler: SchedulerConfig, prefix_caching: bool, engine_id: str) -> VllmConfig:
    cache = CacheConfig(block_size=profile.block_size_tokens, enable_prefix_caching=prefix_caching)
    config = VllmConfig(
        model_config=_model_config(profile.name, profile.max_model_len_tokens),
        cache_config=cache,
        scheduler_config=scheduler,
        device_config=DeviceConfig("cpu"),
        additional_config={"sagesched": {"engine_id": engine_id}},
    )
    config.cache_config.num_gpu_blocks = profile.kv_blocks + 1
    return config


def _kv_cache_config(profile: Profile, layers: Sequence[KVCacheSpec] | None) -> KVCacheConfig:
    """A layer in each group; one more block than requests can use, because vLLM reserves the null block."""
    full = FullAttentionSpec(block_size=profile.block_size_tokens, num_kv_heads=1, head_size=16, dtype=torch.float32)
    return KVCacheConfig(
        num_blocks=profile.kv_blocks + 1,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([f"layer-{number}"], layer) for number, layer in enumerate(layers or [full])],
    )


@lru_cache(maxsize=16)
def _model_config(name: str, max_model_len_tokens: int) -> ModelConfig:
    """A Llama that is never loaded, under the profile's name; vLLM reads its shape from a folder."""
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 1024,
        "max_position_embeddings": max_model_len_tokens,
        "eos_token_id": END_OF_SEQUENCE_ID,
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape), encoding="utf-8")
        return ModelConfig(
            model=folder,
            served_model_name=name,
            skip_tokenizer_init=True,
            max_model_len=max_model_len_tokens,
            dtype="float32",
            seed=0,
        )
