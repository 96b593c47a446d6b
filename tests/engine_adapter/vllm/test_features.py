"""Every feature of vLLM that changes what its scheduler does: all answers end, and token for token they are the same.

A device that knows each request's answer by position stands behind vLLM's own scheduler: a token that is lost, doubled
or put in another's answer shows. It is stock vLLM's answer with the plugin in mode off, shadow and on. In mode on the
index orders what starts, and no request is preempted for want of memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm
from vllm.config import KVTransferConfig, SpeculativeConfig
from vllm.config.lora import LoRAConfig
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request

from engine_adapter.transport.link import DirectLink
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm import contract
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler
from store.records import Gate, Preempted

pytestmark = pytest.mark.vllm

Script = Callable[..., Any]

PROFILE = Profile(
    name="one-second-steps",
    base_s=1.0,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=384,
    block_size_tokens=16,
    max_num_seqs=8,
    token_budget=64,
    max_model_len_tokens=128,
)
REQUESTS = 16
OUTPUT_TOKENS = (20, 33, 48, 5)
PROMPT_TOKENS = (40, 9, 60, 25)
LAST_STEP = 2_000

Act = Callable[["Served", int], None]


@dataclass(frozen=True)
class Feature:
    """One feature: how vLLM is configured for it, and what happens while it serves.

    Args:
        configure: Changes the configuration.
        prepare: Changes the scheduler that was made by it.
        act: Called before each step.
        request: More of what a request is made with, by its number.
        in_flight: Steps in flight at most.
        drafts: Draft tokens of each step, of which the device accepts some.
        overtaking: Why a request may start before another of a lower index; empty where none may.
        preempts: Whether the feature preempts by itself.
        options: Passed to the engine.
    """

    configure: Callable[[Any, Path], None] = lambda _config, _folder: None
    prepare: Callable[[Any], None] = lambda _scheduler: None
    act: Act = lambda _served, _step: None
    request: Callable[[int], dict[str, Any]] = lambda _number: {}
    in_flight: int = 2
    drafts: int = 0
    overtaking: str = ""
    preempts: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def _setting(**values: Any) -> Callable[[Any, Path], None]:
    def configure(config: Any, _folder: Path) -> None:
        for name, value in values.items():
            assert hasattr(config.scheduler_config, name)
            setattr(config.scheduler_config, name, value)

    return configure


def _speculative(method: str) -> Callable[[Any, Path], None]:
    """The drafter itself is the device's part: of the configuration the scheduler reads method and number."""

    def configure(config: Any, _folder: Path) -> None:
        config.speculative_config = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=3,
            target_model_config=config.model_config,
            target_parallel_config=config.parallel_config,
        )
        config.speculative_config.method = method
        config.scheduler_config.async_scheduling = method != "ngram"

    return configure


def _pipeline(config: Any, _folder: Path) -> None:
    config.parallel_config.pipeline_parallel_size = 3


def _example_connector(config: Any, folder: Path) -> None:
    config.scheduler_config.disable_hybrid_kv_cache_manager = True
    config.kv_transfer_config = KVTransferConfig(
        kv_connector="ExampleConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"shared_storage_path": str(folder)},
    )


class _Remote:
    """A connector by script: it loads all of a prompt but its last token in three steps, or sends what ended for three.

    Args:
        loads: Whether prompts are loaded, as on the decode side of a pair.
        sends: Whether blocks are sent before they are freed, as on the prefill side.
    """

    def __init__(self, *, loads: bool = False, sends: bool = False) -> None:
        self.loads, self.sends = loads, sends
        self._left: dict[str, int] = {}
        self._sent: set[str] = set()

    def get_num_new_matched_tokens(self, request: Request, computed_tokens: int) -> tuple[int, bool]:
        return (request.num_tokens - 1 - computed_tokens, True) if self.loads else (0, False)

    def update_state_after_alloc(self, request: Request, _blocks: object, tokens: int) -> None:
        if tokens:
            self._left[request.request_id] = 3

    def request_finished(self, request: Request, _block_ids: object) -> tuple[bool, None]:
        if self.sends:
            self._left[request.request_id] = 3
            self._sent.add(request.request_id)
        return self.sends, None

    def step(self) -> KVConnectorOutput:
        """What is loaded or sent after one more step."""
        self._left = {name: steps - 1 for name, steps in self._left.items()}
        done = {name for name, steps in self._left.items() if not steps}
        self._left = {name: steps for name, steps in self._left.items() if steps}
        return KVConnectorOutput(finished_sending=done & self._sent, finished_recving=done - self._sent)

    def __getattr__(self, name: str) -> Any:
        """What else vLLM asks of a connector has nothing to tell here."""
        answers = {"get_loaded_kv_cache_group_ids": ()}
        return lambda *_args, **_more: answers.get(name)


def _decode_side(scheduler: Any) -> None:
    scheduler.connector = _Remote(loads=True)


def _prefill_side(scheduler: Any) -> None:
    scheduler.connector = _Remote(sends=True)


def _offloading(config: Any, _folder: Path) -> None:
    config.kv_transfer_config = KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"cpu_bytes_to_use": 1 << 20, "block_size": 16},
    )


def _adapters(config: Any, _folder: Path) -> None:
    config.lora_config = LoRAConfig(max_loras=1, max_cpu_loras=3)


def _adapter(number: int) -> dict[str, Any]:
    return {"lora_request": LoRARequest(f"adapter-{number % 3}", 1 + number % 3, "/adapters")}


def _class(number: int) -> dict[str, Any]:
    return {"priority": number % 2}


def _encoder(scheduler: Any) -> None:
    """Room for one image a step and for three in the cache."""
    scheduler.max_num_encoder_input_tokens = 16
    scheduler.encoder_cache_manager = EncoderCacheManager(cache_size=48)


def _image(number: int) -> dict[str, Any]:
    place = PlaceholderRange(offset=2, length=6)
    return {"mm_features": [MultiModalFeatureSpec(None, "image", f"image-{number}", place, f"image-{number}")]}


def _pause(served: Served, step: int) -> None:
    states = {10: PauseState.PAUSED_NEW, 20: PauseState.PAUSED_ALL, 30: PauseState.UNPAUSED}
    if step in states:
        served.scheduler.set_pause_state(states[step])


def _reset(served: Served, step: int) -> None:
    if step in {12, 25}:
        while served.in_flight:
            served.update()
        assert served.scheduler.reset_prefix_cache(reset_running_requests=True)


def _sleep(served: Served, step: int) -> None:
    """What sleeping is to a scheduler: all stands still and the KV cache is gone."""
    if step == 15:
        served.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        while served.in_flight:
            served.update()
        assert served.scheduler.reset_prefix_cache(reset_running_requests=True)
    if step == 25:
        served.scheduler.set_pause_state(PauseState.UNPAUSED)


SESSIONS = (3, 7, 11)
"""Requests whose input comes in three parts, with one feature."""


def _session(number: int) -> dict[str, Any]:
    return {"resumable": number in SESSIONS}


def _turns(served: Served, step: int) -> None:
    if step in {20, 60}:
        for number in SESSIONS:
            served.add(number, resumable=step == 20)


def _ranks(served: Served, step: int) -> None:
    served.throttled = step % 4 != 0


WINDOW = SlidingWindowSpec(block_size=16, num_kv_heads=1, head_size=16, dtype=torch.float32, sliding_window=32)
FULL = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=16, dtype=torch.float32)

FEATURES = {
    "plain": Feature(),
    "no-async-scheduling": Feature(_setting(async_scheduling=False), in_flight=1),
    "no-chunked-prefill": Feature(_setting(enable_chunked_prefill=False)),
    "priority": Feature(request=_class, options={"scheduling": "priority"}),
    "speculative-ngram": Feature(_speculative("ngram"), in_flight=1, drafts=3),
    "speculative-async": Feature(_speculative("eagle"), drafts=3),
    "lora": Feature(_adapters, request=_adapter, overtaking="a request whose adapter has no slot is passed by"),
    "multimodal": Feature(prepare=_encoder, request=_image),
    "hybrid-kv": Feature(options={"layers": (FULL, WINDOW, WINDOW)}),
    "prefix-caching": Feature(options={"prefix_caching": True}),
    "pipeline-parallel": Feature(_pipeline, in_flight=3),
    "data-parallel": Feature(act=_ranks, options={"data_parallel_rank": 1}),
    "prefill-schedule-interval": Feature(_setting(prefill_schedule_interval=3)),
    "max-num-active-seqs": Feature(_setting(max_num_active_seqs=3)),
    "example-connector": Feature(_example_connector),
    "kv-connector-decode-side": Feature(prepare=_decode_side, overtaking="order holds until the load begins"),
    "kv-connector-prefill-side": Feature(prepare=_prefill_side),
    "offloading-connector": Feature(_offloading, options={"prefix_caching": True}),
    "streaming-input": Feature(act=_turns, request=_session, overtaking="a session's next turn holds its KV blocks"),
    "pause": Feature(act=_pause),
    "reset-prefix-cache": Feature(act=_reset, preempts=True, options={"prefix_caching": True}),
    "sleep-and-wake": Feature(act=_sleep, preempts=True, options={"prefix_caching": True}),
}


class Served:
    """VLLM's scheduler and a device that answers each request by position, with steps in flight."""

    def __init__(self, feature: Feature, scheduler_class: Any, script: Any, folder: Path) -> None:
        engine = VllmVirtualTimeEngine(
            PROFILE, link=DirectLink(script), scheduler_class=scheduler_class, **feature.options
        )
        config = engine.scheduler.vllm_config
        feature.configure(config, folder)
        self._engine, self._feature = engine, feature
        self.scheduler: Any = type(engine.scheduler)(
            vllm_config=config,
            kv_cache_config=engine.scheduler.kv_cache_config,
            structured_output_manager=engine.scheduler.structured_output_manager,
            block_size=PROFILE.block_size_tokens,
        )
        feature.prepare(self.scheduler)
        self.in_flight: deque[tuple[SchedulerOutput, dict[str, list[int]]]] = deque()
        self.answers: dict[str, list[int]] = {str(number): [] for number in range(REQUESTS)}
        self.overtaken: list[tuple[str, str]] = []
        """Requests that started before others of a lower index, which waited long enough to be told."""
        self.throttled = False
        self._known: dict[str, int] = {}
        """Tokens of each request that the device has."""

    def serve(self) -> None:
        """Let requests arrive, a few before each step, until all have ended."""
        left = deque(range(REQUESTS))
        for step in range(LAST_STEP):
            while left and left[0] <= 2 * step - 4:
                number = left.popleft()
                self.add(number, **self._feature.request(number))
            self._feature.act(self, step)
            self._schedule()
            while len(self.in_flight) >= self._feature.in_flight or (
                self.in_flight and not self.in_flight[-1][0].num_scheduled_tokens
            ):
                self.update()
            if not left and not self.scheduler.requests:
                return
        raise AssertionError(f"requests {sorted(self.scheduler.requests)} never end")

    def add(self, number: int, **more: Any) -> None:
        """Let a request arrive, or more of its input."""
        tokens = PROMPT_TOKENS[number % 4]
        sampling = SamplingParams(max_tokens=OUTPUT_TOKENS[number % 4], temperature=0.0, ignore_eos=True)
        self.scheduler.add_request(
            Request(
                request_id=str(number),
                prompt_token_ids=list(range(3, 3 + tokens)),
                sampling_params=sampling,
                pooling_params=None,
                arrival_time=self._engine.now_s,
                block_hasher=self._engine._block_hasher,
                **more,
            )
        )

    def _schedule(self) -> None:
        told_s = self._engine.now_s - 3.0
        queued = chain(self.scheduler.waiting, getattr(self.scheduler, "skipped_waiting", ()))
        waiting = {request.request_id for request in queued if request.arrival_time <= told_s}
        output = self.scheduler.schedule(self.throttled) if self.throttled else self.scheduler.schedule()
        waiting -= set(output.scheduled_cached_reqs.resumed_req_ids)
        for new in output.scheduled_new_reqs:
            waiting.discard(new.req_id)
            self.overtaken += [(new.req_id, other) for other in waiting if self._place(other) < self._place(new.req_id)]
        fresh = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed = fresh | dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for request_id in (*fresh, *cached.resumed_req_ids):
            self._known[request_id] = self.scheduler.requests[request_id].num_tokens
        sampled = {name: self._compute(name, output, computed[name]) for name in output.num_scheduled_tokens}
        self.in_flight.append((output, sampled))
        self._engine.advance_to(self._engine.now_s + 1.0)

    def _place(self, request_id: str) -> tuple[int, float]:
        return self.scheduler.requests[request_id].priority, INDEXES[request_id]

    def _compute(self, request_id: str, output: SchedulerOutput, computed_tokens: int) -> list[int]:
        """Answer the step's tokens, among them as many of the drafts as the position says."""
        drafts = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
        known = self._known[request_id]
        if not drafts and computed_tokens + output.num_scheduled_tokens[request_id] < known:
            return []
        accepted = min(drafts, known % 4)
        self._known[request_id] = known + accepted + 1
        return [answer(request_id, known + place) for place in range(accepted + 1)]

    def update(self) -> None:
        """Let the oldest step in flight end."""
        output, sampled = self.in_flight.popleft()
        names = list(output.num_scheduled_tokens)
        connector = self.scheduler.connector
        loads = connector.step() if isinstance(connector, _Remote) else None
        ended = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: place for place, name in enumerate(names)},
                sampled_token_ids=[sampled[name] for name in names],
                kv_connector_output=loads,
            ),
        )
        for client in ended.values():
            for request in client.outputs:
                self.answers[request.request_id] += request.new_token_ids
        if self._feature.drafts and self._feature.in_flight == 1:
            self.scheduler.update_draft_token_ids(DraftTokenIds(names, [[7] * self._feature.drafts for _ in names]))


def answer(request_id: str, position: int) -> int:
    """The token at a position of a request: no two neighbours, and no two requests, are alike."""
    return 10 + (int(request_id) * 131 + position * 7) % 1000


def expected() -> dict[str, list[int]]:
    """Every request's whole answer."""
    return {
        str(number): [
            answer(str(number), PROMPT_TOKENS[number % 4] + place) for place in range(OUTPUT_TOKENS[number % 4])
        ]
        for number in range(REQUESTS)
    }


def _stock_answers(feature: Feature, script: Any, folder: Path) -> dict[str, list[int]]:
    served = Served(feature, AsyncScheduler, script, folder)
    served.serve()
    turns = {len(served.answers[str(number)]) // OUTPUT_TOKENS[number % 4] for number in SESSIONS}
    assert turns == {2}
    return served.answers


INDEXES = {str(number): float((number * 7) % REQUESTS + 1) for number in range(REQUESTS)}


@pytest.mark.parametrize("mode", ["stock", "off", "shadow", "on"])
@pytest.mark.parametrize("name", FEATURES)
def test_answers_are_those_of_stock_vllm(scripted: Script, tmp_path: Path, name: str, mode: str) -> None:
    """Every request ends with its whole answer, in every mode; in mode on, in the order of the index."""
    if name == "max-num-active-seqs" and contract.may_lack("max_num_active_reqs", vllm.__version__):
        pytest.skip("vLLM 0.31 brought it")
    feature = FEATURES[name]
    script = scripted(
        mode="on" if mode == "stock" else mode, indexes=INDEXES, gate=Gate(horizon_tokens=48), growth_tokens=48.0
    )
    served = Served(feature, AsyncScheduler if mode == "stock" else SageScheduler, script, tmp_path)
    served.serve()
    assert served.answers == (expected() if name != "streaming-input" else _stock_answers(feature, script, tmp_path))
    if mode == "stock":
        return
    assert set(script.finished()) == set(INDEXES)
    assert {snapshot.policy_errors for snapshot in script.snapshots()} == {0}
    assert script.snapshots()[-1].mode == mode
    if mode == "on":
        assert feature.preempts or "memory" not in {fact.cause for fact in script.facts(Preempted)}
        assert bool(served.overtaken) == bool(feature.overtaking)


def test_a_scheduler_that_is_drained_ends_the_answers_that_run(scripted: Script, tmp_path: Path) -> None:
    """Paused for new requests: those of a higher class that come meanwhile push nobody out, since they would not start."""
    script = scripted(mode="on", indexes=INDEXES, gate=Gate(horizon_tokens=48))
    served = Served(Feature(options={"scheduling": "priority"}), SageScheduler, script, tmp_path)

    def step() -> None:
        served._schedule()
        while len(served.in_flight) >= 2:
            served.update()

    for number in range(1, REQUESTS, 2):
        served.add(number, priority=1)
    for _ in range(4):
        step()
    running = {request.request_id for request in served.scheduler.running}
    assert len(running) == PROFILE.max_num_seqs
    served.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    for number in (0, 2, 4, 6):
        served.add(number, priority=0)
    for _ in range(60):
        step()
    assert set(served.scheduler.requests) == {"0", "2", "4", "6"}
    assert script.facts(Preempted) == []
    served.scheduler.set_pause_state(PauseState.UNPAUSED)
    for _ in range(100):
        step()
    assert not served.scheduler.requests


def test_the_workload_tells_orders_apart_and_runs_out_of_memory(scripted: Script, tmp_path: Path) -> None:
    """What the test above finds nowhere in mode on happens in stock vLLM's own order."""
    script = scripted(mode="off", indexes=INDEXES)
    served = Served(FEATURES["plain"], SageScheduler, script, tmp_path)
    served.serve()
    assert served.overtaken
    assert {fact.cause for fact in script.facts(Preempted)} == {"memory"}
