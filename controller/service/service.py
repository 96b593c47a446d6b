"""The controller as a process: what is opened at start and closed at the end, and in which order.

At start: the history (only one writer may hold it), the core with what the history teaches, the endpoint, HTTP.
At the end the same in reverse.
"""

from __future__ import annotations

import logging
import os
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from controller.api.access import Access
from controller.api.app import ApiSources, build_api
from controller.api.commands import Commands
from controller.api.prompt_tokenizer import PromptTokenizer
from controller.api.server import WebServer
from controller.config import Config, LearningSection, StoreSection, TelemetrySection, secret
from controller.core.core import Core, CoreConfig
from controller.explain.lookup import Explainer
from controller.monitoring.health import Health, recent_warnings
from controller.monitoring.live_state import Live
from controller.monitoring.metrics import Metrics
from controller.monitoring.present.metrics import PresentCollector
from controller.monitoring.present.pulse import Pulse
from controller.monitoring.tracing import Telemetry, open_telemetry
from controller.policy.from_config import policy_of, service_levels_of
from controller.prompt_encoder import Encoder, check_encoder, load_encoder
from controller.replay.gain_watcher import GainWatch
from controller.service.control_loop import ControlLoop
from controller.service.learner_file import manifest_of
from controller.service.memory import Memory, open_memory
from engine_adapter.transport.zmq_sockets import ZmqHub
from online_learning.calibration.calibration import CalibrationSettings
from online_learning.calibration.guard import GuardSettings
from online_learning.clustering.clusters import ClusterSettings, prepare
from online_learning.experts.semantic import SemanticLearner
from online_learning.length_learner import LengthLearner
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings
from online_learning.mixture.settings import LearnerSettings
from store.errors import StoreError
from store.history.tables import TABLE_OF
from store.history.writer import HistoryWriter
from store.records import Finished

log = logging.getLogger(__name__)

BACKLOG = 5_000
"""Largest number of items of deferred work; each keeps a request in memory, and more are dropped."""

VERIFY_S = 600.0
"""Seconds for which learning waits until a damaged history has been verified."""

LEARN_FIRST_S = 0.5
"""Seconds for which engines wait, so that what the learner's file lacks is learned from the history."""
HASH_KEY_FILE = "prompt_hash.key"
HASH_KEY_BYTES = 32


@dataclass(slots=True)
class Service:
    """An opened controller, whose loop is ready to run."""

    config: Config
    loop: ControlLoop
    web: WebServer
    gain: GainWatch
    commands: Commands
    """What other threads ask of the loop."""
    endpoint: str
    """The address that engines connect to, with the actual port if 0 was configured."""


@contextmanager
def service(
    config: Config,
    *,
    clock: Callable[[], float],
    timer: Callable[[], float],
    wall: Callable[[], float] | None = None,
    cpu_timer: Callable[[], float] | None = None,
) -> Iterator[Service]:
    """Open everything, and close it in any case; the caller runs the loop in between.

    ``clock`` gives Unix seconds and never jumps, ``wall`` is the system clock, whose steps are reported where it is given.
    ``timer`` gives seconds, ``cpu_timer`` CPU seconds of the calling thread; without it waiting of the loop is not measured.

    Raises `ConfigError` before anything is written, and `StoreError` if the history cannot be opened.
    """
    policy_of(config.policy)
    if config.learning.encoder is not None:
        check_encoder(config.learning.encoder, config.learning.tokenizer)
    ports = WebServer(config.http.host, config.http.port)
    try:
        with _opened(config, ports, clock=clock, timer=timer, wall=wall, cpu_timer=cpu_timer or timer) as opened:
            yield opened
    finally:
        ports.stop()


@contextmanager
def _opened(
    config: Config,
    web: WebServer,
    *,
    clock: Callable[[], float],
    timer: Callable[[], float],
    wall: Callable[[], float] | None,
    cpu_timer: Callable[[], float],
) -> Iterator[Service]:
    with recent_warnings() as warnings, ExitStack() as last, _history(config.store, clock) as history:
        controller_id = uuid.uuid4().hex
        core, memory = build_core(config, history, controller_id=controller_id, now_s=clock(), timer=timer)
        last.callback(memory.finish, history)
        hub = ZmqHub(config.engine.endpoint, config.engine.keys, config.engine.socket_group)
        live, commands = Live(), Commands(wake=hub.wake)
        telemetry = _telemetry(config.telemetry, controller_id)
        encoder = _encoder(config.learning)
        metrics = _watching(Metrics(live, timer=timer, cpu_timer=cpu_timer), telemetry, hub, encoder)
        pulse = Pulse(held=lambda: metrics.pauses.waited_s)
        metrics.registry.register(PresentCollector(live, pulse, config.store.path, clock))
        loop = ControlLoop(
            core=core,
            hub=hub,
            history=history,
            live=live,
            metrics=metrics,
            commands=commands,
            clock=clock,
            wall=wall,
            telemetry=telemetry,
            encoder=encoder,
            memory=memory,
            pulse=pulse,
        )
        rows = history.reader()
        gain = GainWatch(rows, config.policy, clock, written=lambda: history.stats.rows.get(TABLE_OF[Finished], 0))
        sources = ApiSources(
            live=live,
            metrics=metrics,
            pulse=pulse,
            commands=commands,
            gain=gain,
            explainer=Explainer(rows, clock),
            rows=rows,
            health=Health(config, warnings, clock, encoder),
            clock=clock,
            controller_id=controller_id,
            version=version("sagesched-controller"),
            started_s=clock(),
            store_path=str(config.store.path.absolute()),
            tokenizer=PromptTokenizer(config.learning.tokenizer),
            access=Access(secret(config.http.token), secret(config.http.read_token)),
        )
        web.start(build_api(sources))
        gain.start()
        if encoder is not None:
            encoder.start()
        try:
            with metrics.pauses.collector_watched():
                yield Service(config=config, loop=loop, web=web, gain=gain, commands=commands, endpoint=hub.endpoint)
        finally:
            gain.stop()
            if encoder is not None:
                encoder.stop()
            hub.close()
            if telemetry is not None:
                telemetry.close()


def _watching(metrics: Metrics, telemetry: Telemetry | None, hub: ZmqHub, encoder: Encoder | None) -> Metrics:
    """Let the metrics show what these count."""
    metrics.watch_telemetry(telemetry)
    metrics.watch_hub(hub)
    metrics.watch_encoder(encoder)
    return metrics


def _telemetry(section: TelemetrySection, controller_id: str) -> Telemetry | None:
    """Open the exporter of spans if it is enabled. Raises `ConfigError` if OpenTelemetry is not installed."""
    if not section.enabled:
        return None
    about = {
        "service.name": "sagesched",
        "service.version": version("sagesched-controller"),
        "service.instance.id": controller_id,
    }
    return open_telemetry(section.endpoint, about)


def build_core(
    config: Config, history: HistoryWriter, *, controller_id: str, now_s: float, timer: Callable[[], float]
) -> tuple[Core, Memory]:
    """The core, with what its file holds; the rest of the history is learned while it serves."""
    store, learning = config.store.path, config.learning
    blank = partial(_blank_core, config, history.last_batches, controller_id=controller_id, now_s=now_s, timer=timer)
    manifest = manifest_of(_hash_key(store), repr((_learner_settings(learning), _calibration(learning), learning)))
    core, memory = open_memory(
        blank, store, manifest, limit=learning.history_answers, history=history, verify_s=VERIFY_S
    )
    if not core.past.next_answer:
        # Once engines are served the loop would wait for it: seconds on a busy machine, more than their lease.
        prepare()
    memory.learn_for(LEARN_FIRST_S, timer, now_s)
    return core, memory


def _blank_core(
    config: Config, durable_batches: dict[str, int], *, controller_id: str, now_s: float, timer: Callable[[], float]
) -> Core:
    """A core before any answer is taught."""
    learning = config.learning
    mixture = MixtureLearner(_learner_settings(learning))
    learner: LengthLearner = mixture if learning.encoder is None else SemanticLearner(mixture)
    return Core(
        learner=learner,
        policy=policy_of(config.policy),
        config=CoreConfig(
            controller_id=controller_id,
            mode=config.mode,
            backlog=BACKLOG,
            hash_key=_hash_key(config.store.path),
            lease_s=config.engine.lease_s,
            service=service_levels_of(config),
            calibration=_calibration(learning),
        ),
        now_s=now_s,
        timer=timer,
        durable_batches=durable_batches,
    )


def _learner_settings(learning: LearningSection) -> MixtureSettings:
    clusters = ClusterSettings(clusters=learning.clusters, seed_prompts=max(500, 4 * learning.clusters))
    return MixtureSettings(common=LearnerSettings(clusters=clusters))


def _calibration(learning: LearningSection) -> CalibrationSettings:
    return CalibrationSettings(guard=GuardSettings(enabled=learning.guard))


def _encoder(learning: LearningSection) -> Encoder | None:
    """The thread that encodes prompts, if configured; it loads its model itself."""
    if learning.encoder is None or learning.tokenizer is None:
        return None
    return Encoder(partial(load_encoder, learning.encoder, learning.tokenizer))


@contextmanager
def _history(store: StoreSection, clock: Callable[[], float]) -> Iterator[HistoryWriter]:
    writer = HistoryWriter(
        store.path,
        seal_interval_s=store.seal_interval_s,
        store_prompts=store.prompts,
        retention_days=store.retention_days,
        retention_bytes=int(store.retention_gb * 1e9),
        clock=clock,
    )
    with writer:
        yield writer


def _hash_key(store: Path) -> bytes:
    """The key of the prompt hashes; created once for each history, readable by its owner alone."""
    file = store / HASH_KEY_FILE
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(HASH_KEY_BYTES))
    key = file.read_bytes()
    if len(key) != HASH_KEY_BYTES:
        raise StoreError(f"file {file} has {len(key)} bytes instead of {HASH_KEY_BYTES}: remove it, a new one is made")
    return key
