"""How sure is a figure: bootstrap intervals over problems, and paired contrasts between two models.

Samples of one problem are not independent of each other, so the unit that is resampled is always the *problem*
(trap 36), never the completion. With several seeds both levels are resampled. numpy only; every interval is
deterministic for a given seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Enough that the bounds of a 95 % interval move by less than a tenth of its width between bootstrap seeds.
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its bootstrap interval.

    Args:
        value (`float`): The estimate on all problems; NaN when there is nothing to average.
        low (`float`): Lower bound of the interval.
        high (`float`): Upper bound of the interval.
        n (`int`): Number of problems behind it.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero, as a contrast must to be called an effect."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Estimate a mean over problems with its percentile bootstrap interval.

    Args:
        values (`ArrayLike` of shape `(n_problems,)` or `(n_seeds, n_problems)`):
            One figure per problem, such as the share of its samples that are right. NaN means "not known for this
            problem" and is left out. With two dimensions, seeds and problems are both resampled.
        confidence (`float`, defaults to 0.95): Mass of the interval.
        resamples (`int`, defaults to 4000): Number of bootstrap resamples.
        seed (`int`, defaults to 0): Seed of the resampling.

    Returns:
        [`Estimate`]: Mean and interval; all NaN when no value is known.

    Raises:
        `ValueError`: If `values` has neither one nor two dimensions, or `confidence` is not between 0 and 1.
    """
    numerators = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(numerators)
    return bootstrap_ratio(
        np.where(known, numerators, 0.0), known, confidence=confidence, resamples=resamples, seed=seed
    )


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate a ratio of sums over problems, such as tokens in right answers ÷ right answers, with its interval.

    Args:
        numerators (`ArrayLike` of shape `(n_problems,)` or `(n_seeds, n_problems)`): Summed above the line.
        denominators (`ArrayLike` of the same shape): Summed below it; problems with 0 carry no weight.
        confidence (`float`, defaults to 0.95): Mass of the interval.
        resamples (`int`, defaults to 4000): Number of bootstrap resamples.
        seed (`int`, defaults to 0): Seed of the resampling.

    Returns:
        [`Estimate`]: Ratio and interval; all NaN when the denominators sum to 0.

    Raises:
        `ValueError`: If the shapes differ or `confidence` is not between 0 and 1.
    """
    above, below = _two_levels(numerators), _two_levels(denominators)
    if above.shape != below.shape:
        raise ValueError(f"Numerators have shape {above.shape}, denominators {below.shape}; they must be equal.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie strictly between 0 and 1, such as 0.95.")
    total = below.sum()
    n_problems = int((below.sum(axis=0) > 0).sum())
    if total == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    ratios = _resampled_ratios(above, below, resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(ratios, [tail, 1 - tail])
    return Estimate(float(above.sum() / total), float(low), float(high), n_problems)


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate by how much `after` exceeds `before` on the *same* problems.

    Pairing removes the spread between easy and hard problems, which is most of the spread there is.

    Args:
        before (`ArrayLike` of shape `(n_problems,)` or `(n_seeds, n_problems)`): One figure per problem.
        after (`ArrayLike` of the same shape): The other model's figures, in the same order.
        confidence (`float`, defaults to 0.95): Mass of the interval.
        resamples (`int`, defaults to 4000): Number of bootstrap resamples.
        seed (`int`, defaults to 0): Seed of the resampling.

    Returns:
        [`Estimate`]: Mean of `after - before`; problems unknown (NaN) on either side are left out.

    Raises:
        `ValueError`: If the shapes differ: then the problems are not the same ones.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"A paired contrast needs the same problems on both sides, got shapes {first.shape} and {second.shape}."
        )
    return bootstrap_mean(second - first, confidence=confidence, resamples=resamples, seed=seed)


def paired_ratio_difference(
    before: tuple[ArrayLike, ArrayLike],
    after: tuple[ArrayLike, ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate by how much a ratio of sums over the *same* problems rose, such as words in a language ÷ all words.

    Args:
        before (`tuple[ArrayLike, ArrayLike]`, each of shape `(n_problems,)` or `(n_seeds, n_problems)`):
            Numerators and denominators, as in [`bootstrap_ratio`].
        after (`tuple[ArrayLike, ArrayLike]` of the same shapes): The other model's.
        confidence (`float`, defaults to 0.95): Mass of the interval.
        resamples (`int`, defaults to 4000): Number of bootstrap resamples.
        seed (`int`, defaults to 0): Seed of the resampling.

    Returns:
        [`Estimate`]: Difference of the two ratios and its interval; all NaN when a side's denominators sum to 0.

    Raises:
        `ValueError`: If the shapes differ.
    """
    sums = [_two_levels(values) for values in (*before, *after)]
    if len({array.shape for array in sums}) > 1:
        raise ValueError(f"A paired contrast needs equal shapes, got {[array.shape for array in sums]}.")
    if not sums[1].sum() or not sums[3].sum():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    # The same seed draws the same problems on both sides: the resamples are paired.
    first, second = (_resampled_ratios(sums[i], sums[i + 1], resamples, seed) for i in (0, 2))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(second - first, [tail, 1 - tail])
    value = sums[2].sum() / sums[3].sum() - sums[0].sum() / sums[1].sum()
    known = int(((sums[1] + sums[3]).sum(axis=0) > 0).sum())
    return Estimate(float(value), float(low), float(high), known)


def pass_at_k(n: ArrayLike, correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Unbiased pass@k, 1 - C(n - c, k) / C(n, k), of problems with `c` right out of `n` samples.

    The estimator of "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374, Eq. 1), as a product so
    that nothing overflows.

    Args:
        n (`int` or `ArrayLike` of shape `(n_problems,)`): Samples drawn per problem.
        correct (`int` or `ArrayLike` of shape `(n_problems,)`): How many of them are right.
        k (`int`): Number of tries granted.

    Returns:
        `ndarray` of shape `(n_problems,)`: NaN where fewer than `k` samples were drawn.
    """
    drawn, right = np.broadcast_arrays(np.atleast_1d(n), np.atleast_1d(correct))
    # All k tries fail: the first with chance (n-c)/n, the next with (n-c-1)/(n-1), and so on.
    failing = np.ones(drawn.shape)
    for used in range(k):
        failing *= np.clip(drawn - right - used, 0, None) / np.maximum(drawn - used, 1)
    return np.where(drawn >= k, 1 - failing, np.nan)


def _two_levels(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values as `(n_seeds, n_problems)`."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"Expected one figure per problem, or seeds × problems; got {array.ndim} dimensions.")
    return np.atleast_2d(array)


def _resampled_ratios(
    above: NDArray[np.float64], below: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """The ratio in every bootstrap resample, `(resamples,)`; a problem drawn is drawn for every seed, so pairs stay."""
    n_seeds, n_problems = above.shape
    generator = np.random.default_rng(seed)
    ratios = []
    # In blocks, so that ten thousand problems need megabytes and not a gigabyte.
    for start in range(0, resamples, 250):
        size = min(250, resamples - start)
        problems = generator.multinomial(n_problems, np.full(n_problems, 1 / n_problems), size=size)
        seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=size)
        drawn = (seeds[:, :, None] * problems[:, None, :]).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios.append(np.tensordot(drawn, above, axes=2) / np.tensordot(drawn, below, axes=2))
    return np.concatenate(ratios)
