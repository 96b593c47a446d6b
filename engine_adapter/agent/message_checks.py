"""Checks a controller's messages before an engine applies them: numbers of a possible size, tables that can be looked up.

A message that decodes may still be invalid, from a defective controller or from anyone else who reaches the socket.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import lt

from store.errors import ProtocolError
from store.records import (
    ControllerMessage,
    FairShares,
    Gate,
    Heartbeat,
    IndexTable,
    Preemption,
    Settings,
    StepCost,
)

LARGEST_S = 1e15
"""Largest index, time or price, either sign: sums and quotients of such values stay finite."""
LARGEST_TOKENS = 1 << 53
MOST_ENTRIES = 4096
"""Entries of a table; the controller makes far fewer."""
LARGEST_FACTOR = 1e12
"""Largest weight, margin and γ of the boost; the smallest is one over it."""


def check_message(message: ControllerMessage) -> None:
    """Raise `ProtocolError` for an invalid message, naming what is wrong with it.

    >>> check_message(IndexTable(request_id="r", attained_tokens=(0,), index_s=(math.nan,), growth_tokens=(0.0,)))
    Traceback (most recent call last):
    store.errors.ProtocolError: index table of 'r' has an index that is no number of seconds: the controller has a defect
    """
    if isinstance(message, IndexTable):
        faults, what = _table_faults(message), f"index table of {message.request_id or 'the prior'!r}"
    else:
        settings = message.settings if isinstance(message, Heartbeat) else message
        if not isinstance(settings, Settings):
            return
        faults, what = _settings_faults(settings), f"settings of revision {settings.revision}"
    fault = next(faults, None)
    if fault is not None:
        raise ProtocolError(f"{what} {fault}: the controller has a defect")


def _table_faults(table: IndexTable) -> Iterator[str]:
    attained = table.attained_tokens
    if not len(attained) == len(table.index_s) == len(table.growth_tokens):
        yield "has columns of different lengths"
    if len(attained) > MOST_ENTRIES:
        yield f"has {len(attained)} entries"
    if not attained or attained[0] != 0 or not all(map(lt, attained, attained[1:])):
        yield "does not begin at 0 tokens and rise"
    if not _all_within(table.index_s, -LARGEST_S, LARGEST_S):
        yield "has an index that is no number of seconds"
    if not _all_within(table.growth_tokens, 0.0, LARGEST_TOKENS):
        yield "has a growth that is no number of tokens"
    if not all(min(row) >= 0 and max(row) <= LARGEST_TOKENS for row in (attained[-1:], *_quantiles(table)) if row):
        yield "has a length that is no number of tokens"
    if not 1.0 / LARGEST_FACTOR <= table.weight <= LARGEST_FACTOR:
        yield f"has the weight {table.weight}"
    yield from _promise_faults(table)


def _promise_faults(table: IndexTable) -> Iterator[str]:
    if not {*map(len, _quantiles(table))} <= {0, len(table.attained_tokens)}:
        yield "has quantiles for some of its entries only"
    if table.targets is not None and table.targets.e2e_s is not None and not table.early_tokens:
        yield "has a deadline and no quantiles of the length"
    if table.targets is not None and table.request_id is None:
        yield "has targets of no request"


def _settings_faults(settings: Settings) -> Iterator[str]:
    if not settings.lease_s > 0.0:
        yield f"have a lease of {settings.lease_s} s"
    rules = settings.rules
    if rules.boost_per_s is not None and not 1.0 / LARGEST_FACTOR <= rules.boost_per_s <= LARGEST_FACTOR:
        yield f"have a boost of {rules.boost_per_s} per second"
    if rules.gate is not None and not _sound_gate(rules.gate):
        yield f"have the gate {rules.gate}"
    if rules.preemption is not None and not _sound_preemption(rules.preemption):
        yield f"have the preemption {rules.preemption}"
    if rules.step is not None and not _sound_prices(rules.step):
        yield f"have the step times {rules.step}"
    if rules.shares is not None and not _sound_prices(rules.shares):
        yield f"have the prices {rules.shares}"


def _quantiles(table: IndexTable) -> tuple[tuple[int, ...], ...]:
    return table.early_tokens, table.late_tokens


def _all_within(values: Sequence[float], least: float, most: float) -> bool:
    return not values or (all(map(math.isfinite, values)) and least <= min(values) and max(values) <= most)


def _sound_gate(gate: Gate) -> bool:
    return 0 <= gate.horizon_tokens <= LARGEST_TOKENS and 0.0 <= gate.margin <= LARGEST_FACTOR


def _sound_prices(prices: StepCost | FairShares) -> bool:
    return _all_within(tuple(getattr(prices, name) for name in prices.__struct_fields__), 0.0, LARGEST_S)


def _sound_preemption(preemption: Preemption) -> bool:
    return 0.0 <= preemption.token_s <= LARGEST_S and 0.0 <= preemption.hysteresis <= 1.0 and preemption.rest_steps >= 0
