"""What an operator may set for the hints in requests: environment, and a TOML file for tenants, their limits, and tiers."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from store.bounds import Class, Name
from store.errors import ConfigError

_KEY_HASH_DIGITS = 12
_OF_KEY = re.compile(rf"key-[0-9a-f]{{{_KEY_HASH_DIGITS}}}")


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"service_class": "class"}):
    """What one value of OpenAI's ``service_tier`` means here."""

    service_class: Name | None = None
    """The service class of such requests; None says none."""
    priority: Class | None = None
    """Their vLLM priority, lower first; None leaves it."""


TIERS = {
    "auto": Tier(),
    "standard_only": Tier(),
    **{name: Tier(service_class=name) for name in ("default", "priority", "flex", "scale")},
}
"""OpenAI's tiers, and Anthropic's: each but the two that leave it to the server is a service class of its name."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of `HttpHints`; a file has them as TOML."""

    unusable: Literal["refuse", "ignore"] = "refuse"
    """Whether a request with a value that cannot be used is answered by 400, or served without that value."""
    tenant_per_key: bool = False
    """Whether each API key is a tenant of its own, named ``key-`` and the head of the key's SHA-256."""
    tenants: dict[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")], Name] = {}
    """Tenant by the SHA-256 of an API key, in hexadecimal; the keys themselves are written nowhere."""
    max_requests_per_tenant: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Unfinished requests that a tenant may have at one API server, and those without a tenant together; None for no limit."""
    tenant_max_requests: dict[Name, Annotated[int, msgspec.Meta(ge=1)]] = {}
    """The same of single tenants, in place of the limit for all."""
    service_tiers: dict[str, Tier] = {}
    """What values of ``service_tier`` mean, where it is not what `TIERS` says; further names are further tiers."""

    @property
    def tiers(self) -> dict[str, Tier]:
        """Every known tier."""
        return {**TIERS, **self.service_tiers}

    @property
    def keys_name_tenants(self) -> bool:
        """Whether API keys say whose a request is, at least some."""
        return self.tenant_per_key or bool(self.tenants)

    def belongs_to_a_key(self, tenant: str) -> bool:
        """Whether a tenant is that of an API key, so that no request without that key may name it.

        >>> Settings(tenant_per_key=True).belongs_to_a_key("key-2bb80d537b1d"), Settings().belongs_to_a_key("team-a")
        (True, False)
        """
        return tenant in self.tenants.values() or (self.tenant_per_key and _OF_KEY.fullmatch(tenant) is not None)

    def tenant_of(self, authorization: bytes) -> str | None:
        """Return the tenant to whom the key in an ``Authorization`` header belongs; None when keys say nothing.

        >>> Settings(tenant_per_key=True).tenant_of(b"Bearer secret")
        'key-2bb80d537b1d'
        """
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            return None
        digest = sha256(key).hexdigest()
        return self.tenants.get(digest, f"key-{digest[:_KEY_HASH_DIGITS]}" if self.tenant_per_key else None)


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read ``SAGESCHED_HINTS`` (``refuse`` or ``ignore``) and the file that ``SAGESCHED_HINTS_FILE`` names.

    Raises:
        ConfigError: The file cannot be read, or something in it or in the environment is unknown.
    """
    path = environment.get("SAGESCHED_HINTS_FILE")
    given = _read(Path(path)) if path else {}
    if unusable := environment.get("SAGESCHED_HINTS"):
        given["unusable"] = unusable
    try:
        return msgspec.convert(given, Settings)
    except msgspec.ValidationError as error:
        names = ", ".join(Settings.__struct_fields__)
        raise ConfigError(
            f"hints in requests ({path or 'SAGESCHED_HINTS'}): {error}; use {names}, as docs/service_levels.md says"
        ) from None


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"SAGESCHED_HINTS_FILE {path} cannot be read: {error}") from None
