"""Ratings from problems with ratings, and the percentile they stand for."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from trl_r1.evaluation.metrics import ProblemScore, score_row
from trl_r1.evaluation.ratings import HIGHEST, LOWEST, PUBLISHED_PERCENTILES, fit_rating, percentile, rate
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.rows import Completion, Row


def chance(rating: float, level: np.ndarray) -> np.ndarray:
    return 1 / (1 + 10 ** ((level - rating) / 400))


def test_rating_maximises_the_likelihood_on_a_grid() -> None:
    levels = np.array([800.0, 1200, 1600, 2000, 2400, 3000])
    solved, tried = np.array([8.0, 7, 5, 2, 1, 0]), np.full(6, 8.0)
    grid = np.arange(0, 4000, 0.5)
    likelihood = [
        (solved * np.log(chance(r, levels)) + (tried - solved) * np.log(1 - chance(r, levels))).sum() for r in grid
    ]
    assert fit_rating(levels, solved, tried) == pytest.approx(grid[int(np.argmax(likelihood))], abs=1)


def test_half_of_the_problems_of_a_level_is_that_level() -> None:
    assert fit_rating([1700.0] * 4, [1.0, 0, 1, 0], [1.0] * 4) == pytest.approx(1700, abs=0.01)
    # 10 of 11 at one level are 400 points more: Elo's scale.
    assert fit_rating([1700.0], [10.0], [11.0]) == pytest.approx(2100, abs=0.01)


def scores(solved: list[int], k: int, empty: ProblemScore) -> tuple[list[Row], list[ProblemScore]]:
    levels = [800 + 100 * n for n in range(len(solved))]
    rows = [Row("p", json.dumps({"rating": level}), "code", id=str(level)) for level in levels]
    return rows, [
        replace(empty, id=str(level), n=k, samples=k, correct=right)
        for level, right in zip(levels, solved, strict=True)
    ]


@pytest.fixture(scope="module")
def empty() -> ProblemScore:
    return score_row(Row("p", "1", id="p"), [Completion("x", (1,))], 1)


def test_simulated_solver_gets_its_rating_back(empty: ProblemScore) -> None:
    generator = np.random.default_rng(1)
    levels = np.array([800 + 100 * n for n in range(25)])
    inside = 0
    for _ in range(12):
        rows, found = scores(list(generator.binomial(8, chance(1600, levels))), 8, empty)
        rating = rate(rows, found).rating
        assert rating.value == pytest.approx(1600, abs=150)
        inside += rating.low <= 1600 <= rating.high
    assert inside >= 9


def test_all_or_nothing_is_a_bound_and_said(empty: ProblemScore, caplog) -> None:
    for solved, bound in ((0, LOWEST), (4, HIGHEST)):
        found = rate(*scores([solved] * 5, 4, empty))
        assert found.bounded
        assert found.rating.value == pytest.approx(bound, abs=0.01)
        assert "is a bound, not an estimate" in caplog.text
        caplog.clear()


def test_problems_without_rating_count_nowhere(empty: ProblemScore, caplog) -> None:
    rows, found = scores([4, 2, 0], 4, empty)
    more = [*found, replace(empty, id="unrated", n=4, samples=4, correct=4)]
    assert rate(rows, more).rating.value == rate(rows, found).rating.value
    assert "1 of 4 problems have no rating" in caplog.text
    with pytest.raises(DataError, match="nothing to rate by"):
        rate([], found)


def test_percentile_passes_through_the_published_points_and_rises() -> None:
    for rating, share in PUBLISHED_PERCENTILES:
        assert percentile(rating) == pytest.approx(share)
    curve = [percentile(rating) for rating in range(0, 4001, 50)]
    assert all(later > earlier for earlier, later in pairwise(curve))
    assert curve[0] > 0
    assert curve[-1] < 100
    assert percentile(1500, [1000, 1500, 2000, 2500]) == 37.5
    with pytest.raises(ConfigurationError, match="empty"):
        percentile(1500, [])
