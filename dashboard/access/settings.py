"""Under which names the dashboard is served, and who must log in with what: from flags and the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from store.errors import ConfigError
from store.http_callers import host_name, is_loopback

TOKEN = "SAGESCHED_HTTP__TOKEN"  # noqa: S105 - the variable's name, no secret
READ_TOKEN = "SAGESCHED_HTTP__READ_TOKEN"  # noqa: S105 - the variable's name, no secret
PROMPTS = "SAGESCHED_STORE__PROMPTS"
NAMES = "SAGESCHED_DASHBOARD_NAMES"
LOOK, SWITCH = "SAGESCHED_DASHBOARD_LOOK", "SAGESCHED_DASHBOARD_SWITCH"
_ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Names, and who may log in with what.

    With tokens: whoever has ``token`` may look and switch, whoever has ``read_token`` may look.
    With OpenID Connect, as soon as people are named, in place of tokens: by their e-mail addresses, or ``*@DOMAIN``.
    """

    names: frozenset[str] = frozenset()
    """Host names and addresses that browsers may give, beside those of loopback."""
    token: str | None = field(default=None, repr=False)
    read_token: str | None = field(default=None, repr=False)

    may_look: tuple[str, ...] = ()
    may_switch: tuple[str, ...] = ()

    @property
    def login(self) -> Literal["none", "token", "oidc"]:
        """How people log in."""
        if self.may_look or self.may_switch:
            return "oidc"
        return "token" if self.token is not None or self.read_token is not None else "none"

    def serves(self, host: str) -> bool:
        """Whether a Host header gives a name that the dashboard is served under.

        >>> settings = AccessSettings(names=frozenset({"dash.example"}))
        >>> [settings.serves(host) for host in ("127.0.0.1:8501", "DASH.example", "evil.example:8501", "[::1", "")]
        [True, True, False, False, False]
        """
        name = (host_name(host) or "").lower()
        return bool(name) and (is_loopback(name) or name in self.names)


def access_settings(host: str, names: Sequence[str], environment: Mapping[str, str]) -> AccessSettings:
    """Read the settings of a dashboard that listens on ``host``.

    Raises `ConfigError` if it could be reached, or would show stored prompts, without a login.
    """
    token, read_token = environment.get(TOKEN) or None, environment.get(READ_TOKEN) or None
    given = [name.strip().lower() for name in (*names, *environment.get(NAMES, "").split(",")) if name.strip()]
    for name in given:
        if host_name(name) != name and host_name(f"[{name}]") != name:
            raise ConfigError(
                f"name {name!r} is no host name: give those that browsers use, without port (--name, {NAMES})"
            )
    settings = AccessSettings(
        names=frozenset({*given, host.lower()} - _ANYWHERE),
        token=token,
        read_token=read_token,
        may_look=_people(environment, LOOK),
        may_switch=_people(environment, SWITCH),
    )
    if settings.login == "oidc" and find_spec("authlib") is None:
        raise ConfigError('OpenID Connect needs Authlib: install "sagesched-controller[oidc]"')
    if not is_loopback(host) and settings.login == "none":
        raise ConfigError(
            f"address {host!r} can be reached from other machines: set {TOKEN} or {READ_TOKEN} to log in with"
        )
    if host in _ANYWHERE and not given:
        raise ConfigError(
            f"address {host!r} has no name of its own: give the names that browsers use (--name, {NAMES})"
        )
    if (
        environment.get(PROMPTS, "").strip().lower() in {"1", "true", "yes", "on", "t", "y"}
        and settings.login == "none"
    ):
        raise ConfigError(f"prompts are stored, and pages show them: set {TOKEN} or {READ_TOKEN} to log in with")
    return settings


def _people(environment: Mapping[str, str], variable: str) -> tuple[str, ...]:
    """The people that a variable names, with commas between them."""
    people = tuple(name.strip().lower() for name in environment.get(variable, "").split(",") if name.strip())
    for name in people:
        if name.count("@") != 1 or "*" in name.replace("*@", "", 1) or name.endswith("@"):
            raise ConfigError(f"{variable} names {name!r}: give e-mail addresses, or *@DOMAIN, with commas between")
    return people
