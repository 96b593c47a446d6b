"""The boost: by how much a request of a lower index may overtake an older one.

Under the index alone short answers always go first, and a long one may wait for as long as an overload lasts; in order
of arrival everybody waits for the long ones. With γ-Boost requests go by arrival less boost,

    arrival - b(s),    b(s) = -(1/γ)·ln(1 - e^(-γ·s))    with s the index in engine-seconds

For γ·s well below 1, b(s) ≈ -(1/γ)·ln(γ·s): of two requests that of half the index overtakes one that has waited up to
(ln 2)/γ longer, that of an eighth three times as long, and two of nearly equal index go in order of arrival. Everybody
is served in the end: whoever arrives later than b(s) after a request can no longer overtake it.

1/γ is a time, and it must follow that of the waits: a boost of seconds is the order of arrival where waits are minutes,
one of minutes is the order of the index where they are seconds. The controller therefore sets 1/γ to a multiple of the
mean time from arrival to end of the latest answers (`controller.core.engine_tuning`), and the order is then the same
at any speed of the engine and any depth of the queue.
Source of the boost: Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1" (2024).
"""

from __future__ import annotations

import math


def boost_s(index_s: float, boost_per_s: float) -> float:
    """Return the seconds by which a request of this index may overtake an older one.

    Args:
        index_s: The index in engine-seconds.
        boost_per_s: γ in 1/s, above 0.

    >>> boost_s(0.0, 0.01)
    inf
    >>> round(boost_s(1.0, 0.01), 1), round(boost_s(1000.0, 0.01), 4)
    (461.0, 0.0045)
    >>> round(boost_s(0.5, 0.001) - boost_s(1.0, 0.001)), round(math.log(2.0) / 0.001)
    (693, 693)
    """
    exponent = boost_per_s * index_s
    return math.inf if exponent <= 0.0 else -math.log(-math.expm1(-exponent)) / boost_per_s
