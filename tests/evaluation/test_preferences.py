"""Win rates: both orders, length control, ArenaHard's weights, judges that say nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trl_r1.evaluation.preferences import (
    Preference,
    arena_score,
    compare_answers,
    fit_logistic,
    length_controlled_win_rate,
    read_verdict,
    win_rate,
)
from trl_r1.exceptions import ConfigurationError, DataError


def test_a_judge_that_always_prefers_the_first_decides_nothing() -> None:
    found = compare_answers(["q"] * 3, ["a"] * 3, ["b"] * 3, lambda pairs: ["A>>B"] * len(pairs))
    assert [one.won for one in found] == [0.5] * 3
    assert win_rate(found).value == arena_score(found).value == 0.5


def test_both_orders_are_asked_and_only_what_follows_the_thinking() -> None:
    asked: list[tuple[str, str, str]] = []

    def judge(pairs):
        asked.extend(pairs)
        return ["A>B" if "good" in first else "B>>A" for _, first, _ in pairs]

    found = compare_answers(["q1", "q2"], ["<think> bad </think> good", "<think> endless"], ["poor", "poor"], judge)
    assert asked == [("q1", "good", "poor"), ("q1", "poor", "good")]
    # A>B once (weight 1), then B>>A, which is a clear win of the second (weight 3).
    assert (found[0].won, found[0].points, found[0].games) == (1.0, 4.0, 4.0)
    # Thinking that never ends shows nothing: lost unasked.
    assert (found[1].won, found[1].length) == (0.0, 0)
    assert arena_score(found).value == pytest.approx(4 / 6)


def test_pairs_that_cannot_be_judged_count_nowhere_and_are_said(caplog) -> None:
    found = compare_answers(["q"] * 2, ["x", "y"], ["b"] * 2, lambda pairs: ["A>B", None, "B>A", None])
    assert found[0].won == 1.0
    assert math.isnan(found[1].won)
    assert "1 of 2 pairs could not be judged" in caplog.text
    assert win_rate(found).n == 1
    with pytest.raises(DataError, match="no verdict that can be read"):
        compare_answers(["q"], ["x"], ["b"], lambda pairs: [None] * len(pairs))
    with pytest.raises(DataError, match="1 verdicts on 2 pairs"):
        compare_answers(["q"], ["x"], ["b"], lambda pairs: ["A>B"])
    with pytest.raises(ConfigurationError, match="'A is better'"):
        compare_answers(["q"], ["x"], ["b"], lambda pairs: ["A is better"] * len(pairs))
    with pytest.raises(DataError, match="not pairs"):
        compare_answers(["q"], ["x"], [], lambda pairs: [])


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("… [[A>>B]]", "A>>B"),
        ("first [[A>B]] no: [[B>A]]", "B>A"),
        ("[[A<<B]]", "B>>A"),
        ("[[B=A]]", "A=B"),
        ("[[B<A]]", "A>B"),
        ("<think> [[A>B]] </think> [[A=B]]", "A=B"),
        ("<think> [[A>B]] </think> nothing", None),
        ("A>B", None),
        ("[[A>A]]", None),
    ],
)
def test_verdicts_are_read(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict


def logistic_by_search(term: np.ndarray, won: np.ndarray) -> tuple[float, float]:
    """The same likelihood and prior, maximised by trying a grid finer and finer."""
    centre, width = np.zeros(2), 4.0
    for _ in range(30):
        points = [
            (a, b) for a in np.linspace(-1, 1, 9) * width + centre[0] for b in np.linspace(-1, 1, 9) * width + centre[1]
        ]
        fits = []
        for a, b in points:
            score = a + b * term
            fits.append((won * score - np.log1p(np.exp(score))).sum() - 0.005 * (a * a + b * b))
        centre, width = np.array(points[int(np.argmax(fits))]), width * 0.6
    return float(centre[0]), float(centre[1])


def test_logistic_fit_agrees_with_a_search() -> None:
    generator = np.random.default_rng(2)
    term = np.tanh(generator.normal(size=80))
    won = (generator.random(80) < 1 / (1 + np.exp(-(0.4 + 1.1 * term)))) * 1.0
    won[:10] = 0.5
    assert fit_logistic(term, won, np.ones((3, 80)))[2] == pytest.approx(fit_logistic(term, won))
    assert fit_logistic(term, won) == pytest.approx(logistic_by_search(term, won), abs=1e-3)


def preferences(won: np.ndarray, longer: np.ndarray) -> list[Preference]:
    return [Preference(float(w), w * 2, 2.0, int(1000 + d), 1000) for w, d in zip(won, longer, strict=True)]


def test_length_control_takes_away_what_length_alone_won() -> None:
    """A judge that only counts characters: the raw rate is far above one half, the controlled one is not."""
    generator = np.random.default_rng(3)
    longer = generator.normal(300, 300, size=400)
    won = (generator.random(400) < 1 / (1 + np.exp(-longer / 200))) * 1.0
    found = preferences(won, longer)
    controlled = length_controlled_win_rate(found)
    assert win_rate(found).value > 0.7
    assert controlled.value == pytest.approx(0.5, abs=0.08)
    assert controlled.low < 0.5 < controlled.high


def test_length_control_keeps_what_was_won_otherwise() -> None:
    generator = np.random.default_rng(4)
    longer = generator.normal(0, 200, size=300)
    won = (generator.random(300) < 0.8) * 1.0
    found = preferences(won, longer)
    assert length_controlled_win_rate(found).value == pytest.approx(win_rate(found).value, abs=0.03)
    # Equal lengths leave nothing to control, and always winning stays finite.
    same = preferences(np.ones(30), np.zeros(30))
    assert 0.9 < length_controlled_win_rate(same).value <= 1
    with pytest.raises(DataError, match="No pair was judged"):
        length_controlled_win_rate([])
