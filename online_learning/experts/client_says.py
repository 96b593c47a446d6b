"""The expert of what clients say: how long answers were, compared with the length that their clients expected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from online_learning.distribution import FloatArray, IntArray
from online_learning.experts.expert import bin_of, chances
from online_learning.experts.specialist import HintedQuery
from online_learning.features.request_hints import RequestHints
from online_learning.length_learner import Observation
from online_learning.survival.hazard import mass_from_survival, posterior_hazard, survival_from_hazard
from online_learning.survival.per_model import ModelTable
from online_learning.survival.shrinkage import ModelAverage

_STEP = 0.5 * math.log(1.12)
"""Width of a bin of log ratios: half of one of the length grid."""

_BINS = 257
"""Bins of log ratios, the middle one about 0: from 1/1,400 to 1,400 times what was expected."""

_EDGES: FloatArray = np.linspace(0.5 - _BINS // 2, 0.5 + _BINS // 2, _BINS) * _STEP
"""Right edge of each bin of log ratios."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """How fast what clients say is forgotten, and how it is shrunk."""

    memory_answers: float = 1_000.0
    """Later answers, of the model or of the tenant, after which an answer's weight has fallen by a factor e."""
    kernel_bins: tuple[float, ...] = (0.4, 4.0)
    """Deviations by which a log ratio is spread, in bins."""
    tenant_answers: float = 10.0
    """Weight of the model's ratios in those of a tenant, in answers."""
    prior_answers: float = 5.0
    """Weight of what the others predict, in answers."""
    max_tenants: int = 1_000
    """Tenants remembered, over all models; the one that was taught longest ago is forgotten first."""


class _Ratios:
    """Weighted numbers of answers by their ratio to what was expected: those that ended, and those that were cut."""

    def __init__(self) -> None:
        self.counts: FloatArray = np.zeros((2, _BINS))

    @property
    def answers(self) -> float:
        """Effective number of answers."""
        return float(self.counts.sum())

    def learn(self, place: int, *, censored: bool, keep: float) -> None:
        self.counts *= keep
        self.counts[int(censored), place] += 1.0


class ClientSaysExpert:
    """The distribution of log(actual/expected), learnt per model and per tenant, at the length that this client expects.

    A life table of ratios, so that answers which were cut count as at least so long. Those of a tenant are shrunk to the
    model's: some clients know their answers, others send one number with every request. Whether tenants are told apart, and
    how wide a ratio is spread, is learnt for each model from the latest log scores. It is silent where nothing is expected.
    Fails where the ratio depends on the length expected, which the mixture sees.

    Args:
        lengths: right edges of the bins in tokens, shape (bins,), increasing; `log_grid` makes them.
        settings: memory and shrinkage.
        max_models: models remembered; the one that was taught longest ago is forgotten first.
    """

    name = "client says"

    def __init__(self, lengths: IntArray, settings: ClientSettings | None = None, *, max_models: int = 16) -> None:
        self._settings = chosen = settings or ClientSettings()
        self._lengths = lengths
        self._log_lengths = np.log(lengths)
        self._kernels = np.stack([_kernel(deviation) for deviation in chosen.kernel_bins])
        self._models = ModelTable(_Ratios, bound=max_models)
        self._tenants = ModelTable(_Ratios, bound=chosen.max_tenants)
        self._averages = ModelTable(self._new_average, bound=max_models)
        self._keep = 1.0 - 1.0 / chosen.memory_answers

    def speaks(self, hints: RequestHints, model: str) -> bool:
        """Whether the client expects a length, and an answer to such a request has been taught."""
        return hints.expected_tokens is not None and self._models.get(model) is not None

    def predict(self, query: HintedQuery) -> FloatArray:
        """The mean of the candidates, weighted by their latest log scores."""
        average = self._averages.get(query.model) or self._new_average()
        return mass_from_survival(average.mix(self._survivals(query)[None])[0])

    def learn(self, query: HintedQuery, observation: Observation) -> None:
        """Judge the candidates by the answer, and count its ratio for its model and its tenant."""
        hints, model = query.hints, query.model
        if hints.expected_tokens is None:
            return
        if self.speaks(hints, model):
            position = bin_of(self._lengths, observation)
            given = chances(self._survivals(query), position, censored=observation.censored)
            self._averages.get_or_create(model).learn(given)
        place = _place(observation.output_tokens, hints.expected_tokens)
        known = [self._models.get_or_create(model)]
        if hints.tenant:
            known.append(self._tenants.get_or_create(_name(hints.tenant, model)))
        for ratios in known:
            ratios.learn(place, censored=observation.censored, keep=self._keep)

    def _survivals(self, query: HintedQuery) -> FloatArray:
        """Survival under each candidate: each kernel for the model, then for the tenant; shape (candidates, bins)."""
        tokens, of_model = query.hints.expected_tokens, self._models.get(query.model)
        assert tokens is not None, "it does not speak of others"
        assert of_model is not None, "it does not speak of others"
        of_tenant = self._tenants.get(_name(query.hints.tenant, query.model))
        hazards = self._hazards(of_model, _VAGUE_HAZARD, 1.0)
        own = hazards if of_tenant is None else self._hazards(of_tenant, hazards, self._settings.tenant_answers)
        ratios = survival_from_hazard(np.concatenate((hazards, own)))
        trust = of_model.answers / (of_model.answers + self._settings.prior_answers)
        return query.survival + trust * (self._at(ratios, tokens) - query.survival)

    def _hazards(self, known: _Ratios, prior: FloatArray, strength: float) -> FloatArray:
        """Hazard by log ratio under each kernel, shape (kernels, ratios)."""
        ended = known.counts[0] @ self._kernels
        cut = known.counts[1]
        at_risk = (ended + cut)[:, ::-1].cumsum(axis=1)[:, ::-1]
        return posterior_hazard(ended, at_risk - cut, prior, strength * survival_from_hazard(np.atleast_2d(prior)))

    def _at(self, ratios: FloatArray, expected_tokens: int) -> FloatArray:
        """Survival on the length grid, from that on the grid of ratios."""
        at = self._log_lengths[:-1] - math.log(expected_tokens)
        survival = np.ones((len(ratios), self._lengths.size))
        for row, of_ratio in zip(survival, ratios, strict=True):
            row[1:] = np.interp(at, _EDGES[:-1], of_ratio[1:], left=1.0, right=float(of_ratio[-1]))
        return survival

    def _new_average(self) -> ModelAverage:
        return ModelAverage(2 * len(self._settings.kernel_bins))


def _vague_hazard() -> FloatArray:
    """That of a logistic distribution of log ratios about 0: broad, for a client of whom nothing is known."""
    survival = 1.0 / (1.0 + np.exp(_EDGES / 0.7))
    before = np.concatenate(([1.0], survival[:-1]))
    return np.asarray(1.0 - survival / before)


_VAGUE_HAZARD = _vague_hazard()


def _kernel(deviation: float) -> FloatArray:
    """The mass that a ratio in each bin spreads over all, shape (ratios, ratios); rows sum to 1."""
    apart = np.arange(_BINS)[:, None] - np.arange(_BINS)[None, :]
    near = np.exp(-0.5 * (apart / deviation) ** 2)
    return np.asarray(near / near.sum(axis=1, keepdims=True))


def _place(output_tokens: int, expected_tokens: int) -> int:
    """The bin of a ratio.

    >>> _place(100, 100) == _BINS // 2, _place(10**9, 1) == _BINS - 1
    (True, True)
    """
    ratio = math.log(max(1, output_tokens) / expected_tokens)
    return min(max(0, int(_EDGES.searchsorted(ratio))), _BINS - 1)


def _name(tenant: int, model: str) -> str:
    return f"{tenant}/{model}"
