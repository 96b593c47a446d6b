"""What it takes to ask for a length: ``python docs/predict_cost.py`` prints milliseconds, of a controller under load.

A controller serves a simulated engine, in another process, of 10 requests a second. After a minute `POST /api/predict` and `POST /api/route` are
asked in turn for 500 prompts: over HTTP with connections that stay open, and inside the process, from the question to the
control loop's answer. At the end the same inside with the engine idle; at the beginning the CPU time that a question takes of
the loop, once 2,000 answers were learnt. On a busy machine only the latter and the ratios say much.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from controller.api.commands import PredictLength, PredictOn
from controller.benchmark.warm_up import warm_up
from controller.config import load_config
from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from controller.service.service import Service, service
from engine_adapter.routing.client import RouteClient
from engine_adapter.transport.zmq_sockets import ZmqLink
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.request_progress import RequestProgress
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from engine_adapter.workloads.requests import request_stream
from online_learning.mixture.mixture import MixtureLearner
from store.http_routing import PredictOrder, RouteOrder
from store.records import Arrived

PROFILE = "h800-qwen3-32b-24k"
RATE_RPS = 10.0
WARM_S = 60.0
ASKED = 500
TAUGHT = 2_000
PAUSE_S = 0.02
ANSWER_S = 5.0

Asker = Callable[[Arrived], object]


def main() -> None:
    """Measure under load, then idle."""
    arrived = [RequestProgress(request).arrived() for request in islice(request_stream(seed=2, rate_rps=1.0), ASKED)]
    _measure("CPU of the loop", _alone(), arrived, clock=time.thread_time)
    with tempfile.TemporaryDirectory(prefix="sagesched-predict-") as folder, _controller(Path(folder)) as opened:
        with _loaded_engine(opened.endpoint):
            time.sleep(WARM_S)
            _measure("HTTP, under load", _over_http(opened), arrived)
            _measure("inside, under load", _inside(opened), arrived)
        time.sleep(WARM_S / 10)
        predict, _ = _inside(opened)
        _measure("inside, idle", (predict, predict), arrived)


@contextmanager
def _controller(folder: Path) -> Iterator[Service]:
    """A controller in this process, with its loop in a thread."""
    settings = {
        "store": {"path": folder / "history"},
        "engine": {"endpoint": f"ipc://{folder}/run/engine.sock"},
        "http": {"port": 0},
    }
    config = load_config(settings, environment={})
    with service(config, clock=time.time, timer=time.perf_counter, cpu_timer=time.thread_time) as opened:
        thread = threading.Thread(target=opened.loop.run, daemon=True)
        thread.start()
        try:
            yield opened
        finally:
            opened.loop.stop()
            thread.join(10.0)


@contextmanager
def _loaded_engine(endpoint: str) -> Iterator[None]:
    """An engine in real time in a process of its own, with requests that come for as long as this lasts."""
    spawning = multiprocessing.get_context("spawn")
    stopping = spawning.Event()
    process = spawning.Process(target=_serve, args=(endpoint, stopping), daemon=True)
    process.start()
    try:
        yield
    finally:
        stopping.set()
        process.join(10.0)


def _serve(endpoint: str, stopping: Event) -> None:
    link, start_s = ZmqLink(endpoint), time.time()
    engine = SimulatedEngine(PROFILES[PROFILE], link=link, engine_id="measured", session_id="measured", start_s=start_s)
    requests = request_stream(seed=1, rate_rps=RATE_RPS)
    coming = next(requests)
    while not stopping.is_set():
        now_s = time.time()
        if engine.now_s < now_s:
            engine.advance_to(now_s)
        while start_s + coming.arrival_s <= engine.now_s:
            engine.submit(coming)
            coming = next(requests)
        engine.step()
        time.sleep(max(0.002, engine.now_s - time.time()))
    link.close()


def _alone() -> tuple[Asker, Asker]:
    """Ask a core in this thread to predict, and to route, after it has learnt."""
    learner = MixtureLearner()
    controller, start_s = InProcessController(learner, policy_named("sage")), 0.0
    link = controller.link(lambda: start_s)
    SimulatedEngine(PROFILES[PROFILE], link=link, engine_id="measured", session_id="measured", start_s=start_s).step()
    warm_up(controller.core, learner, islice(request_stream(seed=1, rate_rps=1.0), TAUGHT), model=PROFILE)
    core = controller.core
    return lambda request: core.predict_length(PROFILE, request), lambda request: core.predict_on(PROFILE, request)


def _over_http(opened: Service) -> tuple[Asker, Asker]:
    """Ask to predict, and to route, over HTTP."""
    client = RouteClient(opened.web.address, token=None, timeout_s=ANSWER_S, connections=1)

    def described(request: Arrived) -> dict[str, object]:
        ids = tuple(np.frombuffer(request.token_ids, dtype="<u4").tolist())
        return {
            "model": PROFILE,
            "max_tokens": request.max_tokens,
            "token_ids": ids,
            "prompt_tokens": request.prompt_tokens,
        }

    return (
        lambda request: client.predict(PredictOrder(**described(request))),  # type: ignore[arg-type]
        lambda request: client.ask(RouteOrder(**described(request))),  # type: ignore[arg-type]
    )


def _inside(opened: Service) -> tuple[Asker, Asker]:
    """Ask the control loop as the API's threads do."""

    def ask(question: PredictLength | PredictOn) -> object:
        assert opened.commands.ask(question), "the loop takes questions"
        return question.answer.result(ANSWER_S)

    return lambda request: ask(PredictLength(PROFILE, request)), lambda request: ask(PredictOn(PROFILE, request))


def _measure(
    what: str, askers: tuple[Asker, Asker], arrived: list[Arrived], clock: Callable[[], float] = time.perf_counter
) -> None:
    """Print P50 and P99 of both askers, asked in turn about each request."""
    took_ms: tuple[list[float], list[float]] = ([], [])
    for request in arrived:
        for asker, found in zip(askers, took_ms, strict=True):
            started_s = clock()
            asker(request)
            found.append(1000.0 * (clock() - started_s))
            time.sleep(PAUSE_S)
    (predict, most), (route, most_route) = (np.percentile(found, (50, 99)) for found in took_ms)
    sys.stdout.write(
        f"{what:20} predict {predict:6.2f} ms P50 {most:6.2f} P99; route {route:6.2f} {most_route:6.2f}; "
        f"ratio {predict / route:.2f}\n"
    )


if __name__ == "__main__":
    main()
