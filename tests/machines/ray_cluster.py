"""A local Ray cluster with two replicas of a small deployment, each a simulated engine in real time; prints what it saw.

Started by `test_ray_router` in a process of its own: Ray's warnings and threads are none of pytest's.
Arguments: the controller's address, its engines' endpoint, a folder. Lines on standard input are orders, each answered
by one JSON line: ``send N`` sends so many requests one after the other, ``burst N`` all at once, ``quit`` ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from engine_adapter.transport.zmq_sockets import ZmqLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine

MODEL = "small"


@serve.deployment(
    num_replicas=2,
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=100,
    request_router_config=RequestRouterConfig(
        request_router_class="engine_adapter.ray_router.SageRequestRouter",
        request_router_kwargs={"controller": sys.argv[1], "model": MODEL, "timeout_s": 2.0, "pause_s": 0.5},
        request_routing_stats_period_s=0.5,
    ),
)
class Engine:
    """A replica: the first is quick, the second thirty times as slow."""

    def __init__(self, endpoint: str, folder: str) -> None:
        self.engine_id = self._claim(Path(folder))
        base_s = 0.004 if self.engine_id == "quick" else 0.12
        profile = Profile(
            name=MODEL,
            base_s=base_s,
            prefill_token_s=0.0,
            decode_seq_s=0.0,
            kv_token_s=0.0,
            kv_tokens=8_000,
            max_num_seqs=16,
            token_budget=1_024,
            max_model_len_tokens=2_048,
        )
        self._engine = SimulatedEngine(
            profile, link=ZmqLink(endpoint), engine_id=self.engine_id, session_id=uuid.uuid4().hex, start_s=time.time()
        )
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._answers: dict[str, asyncio.Future[None]] = {}
        threading.Thread(target=self._serve, daemon=True).start()

    def record_routing_stats(self) -> dict[str, str]:
        """Which engine this replica holds."""
        return {"engine_id": self.engine_id}

    async def __call__(self, request: dict[str, Any]) -> str:
        """Serve a completion; gives the engine's name."""
        request_id = uuid.uuid4().hex
        answer: asyncio.Future[None] = self._loop.create_future()
        with self._lock:
            self._answers[request_id] = answer
            self._engine.advance_to(time.time())
            work = TraceRequest(
                request_id=request_id,
                arrival_s=self._engine.now_s,
                token_ids=tuple(request["prompt_token_ids"]),
                max_tokens=request["max_tokens"],
                true_output_tokens=request["true_output_tokens"],
            )
            self._engine.submit(work)
        await answer
        return self.engine_id

    def _claim(self, folder: Path) -> str:
        for name in ("quick", "slow"):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL))
                return name
        return uuid.uuid4().hex

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._engine.advance_to(time.time())
                done_s = self._engine.begin_step()
                pause_s = max(0.001, done_s - time.time()) if done_s > self._engine.now_s else 0.01
            time.sleep(pause_s)
            with self._lock:
                finished = self._engine.end_step().finished
            for life in finished:
                self._loop.call_soon_threadsafe(self._answers.pop(life.request_id).set_result, None)


def main() -> None:
    """Carry out orders until the end of standard input."""
    _, _, endpoint, folder = sys.argv
    ray.init(num_cpus=2, include_dashboard=False, address="local", object_store_memory=80 << 20, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        handle = serve.run(Engine.bind(endpoint, folder), name="engines", route_prefix=None)
        say({"ready": True})
        for line in sys.stdin:
            order, _, number = line.strip().partition(" ")
            if order == "quit":
                break
            say(send(handle, int(number), together=order == "burst"))
    finally:
        serve.shutdown()
        ray.shutdown()


def send(handle: Any, number: int, *, together: bool) -> dict[str, Any]:
    """Have so many requests answered; says by whom, and what the router counted so far."""
    requests = [
        {"prompt_token_ids": list(range(20 + n)), "max_tokens": 200, "true_output_tokens": 10 + n % 20}
        for n in range(number)
    ]
    if together:
        answers = [handle.remote(request) for request in requests]
        served = Counter(answer.result(timeout_s=120) for answer in answers)
    else:
        served = Counter(handle.remote(request).result(timeout_s=120) for request in requests)
    router = handle._router._asyncio_router.request_router
    return {"served": dict(served), "routed": router.routed, "fell_back": router.fell_back}


def say(what: dict[str, Any]) -> None:
    """One JSON line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
