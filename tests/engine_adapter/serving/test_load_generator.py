from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from engine_adapter.serving.load_generator import ServedModel, Target, run_load, send_load, served_models
from engine_adapter.serving.load_results import Served, summarise
from engine_adapter.virtual_time.engine import TraceRequest
from store.errors import BadInputError, EngineError

TOKEN_S = 0.004
"""What the server takes for a token."""


@dataclass(slots=True)
class Server:
    """An HTTP server that streams as vLLM does; the model's name says how it misbehaves."""

    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0
    cut_off: int = 0


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    seen = Server()
    server = uvicorn.Server(uvicorn.Config(application(seen), log_level="critical", ws="none", lifespan="off"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        seen.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield seen
        server.should_exit = True
        thread.join()


@pytest.fixture
def server(running: Server) -> Server:
    running.bodies.clear()
    running.arrivals_s.clear()
    running.open_most = running.cut_off = 0
    return running


def application(seen: Server) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, object]:
        known = {"id": "good", "object": "model", "max_model_len": 1200}
        return {"object": "list", "data": [known, {"id": "refusing", "object": "model"}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = json.loads(await request.body())
        seen.bodies.append(body)
        seen.arrivals_s.append(time.monotonic())
        if body["model"] == "refusing":
            return JSONResponse({"error": {"message": "no such model"}}, status_code=404)
        return StreamingResponse(stream(seen, body), media_type="text/event-stream")

    return app


async def stream(seen: Server, body: dict[str, object]) -> AsyncIterator[str]:
    seen.open_now += 1
    seen.open_most = max(seen.open_most, seen.open_now)
    finished = False
    try:
        async for event in events(body):
            yield event
        finished = True
    finally:
        seen.open_now -= 1
        seen.cut_off += not finished


async def events(body: dict[str, object]) -> AsyncIterator[str]:
    model, max_tokens = body["model"], body["max_tokens"]
    assert isinstance(max_tokens, int)
    extra = body.get("vllm_xargs") or {}
    assert isinstance(extra, dict)
    length = min(max_tokens, int(extra.get("true_len", 10)))
    options = body["stream_options"]
    assert isinstance(options, dict)
    for number in range(1, length + 1):
        await asyncio.sleep(60 if model == "silent" else TOKEN_S)
        if model == "breaking" and number == 3:
            return
        if model == "erring" and number == 3:
            yield event({"error": {"message": "engine dead", "code": 500}})
            return
        if model == "babbling" and number == 3:
            yield "data: {not json\n\n"
        reason = None if number < length else "length" if length == max_tokens else "stop"
        chunk: dict[str, object] = {"choices": [{"index": 0, "text": f"w{number}", "finish_reason": reason}]}
        if options.get("continuous_usage_stats"):
            chunk["usage"] = {"prompt_tokens": 1, "completion_tokens": number, "total_tokens": number + 1}
        yield event(chunk)
    yield event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": length, "total_tokens": 1}})
    yield "data: [DONE]\n\n"


def event(content: dict[str, object]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def work(number: int, *, arrival_s: float = 0.0, length: int = 10, **changes: object) -> TraceRequest:
    return TraceRequest(
        request_id=f"r{number}",
        arrival_s=arrival_s,
        token_ids=(100 + number, 7, 8),
        max_tokens=200,
        true_output_tokens=length,
        **changes,  # type: ignore[arg-type]
    )


def load(works: list[TraceRequest], server: Server, model: str = "good", **options: object) -> dict[str, Served]:
    target = Target(base_url=server.url, model=model, **options)  # type: ignore[arg-type]
    return {one.request_id: one for one in asyncio.run(run_load(works, target))}


def test_each_request_is_sent_once_and_its_answer_measured(server: Server) -> None:
    """Tokens as the server counted them; first token, last token and time per token are those of the stream."""
    served = load([work(number, length=5 + number) for number in range(20)], server, tell_true_length=True)
    assert len(served) == len(server.bodies) == 20
    for number in range(20):
        one = served[f"r{number}"]
        assert (one.output_tokens, one.ending, one.error) == (5 + number, "stop", None)
        assert one.ttft_s is not None
        assert one.tpot_s is not None
        assert TOKEN_S <= one.ttft_s < one.ttlt_s < 5.0
        assert one.ttlt_s >= (5 + number) * TOKEN_S
        assert one.tpot_s >= 0.8 * TOKEN_S


def test_the_body_is_what_vllm_expects_and_holds_no_length_unless_asked(server: Server) -> None:
    """Token ids by default; class, tenant and true length only by their options."""
    load([work(1, priority=-1, tenant="t", temperature=0.6)], server)
    assert server.bodies[0] == {
        "model": "good",
        "prompt": [101, 7, 8],
        "max_tokens": 200,
        "temperature": 0.6,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    load([work(1, priority=-1, tenant="t")], server, send_priority=True, send_tenant=True, tell_true_length=True)
    assert server.bodies[1]["priority"] == -1
    assert server.bodies[1]["vllm_xargs"] == {"tenant": "t", "true_len": "10"}


def test_limits_are_lowered_to_what_the_model_has_room_for(server: Server) -> None:
    """A prompt of three tokens in a model of 50 leaves 47; one that fills the model is sent with the least limit."""
    load([work(1)], server, max_model_len_tokens=50)
    load([work(1)], server, max_model_len_tokens=3)
    target = Target(base_url=server.url, model="good", max_model_len_tokens=50)
    asyncio.run(run_load([work(1)], target, texts={"r1": "One two three"}))
    assert [body["max_tokens"] for body in server.bodies] == [47, 1, 46]


def test_a_prompt_goes_as_text_where_there_is_one(server: Server) -> None:
    """Others go as token ids."""
    target = Target(base_url=f"{server.url}/v1/", model="good")
    asyncio.run(run_load([work(1), work(2)], target, texts={"r2": "Hello?"}))
    assert sorted(map(str, (body["prompt"] for body in server.bodies))) == ["Hello?", "[101, 7, 8]"]


def test_arrivals_are_kept_however_slow_the_answers_are(server: Server) -> None:
    """Open loop: sixteen requests 30 ms apart take half a second to come; one after another they would take 3.2 s."""
    served = load(
        [work(number, arrival_s=number * 0.03, length=50) for number in range(16)], server, tell_true_length=True
    )
    assert 0.4 < server.arrivals_s[-1] - server.arrivals_s[0] < 1.6
    assert server.open_most > 4
    assert all(one.sent_s >= one.arrival_s for one in served.values())


def test_speed_makes_arrivals_denser_and_is_taken_out_of_the_measures(server: Server) -> None:
    """At four times the speed two engine seconds of arrivals take half a second, and a token counts fourfold."""
    before_s = time.monotonic()
    served = load([work(1), work(2, arrival_s=2.0)], server, speed=4.0)
    assert 0.5 <= time.monotonic() - before_s < 1.9
    assert served["r2"].sent_s == pytest.approx(2.6, abs=0.6)
    assert served["r1"].ttlt_s >= 10 * TOKEN_S * 4.0


def test_open_requests_are_bounded_and_the_wait_for_a_place_counts_as_latency(server: Server) -> None:
    """With two places six requests come in turn; the last one's latency holds the others'."""
    served = load([work(number) for number in range(6)], server, max_open_requests=2)
    assert server.open_most <= 2
    assert max(one.ttlt_s for one in served.values()) > 1.8 * min(one.ttlt_s for one in served.values())
    assert summarise(list(served.values())).late_s >= 20 * TOKEN_S


def test_a_client_that_goes_away_is_noticed_by_the_server(server: Server) -> None:
    """The answer is counted up to there and the stream cut off."""
    served = load([work(1, length=150, abort_after_tokens=5), work(2)], server, tell_true_length=True)
    assert served["r1"].ending == "abort"
    assert 5 <= served["r1"].output_tokens < 100
    assert served["r2"].ending == "stop"
    deadline_s = time.monotonic() + 5
    while server.open_now and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert server.cut_off == 1


def test_an_answer_cut_at_the_limit_says_so(server: Server) -> None:
    """The server's finish reason is kept."""
    served = load([work(1, length=900)], server, tell_true_length=True)
    assert (served["r1"].ending, served["r1"].output_tokens) == ("length", 200)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("refusing", 'status 404: {"error":{"message":"no such model"}}'),
        ("breaking", "the stream ended before the answer did"),
        ("erring", "server: engine dead"),
        ("babbling", "an event of the stream is not as expected"),
        ("silent", "ReadTimeout"),
    ],
)
def test_a_failed_request_is_recorded_with_its_error_and_tried_once(server: Server, model: str, error: str) -> None:
    """It counts as failed and in no latency."""
    served = load([work(1), work(2)], server, model=model, timeout_s=0.3)
    assert len(server.bodies) == 2
    for one in served.values():
        assert one.ending is None
        assert error in (one.error or "")
    summary = summarise(list(served.values()))
    assert (summary.requests, summary.failed, summary.completed, summary.ttlt) == (2, 2, 0, None)
    assert error in (summary.first_error or "")


def test_an_endless_load_goes_on_until_it_is_cancelled(server: Server) -> None:
    """What ended before was reported as it ended."""
    ended: list[Served] = []

    async def for_a_while() -> None:
        works = (work(number, arrival_s=number * 0.01) for number in count())
        target = Target(base_url=server.url, model="good")
        async with asyncio.timeout(1.5):
            await send_load(works, target, on_served=ended.append)

    with pytest.raises(TimeoutError):
        asyncio.run(for_a_while())
    assert len(ended) > 10
    assert all(one.ending == "stop" for one in ended)


def test_the_summary_is_that_of_its_requests() -> None:
    """By hand: two complete, one aborted, one failed."""
    plain = Served(
        request_id="a", arrival_s=1.0, sent_s=1.0, first_token_s=2.0, finished_s=5.0, output_tokens=4, ending="stop"
    )
    served = [
        plain,
        Served(**asdict(plain) | {"arrival_s": 4.0, "sent_s": 4.5, "first_token_s": 4.5, "output_tokens": 1}),
        Served(**asdict(plain) | {"ending": "abort", "output_tokens": 2, "finished_s": 10.0}),
        Served(**asdict(plain) | {"ending": None, "error": "gone", "output_tokens": 0, "first_token_s": None}),
    ]
    summary = summarise(served)
    assert (summary.requests, summary.completed, summary.aborted, summary.failed) == (4, 2, 1, 1)
    assert summary.ttlt is not None
    assert summary.ttft is not None
    assert summary.tpot is not None
    assert (summary.ttlt.mean_s, summary.ttlt.p50_s, summary.ttlt.max_s) == (2.5, 2.5, 4.0)
    assert summary.ttft.mean_s == 0.75
    assert summary.tpot.mean_s == 1.0
    assert (summary.makespan_s, summary.output_tokens, summary.throughput_tokens_per_s) == (10.0, 7, 0.7)
    assert (summary.throughput_rps, summary.late_s, summary.first_error) == (0.2, 0.5, "gone")
    assert summarise([]).ttlt is None


def test_a_server_tells_its_models_and_a_missing_one_is_named(server: Server) -> None:
    """Nothing listens on a port that was just given back."""
    assert asyncio.run(served_models(server.url)) == [
        ServedModel(name="good", max_model_len_tokens=1200),
        ServedModel(name="refusing", max_model_len_tokens=None),
    ]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(EngineError, match=f"no OpenAI-compatible server answers at {nowhere}"):
        asyncio.run(served_models(nowhere))


def test_senseless_targets_are_refused() -> None:
    """Each by name and value, and a key is never shown."""
    with pytest.raises(BadInputError, match="base URL is 'localhost:8000'"):
        Target(base_url="localhost:8000", model="m")
    with pytest.raises(BadInputError, match="speed is 0"):
        Target(base_url="http://h", model="m", speed=0)
    with pytest.raises(BadInputError, match="max_open_requests is 0"):
        Target(base_url="http://h", model="m", max_open_requests=0)
    assert "secret" not in repr(Target(base_url="http://h", model="m", api_key="secret"))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine_adapter.serving.load_generator", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_sends_a_load_and_prints_one_json_line_last(server: Server, tmp_path: Path) -> None:
    """Progress goes to standard error; rows go to their file."""
    rows = tmp_path / "rows.jsonl"
    ran = command(
        "--base-url", server.url, "--requests", "30", "--rate", "60", "--seed", "2", "--text", "--rows", str(rows)
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert (result["requests"], result["completed"], result["failed"], result["model"]) == (30, 30, 0, "good")
    assert result["ttlt"]["mean_s"] > 10 * TOKEN_S
    assert "30 of 30 requests ended, 0 failed" in ran.stderr
    assert len(rows.read_text().splitlines()) == 30
    assert all(isinstance(body["prompt"], str) for body in server.bodies)
    assert max(int(str(body["max_tokens"])) for body in server.bodies) < 1200


def test_the_command_says_in_one_line_what_is_wrong(server: Server) -> None:
    """Exit 2 for bad input, 1 where no request was answered."""
    ran = command("--base-url", server.url, "--workload", "nowhere.parquet")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert "nowhere.parquet" in ran.stderr
    ran = command("--base-url", server.url, "--model", "absent")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert "model is absent" in ran.stderr
    assert "serves good, refusing" in ran.stderr
    ran = command("--base-url", server.url, "--model", "refusing", "--requests", "2")
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["failed"] == 2
