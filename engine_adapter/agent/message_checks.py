"""Checks a controller's messages before an engine applies them: finite numbers, and tables that can be looked up.

A message that decodes may still be invalid, from a defective controller or from anyone else who reaches the socket.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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


def check_message(message: ControllerMessage) -> None:
    """Raise `ProtocolError` for an invalid message, naming what is wrong with it.

    >>> check_message(IndexTable(request_id="r", attained_tokens=(0,), index_s=(math.nan,), growth_tokens=(0.0,)))
    Traceback (most recent call last):
    store.errors.ProtocolError: index table of 'r' has an index that is no finite number: the controller has a defect
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
    if not {len(table.early_tokens), len(table.late_tokens)} <= {0, len(attained)}:
        yield "has quantiles for some of its entries only"
    if table.targets is not None and table.targets.e2e_s is not None and not table.early_tokens:
        yield "has a deadline and no quantiles of the length"
    if not attained or attained[0] != 0 or not all(map(lt, attained, attained[1:])):
        yield "does not begin at 0 tokens and rise"
    if not all(map(math.isfinite, table.index_s)):
        yield "has an index that is no finite number"
    if not all(map(math.isfinite, table.growth_tokens)) or min(table.growth_tokens, default=0.0) < 0.0:
        yield "has a growth that is no finite number of tokens"
    if not 0.0 < table.weight < math.inf:
        yield "has a weight that is no finite number above 0"


def _settings_faults(settings: Settings) -> Iterator[str]:
    if not settings.lease_s > 0.0:
        yield f"have a lease of {settings.lease_s} s"
    rules = settings.rules
    if rules.boost_per_s is not None and not 0.0 < rules.boost_per_s < math.inf:
        yield f"have a boost of {rules.boost_per_s} per second"
    if rules.gate is not None and not _sound_gate(rules.gate):
        yield f"have the gate {rules.gate}"
    if rules.preemption is not None and not _sound_preemption(rules.preemption):
        yield f"have the preemption {rules.preemption}"
    if rules.step is not None and not _all_sound(rules.step):
        yield f"have the step times {rules.step}"
    if rules.shares is not None and not _all_sound(rules.shares):
        yield f"have the prices {rules.shares}"


def _sound_gate(gate: Gate) -> bool:
    return gate.horizon_tokens >= 0 and 0.0 <= gate.margin < math.inf


def _all_sound(prices: StepCost | FairShares) -> bool:
    return all(0.0 <= getattr(prices, name) < math.inf for name in prices.__struct_fields__)


def _sound_preemption(preemption: Preemption) -> bool:
    return 0.0 <= preemption.token_s < math.inf and preemption.hysteresis <= 1.0 and preemption.rest_steps >= 0
