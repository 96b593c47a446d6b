"""Who is logged in: sessions in this process's memory, by a random id that a cookie carries."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dashboard.access.settings import AccessSettings
from store.http_callers import is_same

Role: TypeAlias = Literal["look", "switch"]
SESSIONS = 1000
"""Largest number of sessions; the one that began first ends when there are more."""
SESSION_S = 12 * 3600.0
COOKIE = "sagesched_session"


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at a browser: what they may, and the name that they gave."""

    role: Role
    name: str | None = None


@dataclass(frozen=True, slots=True)
class _Session:
    person: Person
    until_s: float


class Sessions:
    """Sessions of the people who logged in; safe to use from any thread."""

    def __init__(self, settings: AccessSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def login(self) -> Literal["none", "token", "oidc"]:
        """How people log in."""
        return self._settings.login

    def begin(self, token: str, name: str | None) -> str | None:
        """The id of a new session; None if the token is wrong. Both comparisons take place, in constant time."""
        may_switch, may_look = (is_same(token, known) for known in (self._settings.token, self._settings.read_token))
        if not (may_switch or may_look):
            return None
        identifier = secrets.token_urlsafe(32)
        with self._lock:
            person = Person("switch" if may_switch else "look", name)
            self._sessions[identifier] = _Session(person, self._clock() + SESSION_S)
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        return identifier

    def person(self, identifier: str | None) -> Person | None:
        """Who has a session; None if nobody, or not any more. Without a login everybody may do everything."""
        if self._settings.login == "none":
            return Person("switch")
        with self._lock:
            session = self._sessions.get(identifier or "")
        return session.person if session is not None and self._clock() < session.until_s else None

    def known(self, claims: Mapping[str, object]) -> Person | None:
        """Whom an OpenID Connect provider names, by a verified e-mail address; None for whoever may not even look."""
        email = str(claims.get("email", "")).lower()
        # Letters of other alphabets may become those of somebody else's address when they are lowered.
        if not email or not str(claims["email"]).isascii() or claims.get("email_verified") is not True:
            return None
        if _is_among(email, self._settings.may_switch):
            return Person("switch", email)
        return Person("look", email) if _is_among(email, self._settings.may_look) else None

    def end(self, identifier: str | None) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(identifier or "", None)


def _is_among(email: str, people: Sequence[str]) -> bool:
    """Whether an address is one of these, or of one of these domains.

    >>> [_is_among(email, ("a@x.example", "*@y.example")) for email in ("a@x.example", "b@y.example", "b@z.y.example")]
    [True, True, False]
    """
    return email in people or f"*@{email.rpartition('@')[2]}" in people


_current: Sessions | None = None


def install(sessions: Sessions | None) -> None:
    """Make these the sessions of the dashboard in this process; None where no gate stands before it."""
    global _current  # noqa: PLW0603 - Streamlit runs the pages as scripts, which can be handed nothing
    _current = sessions


def login() -> Literal["none", "token", "oidc"]:
    """How people log in to the dashboard of this process."""
    return "none" if _current is None else _current.login


def current(identifier: str | None, claims: Mapping[str, object]) -> Person | None:
    """Who looks at a page; nobody may where there are no sessions, because no gate stands before it then."""
    if _current is None:
        return None
    return _current.known(claims) if _current.login == "oidc" else _current.person(identifier)
