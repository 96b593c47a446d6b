"""Who may look and who may switch: callers on this machine while no token is set, callers with a token once there is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fastapi import HTTPException, Request

from store.entries import Credential
from store.http_callers import FORWARDED, host_name, is_loopback, is_same

Role: TypeAlias = Literal["look", "switch"]


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
        """Admit a caller that may look; raises 401."""
        address = request.client.host if request.client else ""
        if self.token is None and self.read_token is None:
            return self._on_this_machine(request, address)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        may_switch, may_look = (is_same(given, known) for known in (self.token, self.read_token))
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


def _refused(status: int, error: str, remedy: str) -> HTTPException:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return HTTPException(status_code=status, detail={"error": error, "remedy": remedy}, headers=headers)
