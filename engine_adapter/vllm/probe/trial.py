"""A scheduler of vLLM's class for a few requests, with six KV blocks of its own and nothing of the engine's.

Its configuration is a shallow copy of the engine's: what differs by platform or version stays, what reaches beyond the
scheduler (connectors, events, drafts, adapters, modalities, parallel ranks) is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from copy import copy
from hashlib import sha256
from typing import Any

import torch
from vllm.config import CacheConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from engine_adapter.vllm.releases import SchedulerNames

BLOCKS = 6
BLOCK_TOKENS = 16
BUDGET_TOKENS = 64
OUTPUT_TOKENS = 40
"""Output tokens of a request, unless it is given another number."""

_ABSENT = ("ec_transfer_config", "kv_events_config", "kv_transfer_config", "lora_config", "speculative_config")
_DEFAULT = ("aux_output_config", "ec_manager_config", "observability_config")
_MODEL = {
    "enable_return_routed_experts": False,
    "is_diffusion": False,
    "is_encoder_decoder": False,
    "is_multimodal_model": False,
    "max_model_len": BLOCKS * BLOCK_TOKENS,
    "multimodal_config": None,
    "return_sampling_mask": False,
    "runner_type": "generate",
    "skip_tokenizer_init": True,
    "supports_multimodal_inputs": False,
    "uses_mrope": False,
}


class Trial:
    """A scheduler and the device that answers it, with one token for each request that is computed to its end.

    Args:
        scheduler_class: The scheduler under trial.
        vllm_config: The engine's configuration, which is read and not changed.
        places: Requests that run at once at most.
        policy: vLLM's ``--scheduling-policy``.
        caching: Whether prompt prefixes are cached.
    """

    def __init__(
        self,
        scheduler_class: type[AsyncScheduler],
        vllm_config: VllmConfig,
        *,
        places: int = 4,
        policy: str = "fcfs",
        caching: bool = False,
    ) -> None:
        config = _trial_config(vllm_config, places=places, policy=policy, caching=caching)
        layer = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=16, dtype=torch.float32)
        self.scheduler: Any = scheduler_class(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=BLOCKS + 1,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
        )
        self.names = SchedulerNames.of(self.scheduler)
        self._hasher = _hashes if caching else None
        self._in_flight: deque[tuple[SchedulerOutput, set[str]]] = deque()

    @property
    def running(self) -> list[str]:
        """Ids of the running requests, in order."""
        return ids(self.scheduler.running)

    @property
    def waiting(self) -> list[str]:
        """Ids of the waiting requests, in order, without those that hold blocks."""
        return ids(self.scheduler.waiting)

    @property
    def free_blocks(self) -> int:
        """Blocks that can be allocated."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def add(
        self,
        *request_ids: str,
        prompt_tokens: int = 8,
        output_tokens: int = OUTPUT_TOKENS,
        first_token: int = 3,
        priority: int = 0,
    ) -> Request:
        """Let requests arrive, one after another; return the last."""
        for request_id in request_ids:
            request = Request(
                request_id=request_id,
                prompt_token_ids=list(range(first_token, first_token + prompt_tokens)),
                sampling_params=SamplingParams(max_tokens=output_tokens, ignore_eos=True),
                pooling_params=None,
                arrival_time=float(len(self.scheduler.requests)),
                priority=priority,
                block_hasher=self._hasher,
            )
            self.scheduler.add_request(request)
        return request

    def schedule(self) -> SchedulerOutput:
        """Schedule a step, which is then in flight."""
        output = self.scheduler.schedule()
        requests = self.scheduler.requests
        done = {name for name in output.num_scheduled_tokens if _is_computed(requests[name])}
        self._in_flight.append((output, done))
        return output

    def update(self) -> None:
        """Let the oldest step in flight end."""
        output, done = self._in_flight.popleft()
        names = list(output.num_scheduled_tokens)
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: place for place, name in enumerate(names)},
                sampled_token_ids=[[5] if name in done else [] for name in names],
            ),
        )

    def step(self) -> SchedulerOutput:
        """Schedule a step and let it end."""
        output = self.schedule()
        self.update()
        return output

    def until(self, holds: Callable[[], bool], steps: int = 4 * OUTPUT_TOKENS) -> bool:
        """Take steps until something holds; False if it never does."""
        for _ in range(steps):
            if holds():
                return True
            self.step()
        return holds()


def ids(requests: Iterable[Request]) -> list[str]:
    """Return the ids of requests, in order."""
    return [request.request_id for request in requests]


class _Model:
    """A model's configuration, but for what a trial replaces."""

    def __init__(self, model_config: object) -> None:
        self.__dict__.update(_MODEL)
        self._model_config = model_config

    def __getattr__(self, name: str) -> object:
        return getattr(self._model_config, name)


def _trial_config(given: VllmConfig, *, places: int, policy: str, caching: bool) -> VllmConfig:
    config = copy(given)
    parallel = copy(given.parallel_config)
    parallel.pipeline_parallel_size = 1
    parallel.decode_context_parallel_size = 1
    parallel.prefill_context_parallel_size = 1
    cache = CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=caching)
    cache.num_gpu_blocks = BLOCKS + 1
    changes = {
        **{name: None for name in _ABSENT if hasattr(given, name)},
        **{name: type(getattr(given, name))() for name in _DEFAULT if hasattr(given, name)},
        "additional_config": {},
        "cache_config": cache,
        "model_config": _Model(given.model_config),
        "parallel_config": parallel,
        "scheduler_config": SchedulerConfig(
            max_model_len=BLOCKS * BLOCK_TOKENS,
            is_encoder_decoder=False,
            max_num_seqs=places,
            max_num_batched_tokens=BUDGET_TOKENS,
            policy=policy,
            watermark=0.0,
            scheduler_reserve_full_isl=True,
            enable_chunked_prefill=True,
            async_scheduling=given.scheduler_config.async_scheduling,
        ),
    }
    vars(config).update(changes)
    return config


def _is_computed(request: Request) -> bool:
    return bool(request.num_computed_tokens >= request.num_tokens)


def _hashes(request: Request) -> list[bytes]:
    """Hash the full blocks that have no hash yet, as vLLM does, without its process-wide seed."""
    token_ids = list(request.all_token_ids)
    ends = range((len(request.block_hashes) + 1) * BLOCK_TOKENS, len(token_ids) + 1, BLOCK_TOKENS)
    return [sha256(repr(token_ids[:end]).encode()).digest() for end in ends]
