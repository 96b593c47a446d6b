"""Frames that no sound engine or controller sends."""

from __future__ import annotations

import math
import random

from harness.network import Network

from store.records import Acknowledged, IndexTable, encode


def throw(kind: str, network: Network, chance: random.Random, request_id: str) -> None:
    """Send one of a kind to an engine or to the controller."""
    match kind:
        case "garbage to controller":
            network.throw_at_controller(chance.randbytes(chance.choice([0, 1, 50])))
        case "garbage to engine":
            network.throw_at_engine(chance.randbytes(chance.choice([0, 1, 50])))
        case "other protocol version":
            frame = bytes((chance.choice([0, 2, 255]),)) + encode(Acknowledged(batch=0))[1:]
            network.throw_at_engine(frame)
            network.throw_at_controller(frame)
        case "spoiled table":
            network.throw_at_engine(encode(_spoiled(chance, request_id)))
        case "unknown table":
            network.throw_at_engine(encode(_table(chance.choice(["nobody", "r1", "r2"]), 0.001)))


def _table(request_id: str | None, index_s: float) -> IndexTable:
    return IndexTable(request_id=request_id, attained_tokens=(0,), index_s=(index_s,), growth_tokens=(0.0,))


def _spoiled(chance: random.Random, request_id: str) -> IndexTable:
    """A table that a broken controller could make, of a request that may be here, or the prior."""
    whom = chance.choice([request_id, request_id, None])
    wrong = chance.choice([math.nan, math.inf, -math.inf])
    return chance.choice(
        [
            _table(whom, wrong),
            IndexTable(request_id=whom, attained_tokens=(0, 3), index_s=(1.0, wrong), growth_tokens=(0.0, 0.0)),
            IndexTable(request_id=whom, attained_tokens=(0,), index_s=(1.0,), growth_tokens=(wrong,)),
            IndexTable(request_id=whom, attained_tokens=(), index_s=(), growth_tokens=()),
            IndexTable(request_id=whom, attained_tokens=(0, 3), index_s=(1.0,), growth_tokens=(0.0,)),
            IndexTable(request_id=whom, attained_tokens=(5,), index_s=(1.0,), growth_tokens=(0.0,)),
            IndexTable(request_id=whom, attained_tokens=(0, 9, 3), index_s=(1.0, 2.0, 3.0), growth_tokens=(0.0,) * 3),
            IndexTable(request_id=whom, attained_tokens=(0,), index_s=(1.0,), growth_tokens=(math.nan,)),
        ]
    )
