"""Colours with one meaning each, readable on the light and on the dark ground.

The same six stand in ``.streamlit/config.toml`` as the charts' default order.
"""

from __future__ import annotations

BLUE = "#3f7fc1"
"""What is measured: memory used, output tokens, running requests, the median."""
AMBER = "#d98a29"
"""What waits or is held back: waiting requests, the growth reserve, the 90th percentile."""
GREEN = "#3d9a74"
"""What is modelled under the current policy, and prompt tokens."""
VIOLET = "#8a6fb8"
"""Preemption and other limits."""
RED = "#c4574f"
"""The 99th percentile and what goes wrong."""
GREY = "#7b8794"
"""References: capacity, the ideal, first come first served."""


def faded(colour: str, opacity: float) -> str:
    """Give the colour with an opacity between 0 and 1, as CSS.

    >>> faded("#3f7fc1", 0.25)
    'rgba(63, 127, 193, 0.25)'
    """
    assert len(colour) == 7, colour
    assert 0.0 <= opacity <= 1.0, opacity
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"
