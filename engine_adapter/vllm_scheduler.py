"""vLLM's scheduler with an ear and a hand for the controller: ``--scheduler-cls`` of the serving command.

`SageScheduler` never touches the body of vLLM's ``schedule()``.
Before each step it sets the order of the waiting queue, the order of the running list (whose last gives way)
and the admission limit, and hands everything back to vLLM's own order when the mode is not ``on``.
Whatever of ours fails is caught here, at the one border: the engine goes on first come, first served.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import vllm
from vllm.config import ModelConfig, VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, RequestQueue, SchedulingPolicy, create_request_queue
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import Request

from engine_adapter.agent import Agent, View
from engine_adapter.link import EngineLink
from engine_adapter.ordering import Plan
from engine_adapter.transport import ZmqLink, default_endpoint
from engine_adapter.vllm_contract import KNOWN_VERSIONS, known_version
from engine_adapter.vllm_lives import Lives
from store.errors import ConfigError
from store.records import Hello, RunningRequest

log = logging.getLogger("vllm.sagesched")
"""A child of vLLM's own logger, so that its level and format hold."""

STEPS_IN_FLIGHT = 64
"""Bound on steps scheduled and not yet updated; vLLM keeps two, or one for each pipeline stage."""

Hook = TypeVar("Hook", bound=Callable[..., None])


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """Where the controller is and what this engine is called."""

    endpoint: str
    engine_id: str


def plugin_settings(vllm_config: VllmConfig) -> PluginSettings:
    """Read ``--additional-config '{"sagesched": {...}}'``, then the environment, then the defaults.

    Raises `ConfigError` for unknown keys and wrong types.
    """
    additional = vllm_config.additional_config
    given = additional.get("sagesched", {}) if isinstance(additional, dict) else {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise ConfigError(f'additional config "sagesched" is {given!r}: give an object of strings')
    unknown = given.keys() - {"endpoint", "engine_id"}
    if unknown:
        raise ConfigError(f'additional config "sagesched" has unknown {sorted(unknown)}: use endpoint, engine_id')
    parallel = vllm_config.parallel_config
    name = given.get("engine_id") or os.environ.get("SAGESCHED_ENGINE_ID") or socket.gethostname()
    return PluginSettings(
        endpoint=given.get("endpoint") or os.environ.get("SAGESCHED_ENDPOINT") or default_endpoint(),
        engine_id=f"{name}-{parallel.data_parallel_rank}" if parallel.data_parallel_size > 1 else name,
    )


def _border(hook: Hook) -> Hook:
    """Guard a hook: no exception of ours reaches the engine, and its time is counted."""

    @functools.wraps(hook)
    def guarded(self: SageScheduler, *args: object) -> None:
        if self._agent is None:
            return
        started_s = time.perf_counter()
        try:
            hook(self, *args)
        except Exception as error:  # noqa: BLE001 - the border: nothing of ours may reach the engine
            self._give_up(error)
        self._hook_s += time.perf_counter() - started_s

    return guarded  # type: ignore[return-value]


class SageScheduler(AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, ordered by index tables from the controller.

    Under ``--scheduling-policy priority`` a request's own priority stays a strict class above the index.
    A harness in virtual time overrides `_now_s` and `_make_link`; both are called during construction.
    """

    policy: SchedulingPolicy
    waiting: RequestQueue
    max_num_active_reqs: int

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._agent: Agent | None = None
        self._stock_policy = self.policy
        self._stock_limit = self.max_num_active_reqs
        self._taken_over = False
        self._plan: Plan[Request] | None = None
        self._hook_s = 0.0
        self._unix_offset_s = time.time() - time.monotonic()
        self._scheduled: deque[tuple[SchedulerOutput, float]] = deque(maxlen=STEPS_IN_FLIGHT)
        self._updated_s = 0.0
        self._told_idle = True
        if not known_version(vllm.__version__):
            log.error(
                "SageSched does not know vLLM %s (it knows %s): serving vLLM's own order, nothing is reported",
                vllm.__version__,
                ", ".join(f"{version}.x" for version in KNOWN_VERSIONS),
            )
            return
        try:
            self._connect()
        except Exception:
            log.exception("SageSched could not start: serving vLLM's own order, nothing is reported")

    # --- what a harness may replace ---------------------------------------------------------------

    def _now_s(self) -> float:
        """Unix seconds of a clock that never jumps: the monotonic one, converted once."""
        return time.monotonic() + self._unix_offset_s

    def _make_link(self) -> EngineLink:
        """The engine's end of the connection to the controller."""
        return ZmqLink(plugin_settings(self.vllm_config).endpoint)

    # --- vLLM's calls -----------------------------------------------------------------------------

    def add_request(self, request: Request, *args: object, **kwargs: object) -> None:
        """Queue a request and report its arrival."""
        super().add_request(request, *args, **kwargs)
        self._after_add(request)

    def schedule(self, *args: object, **kwargs: object) -> SchedulerOutput:
        """Let vLLM schedule a step in our order."""
        self._before_schedule()
        output = super().schedule(*args, **kwargs)
        self._after_schedule(output)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, *args: object, **kwargs: object
    ) -> dict[int, EngineCoreOutputs]:
        """Let vLLM take over a step's tokens and report what it brought."""
        now_s = self._now_s()
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, *args, **kwargs)
        self._after_update(scheduler_output, outputs, now_s)
        return outputs

    def finish_requests(self, *args: object, **kwargs: object) -> list[Request]:
        """Let vLLM end requests from outside, aborted ones above all, and report it."""
        requests: list[Request] = super().finish_requests(*args, **kwargs)
        self._after_finish(requests)
        return requests

    def _preempt_request(self, request: Request, *args: object, **kwargs: object) -> None:
        lost_tokens = request.num_computed_tokens
        super()._preempt_request(request, *args, **kwargs)
        self._after_preemption(request, lost_tokens)

    def shutdown(self) -> None:
        """Send what is left, say goodbye, and let vLLM shut down."""
        self._close()
        super().shutdown()

    # --- hooks ------------------------------------------------------------------------------------

    @_border
    def _after_add(self, request: Request) -> None:
        if request.request_id in self.requests:
            self._lives.begin(request)

    @_border
    def _before_schedule(self) -> None:
        assert self._agent is not None
        now_s = self._now_s()
        self._agent.poll(now_s)
        known, strangers = _split(self.waiting, self._lives)
        active, strangers_active = _split(self.running, self._lives)
        plan = self._agent.plan(now_s, waiting=known, running=active, free_blocks=self._blocks_free())
        self._plan = plan
        if plan is None:
            self._hand_back()
        else:
            self._apply(plan, strangers, strangers_active)

    @_border
    def _after_schedule(self, output: SchedulerOutput) -> None:
        now_s = self._now_s()
        self._scheduled.append((output, now_s))
        self._lives.schedule(output, now_s)
        self._report(now_s)

    @_border
    def _after_update(self, output: SchedulerOutput, outputs: dict[int, EngineCoreOutputs], now_s: float) -> None:
        assert self._agent is not None
        self._lives.emit(chain.from_iterable(client.outputs for client in outputs.values()), now_s)
        self._count_step(output, now_s)
        if not self.requests:
            self._agent.poll(now_s)
            self._report(now_s)

    @_border
    def _after_finish(self, requests: list[Request]) -> None:
        now_s = self._now_s()
        for request in requests:
            self._lives.end(request, now_s)

    @_border
    def _after_preemption(self, request: Request, lost_tokens: int) -> None:
        self._lives.preempt(request, lost_tokens, self._now_s())

    @_border
    def _close(self) -> None:
        assert self._agent is not None
        agent, self._agent = self._agent, None
        agent.close(self._now_s())

    # --- inside -----------------------------------------------------------------------------------

    def _connect(self) -> None:
        settings = plugin_settings(self.vllm_config)
        self._groups = max(1, len(self.kv_cache_config.kv_cache_groups))
        hello = Hello(
            engine_id=settings.engine_id,
            session_id=uuid.uuid4().hex,
            model=_model_name(self.vllm_config.model_config),
            engine="vllm",
            engine_version=vllm.__version__,
            kv_blocks=self._blocks_total(),
            block_size_tokens=self.block_size,
            max_num_seqs=self.max_num_running_reqs,
            token_budget=self.max_num_scheduled_tokens,
            max_model_len_tokens=self.max_model_len,
            prefix_caching=bool(self.cache_config.enable_prefix_caching),
            started_s=self._now_s(),
            data_parallel_rank=self.vllm_config.parallel_config.data_parallel_rank,
        )
        self._agent = Agent(hello=hello, link=self._make_link())
        self._lives = Lives(self._agent)
        log.info("SageSched %s reports to %s", settings.engine_id, settings.endpoint)

    def _apply(self, plan: Plan[Request], strangers: list[Request], strangers_active: list[Request]) -> None:
        """Put a plan into force; requests that we do not know go first, outside the gate.

        Requests that hold blocks while they wait are admitted by vLLM before all others.
        The plan is checked whole before anything changes.
        """
        waiting = FCFSRequestQueue(chain(strangers, plan.waiting))
        running = strangers_active + plan.running
        assert len(waiting) == len(self.waiting), "the plan loses or invents waiting requests"
        assert len(running) == len(self.running), "the plan loses or invents running requests"
        limit = self._stock_limit
        if plan.admission_limit is not None:
            others = len(strangers) + len(strangers_active) + len(self.kv_holding_waiting)
            limit = min(limit, plan.admission_limit + others + self.num_waiting_for_streaming_input)
        self.policy = SchedulingPolicy.FCFS
        self.waiting = waiting
        self.running[:] = running
        self.max_num_active_reqs = limit
        self._taken_over = True

    def _hand_back(self) -> None:
        """Restore vLLM's own policy, limit and order."""
        if not self._taken_over:
            return
        waiting = create_request_queue(self._stock_policy)
        for request in sorted(self.waiting, key=_arrival):
            waiting.add_request(request)
        self.running.sort(key=_arrival)
        self.waiting = waiting
        self.policy = self._stock_policy
        self.max_num_active_reqs = self._stock_limit
        self._plan = None
        self._taken_over = False

    def _give_up(self, error: Exception) -> None:
        """After an error of ours: back to vLLM's own order, until the agent's pause is over."""
        try:
            now_s = self._now_s()
            self._hand_back()
            if self._agent is not None:
                self._agent.failed(now_s, error)
                self._lives.end_finished(now_s)
        except Exception:
            log.exception("SageSched failed beyond repair: serving vLLM's own order, nothing is reported")
            self._agent = None

    def _count_step(self, output: SchedulerOutput, now_s: float) -> None:
        """Count a step; it took from when it was scheduled, or the step before it ended, until now.

        Steps queue behind one another on the device, so this is the device's time under async scheduling too.
        A request with one token in the step counts as decoding, and one with speculative tokens.
        """
        assert self._agent is not None
        began_s = self._take_scheduled_s(output)
        if began_s is None or not output.total_num_scheduled_tokens:
            return
        counts = output.num_scheduled_tokens
        decoding = list(counts.values()).count(1)
        speculative = [counts[request_id] for request_id in output.scheduled_spec_decode_tokens]
        drafted = [count for count in speculative if count > 1]
        computed_tokens = sum(output.scheduled_cached_reqs.num_computed_tokens)
        computed_tokens += sum(new.num_computed_tokens for new in output.scheduled_new_reqs)
        hook_s, self._hook_s = self._hook_s, 0.0
        self._agent.count_step(
            step_s=max(0.0, now_s - max(began_s, self._updated_s)),
            prefill_tokens=output.total_num_scheduled_tokens - decoding - sum(drafted),
            decode_tokens=decoding + len(drafted),
            kv_tokens_read=computed_tokens + output.total_num_scheduled_tokens,
            hook_s=hook_s,
        )
        self._updated_s = now_s

    def _take_scheduled_s(self, output: SchedulerOutput) -> float | None:
        for position, (scheduled, scheduled_s) in enumerate(self._scheduled):
            if scheduled is output:
                del self._scheduled[position]
                return scheduled_s
        return None

    def _report(self, now_s: float) -> None:
        """Send a snapshot when one is due, and one more when the engine falls idle: vLLM then stops calling."""
        assert self._agent is not None
        idle = not self.requests
        if not self._agent.snapshot_due(now_s) and (self._told_idle or not idle):
            return
        self._told_idle = idle
        self._agent.report(
            now_s,
            View(
                kv_blocks_used=self._blocks_total() - self._blocks_free(),
                waiting=len(self.waiting) + len(self.kv_holding_waiting),
                running=len(self.running),
                queue=(request.request_id for request in self.waiting),
                running_requests=self._running_requests(),
                admission_limit=self._plan.admission_limit if self._plan else None,
                reserved_blocks=self._plan.reserved_blocks if self._plan else 0,
            ),
        )

    def _running_requests(self) -> Iterator[RunningRequest]:
        """What runs, with the blocks that its computed tokens fill; shared blocks count for each."""
        for request in self.running:
            blocks = -(-request.num_computed_tokens // self.block_size)
            yield RunningRequest(request.request_id, request.num_output_tokens, blocks)

    def _blocks_total(self) -> int:
        """Usable blocks; a model with several KV groups takes one block of each for the same tokens."""
        return int(self.kv_cache_manager.block_pool.num_gpu_blocks - 1) // self._groups

    def _blocks_free(self) -> int:
        return int(self.kv_cache_manager.block_pool.get_num_free_blocks()) // self._groups


def _split(requests: Iterable[Request], lives: Lives) -> tuple[list[Request], list[Request]]:
    """Those whose life we follow, and the others."""
    known: list[Request] = []
    strangers: list[Request] = []
    for request in requests:
        (known if request.request_id in lives else strangers).append(request)
    return known, strangers


def _arrival(request: Request) -> float:
    return float(request.arrival_time)


def _model_name(model_config: ModelConfig) -> str:
    """The first name that the model is served under."""
    served = model_config.served_model_name
    if isinstance(served, (list, tuple)):
        served = served[0] if served else None
    return str(served or model_config.model)
