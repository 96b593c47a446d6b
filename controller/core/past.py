"""What answers of the past have taught: written down and taken over whole, or learnt again beside the present."""

from __future__ import annotations

from controller.core.state import CoreState
from online_learning.plain_state import UnknownStateError, restored, written


class Past:
    """The memory of one core, apart from what runs now."""

    def __init__(self, state: CoreState) -> None:
        self._state = state

    @property
    def next_answer(self) -> int:
        """Number of the first answer that was not learnt yet."""
        return self._state.predictor.next_answer

    def written(self) -> bytes:
        """All that was learnt, as plain data. Raises `UnknownStateError` if it cannot be written as it is."""
        return written(self._state.predictor.learnt)

    def restore(self, data: bytes) -> None:
        """Take over what `written` gave, of a core of the same settings that has learnt nothing yet.

        Raises `UnknownStateError` where it does not fit: then this core is of no use.
        """
        predictor = self._state.predictor
        blank = predictor.learnt
        known = restored(data, blank)
        if not isinstance(known, dict) or known.keys() != blank.keys():
            raise UnknownStateError("other things are known of it")
        predictor.restore(known)
        for model in predictor.calibration.doubted_models:
            self._state.modes.follow(model, trusted=False)

    def hold(self) -> None:
        """Let answers of now wait until `release`: those of the past are learnt first, so that all are in their order."""
        self._state.deferred.hold()

    def release(self, next_answer: int) -> None:
        """Go on with the answers of now, the first of which has at least this number."""
        self._state.predictor.number_answers_from(next_answer)
        self._state.deferred.release()
