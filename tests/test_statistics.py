"""Intervals and contrasts, against closed forms and enumeration."""

from __future__ import annotations

from itertools import combinations
from math import sqrt

import numpy as np
import pytest

from trl_r1.statistics import bootstrap_mean, bootstrap_ratio, paired_difference, pass_at_k


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(3).binomial(16, 0.4, size=400) / 16
    estimate = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.1)
    assert estimate.n == 400


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        estimate = bootstrap_mean(generator.normal(size=60), resamples=500, seed=trial)
        covered += estimate.low <= 0 <= estimate.high
    assert 0.89 <= covered / 200 <= 0.99


def test_same_seed_same_interval() -> None:
    values = [0.0, 0.5, 1.0, 0.25]
    assert bootstrap_mean(values, seed=7) == bootstrap_mean(values, seed=7)
    assert bootstrap_mean(values, seed=7, resamples=50) != bootstrap_mean(values, seed=8, resamples=50)


def test_unknown_problems_are_left_out() -> None:
    estimate = bootstrap_mean([1.0, float("nan"), 0.0])
    assert (estimate.value, estimate.n) == (0.5, 2)
    assert np.isnan(bootstrap_mean([float("nan")]).value)


def test_ratio_weighs_problems_by_their_denominator() -> None:
    estimate = bootstrap_ratio([300.0, 0.0, 10.0], [3, 0, 1])
    assert estimate.value == pytest.approx(77.5)
    assert estimate.n == 2
    assert 10 <= estimate.low <= estimate.value <= estimate.high <= 100


def test_pairing_narrows_the_contrast() -> None:
    difficulty = np.linspace(0, 0.9, 100)
    after = difficulty + 0.05 + np.random.default_rng(1).normal(scale=0.01, size=100)
    paired = paired_difference(difficulty, after)
    assert paired.excludes_zero
    assert paired.value == pytest.approx(0.05, abs=0.01)
    alone = bootstrap_mean(difficulty)
    assert (paired.high - paired.low) < 0.2 * (alone.high - alone.low)
    assert not paired_difference(difficulty, difficulty[::-1]).excludes_zero


def test_seeds_are_resampled_too() -> None:
    problems = np.full(50, 0.5)
    one_seed = bootstrap_mean(problems)
    seeds = bootstrap_mean(np.stack([problems - 0.2, problems, problems + 0.2]))
    assert one_seed.high - one_seed.low == pytest.approx(0)
    assert seeds.high - seeds.low > 0.1


def test_different_problems_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match=r"same problems.*\(3,\).*\(2,\)"):
        paired_difference([1, 2, 3], [1, 2])


@pytest.mark.parametrize(("n", "correct", "k"), [(6, 2, 1), (6, 2, 3), (6, 0, 2), (6, 6, 2), (6, 1, 6), (5, 4, 3)])
def test_pass_at_k_equals_enumeration(n: int, correct: int, k: int) -> None:
    samples = [True] * correct + [False] * (n - correct)
    draws = list(combinations(range(n), k))
    expected = sum(any(samples[i] for i in draw) for draw in draws) / len(draws)
    assert pass_at_k(n, correct, k)[0] == pytest.approx(expected)


def test_pass_at_k_needs_k_samples() -> None:
    assert np.isnan(pass_at_k(4, 4, 5)[0])
