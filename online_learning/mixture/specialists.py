"""How experts that speak only now and then join the mixture: each in a pool of two with all that comes before it.

A specialist (Freund, Schapire, Singer and Warmuth 1997, "Using and combining predictors that specialize") is weighed on the
requests that it speaks of alone; on others it counts as if it had said what the rest says, so that its weight and theirs
stay. With one pool for each specialist that holds by construction: a pool that is not asked learns nothing, and the
mixture of the others never hears of any specialist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from online_learning.distribution import FloatArray, LengthDistribution
from online_learning.experts.expert import ScoredPrediction, bin_of, scored_prediction
from online_learning.experts.specialist import HintedQuery, Specialist
from online_learning.features.request_hints import RequestHints
from online_learning.length_learner import Forecast, Observation
from online_learning.mixture.pooling import Pool, PoolSettings


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What a specialist and all before it predict, and how both are weighed."""

    masses: FloatArray
    """Shape (2, bins)."""
    weights: FloatArray
    """Shape (2,)."""
    mixed: FloatArray
    """Shape (bins,)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    """A specialist and its pool."""

    specialist: Specialist
    pool: Pool

    def ask(self, query: HintedQuery, cluster: int | None) -> _Said | None:
        """What it says, mixed in; None where it does not speak."""
        if not self.specialist.speaks(query.hints, query.model):
            return None
        masses = np.stack((query.before, self.specialist.predict(query)))
        weights = self.pool.significant_weights(query.model, [cluster])
        (mixed,) = self.pool.mix(masses[None], weights, query.model)
        return _Said(masses, weights[0], mixed)

    def credit(self, said: _Said, model: str, cluster: int | None, position: int, *, censored: bool) -> None:
        """Learn the weights by what was said of an answer in this bin."""
        scored: list[ScoredPrediction | None] = [
            scored_prediction(mass, position, censored=censored) for mass in said.masses
        ]
        self.pool.learn(scored, self.pool.weights(model, cluster), model, cluster)


class Specialists:
    """A chain of specialists over the mixture of the other experts; what one says is mixed into what the next starts from.

    Args:
        specialists: the experts, in their order.
        settings: of each one's pool.
    """

    def __init__(self, specialists: Sequence[Specialist], settings: PoolSettings) -> None:
        self._chain = [_Link(specialist, Pool(2, settings)) for specialist in specialists]

    def refine(self, forecast: Forecast, hints: RequestHints, model: str) -> Forecast:
        """A forecast with what the specialists say, and each one's weight in it; changes nothing."""
        for link in self._chain:
            before = forecast.distribution
            said = link.ask(HintedQuery(hints, model, before.mass), forecast.cluster)
            if said is None:
                continue
            weight = float(said.weights[1])
            experts = {name: share * (1.0 - weight) for name, share in forecast.experts.items()}
            experts[link.specialist.name] = weight
            distribution = LengthDistribution(before.lengths, said.mixed)
            forecast = structs.replace(forecast, distribution=distribution, experts=experts)
        return forecast

    def learn(self, forecast: Forecast, hints: RequestHints, model: str, observation: Observation) -> None:
        """Credit each specialist by what it would have said, then teach it; ``forecast`` is that of the other experts."""
        mass = forecast.distribution.mass
        position = bin_of(forecast.distribution.lengths, observation)
        for link in self._chain:
            query = HintedQuery(hints, model, mass)
            said = link.ask(query, forecast.cluster)
            if said is not None:
                link.credit(said, model, forecast.cluster, position, censored=observation.censored)
                mass = said.mixed
            link.specialist.learn(query, observation)
