"""A built-in workload like the traffic of a shared model: a dozen families of prompts with their own lengths.

For demos and tests without a file. A prompt determines its family and part of the answer's length,
as real ones do; the rest is random.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine_adapter.workloads.rows import WorkloadRow
from engine_adapter.workloads.synthetic_families import COMMON, FAMILIES, Family
from engine_adapter.workloads.token_ids import count_tokens
from store.errors import BadInputError

MAX_RESPONSE_TOKENS = 8000
"""Longest answer; longer ones are cut, as by a model's context."""

BATCH_FAMILIES = frozenset({"summary", "translation", "code", "story", "reasoning"})
"""Tasks whose answers nobody waits for, where a workload has classes."""

_USUAL_BODY_TOKENS = 250
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticOptions:
    """Options of a synthetic workload."""

    model: str = "synthetic"
    drift_at: int | None = None
    """Number of the request from which several families' answers become longer or shorter."""
    informative: bool = True
    """Whether prompts are informative about their answers; if not, each has another one's answer length."""
    tenants: int = 0
    """Number of clients that share the traffic, the first with the largest share; 0 for none."""
    urgent_share: float = 0.0
    """Share of requests in the class before all others (priority -1)."""
    classes: bool = False
    """Whether the long tasks are a batch behind all others (priority 10)."""
    length_factor: float = 1.0
    """Factor on all answers' lengths, and on the longest one's."""
    client_limits: bool = True
    """Whether clients limit their answers."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.urgent_share <= 1.0:
            raise BadInputError(f"urgent_share is {self.urgent_share}: give a share from 0 to 1")
        if not 0 <= self.tenants <= 1000:
            raise BadInputError(f"tenants is {self.tenants}: give 0 to 1000")


def synthetic_stream(seed: int, options: SyntheticOptions | None = None) -> Iterator[WorkloadRow]:
    """Yield rows without end; the same seed and options give the same ones."""
    options = options or SyntheticOptions()
    generator = np.random.default_rng([seed, 3])
    shares = np.array([family.weight for family in FAMILIES])
    shares /= shares.sum()
    position = 0
    while True:
        for chosen in generator.choice(len(FAMILIES), size=256, p=shares).tolist():
            drifted = options.drift_at is not None and position >= options.drift_at
            yield _row(FAMILIES[chosen], generator, options, drifted=drifted, shares=shares)
            position += 1


def _row(
    family: Family,
    generator: np.random.Generator,
    options: SyntheticOptions,
    *,
    drifted: bool,
    shares: NDArray[np.float64],
) -> WorkloadRow:
    prompt, factor = _prompt(family, generator)
    length = _length(family, factor, generator, drifted=drifted)
    if not options.informative:
        other = FAMILIES[int(generator.choice(len(FAMILIES), p=shares))]
        length = _length(other, _prompt(other, generator)[1], generator, drifted=drifted)
    length *= options.length_factor
    client = _client(options.tenants, generator)
    limit = family.max_tokens[int(generator.integers(len(family.max_tokens)))]
    batch = options.classes and family.name in BATCH_FAMILIES
    return WorkloadRow(
        task=family.name,
        model=options.model,
        prompt=prompt,
        prompt_len_tokens=count_tokens(prompt),
        response_len_tokens=max(1, min(round(MAX_RESPONSE_TOKENS * options.length_factor), round(length))),
        client=client,
        max_tokens=limit if options.client_limits else None,
        priority=-1 if generator.random() < options.urgent_share else 10 if batch else 0,
    )


def _length(family: Family, factor: float, generator: np.random.Generator, *, drifted: bool) -> float:
    return float(family.answers.draw(generator, 1)[0]) * factor * (family.drift if drifted else 1.0)


def _prompt(family: Family, generator: np.random.Generator) -> tuple[str, float]:
    """Draw a prompt of the family, and the factor that its wording applies to the answer's length."""
    template = _pick(family.templates, generator)
    phrase, factor = family.sizes[int(generator.integers(len(family.sizes)))]
    if "{size}" not in template:
        factor = 1.0
    body = ""
    if "{body}" in template and family.body_sentences[1]:
        body = _body(family, generator)
        factor *= (count_tokens(body) / _USUAL_BODY_TOKENS) ** family.body_exponent
    filled = template.replace("{size}", phrase).replace("{body}", body)
    return f"{family.system}\n\n{_fill(filled, family, generator).strip()}", factor


def _body(family: Family, generator: np.random.Generator) -> str:
    """Draw sentences or lines with unfilled slots; short texts are more frequent than long ones."""
    least, most = family.body_sentences
    sentences = round(least * math.pow(most / least, float(generator.random())))
    return family.sentence * sentences


def _fill(text: str, family: Family, generator: np.random.Generator) -> str:
    """Fill the slots with words, including the slots in these words."""
    while "{" in text:
        text = _SLOT.sub(
            lambda slot: _pick(family.extra.get(slot[1]) or COMMON[slot[1]], generator),
            text,
        )
    return text


def _pick(choices: tuple[str, ...], generator: np.random.Generator) -> str:
    return choices[int(generator.integers(len(choices)))]


def _client(tenants: int, generator: np.random.Generator) -> str | None:
    """Draw a tenant; each has half the traffic of the one before it, the last as much as the one before."""
    if not tenants:
        return None
    return f"tenant-{min(int(generator.geometric(0.5)), tenants)}"
