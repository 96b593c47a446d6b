"""The engines that a controller knows, by their connection: those that are connected, and those lately lost."""

from __future__ import annotations

from collections.abc import Iterator

from controller.core.sessions import Session
from store.records import Hello


class Registry:
    """A bounded number of sessions, of which no two are the same run of an engine."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sessions: dict[bytes, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def full(self) -> bool:
        """Whether no further session can be entered."""
        return len(self._sessions) >= self._limit

    def of(self, connection: bytes) -> Session | None:
        """Who speaks over a connection; None for a stranger."""
        return self._sessions.get(connection)

    def named(self, session_id: str) -> list[Session]:
        """The session of this name, none or one."""
        return [session for session in self._sessions.values() if session.hello.session_id == session_id]

    def connected(self, model: str | None = None) -> list[Session]:
        """The connected engines, of one model or of all."""
        return [
            session for session in self._sessions.values() if session.connected and model in {None, session.hello.model}
        ]

    def is_of_another(self, hello: Hello) -> bool:
        """Whether the session belongs to an engine of another name, which then nobody may take over."""
        return any(session.hello.engine_id != hello.engine_id for session in self.named(hello.session_id))

    def enter(self, session: Session) -> None:
        """Know a session, in the place of whoever spoke over its connection before."""
        assert session.connection in self._sessions or not self.full, "sessions are bounded"
        self._sessions[session.connection] = session

    def drop(self, session_id: str) -> Session | None:
        """Forget a session, which may come back over another connection; what was known of it."""
        for session in self.named(session_id):
            return self._sessions.pop(session.connection)
        return None

    def forget_lost(self, before_s: float) -> list[Session]:
        """Forget the engines that were lost before a time; those that were."""
        lost = [session for session in self if not session.connected and session.last_seen_s < before_s]
        for session in lost:
            del self._sessions[session.connection]
        return lost
