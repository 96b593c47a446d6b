"""What the controller says of one request, as frozen values; the facts are the history's own."""

from __future__ import annotations

from store.http_api import View
from store.reading.request_timeline import RequestTimeline


class SentenceView(View, frozen=True):
    """One statement about a request."""

    text: str
    about: str = ""


class OvertakerView(View, frozen=True):
    """A request that arrived later and was served first."""

    request_id: str
    arrival_s: float | None = None
    scheduled_s: float | None = None
    priority: int | None = None
    index_s: float | None = None
    own_index_s: float | None = None
    why: str = ""


class WaitView(View, frozen=True):
    """A part of the wait for the first place."""

    cause: str
    span_s: float
    behind: bool = False


class ExplanationView(View, frozen=True):
    """A request explained."""

    sentences: tuple[SentenceView, ...] = ()
    overtakers: tuple[OvertakerView, ...] = ()
    waits: tuple[WaitView, ...] = ()


class ExplainView(View, frozen=True):
    """Answer of ``/api/explain``."""

    facts: RequestTimeline
    explanation: ExplanationView | None = None
    """None when only the history was asked."""
