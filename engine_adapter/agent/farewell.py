"""What an engine does before it disconnects: it hands over what the controller has not acknowledged, for a bounded time."""

from __future__ import annotations

from collections.abc import Callable

from engine_adapter.agent.agent import Agent

FAREWELL_S = 1.5
"""Longest time that a shutdown waits: enough for a greeting, a batch and a commit."""

_PAUSE_S = 0.02


def hand_over(agent: Agent, *, clock: Callable[[], float], sleep: Callable[[float], object], wait_s: float) -> None:
    """Exchange messages until all facts are acknowledged as durable, for ``wait_s`` at most; at once if they are.

    What was sent and not acknowledged is sent again. A controller that says nothing in half of the time is greeted again: it
    may be another one than the engine was welcomed by. The pauses are counted: the engine's clock may stand.
    """
    began_s = clock()
    agent.send_again()
    agent.poll(began_s)
    pauses = round(wait_s / _PAUSE_S)
    for pause in range(pauses):
        if not agent.unacknowledged:
            return
        if pause == pauses // 2 and agent.heard_s < began_s:
            agent.greet_again()
        sleep(_PAUSE_S)
        agent.poll(clock())
