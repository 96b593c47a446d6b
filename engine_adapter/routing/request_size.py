"""Reads a request's size from a call of an OpenAI-like deployment, for a router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from store.bounds import head_and_tail
from store.http_routing import RouteOrder

CHARACTERS_PER_TOKEN = 4
"""Average over English text, by which the token count of a text prompt is estimated."""
DEFAULT_MAX_TOKENS = 8192
_LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens")


def described(model: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RouteOrder | None:
    """Describe the first argument that looks like a completion or chat request; None if there is none.

    From token ids (``prompt_token_ids``, or a ``prompt`` of ids) the controller predicts the answer's length;
    of text only the length is used, and the prediction is the model's average.

    >>> order = described("m", ({"prompt": "Why is the sky blue?", "max_tokens": 100},), {})
    >>> order.prompt_tokens, order.max_tokens, order.token_ids
    (5, 100, None)
    >>> described("m", (), {"prompt_token_ids": [1, 2, 3]}).token_ids
    (1, 2, 3)
    """
    for candidate in (*args, *kwargs.values(), kwargs):
        fields = _fields(candidate)
        if fields is None:
            continue
        token_ids = _token_ids(fields)
        text = None if token_ids is not None else _text(fields)
        if token_ids is None and text is None:
            continue
        prompt_tokens = len(token_ids) if token_ids is not None else -(-len(text or "") // CHARACTERS_PER_TOKEN)
        return RouteOrder(
            model=model,
            prompt_tokens=max(1, prompt_tokens),
            max_tokens=_limit(fields),
            token_ids=None if token_ids is None else tuple(head_and_tail(token_ids)),
            temperature=_number(fields.get("temperature"), 1.0),
            tenant=fields.get("user") if isinstance(fields.get("user"), str) else None,
        )
    return None


def _fields(candidate: object) -> Mapping[str, Any] | None:
    """Return a mapping, or the attributes of an object such as vLLM's request classes."""
    if isinstance(candidate, Mapping):
        return candidate
    if isinstance(candidate, (str, bytes, int, float, list, tuple)) or candidate is None:
        return None
    return getattr(candidate, "__dict__", None)


def _token_ids(fields: Mapping[str, Any]) -> tuple[int, ...] | None:
    for name in ("prompt_token_ids", "prompt"):
        value = fields.get(name)
        if isinstance(value, (list, tuple)) and value and all(isinstance(token, int) for token in value):
            return tuple(value)
    return None


def _text(fields: Mapping[str, Any]) -> str | None:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, str):
        return prompt
    if not isinstance(messages, (list, tuple)):
        return None
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    return "\n".join(content for content in contents if isinstance(content, str))


def _limit(fields: Mapping[str, Any]) -> int:
    given = [fields.get(name) for name in _LIMITS]
    limits = [value for value in given if isinstance(value, int) and value > 0]
    return limits[0] if limits else DEFAULT_MAX_TOKENS


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) and 0.0 <= value <= 100.0 else default
