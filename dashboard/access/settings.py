"""Under which names the dashboard is served, and who must log in with what: from flags and the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from store.errors import ConfigError
from store.http_callers import host_name, is_loopback

TOKEN = "SAGESCHED_HTTP__TOKEN"  # noqa: S105 - the variable's name, no secret
READ_TOKEN = "SAGESCHED_HTTP__READ_TOKEN"  # noqa: S105 - the variable's name, no secret
PROMPTS = "SAGESCHED_STORE__PROMPTS"
NAMES = "SAGESCHED_DASHBOARD_NAMES"
_ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Names and tokens; whoever has ``token`` may look and switch, whoever has ``read_token`` may look."""

    names: frozenset[str] = frozenset()
    """Host names and addresses that browsers may give, beside those of loopback."""
    token: str | None = field(default=None, repr=False)
    read_token: str | None = field(default=None, repr=False)

    @property
    def login(self) -> bool:
        """Whether people must log in: once there is a token to log in with."""
        return self.token is not None or self.read_token is not None

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
    settings = AccessSettings(names=frozenset({*given, host.lower()} - _ANYWHERE), token=token, read_token=read_token)
    if not is_loopback(host) and not settings.login:
        raise ConfigError(
            f"address {host!r} can be reached from other machines: set {TOKEN} or {READ_TOKEN} to log in with"
        )
    if host in _ANYWHERE and not given:
        raise ConfigError(
            f"address {host!r} has no name of its own: give the names that browsers use (--name, {NAMES})"
        )
    if environment.get(PROMPTS, "").strip().lower() in {"1", "true", "yes", "on", "t", "y"} and not settings.login:
        raise ConfigError(f"prompts are stored, and pages show them: set {TOKEN} or {READ_TOKEN} to log in with")
    return settings
