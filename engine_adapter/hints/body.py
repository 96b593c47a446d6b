"""Reads what a request's body says for the scheduler, and writes all that is said into its ``vllm_xargs``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from engine_adapter.hints.settings import Tier
from engine_adapter.hints.values import (
    FIELDS,
    NAME,
    PRIORITY,
    TOKENS,
    Complain,
    Kind,
    UnusableHintError,
    Value,
)

Fields = dict[str, msgspec.Raw]

_OBJECT = msgspec.json.Decoder(Fields)
_NULL = b"null"
_FALSE = b"false"
_EMPTY = b'""'
"""Says nothing, as an empty header does."""
_DEFAULT_TIER = "default"


class HintedBody(NamedTuple):
    """A request's body as vLLM gets it, and what it says that the answer depends on."""

    body: bytes
    tier: str | None = None
    """The tier as which it is served, where it named one."""
    tenant: str | None = None
    sheds: bool = False
    """Whether it rather has an error than a certainly late answer."""
    background: bool = False
    """Whether its client asks for the answer later, where vLLM has such answers."""


class BodyHints:
    """Reads bodies for one server.

    Args:
        tiers: What each value of ``service_tier`` means.
        complain: Is told of each value that cannot be used, which is then left out.
        belongs_to_a_key: Whether a tenant is that of an API key, which alone may name it.
    """

    def __init__(
        self,
        tiers: Mapping[str, Tier],
        complain: Complain,
        belongs_to_a_key: Callable[[str], bool] = lambda _tenant: False,
    ) -> None:
        self._tiers = tiers
        self._complain = complain
        self._belongs_to_a_key = belongs_to_a_key

    def write(self, body: bytes, headers: Mapping[str, Value], key_tenant: str | None = None) -> HintedBody | None:
        """Return a body whose ``vllm_xargs`` holds all that is said; the same bytes when nothing is.

        Returns None for a body that is no JSON object, or whose ``vllm_xargs`` is none: vLLM refuses that itself.

        Args:
            body: The request's body; fields that state nothing are passed on as they are written.
            headers: What the headers say; the body's own ``vllm_xargs`` counts more, its other fields less.
            key_tenant: Tenant of the request's API key, which counts more than anything that a client says.
        """
        fields = json_object(body)
        own = None if fields is None else json_object(fields.get("vllm_xargs", _NULL), null={})
        if fields is None or own is None:
            return None
        usable = {name: raw for name, raw in own.items() if self._usable(name, raw)}
        tier = self._tier(fields)
        said = {**self._said(fields, tier), **_without_session(headers, fields)}
        added: dict[str, Value] = {name: value for name, value in said.items() if name not in usable}
        if key_tenant is not None:
            added["tenant"] = key_tenant
        elif (named := _tenant(added, usable)) is not None and self._belongs_to_a_key(named):
            self._complain(UnusableHintError("tenant", named, "another name, or the API key of this tenant"))
            added.pop("tenant", None)
            usable.pop("tenant", None)
        served = tier if "service_class" not in headers and "service_class" not in usable else None
        priority = self._priority(fields, tier)
        hinted = HintedBody(
            body,
            _served(served),
            _tenant(added, usable),
            sheds=bool(_stated("sheds", added, usable)),
            background=not _is(_given(fields, "background") or _FALSE, _FALSE),
        )
        if added or len(usable) < len(own):
            fields["vllm_xargs"] = msgspec.Raw(msgspec.json.encode({**usable, **added}))
        elif priority is None:
            return hinted
        if priority is not None:
            fields["priority"] = msgspec.Raw(b"%d" % priority)
        return hinted._replace(body=msgspec.json.encode(fields))

    def _usable(self, name: str, raw: msgspec.Raw) -> bool:
        kind = FIELDS.get(name)
        return kind is None or (not _is(raw, _EMPTY) and self._read(kind, raw, f"field vllm_xargs.{name}") is not None)

    def _said(self, fields: Fields, tier: str | None) -> dict[str, Value]:
        """Return what the body says outside ``vllm_xargs``."""
        tenant = self._field(fields, "user", NAME) or self._field(fields, "safety_identifier", NAME)
        said = {
            "tenant": tenant,
            "service_class": self._tiers[tier].service_class if tier is not None else None,
            "expected_output_tokens": self._agent_hint(fields, "osl", TOKENS),
        }
        return {name: value for name, value in said.items() if value is not None}

    def _priority(self, fields: Fields, tier: str | None) -> int | None:
        """Return the priority to write: nothing beside one that the body has."""
        if _given(fields, "priority") is not None:
            return None
        hinted = self._agent_hint(fields, "priority", PRIORITY)
        if hinted is not None:
            return -int(hinted)
        return self._tiers[tier].priority if tier is not None else None

    def _tier(self, fields: Fields) -> str | None:
        name = self._field(fields, "service_tier", NAME)
        if name is None or name in self._tiers:
            return None if name is None else str(name)
        self._complain(UnusableHintError("field service_tier", str(name), f"one of {', '.join(self._tiers)}"))
        return None

    def _agent_hint(self, fields: Fields, name: str, kind: Kind) -> Value | None:
        """Return one of ``nvext.agent_hints``, as agents' harnesses send them to Dynamo."""
        if "nvext" not in fields:
            return None
        hints = json_object((json_object(fields["nvext"]) or {}).get("agent_hints", _NULL)) or {}
        raw = _given(hints, name)
        return None if raw is None else self._read(kind, raw, f"field nvext.agent_hints.{name}")

    def _field(self, fields: Fields, name: str, kind: Kind) -> Value | None:
        raw = _given(fields, name)
        return None if raw is None or _is(raw, _EMPTY) else self._read(kind, raw, f"field {name}")

    def _read(self, kind: Kind, raw: msgspec.Raw, source: str) -> Value | None:
        try:
            return kind.from_json(raw, source)
        except UnusableHintError as error:
            self._complain(error)
            return None


def json_object(text: bytes | msgspec.Raw, *, null: Fields | None = None) -> Fields | None:
    """Return a JSON object's fields, their values unread; None for anything else, ``null`` for null.

    >>> bytes(json_object(b'{"a": 1.50, "b": [1]}')["a"])
    b'1.50'
    """
    if _is(text, _NULL):
        return null
    try:
        return _OBJECT.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _given(fields: Fields, name: str) -> msgspec.Raw | None:
    raw = fields.get(name)
    return None if raw is None or _is(raw, _NULL) else raw


def _is(raw: bytes | msgspec.Raw, text: bytes) -> bool:
    return len(raw) == len(text) and bytes(raw) == text


def _without_session(headers: Mapping[str, Value], fields: Fields) -> Mapping[str, Value]:
    """Leave the session out where the body names one in vLLM's own field, which counts more than headers for vLLM."""
    if "session_id" not in headers or _given(fields, "session_id") is None:
        return headers
    return {name: value for name, value in headers.items() if name != "session_id"}


def _stated(name: str, added: Mapping[str, Value], usable: Fields) -> Value | None:
    """Return the value of a field of ``vllm_xargs`` as it is written."""
    if name in added:
        return added[name]
    return FIELDS[name].from_json(usable[name], name) if name in usable else None


def _tenant(added: Mapping[str, Value], usable: Fields) -> str | None:
    tenant = _stated("tenant", added, usable)
    return None if tenant is None else str(tenant)


def _served(tier: str | None) -> str | None:
    """Return the tier to name in the answer: who leaves it to the server is served by default."""
    return _DEFAULT_TIER if tier in {"auto", "standard_only"} else tier
