"""The comparison with first come, first served by parts of the requests, which shows where the order gains and loses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from controller.replay.fidelity import ratio_of
from controller.replay.recorded_run import RecordedRequest
from controller.reports.service_figures import ClassFigures, ServedRequest, service_figures
from engine_adapter.virtual_time.engine import CompletedRequest
from online_learning.distribution import FloatArray
from store.http_api import Attained, GainPart, GainService, PartKind, PerRequest, RecomputeTax
from store.service_levels import ServiceLevel

FEWEST_IN_PART = 20
"""Smallest number of requests in a part."""
PARTS_SHOWN = 12
"""Largest number of parts of one kind; the largest parts are shown."""


def parts_of(
    past: Mapping[str, RecordedRequest],
    fcfs: Sequence[CompletedRequest],
    ours: Sequence[CompletedRequest],
) -> tuple[GainPart, ...]:
    """Compare by strict class, by the length of the answer and by prompt cluster; both in the order of ``past``."""
    keys: dict[PartKind, list[str | None]] = {
        "class": [str(request.priority) for request in past.values()],
        "length": [length_band(request.output_tokens) for request in past.values()],
        "cluster": [None if request.cluster is None else str(request.cluster) for request in past.values()],
    }
    ttlt_s = [np.array([request.ttlt_s for request in requests]) for requests in (fcfs, ours)]
    return tuple(part for by, names in keys.items() for part in _by(by, names, ttlt_s[0], ttlt_s[1]))


def tax_of(requests: Sequence[CompletedRequest]) -> RecomputeTax:
    """Sum the preemptions and the tokens computed again."""
    again = sum(request.recomputed_tokens for request in requests)
    computed = again + sum(request.prompt_tokens + request.output_tokens for request in requests)
    preemptions = sum(request.preemptions for request in requests)
    return RecomputeTax(preemptions=preemptions, recomputed_tokens=again, share=again / max(1, computed))


def per_request_of(fcfs: Sequence[CompletedRequest], ours: Sequence[CompletedRequest]) -> PerRequest:
    """Compare request by request."""
    before, after = (np.array([request.ttlt_s for request in requests]) for requests in (fcfs, ours))
    return PerRequest(
        faster=float((after < 0.9 * before).mean()),
        slower=float((after > 1.1 * before).mean()),
        fcfs_max_ttlt_s=float(before.max()),
        max_ttlt_s=float(after.max()),
    )


def attained(levels: Sequence[ServiceLevel], orders: Mapping[str, Sequence[CompletedRequest]]) -> Iterator[GainService]:
    """Which share of all requests, and of each class, met its targets under each order; all in the order of ``levels``."""
    found = {
        order: service_figures(
            [
                ServedRequest(one, level.service_class, level.targets)
                for one, level in zip(requests, levels, strict=True)
            ]
        )
        for order, requests in orders.items()
    }
    yield _attained(None, {order: one.all for order, one in found.items()})
    largest = Counter(level.service_class for level in levels).most_common(PARTS_SHOWN)
    for name, _ in largest:
        yield _attained(name, {order: one.classes[name] for order, one in found.items()})


def _attained(name: str | None, found: Mapping[str, ClassFigures]) -> GainService:
    shares = {
        order: Attained(
            goodput=one.goodput,
            ttft=one.attainment.get("ttft"),
            tpot=one.attainment.get("tpot"),
            e2e=one.attainment.get("e2e"),
        )
        for order, one in found.items()
    }
    return GainService(service_class=name, requests=found["actual"].asked, **shares)


def length_band(tokens: int) -> str:
    """Name the band of a length: a factor of four each.

    >>> length_band(0), length_band(100), length_band(5000)
    ('under 16', '64 to 255', '4,096 and more')
    """
    if tokens < 16:
        return "under 16"
    low = 16
    while low < 4096 and tokens >= 4 * low:
        low *= 4
    return f"{low:,} and more" if low == 4096 else f"{low:,} to {4 * low - 1:,}"


def _by(by: PartKind, names: Sequence[str | None], fcfs_s: FloatArray, ours_s: FloatArray) -> list[GainPart]:
    found = []
    for name in {name for name in names if name is not None}:
        mine = np.array([other == name for other in names])
        if mine.sum() < FEWEST_IN_PART:
            continue
        found.append(
            GainPart(
                by=by,
                name=name,
                requests=int(mine.sum()),
                fcfs_mean_ttlt_s=float(fcfs_s[mine].mean()),
                mean_ttlt_s=float(ours_s[mine].mean()),
                ratio=ratio_of(ours_s[mine], fcfs_s[mine]),
            )
        )
    largest = sorted(found, key=lambda part: (-part.requests, part.name))[:PARTS_SHOWN]
    return sorted(largest, key=_place)


def _place(part: GainPart) -> tuple[int, bool]:
    """Parts ascend by the first number of their names, and what lies under a number comes before what begins with it."""
    number = re.search(r"-?\d[\d,]*", part.name)
    return int(number[0].replace(",", "")) if number else 0, not part.name.startswith("under")
