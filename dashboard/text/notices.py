"""What the controller's verdict finds, as notices; the words are those of the rules that also make the alerts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from dashboard.text.words import Notice, plain
from store.http_now import Finding
from store.rules import Level

BOXES: dict[Level, Literal["error", "warning", "info"]] = {
    "red": "error",
    "amber": "warning",
    "info": "info",
    "green": "info",
}
"""The kind of box for each level."""


def finding_notices(findings: Iterable[Finding]) -> list[Notice]:
    """What is amiss and what to do, in the order of the findings."""
    return [Notice(BOXES[found.level], plain(found.title), _text(found)) for found in findings]


def _text(found: Finding) -> str:
    """What was found may hold text from outside; what to do is the rule's own."""
    return " ".join(part for part in (plain(found.text), found.do) if part)
