"""A client of the controller's HTTP API with time limits; failures are returned as `Trouble`, never raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from store.http_api import DoctorView, GainView, HealthView, ModeView, QueueView, StateView, View
from store.http_now import NowView
from store.http_requests import ExplainView, FinishedView, LatenciesView, LoadView
from store.http_service import ServiceView

TIMEOUT_S = 2.0
"""A live answer that takes longer would be stale."""
COMMAND_TIMEOUT_S = 6.0
"""A switch of mode waits for the control loop."""
DOCTOR_TIMEOUT_S = 150.0
"""`doctor` imports vLLM, which takes long."""


@dataclass(frozen=True)
class Trouble:
    """Why there is no answer."""

    kind: Literal["down", "slow", "refused", "unknown", "unavailable", "failed", "garbled"]
    """``down``: nobody listens; ``slow``: no answer in time; ``refused``: the token is missing or wrong;
    ``unknown``: no such request; ``unavailable``: the controller cannot answer now; ``failed``: another HTTP error;
    ``garbled``: the answer does not decode as the struct of the path; ``detail`` names the field."""
    detail: str
    status: int | None = None
    """The HTTP status, where there was an answer."""


Answer = TypeVar("Answer", bound=View)
Parameters: TypeAlias = Mapping[str, str | int | float]


class ControllerClient:
    """Client of one controller; safe to share between threads.

    Args:
        api_url: base address, such as ``http://127.0.0.1:8700``.
        token: bearer token, where the controller wants one.
        timeout_s: limit of each phase of a request.
    """

    def __init__(self, api_url: str, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._api_url = api_url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(headers=headers, timeout=timeout_s)

    def close(self) -> None:
        """Close the connections that are kept for the next question."""
        self._http.close()

    def state(self) -> StateView | Trouble:
        """Ask for controller, learner and engines as they are."""
        return self._ask("/api/state", StateView)

    def now(self, chosen: Parameters) -> NowView | Trouble:
        """Ask whether all is well, and for the figures of the chosen engines (``engine_id``, ``model``)."""
        return self._ask("/api/now", NowView, parameters=chosen)

    def queue(self, engine_id: str | None, limit: int) -> QueueView | Trouble:
        """Ask for the unfinished requests of one engine, or of all, at most ``limit`` of them."""
        parameters: Parameters = {"limit": limit} | ({"engine_id": engine_id} if engine_id else {})
        return self._ask("/api/queue", QueueView, parameters=parameters)

    def load(self, window_s: float, bins: int, chosen: Parameters) -> LoadView | Trouble:
        """Ask for the load of the chosen engines (``engine_id``, ``model``) over the last ``window_s`` seconds."""
        return self._ask("/api/load", LoadView, parameters={"seconds": window_s, "bins": bins, **chosen})

    def latency(self, window_s: float, bins: int, chosen: Parameters) -> LatenciesView | Trouble:
        """Ask for latencies over the last ``window_s`` seconds; ``part`` may be chosen too."""
        return self._ask("/api/latency", LatenciesView, parameters={"seconds": window_s, "bins": bins, **chosen})

    def service(self, window_s: float, bins: int, chosen: Parameters) -> ServiceView | Trouble:
        """Ask for service levels over the last ``window_s`` seconds."""
        return self._ask("/api/service", ServiceView, parameters={"seconds": window_s, "bins": bins, **chosen})

    def finished(self, window_s: float, limit: int, chosen: Parameters) -> FinishedView | Trouble:
        """Ask for the latest requests that ended within the last ``window_s`` seconds."""
        return self._ask("/api/finished", FinishedView, parameters={"seconds": window_s, "limit": limit, **chosen})

    def gain(self) -> GainView | Trouble:
        """Ask for the comparison with first come, first served."""
        return self._ask("/api/gain", GainView)

    def health(self) -> HealthView | Trouble:
        """Ask for configuration, versions and the latest warnings."""
        return self._ask("/api/health", HealthView)

    def doctor(self) -> DoctorView | Trouble:
        """Have the controller examine itself; takes seconds."""
        return self._ask("/api/doctor", DoctorView, timeout_s=DOCTOR_TIMEOUT_S)

    def set_mode(self, mode: str, reason: str, who: str | None = None) -> ModeView | Trouble:
        """Switch all engines to a mode; recorded with its reason and with the name of whoever asks."""
        order = {"mode": mode, "reason": reason} | ({"who": who} if who else {})
        return self._ask("/api/mode", ModeView, order=order, timeout_s=COMMAND_TIMEOUT_S)

    def explanation(self, request_id: str) -> ExplainView | Trouble:
        """Ask why a request ran when it did."""
        answer = self._ask(f"/api/explain/{quote(request_id, safe='')}", ExplainView)
        return Trouble("unknown", answer.detail) if isinstance(answer, Trouble) and answer.status == 404 else answer

    def _ask(
        self,
        path: str,
        kind: type[Answer],
        *,
        parameters: Parameters | None = None,
        order: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer | Trouble:
        """Get an answer; with an order, post that instead."""
        address = self._api_url + path
        limit_s = self._http.timeout.read if timeout_s is None else timeout_s
        method = "GET" if order is None else "POST"
        try:
            response = self._http.request(method, address, params=parameters, json=order, timeout=limit_s)
        except httpx.TimeoutException:
            return Trouble("slow", f"{address} did not answer within {limit_s:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Trouble("down", f"{address}: {error or type(error).__name__}")
        return _understood(response, address, kind)


def _understood(response: httpx.Response, address: str, kind: type[Answer]) -> Answer | Trouble:
    if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return Trouble("refused", f"{address} answered {response.status_code}")
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return Trouble("unavailable", _error_of(response) or f"{address} answered 503", response.status_code)
    if not response.is_success:
        detail = f"{address} answered {response.status_code}: {response.text[:200]}"
        return Trouble("failed", detail, response.status_code)
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.MsgspecError as error:
        return Trouble("garbled", f"{address}: {error}")


def _error_of(response: httpx.Response) -> str | None:
    """What the controller says is wrong."""
    try:
        return msgspec.json.decode(response.content, type=_Problem).error
    except msgspec.MsgspecError:
        return None


class _Problem(View, frozen=True):
    error: str
