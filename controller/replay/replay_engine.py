"""One replay: a past run through the simulated engine, under another policy or as the engine was really told.

Another policy decides in the controller's own core, as it does live, but for the learner: beliefs are the recorded ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Protocol

import numpy as np
from msgspec import structs

from controller.core.core import Core, CoreConfig
from controller.policy.baselines import ordering_of
from controller.policy.policies import policy_named
from controller.policy.policy import EngineFacts, Policy, RequestFacts
from controller.replay.recorded_run import Replayable
from engine_adapter.ordering.ordering import Ordering, OrderingFactory
from engine_adapter.transport.link import DirectLink, EngineLink, NoLink
from engine_adapter.virtual_time.engine import Step, Totals, TraceRequest, VirtualEngine, serve
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from online_learning.calibration.calibration import CalibrationSettings
from online_learning.calibration.guard import GuardSettings
from online_learning.distribution import LengthDistribution
from online_learning.length_learner import Drift, Features, Forecast, Observation, Prompt
from store.records import (
    Acknowledged,
    Arrived,
    ControllerMessage,
    EngineMessage,
    Fact,
    Facts,
    Hello,
    IndexTable,
    Welcome,
)

LEASE_S = 1e9
"""Virtual time jumps over idle hours; nobody is silent in a replay."""
PROMPT_S = 1.0
"""A table that was published within this time of the arrival is there at once in a replay too."""
PRIOR_PROMPT_TOKENS = 256

_CONNECTION = b"replay"


class Controller(Protocol):
    """What answers the engine of a replay, whose clock says when."""

    def answer(self, message: EngineMessage, now_s: float) -> list[ControllerMessage]:
        """What the engine hears upon a message."""
        ...


def replay_under(past: Replayable, policy: Policy, progress: Callable[[], None] | None = None) -> Totals:
    """Serve a past run again under a policy; ``progress`` is told of each answer that ends.

    Raises an assertion when a policy that orders is given a past without a single belief.
    """
    controller = Reconsidering(past, policy) if policy.orders else None
    return _serve(past, controller, progress, ordering_of(policy))


def replay_as_told(past: Replayable, progress: Callable[[], None] | None = None) -> Totals:
    """Serve a past run again with the settings and tables that its engine had, each at its time."""
    return _serve(past, Repeating(past) if past.run.told else None, progress)


class Reconsidering:
    """The controller's own core under another policy, with the beliefs that were recorded."""

    def __init__(self, past: Replayable, policy: Policy) -> None:
        self._number = {request.request_id: number for number, request in enumerate(past.requests)}
        learner = RecordedPredictions(
            past.prior,
            {number: past.beliefs[name] for name, number in self._number.items() if name in past.beliefs},
        )
        self._core = Core(
            learner=learner,
            policy=policy,
            config=CoreConfig(
                controller_id="replay",
                mode="on",
                hash_key=b"replay",
                lease_s=LEASE_S,
                acknowledge_at_once=True,
                calibration=CalibrationSettings(guard=GuardSettings(enabled=False)),
            ),
            now_s=past.requests[0].arrival_s,
            timer=lambda: 0.0,
        )

    def answer(self, message: EngineMessage, now_s: float) -> list[ControllerMessage]:
        """Decide, as the core does for a live engine."""
        if isinstance(message, Facts):
            message = structs.replace(message, facts=tuple(self._named(fact) for fact in message.facts))
        answers = self._core.take(_CONNECTION, message, now_s)
        self._core.drain_entries()
        return [answer for _, answer in answers]

    def _named(self, fact: Fact) -> Fact:
        """An arrival with its number for a prompt, by which the learner knows it again."""
        if not isinstance(fact, Arrived):
            return fact
        return structs.replace(fact, token_ids=self._number[fact.request_id].to_bytes(4, "little"))


class RecordedPredictions:
    """A learner that believes what was believed: it knows each request by its number and learns nothing."""

    def __init__(self, prior: LengthDistribution, beliefs: Mapping[int, LengthDistribution]) -> None:
        self._prior = prior
        self._predictor = beliefs

    def features(self, prompt: Prompt) -> Features:
        """The request's number, which stands in the place of its first token, in two digits that a float holds."""
        number = int(prompt.token_ids[0])
        return np.array([number >> 16, number & 0xFFFF], dtype=np.float32)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The recorded belief, or the prior where none was recorded."""
        number = (int(features[0]) << 16) + int(features[1])
        return Forecast(distribution=self._predictor.get(number, self._prior), cluster=None, evidence=0.0)

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Nothing is learnt."""
        return []

    def prior(self, model: str) -> LengthDistribution:
        """The mean of the recorded beliefs."""
        return self._prior


class Repeating:
    """A controller that says again what was said: settings and tables at their times."""

    def __init__(self, past: Replayable) -> None:
        self._past = past
        self._at_arrival: dict[str, IndexTable] = {}
        self._later: deque[tuple[float, ControllerMessage]] = deque()
        arrivals_s = {request.request_id: request.arrival_s for request in past.requests}
        for told in past.run.told:
            message = told.message
            name = message.request_id if isinstance(message, IndexTable) else None
            if isinstance(message, IndexTable) and name is not None:
                arrival_s = arrivals_s.get(name)
                if arrival_s is None:
                    continue
                if name not in self._at_arrival and told.time_s <= arrival_s + PROMPT_S:
                    self._at_arrival[name] = message
                    continue
            self._later.append((told.time_s, message))

    def answer(self, message: EngineMessage, now_s: float) -> list[ControllerMessage]:
        """All that was said up to now and has not been said again yet."""
        said: list[ControllerMessage] = []
        match message:
            case Hello():
                said += [Welcome(controller_id="replay", durable_batch=0), *self._prior()]
            case Facts(batch=batch, facts=facts):
                arrived = [fact.request_id for fact in facts if isinstance(fact, Arrived)]
                said += [self._at_arrival[name] for name in arrived if name in self._at_arrival]
                said.append(Acknowledged(batch=batch))
        while self._later and self._later[0][0] <= now_s:
            said.append(self._later.popleft()[1])
        return said

    def _prior(self) -> Iterator[IndexTable]:
        """The table of requests that have none; the prior's own tables are not recorded."""
        past, profile = self._past, self._past.profile
        if not past.beliefs:
            return
        request = RequestFacts(
            request_id=None, prompt_tokens=PRIOR_PROMPT_TOKENS, max_tokens=profile.max_model_len_tokens
        )
        engine = EngineFacts(
            kv_tokens=profile.kv_tokens,
            block_size_tokens=profile.block_size_tokens,
            max_num_seqs=profile.max_num_seqs,
            base_s=profile.base_s,
            prefill_token_s=profile.prefill_token_s,
            decode_seq_s=profile.decode_seq_s,
            kv_token_s=profile.kv_token_s,
        )
        yield policy_named("sage").assess(request, past.prior, engine).table


def _serve(
    past: Replayable,
    controller: Controller | None,
    progress: Callable[[], None] | None,
    make_ordering: OrderingFactory = Ordering,
) -> Totals:
    """Serve the run to its end, on an engine that is empty when the first request arrives."""
    clock: list[VirtualEngine] = []

    def answer(message: EngineMessage) -> list[ControllerMessage]:
        assert controller is not None, "without a controller nobody is asked"
        return controller.answer(message, clock[0].now_s)

    link: EngineLink = DirectLink(answer) if controller else NoLink()
    start_s = past.requests[0].arrival_s
    engine = SimulatedEngine(past.profile, link=link, start_s=start_s, make_ordering=make_ordering)
    clock.append(engine)
    return serve(_WithClients(engine, past.leaving_s, progress or (lambda: None)), past.works())


class _WithClients:
    """An engine whose clients go away when they did, however far their answers have come; tells of each end."""

    def __init__(self, engine: VirtualEngine, leaving_s: Mapping[str, float], progress: Callable[[], None]) -> None:
        self._engine = engine
        self._leaving_s = leaving_s
        self._progress = progress
        self._leaving: list[tuple[float, str]] = []
        self._gone: set[str] = set()

    @property
    def now_s(self) -> float:
        return self._engine.now_s

    @property
    def unfinished(self) -> int:
        return self._engine.unfinished

    def submit(self, work: TraceRequest) -> None:
        self._engine.submit(work)
        if work.request_id in self._leaving_s:
            heappush(self._leaving, (self._leaving_s[work.request_id], work.request_id))

    def abort(self, request_id: str) -> None:
        self._engine.abort(request_id)

    def advance_to(self, time_s: float) -> None:
        self._engine.advance_to(time_s)

    def step(self) -> Step:
        while self._leaving and self._leaving[0][0] <= self._engine.now_s:
            _, request_id = heappop(self._leaving)
            if request_id not in self._gone:
                self._engine.abort(request_id)
        step = self._engine.step()
        for life in step.finished:
            if life.request_id in self._leaving_s:
                self._gone.add(life.request_id)
            self._progress()
        return step
