"""Who may look and who may switch: callers on this machine while no token is set, callers with a token once there is one."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fastapi import HTTPException, Request

from controller.config import is_loopback
from store.entries import Credential

Role: TypeAlias = Literal["look", "switch"]
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""Headers of proxies: through one, a caller from anywhere seems to be on this machine."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request comes from, as far as it is known."""

    role: Role
    credential: Credential
    address: str


@dataclass(frozen=True, slots=True)
class Access:
    """Admits requests; its methods are FastAPI dependencies.

    Without tokens, callers on this machine may do everything, and nobody else anything.
    With one of them, every caller needs a token: ``token`` may look and switch, ``read_token`` may look.
    """

    token: str | None = field(default=None, repr=False)
    read_token: str | None = field(default=None, repr=False)

    async def look(self, request: Request) -> Caller:
        """Admit whoever may look; raises 401."""
        address = request.client.host if request.client else ""
        if self.token is None and self.read_token is None:
            return self._on_this_machine(request, address)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        may_switch, may_look = (_is_same(given, known) for known in (self.token, self.read_token))
        if scheme.lower() != "bearer" or not (may_switch or may_look):
            raise _refused(401, "this caller sent no valid token", _SEND_TOKEN)
        return Caller("switch", "token", address) if may_switch else Caller("look", "read_token", address)

    async def switch(self, request: Request) -> Caller:
        """Admit whoever may switch; raises 401, and 403 for whoever may only look."""
        caller = await self.look(request)
        if caller.role != "switch":
            raise _refused(403, "this token may look and not switch", "send the token that may (http.token)")
        return caller

    def _on_this_machine(self, request: Request, address: str) -> Caller:
        if any(name in request.headers for name in FORWARDED):
            raise _refused(401, "a proxy sent this request, and no token is set", "set http.token, and send it")
        if not is_loopback(address) or not is_loopback(host_name(request.headers.get("host", "")) or ""):
            raise _refused(
                401, "this caller is not on this machine, or names another one", "set http.token, and send it"
            )
        return Caller("switch", "loopback", address)


_SEND_TOKEN = "send 'Authorization: Bearer TOKEN' (http.token, or http.read_token to look)"  # noqa: S105 - says how


_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.~-]+))(?::\d{1,5})?", re.ASCII)


def host_name(host: str) -> str | None:
    """The name or address in a Host header, without its port; None if it is no host.

    >>> host_name("127.0.0.1:8700"), host_name("[::1]:8700"), host_name("a.example")
    ('127.0.0.1', '::1', 'a.example')
    >>> host_name("[::1"), host_name("a:b"), host_name("user@a"), host_name("a/b")
    (None, None, None, None)
    """
    found = _HOST.fullmatch(host)
    return (found["address"] or found["name"]) if found else None


def _is_same(given: str, known: str | None) -> bool:
    """Compare in constant time."""
    return known is not None and hmac.compare_digest(given.encode(), known.encode())


def _refused(status: int, error: str, remedy: str) -> HTTPException:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return HTTPException(status_code=status, detail={"error": error, "remedy": remedy}, headers=headers)
