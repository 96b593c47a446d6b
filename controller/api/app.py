"""The controller's HTTP API: health, metrics, live state, explanations, and the switch between modes.

Live state comes from the latest `LiveSnapshot`, so that no reader can disturb the control loop.
Who may ask is decided in `controller.api.access`; the probes ``/healthz`` and ``/readyz`` and the description are open to all.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from controller.api.access import Access, Caller
from controller.api.answers import StructApi
from controller.api.commands import Commands, SetMode
from controller.api.docs import add_docs
from controller.api.json_views import engine_view, learner_view
from controller.api.limits import BoundedRequests, Bounds
from controller.api.predict import add_predict
from controller.api.prompt_tokenizer import PromptTokenizer
from controller.api.questions import LoopQuestions
from controller.api.recent import add_recent, reading_history
from controller.api.route import add_route
from controller.explain.explanation import explain
from controller.explain.lookup import Explainer, unknown
from controller.monitoring.health import Health
from controller.monitoring.live_state import Live, LiveSnapshot
from controller.monitoring.metrics import Metrics
from controller.monitoring.present.overview import overview
from controller.monitoring.present.pulse import Pulse
from controller.monitoring.present.queue_rows import queue_rows
from controller.monitoring.present.verdict import free_bytes
from controller.replay.gain_watcher import GainWatch
from store.history.recent_rows import RecentRows
from store.http_api import (
    ControllerView,
    DoctorView,
    GainView,
    HealthView,
    LivenessView,
    ModeView,
    QueueView,
    ReadinessView,
    StateView,
)
from store.http_now import NowView
from store.http_requests import ExplainView, RequestTimeline
from store.rules import RULES

ANSWER_S = 3.0
"""Time within which the control loop must carry out a command."""
DOCTOR_RETRY_S = 5
"""Seconds after which a caller may ask again while an examination runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSources:
    """What the API reads from, and its limits."""

    live: Live
    metrics: Metrics
    pulse: Pulse
    commands: Commands
    gain: GainWatch
    explainer: Explainer
    rows: RecentRows
    """The history with what its writer has not sealed yet."""
    health: Health
    clock: Callable[[], float]
    controller_id: str
    version: str
    started_s: float
    store_path: str
    tokenizer: PromptTokenizer
    access: Access
    bounds: Bounds = field(default_factory=Bounds)


class ModeOrder(BaseModel):
    """Body of ``POST /api/mode``."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["off", "shadow", "on"]
    reason: str = Field(default="asked for over HTTP", min_length=1, max_length=500)
    who: str | None = Field(default=None, min_length=1, max_length=200)
    """Who asks, for the record; the token alone decides whether it is done."""


class Problem(BaseModel):
    """Answer to every request that fails: what is wrong and what to do."""

    error: str
    remedy: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body or the header Host cannot be read"},
    401: {
        "model": Problem,
        "description": "The caller sent no valid token, or is not on this machine where no token is set",
    },
    403: {"model": Problem, "description": "A web page of another origin sent the request, or the token may only look"},
    404: {"model": Problem, "description": "Not found"},
    413: {"model": Problem, "description": "The body is too large"},
    414: {"model": Problem, "description": "The address is too long"},
    422: {"model": Problem, "description": "A parameter or the body is invalid"},
    429: {"model": Problem, "description": "The caller sends too many requests"},
    431: {"model": Problem, "description": "The headers are too large"},
    500: {"model": Problem, "description": "The controller failed to answer"},
    503: {"model": Problem, "description": "The controller cannot answer now"},
}
"""Documented with every path."""


def build_api(sources: ApiSources) -> FastAPI:
    """Build the application."""
    api = StructApi(
        title="SageSched controller",
        version=sources.version,
        description="Live state of the scheduling controller. Times are Unix seconds, spans seconds.",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
    )
    api.add_middleware(BoundedRequests, bounds=sources.bounds, clock=sources.clock)
    api.add_exception_handler(AnyHTTPException, _explain)
    api.add_exception_handler(RequestValidationError, _explain_invalid)
    api.add_exception_handler(Exception, _explain_failure)
    add_docs(api)
    guard = Depends(sources.access.look)
    _add_probes(api, sources)
    _add_metrics(api, sources, guard)
    _add_live(api, sources, guard)
    _add_requests(api, sources, guard)
    add_recent(api, sources.rows, sources.clock, guard)
    _add_health(api, sources, guard)
    _add_mode(api, sources)
    loop = LoopQuestions(live=sources.live, commands=sources.commands, clock=sources.clock)
    add_route(api, loop, guard)
    add_predict(api, loop, guard, sources.tokenizer)
    return api


def _add_probes(api: FastAPI, sources: ApiSources) -> None:
    @api.head("/healthz", include_in_schema=False)
    @api.get("/healthz", tags=["health"])
    async def healthz() -> LivenessView:
        """Whether the control loop runs; 503 when it is stuck."""
        return LivenessView(loop_age_s=_loop_age_s(sources))

    @api.head("/readyz", include_in_schema=False)
    @api.get("/readyz", tags=["health"])
    async def readyz() -> ReadinessView:
        """Whether engines may connect, how many are connected, and what is amiss; 503 at the start and when it is stuck."""
        live_snapshot = _live_snapshot(sources)
        _loop_age_s(sources)
        return ReadinessView(
            engines=sum(engine.connected for engine in live_snapshot.engines),
            degraded=tuple(sorted({state.kind for state in live_snapshot.degraded})),
        )


def _loop_age_s(sources: ApiSources) -> float:
    """Seconds since the control loop last published what it does; 503 when it is stuck."""
    live_snapshot = sources.live.live_snapshot
    age_s = sources.clock() - live_snapshot.time_s if live_snapshot else math.inf
    if RULES["loop_stuck"].judge(age_s) != "green":
        error = f"the control loop has published nothing for {age_s:.0f} s"
        raise _unavailable(error, remedy="look at the log and restart the controller")
    return age_s


def _add_metrics(api: FastAPI, sources: ApiSources, guard: Any) -> None:
    @api.get("/metrics", tags=["metrics"], dependencies=[guard], response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(sources.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _add_live(api: FastAPI, sources: ApiSources, guard: Any) -> None:
    @api.get("/api/state", tags=["live"], dependencies=[guard])
    def state() -> StateView:
        """The controller, its learner, its store and its engines."""
        live_snapshot = _live_snapshot(sources)
        return StateView(
            controller=ControllerView(
                controller_id=sources.controller_id,
                version=sources.version,
                started_s=sources.started_s,
                now_s=sources.clock(),
                store_path=sources.store_path,
                mode=live_snapshot.settings.mode,
                policy=live_snapshot.policy,
                settings=live_snapshot.settings,
                loop=dict(live_snapshot.loop),
            ),
            learner=learner_view(live_snapshot),
            store=live_snapshot.store,
            engines=tuple(engine_view(engine) for engine in live_snapshot.engines),
            degraded=live_snapshot.degraded,
        )

    @api.get("/api/now", tags=["live"], dependencies=[guard])
    def now(engine_id: str | None = None, model: str | None = None) -> NowView:
        """Whether all is well and what is not, latencies, demand against capacity, the engines, and what happened lately."""
        return overview(
            _live_snapshot(sources),
            sources.pulse.bins,
            engine_id=engine_id,
            model=model,
            free_bytes=free_bytes(sources.store_path),
            now_s=sources.clock(),
        )

    @api.get("/api/queue", tags=["live"], dependencies=[guard])
    def queue(engine_id: str | None = None, limit: Annotated[int, Query(ge=1, le=5000)] = 500) -> QueueView:
        """Unfinished requests: waiting ones in the order in which they will be tried, then running ones."""
        live_snapshot = _live_snapshot(sources)
        return QueueView(time_s=live_snapshot.time_s, rows=queue_rows(live_snapshot, engine_id=engine_id, limit=limit))

    @api.get("/api/gain", tags=["live"], dependencies=[guard])
    def gain() -> GainView:
        """Latency of the latest requests, and what it would have been first come, first served; asking keeps it fresh."""
        return sources.gain.ask()


def _add_health(api: FastAPI, sources: ApiSources, guard: Any) -> None:
    @api.get("/api/health", tags=["health"], dependencies=[guard])
    def health() -> HealthView:
        """Configuration without secrets, versions, and the latest warnings and errors of the log."""
        return sources.health.view()

    @api.get("/api/doctor", tags=["health"], dependencies=[guard])
    async def doctor() -> DoctorView:
        """Findings of `doctor` as the controller's own process makes them; takes seconds, one at a time."""
        running = sources.health.examined()
        if running is None:
            raise _unavailable("an examination runs already", retry_s=DOCTOR_RETRY_S)
        return await asyncio.wrap_future(running)


def _add_requests(api: FastAPI, sources: ApiSources, guard: Any) -> None:
    @api.get("/api/requests/{request_id:path}", tags=["requests"], dependencies=[guard])
    def facts(request_id: str) -> RequestTimeline:
        """All recorded facts of one request."""
        return _timeline(sources, request_id)

    @api.get("/api/explain/{request_id:path}", tags=["requests"], dependencies=[guard])
    def explanation(request_id: str) -> ExplainView:
        """Why a request ran when it did, in sentences, with the facts that they are made of."""
        timeline = _timeline(sources, request_id)
        return ExplainView(timeline, explain(timeline))


def _timeline(sources: ApiSources, request_id: str) -> RequestTimeline:
    with reading_history():
        timeline = sources.explainer.timeline(request_id)
    if timeline is None:
        error, remedy = unknown(request_id, "the history")
        raise HTTPException(status_code=404, detail={"error": error, "remedy": remedy})
    return timeline


def _add_mode(api: FastAPI, sources: ApiSources) -> None:
    may_switch = Depends(sources.access.switch)

    @api.post("/api/mode", tags=["control"])
    def mode(order: ModeOrder, caller: Caller = may_switch) -> ModeView:
        """Switch all engines to a mode; recorded with who asked and why."""
        command = SetMode(
            mode=order.mode, reason=order.reason, who=order.who, credential=caller.credential, address=caller.address
        )
        if not sources.commands.offer(command):
            raise _unavailable("too many commands wait already")
        try:
            return ModeView(settings=command.answer.result(timeout=ANSWER_S))
        except FutureTimeoutError:
            raise _unavailable(f"the control loop did not answer within {ANSWER_S:g} s") from None


def _live_snapshot(sources: ApiSources) -> LiveSnapshot:
    if sources.live.live_snapshot is None:
        raise _unavailable("the controller is starting")
    return sources.live.live_snapshot


def _unavailable(error: str, remedy: str = "try again in a few seconds", retry_s: int | None = None) -> HTTPException:
    headers = {"Retry-After": str(retry_s)} if retry_s is not None else None
    return HTTPException(status_code=503, detail={"error": error, "remedy": remedy}, headers=headers)


async def _explain(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    detail = error.detail if isinstance(error.detail, dict) else {"error": str(error.detail)}
    content = {"remedy": _remedy(error.status_code), **detail}
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


def _remedy(status: int) -> str:
    if status == 400:
        return "send JSON in UTF-8"
    return "see /docs for what there is" if status in (404, 405) else "see /docs for what is accepted"


async def _explain_invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])} = {problem.get('input')!r:.100}: {problem['msg']}"
        for problem in error.errors()
    )
    return JSONResponse({"error": problems, "remedy": "see /docs for what is accepted"}, status_code=422)


async def _explain_failure(_request: Request, _error: Exception) -> JSONResponse:
    """An error of the controller itself: the log has its text, the answer does not."""
    remedy = "see the controller's log"
    return JSONResponse({"error": "the controller failed to answer", "remedy": remedy}, status_code=500)
