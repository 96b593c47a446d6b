"""Chained hashes of a request's full KV blocks, which identify its prefixes in the prefix cache."""

from __future__ import annotations

from collections.abc import Sequence


class BlockHashes:
    """Hashes of the full blocks of a request's tokens, prompt and answer, each computed once.

    As vLLM's ``block_hashes``, the hash of a block covers all tokens up to its end, so that equal hashes mean equal
    prefixes. They are Python's own hashes of integers, the same in every process and not cryptographic: the tokens of a
    simulation are nobody's attack.

    Args:
        prompt: Token ids of the prompt.
        answer: Token ids that the request will generate, at least as many as it needs; only generated ones are read.
        block_size_tokens: Tokens in a block.

    >>> hashes = BlockHashes((1, 2, 3), range(10, 20), 2)
    >>> hashes.first(2)[:2] == BlockHashes((1, 2, 3, 10), (), 2).first(2)
    True
    """

    __slots__ = ("_answer", "_block_size_tokens", "_prompt", "_values")

    def __init__(self, prompt: tuple[int, ...], answer: Sequence[int], block_size_tokens: int) -> None:
        self._prompt = prompt
        self._answer = answer
        self._block_size_tokens = block_size_tokens
        self._values: list[int] = []

    def first(self, blocks: int) -> Sequence[int]:
        """Return the hashes of the first ``blocks`` blocks, and perhaps of some more."""
        values, size, prompt = self._values, self._block_size_tokens, self._prompt
        former = values[-1] if values else 0
        for start in range(len(values) * size, blocks * size, size):
            end = start + size
            tokens = prompt[start:end]
            if end > len(prompt):
                tokens += tuple(self._answer[max(0, start - len(prompt)) : end - len(prompt)])
            former = hash((former, tokens))
            values.append(former)
        return values
