"""Every name and behaviour of vLLM that the plugin relies on, and the releases that are refused.

vLLM's scheduler is no public interface and changes with every release. Whether a release is served depends on what it
does, not on its number: `check` looks for the names, and `engine_adapter.vllm.probe` tries the behaviours.

Behaviours:

1. ``waiting`` under policy FCFS is a deque that is served from its head, in its order.
2. Under policy FCFS the victim of a failed allocation is the last of ``running``.
3. A preempted request goes to the head of ``waiting`` with no computed tokens left.
4. No request is admitted while ``running`` has ``max_num_active_reqs`` requests; the limit is read in every step.
   (To 0.30 it is ``max_num_running_reqs``, and must not be below their number.)
5. ``policy``, ``waiting`` and ``max_num_active_reqs`` may change between steps, with steps in flight.
6. ``schedule()`` reads ``waiting`` and ``running`` afresh in every call, so both may be reordered before it.
7. ``finish_requests`` returns the requests that it ended; those that an output ends are finished when it returns.
   The ids of both are in ``finished_req_ids`` until the next ``schedule()``.
8. ``num_computed_tokens`` of a cached request in a ``SchedulerOutput`` is the count before the step.
9. ``get_num_free_blocks()`` counts the blocks that can be allocated; the pool's null block is never free.
10. ``_preempt_request`` may be called between steps, even with steps in flight, for a request removed from ``running``.
11. ``max_num_scheduled_tokens`` and ``scheduler_config.long_prefill_token_threshold`` are read in every step.
12. A request whose KV is loaded asynchronously leaves ``waiting`` for ``kv_holding_waiting`` and is not counted against
    ``max_num_active_reqs``; a request that is passed by goes back to the head of ``waiting``.
    To 0.30 both go to ``skipped_waiting``, which is served before ``waiting``.
13. Requests passed by, or blocked by their status, are in ``deferred_waiting`` until they start or end.
14. ``find_longest_cache_hit`` and ``get_cached_block`` change neither the order of eviction nor any statistics, and in a
    group of full attention a cached block's predecessors are cached too.
15. The requests in ``waiting``, ``kv_holding_waiting`` and ``running`` are the unfinished ones; ``requests`` also has
    finished ones whose blocks are freed later.
16. ``diffusion_config`` is set only for models for which vLLM brings a scheduler of its own.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache

_SCHEDULER = "vllm.v1.core.sched.scheduler"
_ASYNC_SCHEDULER = "vllm.v1.core.sched.async_scheduler"
_QUEUES = "vllm.v1.core.sched.request_queue"
_OUTPUT = "vllm.v1.core.sched.output"
_MANAGERS = "vllm.v1.core.single_type_kv_cache_manager"
_SPECS = "vllm.v1.kv_cache_interface"

KNOWN_BAD: dict[tuple[int, int], str] = {
    (0, minor): "its finish_requests returns no requests: install 0.26 or later" for minor in range(20, 26)
}
"""Releases that are refused whatever a check finds, and why."""

LATER: dict[str, tuple[tuple[int, int], str | None]] = {
    "deferred_waiting": ((0, 31), "skipped_waiting"),
    "kv_holding_waiting": ((0, 31), "skipped_waiting"),
    "max_admission_blocks_per_request": ((0, 31), "_max_admission_blocks_per_request"),
    "max_num_active_reqs": ((0, 31), "max_num_running_reqs"),
    "Scheduler._request_blocks_can_be_freed": ((0, 30), "Scheduler._free_request_blocks"),
    "mamba_prefill_checkpoint_alignment": ((0, 30), None),
    "CircularBufferSpec.max_memory_usage_bytes": ((0, 29), None),
    "extra_retained_tokens": ((0, 28), None),
    "num_prefill_lookahead": ((0, 28), None),
    "KVCacheManager.prefix_cache_lookup_enabled": ((0, 27), "KVCacheManager.get_computed_blocks"),
    "drop_stale_output": ((0, 27), None),
    "num_stale_output_tokens": ((0, 27), None),
    "requires_kv_delivery": ((0, 27), None),
}
"""Names that came after 0.26: with which release, and what does the same before it (None: nothing needs to)."""

NAMES: dict[str, tuple[str, ...]] = {
    "vllm": ("__version__",),
    "vllm.config": ("ModelConfig", "ParallelConfig", "VllmConfig"),
    _ASYNC_SCHEDULER: ("AsyncScheduler",),
    "vllm.v1.core.sched.interface": ("PauseState.UNPAUSED",),
    _QUEUES: (
        "FCFSRequestQueue",
        "RequestQueue",
        "SchedulingPolicy.FCFS",
        "SchedulingPolicy.PRIORITY",
        "create_request_queue",
    ),
    _OUTPUT: ("SchedulerOutput", "NewRequestData", "CachedRequestData"),
    "vllm.v1.engine": ("EngineCoreOutput", "EngineCoreOutputs", "FinishReason"),
    "vllm.v1.request": (
        "Request.get_finished_reason",
        "Request.is_finished",
        "RequestStatus.FINISHED_ABORTED",
        "RequestStatus.WAITING_FOR_REMOTE_KVS",
        "RequestStatus.WAITING_FOR_STREAMING_REQ",
        "RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR",
    ),
    "vllm.v1.core.block_pool": ("BlockPool.get_cached_block", "BlockPool.get_num_free_blocks"),
    _MANAGERS: ("FullAttentionManager", "SingleTypeKVCacheManager"),
    _SPECS: (
        "ChunkedLocalAttentionSpec",
        "CircularBufferSpec.max_memory_usage_bytes",
        "CrossAttentionSpec.max_memory_usage_bytes",
        "MambaSpec.max_memory_usage_bytes",
        "SlidingWindowSpec",
    ),
}
"""Names that must exist, by module."""

PARAMETERS: dict[tuple[str, str], tuple[str, ...]] = {
    (_ASYNC_SCHEDULER, "AsyncScheduler.add_request"): ("self", "request"),
    (_ASYNC_SCHEDULER, "AsyncScheduler.schedule"): ("self",),
    (_ASYNC_SCHEDULER, "AsyncScheduler.update_from_output"): ("self", "scheduler_output", "model_runner_output"),
    (_ASYNC_SCHEDULER, "AsyncScheduler.finish_requests"): ("self", "request_ids", "finished_status"),
    (_ASYNC_SCHEDULER, "AsyncScheduler._preempt_request"): ("self", "request", "timestamp", "drop_stale_output"),
    (_SCHEDULER, "Scheduler._request_blocks_can_be_freed"): ("self", "request"),
    (_ASYNC_SCHEDULER, "AsyncScheduler.shutdown"): ("self",),
    (_QUEUES, "create_request_queue"): ("policy",),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager.prefix_cache_lookup_enabled"): ("self", "request"),
    ("vllm.v1.core.kv_cache_coordinator", "KVCacheCoordinator.find_longest_cache_hit"): (
        "self",
        "block_hashes",
        "max_cache_hit_length",
    ),
    ("vllm.v1.core.kv_cache_coordinator", "KVCacheCoordinator.get_blocks"): ("self", "request_id"),
    ("vllm.v1.core.block_pool", "BlockPool.get_cached_block"): ("self", "block_hash", "kv_cache_group_ids"),
}
"""First parameters of the methods that the plugin overrides or calls."""

ATTRIBUTES: dict[tuple[str, str], tuple[str, ...]] = {
    (_SCHEDULER, "Scheduler"): (
        "block_size",
        "cache_config",
        "connector",
        "deferred_waiting",
        "ec_connector",
        "finished_req_ids",
        "kv_cache_manager",
        "kv_holding_waiting",
        "lora_config",
        "mamba_prefill_checkpoint_alignment",
        "max_model_len",
        "max_num_active_reqs",
        "max_num_running_reqs",
        "max_num_scheduled_tokens",
        "num_lookahead_tokens",
        "num_prefill_lookahead",
        "num_spec_tokens",
        "pause_state",
        "policy",
        "requests",
        "requires_kv_delivery",
        "running",
        "scheduler_config",
        "scheduler_reserve_full_isl",
        "vllm_config",
        "waiting",
    ),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager"): ("block_pool", "coordinator", "watermark_blocks"),
    ("vllm.v1.core.kv_cache_coordinator", "KVCacheCoordinator"): ("single_type_managers",),
    ("vllm.v1.core.kv_cache_utils", "KVCacheBlock"): ("is_null", "ref_cnt"),
    ("vllm.v1.core.block_pool", "BlockPool"): ("num_gpu_blocks",),
    (_MANAGERS, "SingleTypeKVCacheManager"): (
        "block_size",
        "dcp_world_size",
        "kv_cache_spec",
        "max_admission_blocks_per_request",
        "use_eagle",
    ),
    (_SPECS, "ChunkedLocalAttentionSpec"): ("attention_chunk_size",),
    (_SPECS, "MambaSpec"): ("page_size_bytes",),
    (_SPECS, "SlidingWindowSpec"): ("extra_retained_tokens", "sliding_window"),
    ("vllm.v1.request", "Request"): (
        "arrival_time",
        "block_hashes",
        "client_index",
        "drop_stale_output",
        "lora_request",
        "max_tokens",
        "num_computed_tokens",
        "num_output_tokens",
        "num_prompt_tokens",
        "num_stale_output_tokens",
        "num_tokens",
        "priority",
        "prompt_token_ids",
        "request_id",
        "resumable",
        "sampling_params",
        "status",
    ),
    (_OUTPUT, "SchedulerOutput"): (
        "num_scheduled_tokens",
        "scheduled_cached_reqs",
        "scheduled_new_reqs",
        "scheduled_spec_decode_tokens",
        "total_num_scheduled_tokens",
    ),
    (_OUTPUT, "NewRequestData"): ("num_computed_tokens", "req_id"),
    (_OUTPUT, "CachedRequestData"): ("num_computed_tokens",),
    ("vllm.v1.engine", "EngineCoreOutput"): ("finish_reason", "new_token_ids", "request_id", "stop_reason"),
    ("vllm.v1.engine", "EngineCoreOutputs"): ("outputs",),
    ("vllm.config", "VllmConfig"): ("additional_config", "diffusion_config", "model_config", "parallel_config"),
    ("vllm.config", "ModelConfig"): ("model", "served_model_name"),
    ("vllm.config", "ParallelConfig"): ("data_parallel_index", "data_parallel_size"),
    ("vllm.config", "CacheConfig"): ("block_size", "enable_prefix_caching"),
    ("vllm.config", "LoRAConfig"): ("max_loras",),
    ("vllm.lora.request", "LoRARequest"): ("lora_int_id", "lora_name"),
    ("vllm.config", "SchedulerConfig"): (
        "disable_chunked_mm_input",
        "enable_chunked_prefill",
        "long_prefill_token_threshold",
    ),
    ("vllm.sampling_params", "SamplingParams"): ("extra_args", "temperature"),
}
"""Attributes that a class's instances must have: fields, properties, or set in ``__init__``."""

OURS = ("_sage", "_now_s", "_wall_s", "_make_link", "_make_ordering")
"""Names that `SageScheduler` adds; vLLM's scheduler must have none of them."""


def release_of(version: str) -> tuple[int, int]:
    """Return major and minor of a version.

    >>> release_of("0.33.1+cu130"), release_of("dev")
    ((0, 33), (0, 0))
    """
    parts = version.split(".")[:2]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(map(str.isdigit, parts)) else (0, 0)


def may_lack(name: str, version: str) -> bool:
    """Whether a release is older than a name.

    >>> may_lack("kv_holding_waiting", "0.30.0"), may_lack("kv_holding_waiting", "0.34.0"), may_lack("waiting", "0.26.0")
    (True, False, False)
    """
    return name in LATER and release_of(version) < LATER[name][0]


def refusal(version: str) -> str | None:
    """Return why a release is not served whatever its names and behaviours are; None for any other.

    >>> refusal("0.25.1")
    'its finish_requests returns no requests: install 0.26 or later'
    >>> refusal("0.26.0"), refusal("0.99.1+cu130"), refusal("dev")
    (None, None, None)
    """
    return KNOWN_BAD.get(release_of(version))


def verdict(violations: list[str]) -> str:
    """Return one line: the first violation, and how many more there are."""
    more = f" (and {len(violations) - 1} more)" if violations[1:] else ""
    return f"vLLM {version()} does not keep the plugin's contract: {violations[0]}{more}"


def check() -> list[str]:
    """Return the violations of the contract in the installed vLLM, one line each; empty when all names exist."""
    refused = refusal(version())
    if refused is not None:
        return [refused]
    return [*_check_names(), *_check_parameters(), *_check_attributes(), *_check_ours()]


def version() -> str:
    """Return the installed vLLM's version."""
    return str(_find("vllm", "__version__"))


def _accepted(name: str) -> tuple[str, ...]:
    """Return the names of which this release must have one, for one of the contract's; none when it needs none."""
    if not may_lack(name, version()):
        return (name,)
    before = LATER[name][1]
    return () if before is None else (name, before)


def _check_names() -> Iterator[str]:
    for module, names in NAMES.items():
        for name in names:
            accepted = _accepted(name)
            if accepted and all(_find(module, other) is None for other in accepted):
                yield f"{module} has no {accepted[-1]}"


def _check_parameters() -> Iterator[str]:
    for (module, listed), named in PARAMETERS.items():
        accepted = _accepted(listed)
        if not accepted:
            continue
        name = next((other for other in accepted if callable(_find(module, other))), accepted[-1])
        function = _find(module, name)
        if not callable(function):
            yield f"{module} has no function {name}"
            continue
        expected = tuple(parameter for parameter in named if not may_lack(parameter, version()))
        found = tuple(inspect.signature(function).parameters)[: len(expected)]
        if found != expected:
            yield f"{module}.{name} takes {found}, expected {expected} first"


def _check_attributes() -> Iterator[str]:
    for (module, name), expected in ATTRIBUTES.items():
        owner = _find(module, name)
        if not isinstance(owner, type):
            yield f"{module} has no class {name}"
            continue
        has = _has(owner)
        for attribute in expected:
            accepted = _accepted(attribute)
            if accepted and has.isdisjoint(accepted):
                yield f"{module}.{name} has no {accepted[-1]}"


def _check_ours() -> Iterator[str]:
    owner = _find(_ASYNC_SCHEDULER, "AsyncScheduler")
    if isinstance(owner, type):
        yield from (f"AsyncScheduler has a {name} of its own" for name in OURS if name in _has(owner))


def _find(module: str, name: str) -> object | None:
    """Return the object of a dotted name in a module; None if any part is missing."""
    try:
        found: object | None = importlib.import_module(module)
    except ImportError:
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _has(owner: type) -> set[str]:
    """Return the names on a class, its annotated fields and the attributes set in ``__init__``, bases included."""
    names = set(dir(owner))
    for base in owner.__mro__:
        names |= set(vars(base).get("__annotations__", {}))
        if inspect.isfunction(vars(base).get("__init__")):
            names |= _set_in(base)
    return names


@cache
def _set_in(owner: type) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(vars(owner)["__init__"])))
    except (OSError, TypeError, SyntaxError):
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
