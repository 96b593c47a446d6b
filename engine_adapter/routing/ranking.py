"""Ranks the engines of a model for a request; pure functions.

The controller forecasts for each engine (`EngineForecast`) how long the request would wait for KV memory and a place
behind those that precede it, how long its answer takes, and how full the memory will be.
The expected delay is the request's own plus the delay that it causes to others.
Engines whose expected delay is many times the smallest rank last; the others rank by the share of KV memory in demand.
The delay in seconds is a coarse estimate, and following it closely fills a fast engine with long answers; memory demand
predicts best where a queue will build up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from store.http_routing import EngineForecast

SETTLING_S = 0.5
"""Time after sending during which a forecast may lack a request: the controller's snapshot is up to 0.25 s old, and
engines report ten times a second."""

NEAR = 5.0
"""Engines whose expected delay exceeds the smallest by at most this share rank by memory demand.

Of 0.25, 1 and 5 it had the lowest mean TTLT over two equal engines and over two of which one is twice as fast, on seeds
other than the reported ones.
"""
NEAR_S = 0.05

SENT_KEPT = 4_096


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that was recently sent to an engine."""

    time_s: float
    engine_id: str
    cost_s: float
    need_tokens: int


class Ledger:
    """Requests that a router has recently sent and forecasts may not include yet; bounded.

    >>> ledger = Ledger()
    >>> ledger.record(Sent(1.0, "a", 0.5, 100))
    >>> [len(ledger.unseen(time_s)) for time_s in (1.2, 1.6)]
    [1, 0]
    """

    def __init__(self) -> None:
        self._sent: deque[Sent] = deque(maxlen=SENT_KEPT)

    def record(self, sent: Sent) -> None:
        """Record a request that was sent."""
        self._sent.append(sent)

    def unseen(self, known_until_s: float) -> list[Sent]:
        """Return the requests that a forecast of that time may lack; forget older ones."""
        while self._sent and self._sent[0].time_s < known_until_s - SETTLING_S:
            self._sent.popleft()
        return list(self._sent)


def ranked(engines: Sequence[EngineForecast], unseen: Iterable[Sent] = ()) -> list[EngineForecast]:
    """Return the engines, best first.

    Args:
        engines: Forecasts for the request, one for each engine.
        unseen: Requests sent that the forecasts lack; each adds its cost to the delay and its need to the memory demand.

    >>> import msgspec
    >>> calm = EngineForecast(
    ...     engine_id="calm", wait_s=0.0, run_s=9.0, cost_s=0.1, behind=0, need_tokens=50, demand_tokens=900, kv_tokens=1000
    ... )
    >>> roomy = msgspec.structs.replace(calm, engine_id="roomy", run_s=9.5, demand_tokens=100)
    >>> slow = msgspec.structs.replace(calm, engine_id="slow", run_s=90.0, demand_tokens=0)
    >>> [engine.engine_id for engine in ranked([slow, calm, roomy])]
    ['roomy', 'calm', 'slow']
    """
    burdens: dict[str, tuple[float, int]] = {}
    for sent in unseen:
        cost_s, tokens = burdens.get(sent.engine_id, (0.0, 0))
        burdens[sent.engine_id] = (cost_s + sent.cost_s, tokens + sent.need_tokens)
    most_saved_s = max((engine.saved_s for engine in engines), default=0.0)
    expected = {
        engine.engine_id: _expected(engine, most_saved_s, *burdens.get(engine.engine_id, (0.0, 0)))
        for engine in engines
    }
    best_s = min((completion_s for completion_s, _ in expected.values()), default=0.0)
    limit_s = best_s * (1.0 + NEAR) + NEAR_S

    def rank(engine: EngineForecast) -> tuple[bool, float, float]:
        completion_s, share = expected[engine.engine_id]
        near = completion_s <= limit_s
        return (not near, share if near else completion_s, completion_s)

    return sorted(engines, key=rank)


def _expected(engine: EngineForecast, most_saved_s: float, burden_s: float, burden_tokens: int) -> tuple[float, float]:
    """Return the expected delay of the request and of others in seconds, and the share of KV memory in demand.

    Prefill counts as far as another engine would save it.
    """
    tokens = engine.demand_tokens + engine.need_tokens + burden_tokens
    delay_s = engine.wait_s + engine.run_s + burden_s + engine.cost_s * engine.behind
    delay_s += most_saved_s - engine.saved_s
    return delay_s, tokens / engine.kv_tokens


@dataclass(slots=True)
class Silence:
    """Decides when to ask the controller again after a failure, so that not every request waits for the timeout.

    >>> silence = Silence(pause_s=1.0)
    >>> silence.failed(10.0)
    >>> silence.asks(10.5), silence.asks(11.0)
    (False, True)
    """

    pause_s: float
    until_s: float = float("-inf")

    def asks(self, now_s: float) -> bool:
        """Whether the controller may be asked now."""
        return now_s >= self.until_s

    def failed(self, now_s: float) -> None:
        """Record that the controller did not answer."""
        self.until_s = now_s + self.pause_s
