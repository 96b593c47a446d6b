"""Which of several engines of one model gets a request: the decision, without any effect.

The controller says of each engine what is to be expected there (`EngineForecast`): how long the request would wait for
KV memory and a place behind those that go before it, how long its own answer takes, and how full the memory will be.
From that comes an expected delay, its own and that of those whom it makes wait.
Engines where it is many times the least are left out; of the others the one with the least of its memory asked for is
taken. Seconds are a coarse estimate of what comes next, and following them closely fills a quick engine with long
answers; memory that is asked for tells best where a queue will build.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from store.http_routing import EngineForecast

SETTLING_S = 0.5
"""So long after it was sent a request may be missing from what the controller shows: its picture is up to 0.25 s old,
and engines report ten times a second."""

NEAR = 5.0
"""Engines whose expected delay is larger than the least by no more than this share are all good enough.

Of 0.25, 1 and 5 it had the least mean TTLT over two equal engines and over one twice as quick as the other, on seeds
other than those that are reported.
"""
NEAR_S = 0.05

SENT_KEPT = 4_096


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that was sent to an engine lately."""

    time_s: float
    engine_id: str
    cost_s: float
    need_tokens: int


class Ledger:
    """What one router has sent lately and the controller may not know of yet; bounded.

    >>> ledger = Ledger()
    >>> ledger.note(Sent(1.0, "a", 0.5, 100))
    >>> [len(ledger.unseen(time_s)) for time_s in (1.2, 1.6)]
    [1, 0]
    """

    def __init__(self) -> None:
        self._sent: deque[Sent] = deque(maxlen=SENT_KEPT)

    def note(self, sent: Sent) -> None:
        """Remember a request that was sent."""
        self._sent.append(sent)

    def unseen(self, known_until_s: float) -> list[Sent]:
        """What a forecast of that time may lack; what is older is forgotten."""
        while self._sent and self._sent[0].time_s < known_until_s - SETTLING_S:
            self._sent.popleft()
        return list(self._sent)


def ranked(engines: Sequence[EngineForecast], unseen: Iterable[Sent] = ()) -> list[EngineForecast]:
    """The engines, best first.

    ``unseen`` are requests that were sent and are not in the forecasts: each delays by its cost and asks for its memory.

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
    expected = {engine.engine_id: _expected(engine, *burdens.get(engine.engine_id, (0.0, 0))) for engine in engines}
    best_s = min((completion_s for completion_s, _ in expected.values()), default=0.0)
    limit_s = best_s * (1.0 + NEAR) + NEAR_S

    def rank(engine: EngineForecast) -> tuple[bool, float, float]:
        completion_s, share = expected[engine.engine_id]
        near = completion_s <= limit_s
        return (not near, share if near else completion_s, completion_s)

    return sorted(engines, key=rank)


def _expected(engine: EngineForecast, burden_s: float, burden_tokens: int) -> tuple[float, float]:
    """Seconds to its completion and of delay for others, and the share of the memory that is asked for then."""
    tokens = engine.demand_tokens + engine.need_tokens + burden_tokens
    delay_s = engine.wait_s + engine.run_s + burden_s + engine.cost_s * engine.behind
    return delay_s, tokens / engine.kv_tokens


@dataclass(slots=True)
class Silence:
    """When to ask the controller again after it gave no answer: not with every request, each of which would wait for it.

    >>> silence = Silence(pause_s=1.0)
    >>> silence.failed(10.0)
    >>> silence.asks(10.5), silence.asks(11.0)
    (False, True)
    """

    pause_s: float
    until_s: float = float("-inf")

    def asks(self, now_s: float) -> bool:
        """Whether it is to be asked now."""
        return now_s >= self.until_s

    def failed(self, now_s: float) -> None:
        """It gave no answer."""
        self.until_s = now_s + self.pause_s
