"""Why a request is ended before it was served: its client asked for that, and its targets can no longer be met."""

SHED_REASON = "shed: the targets can no longer be met"
"""The reason in the answer (``stop_reason`` of the choice) and in the history."""
