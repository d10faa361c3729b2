"""A rating in programming contests from problems with ratings, and the percentile of people that it stands for.

R1 was rated by ten Div. 2 contests whose tests and human results are not public (v1 §3). What is estimated here is simpler
and can be repeated by anyone: Codeforces rates a problem d when contestants of rating d solve it half of the time, so a
solver of rating r solves it with chance 1 / (1 + 10^((d - r) / 400)), Elo's curve, and the rating is the r that makes what
was solved likeliest. A sample counts as a contestant with one attempt. Compare such ratings with each other; the published ones
come from another procedure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_r1.evaluation.metrics import ProblemScore
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.rows import Row, structured_reference
from trl_r1.statistics import RESAMPLES, Estimate

logger = logging.getLogger(__name__)

# Where a rating is looked for; who solves nothing (everything) gets the bound, since no finite rating is likeliest.
LOWEST, HIGHEST = 0.0, 4000.0
# Codeforces rating and percentile of six models, as printed side by side (v1 Table 4): the only points of the human
# distribution that are published there. Between them the log-odds of the percentile are taken to be linear in the rating,
# that is, ratings to be logistic piece by piece; beyond the ends the last piece goes on.
PUBLISHED_PERCENTILES = ((717, 20.3), (759, 23.6), (1134, 58.7), (1820, 93.4), (2029, 96.3), (2061, 96.6))


@dataclass(frozen=True)
class Rating:
    """A rating with its interval.

    Args:
        rating ([`~trl_r1.statistics.Estimate`]): With a 95 % bootstrap interval over problems.
        percentile ([`~trl_r1.statistics.Estimate`]): Percent of people below it, by the same resamples.
        bounded (`bool`): Whether nothing or everything was solved, so that the rating is a bound of the search.
        people (`str`): Which people: what the percentile assumes.
    """

    rating: Estimate
    percentile: Estimate
    bounded: bool
    people: str


def fit_rating(difficulties: ArrayLike, solved: ArrayLike, tried: ArrayLike) -> NDArray[np.float64]:
    """Return the likeliest rating of a solver.

    Args:
        difficulties (`ArrayLike` of shape `(n_problems,)`): Ratings of the problems.
        solved (`ArrayLike` of shape `(n_problems,)` or `(resamples, n_problems)`): Attempts that solved each.
        tried (`ArrayLike` of the shape of `solved`): Attempts at each.

    Returns:
        `ndarray` of shape `()` or `(resamples,)`: Within [0, 4000].
    """
    levels = np.asarray(difficulties, dtype=np.float64)
    right, drawn = np.asarray(solved, dtype=np.float64), np.asarray(tried, dtype=np.float64)
    low = np.full(right.shape[:-1], LOWEST)
    high = np.full(right.shape[:-1], HIGHEST)
    # The slope of the log-likelihood, solved minus expected to be solved, falls with the rating: bisection finds its zero.
    for _ in range(30):
        middle = (low + high) / 2
        chance = 1 / (1 + 10 ** ((levels - middle[..., None]) / 400))
        more = (right - drawn * chance).sum(axis=-1) > 0
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return (low + high) / 2


def percentile(rating: float, people: Sequence[float] | None = None) -> float:
    """Return the percent of people whose rating is lower.

    Args:
        rating (`float`): A rating.
        people (`Sequence[float]`, *optional*): Their ratings; by default the curve through [`PUBLISHED_PERCENTILES`].

    Returns:
        `float`: In [0, 100]; of equal ratings half count as lower.

    Example:

    ```python
    >>> from trl_r1.evaluation.ratings import percentile
    >>> round(percentile(2029), 1)
    96.3
    >>> percentile(1500, [1000, 1500, 2000, 2500])
    37.5
    ```
    """
    if people is not None:
        known = np.asarray(people, dtype=np.float64)
        if known.size == 0:
            raise ConfigurationError(
                "The list of human ratings is empty. Give ratings, or none for the published curve."
            )
        return float(100 * ((known < rating).mean() + (known == rating).mean() / 2))
    at = [point for point, _ in PUBLISHED_PERCENTILES]
    odds = [log(share / (100 - share)) for _, share in PUBLISHED_PERCENTILES]
    piece = min(max(sum(rating >= point for point in at) - 1, 0), len(at) - 2)
    slope = (odds[piece + 1] - odds[piece]) / (at[piece + 1] - at[piece])
    return 100 / (1 + exp(-(odds[piece] + slope * (rating - at[piece]))))


def rate(rows: Iterable[Row], scores: Sequence[ProblemScore], people: Sequence[float] | None = None) -> Rating:
    """Rate a model by the problems it tried.

    Args:
        rows (`Iterable[Row]`): The problems; their `reference` is JSON with a `rating`.
        scores (`Sequence[ProblemScore]`): What became of the samples, matched by `id`.
        people (`Sequence[float]`, *optional*): Ratings of people, for the percentile.

    Returns:
        [`Rating`]: With intervals over problems.

    Raises:
        [`DataError`]: If no problem has both a rating and samples.
    """
    levels = {row.id: structured_reference(row.reference).get("rating") for row in rows}
    known = [score for score in scores if score.n and levels.get(score.id) is not None]
    if not known:
        raise DataError("No problem has both a `rating` in its reference and samples: there is nothing to rate by.")
    if len(known) < len(scores):
        logger.warning("%d of %d problems have no rating and count nowhere.", len(scores) - len(known), len(scores))
    difficulties = np.array([levels[score.id] for score in known], dtype=np.float64)
    solved = np.array([score.correct for score in known], dtype=np.float64)
    tried = np.array([score.samples for score in known], dtype=np.float64)
    value = float(fit_rating(difficulties, solved, tried))
    drawn = np.random.default_rng(0).multinomial(len(known), np.full(len(known), 1 / len(known)), size=RESAMPLES // 4)
    resampled = fit_rating(difficulties, drawn * solved, drawn * tried)
    low, high = (float(bound) for bound in np.quantile(resampled, [0.025, 0.975]))
    bounded = bool(solved.sum() in (0, tried.sum()))
    if bounded:
        logger.warning(
            "%s problem was solved: the rating %d is a bound, not an estimate.",
            "Every" if solved.sum() else "No",
            value,
        )
    return Rating(
        Estimate(value, low, high, len(known)),
        Estimate(percentile(value, people), percentile(low, people), percentile(high, people), len(known)),
        bounded,
        f"{len(people)} ratings given by the user" if people is not None else "the curve through v1 Table 4",
    )
