"""Bounds what pushing running requests out for higher classes may cost: a share of the engine's time.

A running request that is pushed out loses its computed tokens, and computing them again takes time from everybody.
The time lost in this way stays below `PUSH_OUT_SHARE` of all time, after a first burst of `SAVED_S`.
"""

from __future__ import annotations

import math

PUSH_OUT_SHARE = 0.02
"""Largest share of the engine's time for computing again what push-outs discarded."""

SAVED_S = 2.0
"""Seconds of recomputation that a quiet time saves for a burst."""

DEFAULT_TOKEN_S = 1.5e-4
"""Assumed seconds to compute a token before the step model is learned."""


class PushOutCredit:
    """Seconds of recomputation that push-outs by class may still cause.

    >>> credit = PushOutCredit()
    >>> credit.earn(0.0)
    >>> credit.spend(20_000, 1.5e-4)
    >>> credit.left
    False
    >>> credit.earn(60.0)
    >>> credit.left
    True
    """

    def __init__(self) -> None:
        self._left_s = SAVED_S
        self._earned_s = -math.inf

    @property
    def left(self) -> bool:
        """Whether a push-out is allowed."""
        return self._left_s > 0.0

    def earn(self, now_s: float) -> None:
        """Earn the share of the time since the last call."""
        if math.isfinite(self._earned_s):
            self._left_s = min(SAVED_S, self._left_s + PUSH_OUT_SHARE * max(0.0, now_s - self._earned_s))
        self._earned_s = now_s

    def spend(self, lost_tokens: int, token_s: float) -> None:
        """Pay for computing these tokens again."""
        self._left_s -= lost_tokens * token_s
