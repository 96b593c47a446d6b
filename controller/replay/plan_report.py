"""Tables of a plan."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from controller.replay.plan import HIGHEST, Bearable, Plan
from controller.replay.read_history import moment
from controller.reports.tables import share_text, text_table


def describe(plan: Plan) -> str:
    """One line that names the requests, their time, the engine and its load."""
    requests = list(plan.past.counted.values())
    first, last = moment(requests[0].arrival_s), moment(requests[-1].arrival_s)
    run = plan.past.run
    return (
        f"{len(requests)} answers of {run.engine_id} ({run.model}), arrived from {first} to {last} UTC, "
        f"{plan.recorded_rps:.3g} requests/s"
    )


def verdict(plan: Plan) -> list[str]:
    """Lines that say whether the tables can be trusted."""
    poor = plan.fit.poor
    if poor:
        return [
            f"WARNING: what happened is reproduced poorly: {'; '.join(poor)}. The loads may be off as much.",
            *plan.notes,
        ]
    return ["What happened is reproduced well.", *plan.notes]


def load_table(plan: Plan) -> Table:
    """The load that one engine bears, and the replicas that the wanted load needs."""
    samples = plan.spec.resamples + 1
    wanted_rps = plan.bearable[0].wanted_rps
    title = f"What one engine bears (mean, lowest and highest of the record and {samples - 1} resamples)"
    headings = ["policy", "targets met by", "requests/s", "times the recorded", f"replicas for {wanted_rps:.3g}/s"]
    return text_table(title, headings, map(_load_row, plan.bearable), left=1)


def cost_table(plan: Plan) -> Table:
    """What the targets of each class cost the others."""
    first = plan.costs[0]
    classes = list(first.service.classes)
    title = f"What the targets of a class cost the others, at {first.multiple * plan.recorded_rps:.3g} requests/s"
    headings = ["targets in force", "all classes", *(f"{name} | mean s" for name in classes)]
    return text_table(title, headings, _cost_rows(plan, classes), left=1)


def _load_row(one: Bearable) -> tuple[str, ...]:
    mean_rps, low_rps, high_rps = one.rps
    multiples = (mean_rps / one.recorded_rps, min(one.multiples), max(one.multiples))
    bound = "at least " if max(one.multiples) >= HIGHEST else ""
    return (
        one.policy,
        f"{one.attainment:.1%}",
        f"{bound}{mean_rps:.3g} ({low_rps:.3g}-{high_rps:.3g})",
        "{:.2f} ({:.2f}-{:.2f})".format(*multiples),
        "{} ({}-{})".format(*("never" if replicas is None else replicas for replicas in one.replicas)),
    )


def _cost_rows(plan: Plan, classes: list[str]) -> Iterator[tuple[str, ...]]:
    for cost in plan.costs:
        found = cost.service
        yield (
            "all" if cost.without is None else f"without those of {cost.without}",
            share_text(found.all.goodput),
            *(f"{share_text(found.classes[name].goodput)} | {found.classes[name].mean_ttlt_s:.2f}" for name in classes),
        )
