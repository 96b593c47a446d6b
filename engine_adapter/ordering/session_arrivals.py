"""When sessions began: a turn of a session whose prefix is still cached goes by the arrival of its first turn.

The prefix is lost if others are served meanwhile, and a program of many turns that waits anew at each of them ends late
for all its turns. Among the turns of a session, and where nothing is cached any more, requests go as all others do.
Source: program-level first come, first served (Continuum, arXiv 2511.02230).
"""

from __future__ import annotations

from collections import OrderedDict

SESSIONS_KEPT = 16_384
"""Sessions whose beginning is known; beyond them the one that was silent longest is forgotten."""

CACHED_SHARE = 0.5
"""Share of a prompt that must be cached for its session to count as under way."""


class SessionArrivals:
    """The arrival of the first request of each session.

    >>> sessions = SessionArrivals()
    >>> sessions.began_s("a", 5.0), sessions.began_s("a", 9.0), sessions.began_s(None, 9.0)
    (5.0, 5.0, 9.0)
    """

    def __init__(self) -> None:
        self._began_s: OrderedDict[str, float] = OrderedDict()

    def began_s(self, session: str | None, arrival_s: float) -> float:
        """Return when a request's session began, which may be with it."""
        if session is None:
            return arrival_s
        began_s = self._began_s.setdefault(session, arrival_s)
        self._began_s.move_to_end(session)
        if len(self._began_s) > SESSIONS_KEPT:
            self._began_s.popitem(last=False)
        return began_s
