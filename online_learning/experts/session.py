"""The expert of sessions: the answers of a conversation, or of an agent's program, predict its next one."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np

from online_learning.distribution import FloatArray, IntArray
from online_learning.experts.expert import bin_of, chances
from online_learning.experts.specialist import HintedQuery
from online_learning.features.request_hints import RequestHints
from online_learning.length_learner import Observation
from online_learning.survival.hazard import mass_from_survival, posterior_hazard, survival_from_hazard
from online_learning.survival.per_model import ModelTable
from online_learning.survival.shrinkage import ModelAverage


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How much of a session is remembered, and how it may tell the next answer."""

    answers: int = 8
    """Latest answers of a session that count."""
    max_sessions: int = 10_000
    """Sessions remembered over all models; the one that was taught longest ago is forgotten first."""
    kernel_bins: tuple[float, ...] = (1.0, 4.0)
    """Deviations by which an answer's length is spread, in bins of the grid."""
    strengths: tuple[float, ...] = (0.5, 2.0, 8.0)
    """Weights of what the others predict, in answers."""
    level_answers: tuple[float, ...] = (0.5, 2.0)
    """Weights of no difference in the session's level, in answers."""


class _Answer(NamedTuple):
    """An answer of a session: where it ended or was cut, and by how much its logarithm exceeded the prediction."""

    position: int
    censored: bool
    surprise: float


class SessionExpert:
    """A session's last answers, as a life table that is shrunk to what the others predict, and as a level.

    The life table suits sessions whose answers are alike whatever their prompts say; the level, a shrunken mean of the
    logarithms by which answers were longer than predicted (the random effect of a session), suits those whose answers are
    longer or shorter than others' to like prompts. Which of them, how wide and how far shrunk, is learnt for each model
    from the latest log scores. It is silent without a session, and about a session's first answer.
    Fails where a session's answers have nothing in common, which the mixture sees.

    Args:
        lengths: right edges of the bins in tokens, shape (bins,), increasing; `log_grid` makes them.
        settings: memory and candidates.
        max_models: models remembered; the one that was taught longest ago is forgotten first.
    """

    name = "session"

    def __init__(self, lengths: IntArray, settings: SessionSettings | None = None, *, max_models: int = 16) -> None:
        self._settings = chosen = settings or SessionSettings()
        self._lengths = lengths
        self._log_lengths = np.log(lengths)
        self._kernels = np.stack([_kernel(lengths.size, deviation) for deviation in chosen.kernel_bins])
        self._candidates = len(chosen.kernel_bins) * len(chosen.strengths) + len(chosen.level_answers)
        self._sessions: OrderedDict[int, list[_Answer]] = OrderedDict()
        self._models = ModelTable(self._new_average, bound=max_models)

    def speaks(self, hints: RequestHints, model: str) -> bool:
        """Whether an answer of the request's session has been taught."""
        return hints.session is not None and _key(hints.session, model) in self._sessions

    def predict(self, query: HintedQuery) -> FloatArray:
        """The mean of the candidates, weighted by their latest log scores."""
        average = self._models.get(query.model) or self._new_average()
        return mass_from_survival(average.mix(self._survivals(query)[None])[0])

    def learn(self, query: HintedQuery, observation: Observation) -> None:
        """Judge the candidates by the answer, and add it to its session's."""
        hints, model = query.hints, query.model
        if hints.session is None:
            return
        position = bin_of(self._lengths, observation)
        if self.speaks(hints, model):
            given = chances(self._survivals(query), position, censored=observation.censored)
            self._models.get_or_create(model).learn(given)
        key = _key(hints.session, model)
        answers = self._sessions.setdefault(key, [])
        answers.append(_Answer(position, observation.censored, self._surprise(query, position, observation.censored)))
        del answers[: -self._settings.answers]
        self._sessions.move_to_end(key)
        if len(self._sessions) > self._settings.max_sessions:
            self._sessions.popitem(last=False)

    def _survivals(self, query: HintedQuery) -> FloatArray:
        """Survival under each candidate, shape (candidates, bins)."""
        assert query.hints.session is not None, "it does not speak of others"
        answers = self._sessions[_key(query.hints.session, query.model)]
        return np.concatenate((self._life_tables(query, answers), self._levels(query, answers)))

    def _life_tables(self, query: HintedQuery, answers: list[_Answer]) -> FloatArray:
        """Survival under each kernel and strength, shape (kernels x strengths, bins)."""
        ended = [answer.position for answer in answers if not answer.censored]
        cut = [answer.position for answer in answers if answer.censored]
        events = self._kernels[:, ended].sum(axis=1)
        exposure = events[:, ::-1].cumsum(axis=1)[:, ::-1]
        for position in cut:
            exposure[:, :position] += 1.0
        strengths = np.array(self._settings.strengths)[None, :, None] * query.survival
        hazard = posterior_hazard(events[:, None], exposure[:, None], query.hazard, strengths)
        return survival_from_hazard(hazard).reshape(-1, self._lengths.size)

    def _levels(self, query: HintedQuery, answers: list[_Answer]) -> FloatArray:
        """Survival where lengths are moved by the session's level, for each shrinkage of it, shape (shrinkages, bins)."""
        total = sum(answer.surprise for answer in answers)
        survival, logs = query.survival, self._log_lengths
        moved = np.empty((len(self._settings.level_answers), logs.size))
        moved[:, 0] = 1.0
        for row, prior_answers in zip(moved, self._settings.level_answers, strict=True):
            shift = total / (len(answers) + prior_answers)
            row[1:] = np.interp(logs[:-1] - shift, logs[:-1], survival[1:], left=1.0)
        return moved

    def _surprise(self, query: HintedQuery, position: int, censored: bool) -> float:  # noqa: FBT001
        """By how much an answer's logarithm exceeded its prediction; of one that was cut, by how much it is expected to."""
        mass, logs = query.before, self._log_lengths
        found = float(logs[position])
        if censored:
            rest = float(mass[position:].sum())
            found = float(mass[position:] @ logs[position:]) / rest if rest > _LEAST_REST else found
        return found - float(mass @ logs)

    def _new_average(self) -> ModelAverage:
        return ModelAverage(self._candidates)


_LEAST_REST = 1e-9


def _key(session: int, model: str) -> int:
    """One number for a session with a model."""
    return session ^ (crc32(model.encode("utf-8", "replace")) << 14)


def _kernel(bins: int, deviation: float) -> FloatArray:
    """The mass that an answer in each bin spreads over all, shape (bins, bins); rows sum to 1.

    >>> _kernel(3, 1.0).round(2).tolist()
    [[0.57, 0.35, 0.08], [0.27, 0.45, 0.27], [0.08, 0.35, 0.57]]
    """
    apart = np.arange(bins)[:, None] - np.arange(bins)[None, :]
    near = np.exp(-0.5 * (apart / deviation) ** 2)
    return np.asarray(near / near.sum(axis=1, keepdims=True))
