"""Data-parallel ranks of one vLLM: each is an engine of its own to the controller, and both learn from each other."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from vllm.config import ParallelConfig

from controller.core.in_process import InProcessController
from controller.policy.policies import policy_named
from engine_adapter.transport.keys import create_engine_key
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm.engine_name import default_name, engine_name, ranked_name
from engine_adapter.vllm.plugin import plugin_settings
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler
from online_learning.evaluation.global_learner import GlobalLearner
from store.errors import ConfigError

pytestmark = pytest.mark.vllm

PROFILE = Profile(
    name="small",
    base_s=0.03,
    prefill_token_s=1e-4,
    decode_seq_s=1e-4,
    kv_token_s=1e-7,
    kv_tokens=4_000,
    max_num_seqs=12,
    token_budget=1_024,
    max_model_len_tokens=2_048,
)


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("dense", [True, False])
def test_every_rank_has_a_name_of_its_own(ranks: int, *, dense: bool) -> None:
    """Also where vLLM has told the ranks of a dense model that each is alone, and whatever the name is set to."""
    names = {ranked_name("vllm", parallel) for parallel in _ranks(ranks, dense=dense)}
    assert len(names) == ranks
    assert f"vllm-dp{ranks - 1}" in names
    config: Any = SimpleNamespace(
        additional_config={"sagesched": {"engine_id": "here"}}, parallel_config=list(_ranks(ranks, dense=dense))[-1]
    )
    assert plugin_settings(config).engine_id == f"here-dp{ranks - 1}"


def test_an_engine_without_ranks_keeps_its_plain_name() -> None:
    """One rank is no rank."""
    assert ranked_name("vllm", ParallelConfig()) == "vllm"


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("vllm serve MODEL", "8000"),
        ("vllm serve MODEL --port 8001", "8001"),
        ("vllm serve MODEL --port=8002 --config x.yaml", "8002"),
        ("/lib/vllm/entrypoints/openai/api_server.py --model MODEL --port 8003", "8003"),
        ("vllm serve MODEL --config x.yaml", "pid42"),
        ("vllm serve MODEL --headless", "pid42"),
        ("vllm serve MODEL --port 0", "pid42"),
        ("script.py serving --port 8001", "pid42"),
    ],
)
def test_engines_of_one_host_have_names_of_their_own(command: str, end: str) -> None:
    """The port, which stays over a restart; the process where the command does not say it."""
    assert default_name(command.split(), 42) == f"{socket.gethostname()}-{end}"


def test_replicas_with_one_key_have_names_of_their_own() -> None:
    """That of the pod where it is given; what the name of the key begins with stands before it, once."""
    one = ParallelConfig()
    public = zmq.curve_keypair()[0].decode()
    shared = create_engine_key("chat-*", public)
    assert engine_name("chat-7d9f-x2", shared, one) == "chat-7d9f-x2"
    assert engine_name("pod-a", shared, one) == "chat-pod-a"
    assert engine_name(None, shared, one).startswith(f"chat-{socket.gethostname()}-")
    own = create_engine_key("gpu-1", public)
    assert engine_name(None, own, one) == "gpu-1"
    with pytest.raises(ConfigError, match="is not the one of its key"):
        engine_name("gpu-2", own, one)


def test_two_ranks_are_two_engines_of_one_controller() -> None:
    """Two of vLLM's schedulers with the plugin: own names, own queues, own tables, one learner; all are served in order."""
    controller = InProcessController(GlobalLearner(), policy_named("sage"))
    core = controller.core
    engines = [_engine(controller, rank) for rank in range(2)]
    for number, request in enumerate(_requests()):
        engines[number % 2].submit(request)
    served = [life for engine in engines for life in _serve(engine)]
    assert len(served) == 60
    sessions = {session.hello.engine_id: session for session in core.sessions}
    assert set(sessions) == {"vllm", "vllm-dp1"}
    assert [session.hello.data_parallel_rank for session in sessions.values()] == [0, 1]
    for session in sessions.values():
        assert session.snapshot is not None
        assert (session.snapshot.mode, session.snapshot.policy_errors) == ("on", 0)
        assert session.snapshot.tables_applied >= 25
        assert session.requests == {}
    assert core.counts.predictions == core.counts.completions == 60


def _ranks(ranks: int, *, dense: bool) -> Iterator[ParallelConfig]:
    """The configuration as each rank's engine core has it when it makes its scheduler."""
    for rank in range(ranks):
        parallel = ParallelConfig(data_parallel_size=ranks)
        parallel.data_parallel_index = rank
        if dense:
            parallel.reconfigure_for_independent_dp_rank()
        else:
            parallel.data_parallel_rank = rank
        yield parallel


def _engine(controller: InProcessController, rank: int) -> VllmVirtualTimeEngine:
    link = controller.link(lambda: engine.now_s)
    engine = VllmVirtualTimeEngine(PROFILE, link=link, scheduler_class=SageScheduler, data_parallel_rank=rank)
    return engine


def _requests() -> list[TraceRequest]:
    chance = random.Random(1)
    return [
        TraceRequest(
            request_id=f"r{number}",
            arrival_s=0.0,
            token_ids=tuple(range(chance.randint(20, 200))),
            max_tokens=400,
            true_output_tokens=chance.randint(5, 300),
        )
        for number in range(60)
    ]


def _serve(engine: VllmVirtualTimeEngine) -> Iterator[Any]:
    while engine.unfinished:
        yield from engine.step().finished
