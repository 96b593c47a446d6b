"""Sends a workload to an OpenAI-compatible server over HTTP and measures how it is answered.

Open loop: a request is sent at its arrival time, however slow the server is, up to a bound on open requests.
Nothing is tried twice. Run it as ``python -m engine_adapter.serving.load_generator --help``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import httpx
import msgspec

from engine_adapter.serving.load_results import Ending, Served
from engine_adapter.virtual_time.engine import TraceRequest
from store.errors import BadInputError, EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server and how to speak to it."""

    base_url: str
    """Such as ``http://127.0.0.1:8000``; a trailing ``/v1`` is understood."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    speed: float = 1.0
    """Engine seconds per second: arrivals come so much faster, and measured times are given in engine seconds."""
    max_open_requests: int = 1024
    """Further requests wait at the client, which the summary shows as lateness."""
    max_model_len_tokens: int | None = None
    """The server's bound on prompt and answer together; limits are lowered to it, for it refuses larger ones."""
    timeout_s: float = 600.0
    """Longest silence of the server, in real seconds."""
    send_priority: bool = False
    """Only for servers with ``--scheduling-policy priority`` or our scheduler: others refuse it."""
    send_tenant: bool = False
    tell_true_length: bool = False
    """For a virtual GPU, which ends the answer there; a real model needs no such thing."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise BadInputError(f"base URL is {self.base_url!r}: give one such as http://127.0.0.1:8000")
        if not 0.0 < self.speed <= 1e6:
            raise BadInputError(f"speed is {self.speed}: give more than 0, at most a million")
        if self.max_open_requests < 1:
            raise BadInputError(f"max_open_requests is {self.max_open_requests}: give 1 or more")

    @property
    def root_url(self) -> str:
        """The base URL without its version."""
        return self.base_url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that a server offers."""

    name: str
    max_model_len_tokens: int | None
    """Bound on prompt and answer together; vLLM tells it, others may not."""


async def served_models(base_url: str, *, api_key: str | None = None, timeout_s: float = 10.0) -> list[ServedModel]:
    """The models that a server serves; `EngineError` when there is no such server."""
    target = Target(base_url=base_url, model="", api_key=api_key, timeout_s=timeout_s)
    try:
        async with _client(target) as client:
            response = await client.get("/v1/models")
            response.raise_for_status()
            models = msgspec.json.decode(response.content, type=_Models).data
    except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(
            f"no OpenAI-compatible server answers at {base_url} ({reason}): start it or correct the URL"
        ) from error
    return [ServedModel(name=model.id, max_model_len_tokens=model.max_model_len) for model in models]


async def run_load(
    works: Iterable[TraceRequest],
    target: Target,
    *,
    texts: Mapping[str, str] | None = None,
    on_served: Callable[[Served], None] | None = None,
) -> list[Served]:
    """Send works, which come in order of arrival, and return what became of them, in order of their ends.

    As `send_load`, for a load that ends; ``on_served`` is for showing progress.
    """
    served: list[Served] = []

    def keep(one: Served) -> None:
        served.append(one)
        if on_served is not None:
            on_served(one)

    await send_load(works, target, on_served=keep, texts=texts)
    return served


async def send_load(
    works: Iterable[TraceRequest],
    target: Target,
    *,
    on_served: Callable[[Served], None],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Send works, which come in order of arrival, and hand over what became of each as it ends.

    Works may be endless; then the caller cancels, and requests under way are cut off and not reported.
    Prompts go as token ids, except those of which ``texts`` holds the text by request id.
    A request that fails is reported with its error; it stops nothing.
    """
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(target.max_open_requests)

    async with _client(target) as client, asyncio.TaskGroup() as tasks:
        start_s = loop.time()

        def now_s() -> float:
            return (loop.time() - start_s) * target.speed

        async def send(work: TraceRequest) -> None:
            try:
                body = _body(work, target, (texts or {}).get(work.request_id))
                served = await _serve(client, work, body, now_s)
            finally:
                slots.release()
            on_served(served)

        for work in works:
            await asyncio.sleep(max(0.0, work.arrival_s - now_s()) / target.speed)
            await slots.acquire()
            tasks.create_task(send(work))


# --- one request ----------------------------------------------------------------------------------


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    """What matters of an event of the stream."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


_decoder = msgspec.json.Decoder(_Chunk)


def _client(target: Target) -> httpx.AsyncClient:
    headers = {} if target.api_key is None else {"Authorization": f"Bearer {target.api_key}"}
    return httpx.AsyncClient(
        base_url=target.root_url,
        headers=headers,
        timeout=httpx.Timeout(target.timeout_s, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        trust_env=False,
    )


def _body(work: TraceRequest, target: Target, text: str | None) -> dict[str, object]:
    body: dict[str, object] = {
        "model": target.model,
        "prompt": text if text is not None else work.token_ids,
        "max_tokens": _limit(work, target.max_model_len_tokens, as_text=text is not None),
        "temperature": work.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if work.abort_after_tokens is not None:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if target.send_priority:
        body["priority"] = work.priority
    extra: dict[str, str] = {}
    if target.send_tenant and work.tenant is not None:
        extra["tenant"] = work.tenant
    if target.tell_true_length:
        extra["true_len"] = str(work.true_output_tokens)
    if extra:
        body["vllm_xargs"] = extra
    return body


def _limit(work: TraceRequest, max_model_len_tokens: int | None, *, as_text: bool) -> int:
    """The work's own limit, or what the model has room for; a text may have half as many tokens again as we count."""
    if max_model_len_tokens is None:
        return work.max_tokens
    prompt_tokens = len(work.token_ids) * 3 // 2 if as_text else len(work.token_ids)
    return max(1, min(work.max_tokens, max_model_len_tokens - prompt_tokens))


@dataclass(slots=True)
class _Progress:
    """What has come of an answer so far."""

    first_token_s: float | None = None
    last_token_s: float | None = None
    output_tokens: int = 0
    ending: Ending | None = None
    error: str | None = None

    def take(self, chunk: _Chunk, now_s: float) -> None:
        """Count an event; one that carries a choice brings at least one token."""
        if chunk.error is not None:
            self.error = f"server: {chunk.error.get('message', chunk.error)}"[:300]
        if chunk.choices:
            self.first_token_s = now_s if self.first_token_s is None else self.first_token_s
            self.last_token_s = now_s
            self.output_tokens += 1
            reason = chunk.choices[0].finish_reason
            if reason in {"stop", "length"}:
                self.ending = cast("Ending", reason)
            elif reason is not None:
                self.error = f"server ended the answer with reason {reason!r}"
        if chunk.usage is not None and chunk.usage.completion_tokens is not None:
            self.output_tokens = chunk.usage.completion_tokens


async def _serve(
    client: httpx.AsyncClient, work: TraceRequest, body: dict[str, object], now_s: Callable[[], float]
) -> Served:
    """Send one request and follow its answer to the end."""
    progress = _Progress()
    sent_s = now_s()
    try:
        await _follow(client, work, body, progress, now_s)
    except httpx.HTTPError as error:
        progress.error = f"{type(error).__name__}: {error}".rstrip(": ")
    except msgspec.MsgspecError as error:
        progress.error = f"an event of the stream is not as expected: {error}"
    if progress.error is None and progress.ending is None:
        progress.error = "the stream ended before the answer did"
    return Served(
        request_id=work.request_id,
        arrival_s=work.arrival_s,
        sent_s=sent_s,
        first_token_s=progress.first_token_s,
        finished_s=now_s() if progress.last_token_s is None or progress.error else progress.last_token_s,
        output_tokens=progress.output_tokens,
        ending=None if progress.error else progress.ending,
        error=progress.error,
    )


async def _follow(
    client: httpx.AsyncClient,
    work: TraceRequest,
    body: dict[str, object],
    progress: _Progress,
    now_s: Callable[[], float],
) -> None:
    content, headers = msgspec.json.encode(body), {"Content-Type": "application/json"}
    async with client.stream("POST", "/v1/completions", content=content, headers=headers) as response:
        if response.status_code != httpx.codes.OK:
            said = (await response.aread()).decode("utf-8", "replace")
            progress.error = f"status {response.status_code}: {said[:300]}"
            return
        rest = b""
        async for piece in response.aiter_bytes():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and not line.startswith(b"data: [DONE]"):
                    progress.take(_decoder.decode(line[5:]), now_s())
            if progress.error is not None:
                return
            if work.abort_after_tokens is not None and progress.output_tokens >= work.abort_after_tokens:
                progress.ending = "abort"
                return


if __name__ == "__main__":
    from engine_adapter.serving.load_command import main

    raise SystemExit(main())
