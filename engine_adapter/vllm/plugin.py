"""The hooks that `SageScheduler` runs around vLLM's calls; no error of the plugin reaches the engine.

An error in a hook is caught here, logged and counted, and the engine continues in vLLM's own order.
vLLM's own calls are outside the hooks: their errors reach vLLM unchanged.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import vllm
from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import Request

from engine_adapter.agent.agent import Agent, View
from engine_adapter.agent.clock import StampClock
from engine_adapter.agent.farewell import FAREWELL_S, hand_over
from engine_adapter.ordering.ordering import OrderingFactory, Plan
from engine_adapter.transport.keys import EngineKey, load_engine_key
from engine_adapter.transport.link import EngineLink
from engine_adapter.transport.socket_folder import group_id
from engine_adapter.transport.zmq_sockets import ZmqLink, default_endpoint
from engine_adapter.vllm import contract
from engine_adapter.vllm.block_memory import BlockMemory
from engine_adapter.vllm.engine_name import engine_name, model_name
from engine_adapter.vllm.idle_polls import IDLE_POLL_S, IdlePolls
from engine_adapter.vllm.probe.verdict import Verdict, try_behaviours
from engine_adapter.vllm.releases import SchedulerNames
from engine_adapter.vllm.request_events import RequestTracker
from engine_adapter.vllm.scheduler_control import SchedulerControl
from engine_adapter.vllm.shedding import Shedding
from store.bounds import bounded_name, bounded_request_id
from store.errors import ConfigError
from store.records import Hello, Mode, PreemptionCause, RunningRequest

log = logging.getLogger("vllm.sagesched")
"""A child of vLLM's logger, whose level and format apply."""

STEPS_IN_FLIGHT = 64
"""Bound on the steps scheduled and not yet updated; vLLM keeps two, or one per pipeline stage."""

Hook = TypeVar("Hook", bound=Callable[..., None])


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """The controller's endpoint, this engine's name, its key over TCP, and the group that shares a socket."""

    endpoint: str
    engine_id: str
    key: EngineKey | None = None
    socket_group: int | None = None


def plugin_settings(vllm_config: VllmConfig) -> PluginSettings:
    """Read ``--additional-config '{"sagesched": {...}}'``, then the environment, then the defaults.

    An engine with a key file has the name in that file, or one that begins as it says.

    Raises:
        ConfigError: A key of the configuration is unknown or has a wrong type, or the key file cannot be used.
    """
    additional = vllm_config.additional_config
    given = additional.get("sagesched", {}) if isinstance(additional, dict) else {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise ConfigError(f'additional config "sagesched" is {given!r}: give an object of strings')
    names = ("endpoint", "engine_id", "key_file", "socket_group")
    unknown = given.keys() - set(names)
    if unknown:
        raise ConfigError(f'additional config "sagesched" has unknown {sorted(unknown)}: use {", ".join(names)}')
    key_file = given.get("key_file") or os.environ.get("SAGESCHED_KEY_FILE")
    key = load_engine_key(Path(key_file)) if key_file else None
    name = given.get("engine_id") or os.environ.get("SAGESCHED_ENGINE_ID")
    group = given.get("socket_group") or os.environ.get("SAGESCHED_SOCKET_GROUP")
    return PluginSettings(
        endpoint=given.get("endpoint") or os.environ.get("SAGESCHED_ENDPOINT") or default_endpoint(),
        engine_id=engine_name(name, key, vllm_config.parallel_config),
        key=key,
        socket_group=group_id(group) if group else None,
    )


def check_model(vllm_config: VllmConfig) -> None:
    """Refuse a model for which vLLM brings a scheduler of its own, which ours would replace.

    Raises:
        ConfigError: The model generates by diffusion.
    """
    if vllm_config.diffusion_config is not None:
        raise ConfigError(
            f"{vllm_config.model_config.model} generates by diffusion, which needs vLLM's own diffusion scheduler:"
            " start vLLM without --scheduler-cls"
        )


def start_plugin(
    scheduler: AsyncScheduler,
    *,
    now_s: Callable[[], float],
    wall_s: Callable[[], float],
    make_link: Callable[[str, EngineKey | None, int | None], EngineLink],
    make_ordering: OrderingFactory,
) -> Plugin | None:
    """Make the plugin of a scheduler; None, with the reason in the log, when it cannot or must not run."""
    try:
        if violations := contract.check():
            log.error(
                "SageSched: vLLM serves in its own order and nothing is reported: %s", contract.verdict(violations)
            )
            return None
        settings = plugin_settings(scheduler.vllm_config)
        verdict = try_behaviours(scheduler.vllm_config)
        if not verdict.steers:
            log.error("SageSched: vLLM serves in its own order, and what happens is reported: %s", verdict.text)
        link = make_link(settings.endpoint, settings.key, settings.socket_group)
        plugin = Plugin(scheduler, settings.engine_id, StampClock(now_s, wall_s), link, make_ordering, verdict=verdict)
    except ConfigError as error:
        # Without a trace: the line says all.
        log.error(  # noqa: TRY400
            "SageSched could not start: vLLM serves in its own order and nothing is reported: %s", error
        )
        return None
    except Exception:
        log.exception("SageSched could not start: vLLM serves in its own order and nothing is reported")
        return None
    log.info("SageSched engine %s reports to %s", settings.engine_id, settings.endpoint)
    plugin.start_idle_polls()
    return plugin


def _border(hook: Hook) -> Hook:
    """Guard a hook: no exception reaches the engine, no idle poll runs beside it, and its time is counted."""

    @functools.wraps(hook)
    def guarded(self: Plugin, *args: object) -> None:
        if not self.alive:
            return
        started_s = time.perf_counter()
        with self._turn:
            try:
                hook(self, *args)
            except Exception as error:  # noqa: BLE001 - no error of the plugin may reach the engine
                self._give_up(error)
        self._hook_s += time.perf_counter() - started_s

    return guarded  # type: ignore[return-value]


class Plugin:
    """Reports the events of a vLLM scheduler to the agent, and steers the scheduler by the agent's plans."""

    def __init__(
        self,
        scheduler: AsyncScheduler,
        engine_id: str,
        clock: StampClock,
        link: EngineLink,
        make_ordering: OrderingFactory,
        *,
        verdict: Verdict,
    ) -> None:
        self.alive = True
        self._scheduler = scheduler
        self._clock = clock
        self._now_s = clock.now_s
        self._connects = isinstance(link, ZmqLink)
        self._memory = BlockMemory(scheduler)
        self.agent = Agent(
            hello=self._hello(engine_id, verdict.text),
            link=link,
            make_ordering=make_ordering,
            barred=None if verdict.steers else verdict.text,
        )
        self._tracker = RequestTracker(self.agent, clock, self._memory.expected_tokens)
        self._control = SchedulerControl(scheduler, self._tracker.arrival)
        self._step_tokens = 1 + int(scheduler.num_spec_tokens)
        """Most tokens that a request generates in a step."""
        self._plan: Plan[Request] | None = None
        self._shedding = Shedding(scheduler, self._tracker)
        self._hook_s = 0.0
        self._scheduled: deque[tuple[SchedulerOutput, float]] = deque(maxlen=STEPS_IN_FLIGHT)
        self._updated_s = 0.0
        self._told_idle = True
        self._logged_mode: tuple[Mode, str | None] = "off", None
        self._turn = threading.RLock()
        """Held by a hook, which may cause another, and by an idle poll."""
        self._polled_s = -math.inf
        self._idle_polls = IdlePolls(self._poll_if_idle)
        self._used_blocks = 0
        """KV blocks in use when the last snapshot was made: prefixes that are kept stay while the engine is idle."""

    def start_idle_polls(self) -> None:
        """Connect to the controller while the engine starts, and exchange messages with it whenever no step is made.

        Not in virtual time, where every step is made on call.
        """
        if self._connects:
            self._idle_polls.start()

    # --- hooks ------------------------------------------------------------------------------------

    @_border
    def before_add(self, request: Request) -> None:
        """Note that a session's input ends: vLLM then may end the session at once."""
        self._tracker.end_input(request)

    @_border
    def after_add(self, request: Request) -> None:
        """Report a request that the engine has queued."""
        if request.request_id in self._scheduler.requests:
            self._tracker.begin(request)
            self._check_size(request)

    @_border
    def before_schedule(self) -> None:
        """Steer the step that the engine is about to schedule."""
        now_s = self._now_s()
        self._poll(now_s)
        self._shedding.end(self.agent.shed(now_s))
        self._plan = self._control.steer(
            self.agent,
            self._tracker.request_ids,
            now_s=now_s,
            memory=self._memory,
            steps_in_flight=len(self._scheduled),
        )

    @_border
    def after_schedule(self, output: SchedulerOutput) -> None:
        """Record a step that the engine has scheduled."""
        now_s = self._now_s()
        self._control.show_all()
        self._scheduled.append((output, now_s))
        self._tracker.schedule(output, self._scheduler.running, now_s)
        self._report(now_s)

    @_border
    def after_update(self, output: SchedulerOutput, outputs: dict[int, EngineCoreOutputs], now_s: float) -> None:
        """Report the tokens of a step that ended at ``now_s``."""
        self._shedding.answer(outputs)
        told = chain.from_iterable(client.outputs for client in outputs.values())
        self._tracker.emit(told, output.num_scheduled_tokens, self._scheduler.finished_req_ids, now_s)
        self.agent.generated(self._step_tokens)
        self._count_step(output, now_s)
        self._report_if_idle(now_s)

    @_border
    def after_finish(self, requests: list[Request]) -> None:
        """Report requests that were ended from outside, such as aborted ones."""
        now_s = self._now_s()
        for request in requests:
            self._tracker.end(request, now_s)
        self._report_if_idle(now_s)

    @_border
    def after_preemption(self, request: Request, lost_tokens: int) -> None:
        """Report a running request that lost its blocks with ``lost_tokens`` computed tokens."""
        cause: PreemptionCause = "policy" if self._control.pushing_out else "memory"
        self._tracker.preempt(request, lost_tokens, cause, self._now_s())
        self._check_size(request)

    @_border
    def close(self) -> None:
        """Hand over the remaining facts and say `Goodbye` when the engine shuts down."""
        self.alive = False
        self._idle_polls.stop()
        hand_over(self.agent, clock=self._now_s, sleep=time.sleep, wait_s=FAREWELL_S if self._connects else 0.0)
        self.agent.close(self._now_s())

    # --- internals --------------------------------------------------------------------------------

    def _hello(self, engine_id: str, contract_text: str) -> Hello:
        scheduler: Any = self._scheduler
        config: VllmConfig = scheduler.vllm_config
        return Hello(
            engine_id=bounded_name(engine_id),
            session_id=uuid.uuid4().hex,
            model=bounded_name(model_name(config.model_config)),
            engine="vllm",
            engine_version=vllm.__version__,
            kv_blocks=self._memory.all_blocks,
            block_size_tokens=self._memory.block_tokens,
            max_num_seqs=min(scheduler.max_num_running_reqs, SchedulerNames.of(scheduler).active_limit(scheduler)),
            token_budget=scheduler.max_num_scheduled_tokens,
            max_model_len_tokens=scheduler.max_model_len,
            prefix_caching=bool(scheduler.cache_config.enable_prefix_caching),
            started_s=self._now_s(),
            data_parallel_rank=config.parallel_config.data_parallel_index,
            contract=contract_text,
        )

    def _give_up(self, error: Exception) -> None:
        """Return to vLLM's own order until the agent's pause after an error is over."""
        try:
            now_s = self._now_s()
            self._plan = None
            self._control.give_back()
            self.agent.failed(now_s, error)
            self._tracker.end_finished(now_s)
        except Exception:
            self.alive = False
            log.exception("SageSched failed beyond repair: vLLM serves in its own order and nothing is reported")

    def _check_size(self, request: Request) -> None:
        """Put a request that needs more KV memory than the engine has behind all others, and say so once."""
        if self._memory.fits(request.num_tokens) or request.request_id not in self._tracker.request_ids:
            return
        if self.agent.impossible(request.request_id):
            log.warning(
                "SageSched: request %s has %d tokens, which need more than the %d KV blocks of this engine: it can never"
                " run, and all others go before it; abort it, lower --max-model-len, or give the engine more KV memory",
                bounded_request_id(request.request_id),
                request.num_tokens,
                self._memory.all_blocks,
            )

    def _count_step(self, output: SchedulerOutput, now_s: float) -> None:
        """Count a step, whose duration runs from its scheduling, or from the end of the step before it, until now.

        Steps queue on the device, so this is the device's time under async scheduling too.
        A request with one token in the step counts as decoding, and so does one with speculative tokens.
        """
        began_s = self._take_scheduled_s(output)
        if began_s is None or not output.total_num_scheduled_tokens:
            return
        counts = output.num_scheduled_tokens
        single = list(counts.values()).count(1)
        drafted = [counts[request_id] for request_id in output.scheduled_spec_decode_tokens if counts[request_id] > 1]
        computed_tokens = sum(output.scheduled_cached_reqs.num_computed_tokens)
        computed_tokens += sum(new.num_computed_tokens for new in output.scheduled_new_reqs)
        hook_s, self._hook_s = self._hook_s, 0.0
        self.agent.count_step(
            step_s=max(0.0, now_s - max(began_s, self._updated_s)),
            prefill_tokens=output.total_num_scheduled_tokens - single - sum(drafted),
            decode_tokens=single + len(drafted),
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

    def _log_mode(self, now_s: float) -> None:
        """Log a change of the mode in force or of its reason: without a controller nothing else shows it."""
        mode, fallback = self.agent.mode(now_s), self.agent.fallback(now_s)
        if (mode, fallback) == self._logged_mode:
            return
        self._logged_mode = mode, fallback
        if fallback is None:
            log.info("SageSched mode %s", mode)
        else:
            log.warning("SageSched mode %s: %s", mode, fallback)

    def _poll(self, now_s: float) -> None:
        self._polled_s = now_s
        self.agent.poll(now_s)
        self._log_mode(now_s)

    def _poll_if_idle(self) -> None:
        """Exchange messages in the timer's thread unless steps are made; touch nothing of vLLM's."""
        now_s = self._now_s()
        if now_s - self._polled_s < IDLE_POLL_S:
            return
        with self._turn:
            if not self.alive:
                return
            try:
                before = self._logged_mode
                self._poll(now_s)
                if not self._tracker.request_ids and (before != self._logged_mode or self.agent.beat_due(now_s)):
                    self._report_idle(now_s)
            except Exception as error:  # noqa: BLE001 - no error of the plugin may reach the engine
                self.agent.failed(now_s, error)

    def _report_idle(self, now_s: float) -> None:
        """Send a snapshot of an engine without requests."""
        view = View(
            kv_blocks_used=self._used_blocks,
            waiting=0,
            running=0,
            queue=(),
            running_requests=(),
            clock_off_s=self._clock.off_s(),
            stamps_replaced=self._clock.replaced,
        )
        self.agent.report(now_s, view)

    def _report_if_idle(self, now_s: float) -> None:
        """Send all pending facts when the last request has ended: vLLM then stops calling."""
        if not self._scheduler.requests:
            self._poll(now_s)
            self._report(now_s)

    def _report(self, now_s: float) -> None:
        """Send a snapshot when one is due, and one more when the engine becomes idle: vLLM then stops calling."""
        scheduler = self._scheduler
        idle = not scheduler.requests
        falls_idle = idle and not self._told_idle
        self._told_idle = idle
        if not falls_idle and not self.agent.snapshot_due(now_s):
            return
        self._used_blocks = self._memory.all_blocks - self._memory.unused_blocks
        self.agent.report(
            now_s,
            View(
                kv_blocks_used=self._used_blocks,
                waiting=scheduler.get_request_counts()[1],
                running=len(scheduler.running),
                queue=(request.request_id for request in scheduler.waiting),
                running_requests=self._running_requests(),
                admission_limit=self._plan.admission_limit if self._plan else None,
                reserved_blocks=self._plan.reserved_blocks if self._plan else 0,
                step_tokens=self._control.shape.step_tokens,
                chunk_tokens=self._control.shape.chunk_tokens,
                clock_off_s=self._clock.off_s(),
                stamps_replaced=self._clock.replaced,
            ),
        )

    def _running_requests(self) -> Iterator[RunningRequest]:
        """Yield the running requests with the blocks of their computed tokens; a shared block counts for each."""
        for request in self._scheduler.running:
            blocks = self._memory.held_blocks(request.num_computed_tokens)
            yield RunningRequest(request.request_id, request.num_output_tokens, blocks)
