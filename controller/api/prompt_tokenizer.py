"""Prompts of callers as token ids, by the tokenizer of the served model."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from fastapi import HTTPException

FILE = "tokenizer.json"
_INSTEAD = "or send token_ids"


class PromptTokenizer:
    """Turns text into token ids, as the served model's engine does with a prompt in ``/v1/completions``; thread-safe.

    It is read from disk when the first text comes, and never downloaded.

    Args:
        folder: of the served model, with its ``tokenizer.json``; None where none is configured, so that text is refused.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._loading = threading.Lock()
        self._tokenizer: Callable[[str], Sequence[int]] | None = None

    def token_ids(self, text: str) -> Sequence[int]:
        """The token ids of a text; an HTTP error that says what to do where there is no tokenizer."""
        if self._folder is None:
            raise _refused(
                400, "text needs a tokenizer", f"set learning.tokenizer to the folder of the model, {_INSTEAD}"
            )
        if self._tokenizer is None:
            with self._loading:
                self._tokenizer = self._tokenizer or _loaded(self._folder)
        return self._tokenizer(text)


def _loaded(folder: Path) -> Callable[[str], Sequence[int]]:
    if importlib.util.find_spec("tokenizers") is None:
        raise _refused(
            503,
            "text cannot be read: tokenizers is not installed",
            f"install sagesched-controller[semantic], {_INSTEAD}",
        )
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more exact
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refused(
            503,
            f"text cannot be read: setting learning.tokenizer: {folder / FILE}: {reason}",
            f"give the folder of a model with a {FILE}, {_INSTEAD}",
        ) from None
    return lambda text: tokenizer.encode(text).ids


def _refused(status: int, error: str, remedy: str) -> HTTPException:
    return HTTPException(status_code=status, detail={"error": error, "remedy": remedy})
