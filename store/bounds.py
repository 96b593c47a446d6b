"""Bounds on what crosses the border between engine and controller: prompts, names that clients choose, and numbers.

An engine cuts what is longer where it enters; the controller refuses it.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, TypeAlias

import msgspec

MAX_PROMPT_TOKENS_SENT = 8192
"""A longer prompt crosses the border as its first and its last half of this number of token ids."""

MAX_NAME = 256
"""Characters of a tenant, an adapter or a request id as its client chose it; a longer one is cut to as many."""

MAX_REQUEST_ID = 288
"""Characters of a request id with what vLLM puts before and behind the client's: a choice's number and a random end."""

MAX_TEXT = 300
"""Characters of a reason in words, such as of a fallback."""

MAX_BATCH_FACTS = 1024
"""Facts in a batch that a controller reads; engines send fewer."""

MAX_REQUESTS_NAMED = 1024
"""Running, and waiting, requests that a snapshot names at most."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Class: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e11)]
Span: TypeAlias = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]
TargetSpan: TypeAlias = Annotated[float, msgspec.Meta(gt=0.0, le=86_400.0)]
Temperature: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
TokenIds: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_PROMPT_TOKENS_SENT)]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
RequestId: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_REQUEST_ID)]
"""An engine's values are checked when its frame is decoded: negative, infinite and NaN values are refused."""


_HASH_BYTES = 8
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, which steer a terminal, and surrogates, which have no encoding."""
_SHOWN_INSTEAD = "\ufffd"
CHOICE = r"(\d{1,6}_)?"
"""What vLLM puts before the ids of a request's several choices, as a regular expression."""
VLLM_END = r"(-\d{1,6})?-[0-9a-f]{8}"
"""What it puts behind: a prompt's number and eight random characters."""
_CHOICE = re.compile(CHOICE)
_END = re.compile(VLLM_END + r"\Z")
_END_CHARACTERS = 16


def head_and_tail(token_ids: Sequence[int]) -> Sequence[int]:
    """As much of a prompt as crosses the border.

    >>> len(head_and_tail(list(range(20_000))))
    8192
    """
    if len(token_ids) <= MAX_PROMPT_TOKENS_SENT:
        return token_ids
    half = MAX_PROMPT_TOKENS_SENT // 2
    return (*token_ids[:half], *token_ids[-half:])


def packed_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as they cross the border: little-endian uint32, of a long prompt head and tail.

    Raises `OverflowError` or `TypeError` for what is no token id.

    >>> packed_tokens((1, 258)).hex()
    '0100000002010000'
    """
    words = array("I", head_and_tail(token_ids))
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def bounded_name(name: str) -> str:
    """A name of at most `MAX_NAME` characters, each of which can be encoded and shown.

    A longer name keeps its head, and ends in a hash of the whole so that two names stay two. So does a name with a control
    character or a surrogate, in whose place stands a replacement character.

    >>> bounded_name("team-a"), len(bounded_name(10_000 * "x"))
    ('team-a', 256)
    >>> bounded_name(10_000 * "x")[238:]
    'x~a1fa80be9546da4b'
    """
    if len(name) <= MAX_NAME and not _UNSAFE.search(name):
        return name
    mark = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).hexdigest()
    return f"{_UNSAFE.sub(_SHOWN_INSTEAD, name[: MAX_NAME - len(mark) - 1])}~{mark}"


def bounded_text(text: str) -> str:
    r"""A reason in words, cut to `MAX_TEXT` characters, each of which can be encoded and shown.

    >>> ascii(bounded_text("KeyError: \x1b")), len(bounded_text(1000 * "x"))
    ("'KeyError: \\ufffd'", 300)
    """
    return _UNSAFE.sub(_SHOWN_INSTEAD, text[:MAX_TEXT])


def id_in_engine(client_id: str) -> str:
    """A regular expression for the ids that vLLM gives the answers of the request whose id its client knows.

    >>> bool(re.fullmatch(id_in_engine("cmpl-7"), "2_cmpl-7-0-1a2b3c4d"))
    True
    """
    return f"{CHOICE}{re.escape(bounded_name(client_id))}{VLLM_END}"


def bounded_request_id(request_id: str) -> str:
    """A request id whose client's part is a `bounded_name`; the number and the end that vLLM adds stay whole.

    So the bounded form of the id that a client knows is the head of that of the engine's request.

    >>> long_id = "cmpl-" + 1000 * "x"
    >>> bounded_request_id(f"{long_id}-0-1a2b3c4d") == f"{bounded_name(long_id)}-0-1a2b3c4d"
    True
    """
    if len(request_id) <= MAX_NAME and not _UNSAFE.search(request_id):
        return request_id
    choice = _CHOICE.match(request_id)
    end = _END.search(request_id[-_END_CHARACTERS:])
    head, tail = choice[0] if choice else "", end[0] if end else ""
    return f"{head}{bounded_name(request_id[len(head) : len(request_id) - len(tail)])}{tail}"
