"""The optional semantic encoder: computes embeddings of prompts on a separate thread, which delays no request."""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from online_learning.experts.semantic import Embedding
from store.errors import ConfigError
from store.http_api import EncoderCounts

log = logging.getLogger(__name__)

HEAD_TOKENS = 64
TAIL_TOKENS = 192
"""Of a longer prompt the first and the last tokens are read: small encoders take 256, and questions often come last."""

_EMPTY = "."
"""Replaces a prompt without words, on which some models fail."""

Embed: TypeAlias = Callable[[Sequence[bytes]], Sequence[Embedding]]
"""Maps prompts, as token ids in little-endian uint32, to one vector each."""


class Encoded(NamedTuple):
    """A request's embedding."""

    session_id: str
    request_id: str
    embedding: Embedding


class _Waiting(NamedTuple):
    session_id: str
    request_id: str
    token_ids: bytes


class Encoder:
    """Embeds prompts in batches on its own thread; prompts beyond its bounded queues are dropped and counted.

    ``load`` is called on the thread, because a model takes seconds to load. Its failures and those of the model are
    counted, and logged once for each kind; requests then keep the predictions that they have.
    """

    def __init__(self, load: Callable[[], Embed], *, max_waiting: int = 1_024, batch_prompts: int = 16) -> None:
        self._load = load
        self._batch_prompts = batch_prompts
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(max_waiting)
        self._ready: queue.Queue[Encoded] = queue.Queue(max_waiting)
        self._failures: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self.encoded = 0
        self.dropped = 0
        self.errors = 0

    def start(self) -> None:
        """Start the thread, which loads the model and begins; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current batch."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def submit(self, session_id: str, request_id: str, token_ids: bytes) -> None:
        """Queue a prompt for embedding; returns at once."""
        try:
            self._waiting.put_nowait(_Waiting(session_id, request_id, _bounded(token_ids)))
        except queue.Full:
            self.dropped += 1

    def counts(self) -> EncoderCounts:
        """Counts of the prompts so far; safe to call from any thread."""
        return EncoderCounts(
            encoded=self.encoded, dropped=self.dropped, errors=self.errors, waiting=self._waiting.qsize()
        )

    def drain(self, most: int = 64) -> list[Encoded]:
        """Return at most ``most`` finished embeddings, without waiting."""
        found: list[Encoded] = []
        while len(found) < most:
            try:
                found.append(self._ready.get_nowait())
            except queue.Empty:
                break
        return found

    def _run(self) -> None:
        try:
            embed = self._load()
        except Exception as error:  # noqa: BLE001 - a model may fail in any way, and must not touch the controller
            self._record_error("the encoder cannot be loaded, lengths are predicted without it", error)
            return
        while not self._stopping.is_set():
            batch = self._next_batch()
            if batch:
                self._encode(embed, batch)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while len(batch) < self._batch_prompts:
            try:
                waiting = self._waiting.get(timeout=0.1) if not batch else self._waiting.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                batch.append(waiting)
        return batch

    def _encode(self, embed: Embed, batch: list[_Waiting]) -> None:
        try:
            embeddings = embed([waiting.token_ids for waiting in batch])
        except Exception as error:  # noqa: BLE001 - as above
            self._record_error("the encoder failed, requests keep the predictions that they have", error)
            return
        for waiting, embedding in zip(batch, embeddings, strict=True):
            try:
                self._ready.put_nowait(Encoded(waiting.session_id, waiting.request_id, embedding))
                self.encoded += 1
            except queue.Full:
                self.dropped += 1

    def _record_error(self, text: str, error: Exception) -> None:
        self.errors += 1
        kind = f"{type(error).__name__}: {error}"[:200]
        if kind not in self._failures and len(self._failures) < 20:
            self._failures.add(kind)
            log.error("%s: %s", text, kind)


def check_encoder(encoder: Path, tokenizer: Path | None) -> None:
    """Raise `ConfigError` if a missing package, setting or folder keeps the encoder from working."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError(
            f"setting learning.encoder = {str(encoder)!r}: sentence-transformers is not installed: "
            "install sagesched-controller[semantic], or leave the setting out"
        )
    if tokenizer is None:
        raise ConfigError(
            f"setting learning.encoder = {str(encoder)!r} needs learning.tokenizer: give the folder of the served "
            "model, whose tokenizer turns token ids back into text"
        )
    for key, folder in (("encoder", encoder), ("tokenizer", tokenizer)):
        if not folder.is_dir():
            raise ConfigError(
                f"setting learning.{key} = {str(folder)!r} is no folder: models are read from disk, never downloaded"
            )


def load_encoder(encoder: Path, tokenizer: Path) -> Embed:
    """Load a sentence-transformers model and the served model's tokenizer from disk, which takes seconds."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    words = AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
    model = SentenceTransformer(str(encoder), device="cpu", local_files_only=True)

    def embed(prompts: Sequence[bytes]) -> Sequence[Embedding]:
        ids = [np.frombuffer(prompt, dtype="<u4").tolist() for prompt in prompts]
        texts = [words.decode(prompt, skip_special_tokens=True).strip() or _EMPTY for prompt in ids]
        embeddings = model.encode(texts, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
        return [np.asarray(embedding, dtype=np.float32) for embedding in embeddings]

    return embed


def _bounded(token_ids: bytes) -> bytes:
    """The first and the last tokens of a longer prompt."""
    if len(token_ids) <= 4 * (HEAD_TOKENS + TAIL_TOKENS):
        return token_ids
    return token_ids[: 4 * HEAD_TOKENS] + token_ids[-4 * TAIL_TOKENS :]
