"""Replays a past run on the simulated engine, under another policy or with the recorded messages of its controller.

Another policy runs in the controller's core, as it does live, but with the recorded predictions in place of a learner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from msgspec import structs

from controller.core.in_process import IN_PROCESS, InProcessController
from controller.core.outbox import Outgoing
from controller.policy.baselines import ordering_of, scheduling_of
from controller.policy.policies import policy_named
from controller.policy.policy import EngineFacts, Policy, RequestFacts
from controller.policy.promised_lengths import with_promise
from controller.replay.recorded_run import RecordedRequest, Replayable
from engine_adapter.ordering.ordering import Ordering, OrderingFactory
from engine_adapter.transport.link import DirectLink, EngineLink, NoLink
from engine_adapter.virtual_time.engine import Step, Totals, serve
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from engine_adapter.virtual_time.simulated_scheduler import Scheduling
from online_learning.calibration.calibration import CalibrationSettings
from online_learning.calibration.guard import GuardSettings
from online_learning.distribution import LengthDistribution
from online_learning.length_learner import Drift, Features, Forecast, Observation, Prompt
from store.bounds import bounded_request_id
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

PROMPT_S = 1.0
"""A table that was published within this time of the arrival is sent at the arrival in a replay."""
PRIOR_PROMPT_TOKENS = 256

Progress = Callable[[], None]
"""Called for each answer that ends."""


def replay_under(past: Replayable, policy: Policy, progress: Progress | None = None, *, targets: bool = True) -> Totals:
    """Serve a past run again under a policy. If the policy orders, the run must have a prediction.

    Without ``targets`` it is not told what the requests were promised.
    """
    connect = _ReplayController(past, policy).link if policy.orders else _no_link
    return _serve(past, connect, progress, ordering_of(policy), scheduling_of(policy), targets=targets)


def replay_as_recorded(past: Replayable, progress: Progress | None = None) -> Totals:
    """Serve a past run again with the settings and tables that its engine received, each at its time."""
    recorded = RecordedMessages(past)
    return _serve(past, recorded.link if past.run.messages else _no_link, progress)


class _ReplayController(InProcessController):
    """The controller's own core with recorded predictions: a request's number replaces its prompt."""

    def __init__(self, past: Replayable, policy: Policy) -> None:
        # Ids as the replay's engine will send them: whoever recorded the run may not have bounded them.
        self._numbers = {bounded_request_id(request.request_id): at for at, request in enumerate(past.requests)}
        predictions = {
            at: past.predictions[request.request_id]
            for at, request in enumerate(past.requests)
            if request.request_id in past.predictions
        }
        super().__init__(
            RecordedPredictions(past.prior, predictions),
            policy,
            config=replace(IN_PROCESS, calibration=CalibrationSettings(guard=GuardSettings(enabled=False))),
            now_s=past.start_s,
        )

    def handle(self, connection: bytes, message: EngineMessage, now_s: float) -> list[Outgoing]:
        if isinstance(message, Facts):
            message = structs.replace(message, facts=tuple(map(self._numbered, message.facts)))
        return super().handle(connection, message, now_s)

    def _numbered(self, fact: Fact) -> Fact:
        if not isinstance(fact, Arrived):
            return fact
        return structs.replace(fact, token_ids=self._numbers[fact.request_id].to_bytes(4, "little"))


class RecordedPredictions:
    """A learner that returns the recorded predictions: it identifies each request by its number and learns nothing."""

    def __init__(self, prior: LengthDistribution, predictions: Mapping[int, LengthDistribution]) -> None:
        self._prior = prior
        self._predictions = predictions

    def features(self, prompt: Prompt) -> Features:
        """The request's number, which replaces its first token, as two digits that a float can hold."""
        number = int(prompt.token_ids[0])
        return np.array([number >> 16, number & 0xFFFF], dtype=np.float32)

    def predict_one(self, features: Features, model: str) -> Forecast:
        """The recorded prediction, or the prior if none was recorded."""
        number = (int(features[0]) << 16) + int(features[1])
        return Forecast(distribution=self._predictions.get(number, self._prior), cluster=None, evidence=0.0)

    def learn_one(self, features: Features, model: str, observation: Observation) -> list[Drift]:
        """Learn nothing."""
        return []

    def prior(self, model: str) -> LengthDistribution:
        """The mean of the recorded predictions."""
        return self._prior


class RecordedMessages:
    """A controller that sends the recorded settings and tables again, each at its time."""

    def __init__(self, past: Replayable) -> None:
        self._past = past
        self._at_arrival: dict[str, IndexTable] = {}
        self._later: deque[tuple[float, ControllerMessage]] = deque()
        requests = {request.request_id: request for request in past.requests}
        for recorded in past.run.messages:
            message = recorded.message
            name = message.request_id if isinstance(message, IndexTable) else None
            if isinstance(message, IndexTable) and name is not None:
                request = requests.get(name)
                if request is None:
                    continue
                message = self._with_promise(message, request)
                if name not in self._at_arrival and recorded.time_s <= request.arrival_s + PROMPT_S:
                    self._at_arrival[name] = message
                    continue
            self._later.append((recorded.time_s, message))

    def _with_promise(self, table: IndexTable, request: RecordedRequest) -> IndexTable:
        """The table with the request's targets, which are recorded apart from it."""
        predicted = self._past.predictions.get(request.request_id)
        if request.targets is None or predicted is None:
            return table
        facts = RequestFacts(
            request_id=request.request_id,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            targets=request.targets,
        )
        return with_promise(table, facts, predicted)

    def link(self, clock: Callable[[], float]) -> DirectLink:
        """Return a link for the engine; ``clock`` gives its time in seconds."""
        return DirectLink(lambda message: self._answer(message, clock()))

    def _answer(self, message: EngineMessage, now_s: float) -> Iterator[ControllerMessage]:
        """The messages recorded up to now that have not been sent again yet."""
        match message:
            case Hello():
                yield Welcome(controller_id="replay", durable_batch=0)
                yield from self._prior()
            case Facts(batch=batch, facts=facts):
                arrived = [fact.request_id for fact in facts if isinstance(fact, Arrived)]
                yield from (self._at_arrival[name] for name in arrived if name in self._at_arrival)
                yield Acknowledged(batch=batch)
        while self._later and self._later[0][0] <= now_s:
            yield self._later.popleft()[1]

    def _prior(self) -> Iterator[IndexTable]:
        """The table of requests without one of their own, which is not recorded."""
        past, profile = self._past, self._past.profile
        if not past.predictions:
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


def _no_link(_clock: Callable[[], float]) -> EngineLink:
    return NoLink()


def _serve(
    past: Replayable,
    connect: Callable[[Callable[[], float]], EngineLink],
    progress: Progress | None,
    make_ordering: OrderingFactory = Ordering,
    scheduling: Scheduling = "fcfs",
    *,
    targets: bool = True,
) -> Totals:
    """Serve the run to its end, on an engine that begins with the requests that arrived before."""
    link = connect(lambda: engine.now_s)
    start_s = past.start_s
    engine = SimulatedEngine(
        past.profile, link=link, start_s=start_s, make_ordering=make_ordering, scheduling=scheduling
    )

    on_end = progress or (lambda: None)

    def report(step: Step) -> None:
        if step.scheduled_tokens and engine.unfinished:
            engine.advance_to(engine.now_s + past.late_s(engine.now_s))
        for _ in step.finished:
            on_end()

    return serve(engine, past.trace(targets=targets), on_step=report)
