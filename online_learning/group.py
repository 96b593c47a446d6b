"""Experts of groups that requests name themselves: the template that a prompt begins with, and the tenant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from online_learning.distribution import IntArray
from online_learning.expert import Belief, Lesson, Query, bin_of, drifts_of, verdict
from online_learning.features import IDENTITIES, TEMPLATE_DEPTHS, identities
from online_learning.hazard import mass_from_hazard, posterior_hazard, survival_from_hazard
from online_learning.models import ModelTable
from online_learning.prompt import Drift, Observation
from online_learning.sketch import LengthSketch, SketchSettings

_EVERYONE = 0.9
"""A group with this share of its parent's evidence says what the parent says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """How groups are remembered."""

    max_groups: int = 1_024
    """Groups remembered of all models; the one taught longest ago is forgotten first."""
    parent_answers: float = 20.0
    """Weight of the belief about the larger group, in answers."""
    sketch: SketchSettings = field(default_factory=lambda: SketchSettings(memory_answers=1_000.0, recent_answers=128))


class GroupExpert:
    """A length distribution for each group, shrunk to that of the group around it, and so on to the prior.

    ``columns`` says which identities of a prompt name its groups, the largest first. A prompt without identities,
    or of a group that nearly everyone is in, gets the prior.
    """

    def __init__(
        self, name: str, lengths: IntArray, columns: tuple[int, ...], settings: GroupSettings | None = None
    ) -> None:
        self.name = name
        self._lengths = lengths
        self._columns = columns
        self._settings = settings or GroupSettings()
        self._groups = ModelTable(self._new_sketch, bound=self._settings.max_groups)
        self._models = ModelTable(_Count, bound=self._settings.max_groups)

    def believe(self, query: Query) -> Belief:
        """The belief about the prompt's smallest group that is known."""
        everyone = self._models.known(query.model)
        parent = 0.0 if everyone is None else everyone.evidence
        hazard, survival, evidence, prior_share = query.prior.hazard, query.prior.survival, 0.0, 1.0
        for _, name in self._names(query):
            sketch = self._groups.known(name)
            if sketch is None or sketch.evidence >= _EVERYONE * parent:
                continue
            strength = self._settings.parent_answers
            hazard = posterior_hazard(sketch.events, sketch.exposure, hazard, strength * survival)
            survival = survival_from_hazard(hazard)
            parent = evidence = sketch.evidence
            prior_share *= strength / (strength + sketch.evidence)
        if evidence == 0.0:
            return Belief(query.prior.mass, 0.0, 0.0)
        return Belief(mass_from_hazard(hazard), evidence, 1.0 - prior_share)

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> Lesson:
        """Count the answer in all groups of its prompt."""
        position = bin_of(self._lengths, observation)
        said = verdict(self.believe(query).mass, position, censored=observation.censored) if judged else None
        self._models.taught(query.model).add(self._settings.sketch.memory_answers)
        drifts: list[Drift] = []
        for identity, name in self._names(query):
            drifts = drifts_of(query.model, identity, self._groups.taught(name).learn_one(observation))
        return Lesson(said, drifts)

    def _names(self, query: Query) -> Iterator[tuple[int, str]]:
        known = identities(query.features)
        for column in self._columns:
            if known[column] != 0:
                yield known[column], f"{query.model}/{column}/{known[column]}"

    def _new_sketch(self) -> LengthSketch:
        return LengthSketch(self._lengths, self._settings.sketch)


class _Count:
    """Effective number of a model's answers, forgetting as its groups do."""

    def __init__(self) -> None:
        self.evidence = 0.0

    def add(self, memory_answers: float) -> None:
        self.evidence = self.evidence * (1.0 - 1.0 / memory_answers) + 1.0


def template_expert(lengths: IntArray, settings: GroupSettings | None = None) -> GroupExpert:
    """Groups by the leading tokens, from few to many: a system prompt, its tools, a few-shot header.

    The shallowest identity is left out: most prompts of a model begin with the same few tokens.
    """
    return GroupExpert("template", lengths, tuple(range(1, len(TEMPLATE_DEPTHS))), settings)


def tenant_expert(lengths: IntArray, settings: GroupSettings | None = None) -> GroupExpert:
    """Groups by tenant."""
    return GroupExpert("tenant", lengths, (IDENTITIES - 1,), settings)
