"""The metrics against reference implementations written independently of them, on fixed cases."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest

from trl_r1.evaluation.consensus import answer_groups
from trl_r1.evaluation.metrics import score_row
from trl_r1.rows import Completion, Row
from trl_r1.statistics import bootstrap_mean, bootstrap_ratio, paired_difference, pass_at_k
from trl_r1.verifiers import verify

MATH_500 = Path(__file__).parents[3] / "shared" / "data" / "math500.jsonl"
# Golds of MATH-500 that are a fraction or a decimal, as the data set writes them, and other spellings of the same value.
GOLDS = {
    r"\frac{1}{2}": [r"\frac12", "1/2", "0.5", r"\dfrac{1}{2}", r"$\frac{1}{2}$", ".5", r"\frac{2}{4}"],
    r"\frac{3}{56}": [r"\frac3{56}", "3/56", r"\dfrac{3}{56}"],
    r"\frac{14}{3}": ["14/3", r"\tfrac{14}{3}", r"4\frac{2}{3}"],
    r"\frac{9}{256}": ["9/256", "0.03515625"],
    "-\\frac{35}{9}": ["-35/9", r"\frac{-35}{9}"],
    "1.25": [r"\frac{5}{4}", "5/4", r"\frac54"],
    "10,\\!080": ["10080", "10,080"],
}


def gold(answer: str) -> str:
    return f"<think> so </think> \\boxed{{{answer}}}"


def unbiased(n: int, c: int, k: int) -> float:
    """The formula as the paper prints it (arXiv 2107.03374, Eq. 1), in exact arithmetic."""
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


def numerically_stable(n: int, c: int, k: int) -> float:
    """The paper's own program (its Fig. 3), in other words."""
    return 1.0 if n - c < k else float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@pytest.mark.parametrize("n", [1, 4, 16, 64, 200])
def test_pass_at_k_is_the_unbiased_estimator(n: int) -> None:
    for k in {1, 2, n // 2, n} - {0}:
        if k > n:
            continue
        correct = np.arange(n + 1)
        ours = pass_at_k(n, correct, k)
        assert ours == pytest.approx([unbiased(n, int(c), k) for c in correct], abs=1e-12)
        assert ours == pytest.approx([numerically_stable(n, int(c), k) for c in correct], abs=1e-12)


def test_pass_at_1_is_the_mean_and_not_any_of_k() -> None:
    """The biased estimate 1 - (1 - c/n)^k differs: a wrong implementation would not pass."""
    assert pass_at_k(16, 4, 1)[0] == 4 / 16
    biased = 1 - (1 - 4 / 16) ** 8
    assert abs(pass_at_k(16, 4, 8)[0] - biased) > 0.02


def enumerated(values: list[float]) -> list[float]:
    """The mean of every one of the n^n resamples, each as likely as the other."""
    return sorted(sum(draw) / len(draw) for draw in product(values, repeat=len(values)))


@pytest.mark.parametrize("values", [[0.0, 0.25, 0.5, 1.0, 1.0], [0.1, 0.2, 0.4, 0.8, 0.9, 1.0]])
def test_bootstrap_interval_is_that_of_all_resamples(values: list[float]) -> None:
    exact = enumerated(values)
    estimate = bootstrap_mean(values, resamples=20000)
    low, high = np.quantile(exact, [0.025, 0.975])
    assert estimate.value == pytest.approx(sum(values) / len(values))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.03)


def test_bootstrap_agrees_with_a_plain_loop() -> None:
    draw = random.Random(5)
    values = [draw.random() ** 2 for _ in range(80)]
    weights = [draw.randint(0, 16) for _ in range(80)]
    after = [value + 0.05 + 0.1 * draw.random() for value in values]

    def loop(statistic: object) -> tuple[float, float]:
        found = sorted(statistic([draw.randrange(80) for _ in range(80)]) for _ in range(4000))  # type: ignore[operator]
        return found[100], found[3900]

    sums = [value * weight for value, weight in zip(values, weights, strict=True)]
    cases = {
        "mean": (bootstrap_mean(values), loop(lambda i: sum(values[j] for j in i) / 80)),
        "ratio": (
            bootstrap_ratio(sums, weights),
            loop(lambda i: sum(sums[j] for j in i) / sum(weights[j] for j in i)),
        ),
        "pair": (paired_difference(values, after), loop(lambda i: sum(after[j] - values[j] for j in i) / 80)),
    }
    for name, (estimate, bounds) in cases.items():
        width = bounds[1] - bounds[0]
        assert (estimate.low, estimate.high) == pytest.approx(bounds, abs=0.08 * width), name


@pytest.mark.parametrize(("reference", "spellings"), GOLDS.items(), ids=list(GOLDS))
def test_spellings_of_a_gold_are_one_vote(reference: str, spellings: list[str]) -> None:
    """As right answers, and as wrong answers to another question: one group either way."""
    spellings = [reference, *spellings]
    for row in (Row("q", reference), Row("q", "77777")):
        verdicts = {answer: verify(answer, row) for answer in [*spellings, "123456"]}
        groups = answer_groups(row, verdicts)
        assert len({groups[answer] for answer in spellings}) == 1, groups
        assert groups["123456"] not in {groups[answer] for answer in spellings}


@pytest.mark.skipif(not MATH_500.is_file(), reason="needs ../shared/data/math500.jsonl")
def test_consensus_on_the_fractions_of_math_500() -> None:
    """Three spellings of the gold answer outvote two equal wrong ones, on every question whose gold is a fraction."""
    golds = [json.loads(line)["answer"] for line in MATH_500.read_text(encoding="utf-8").splitlines()]
    fractions = [text for text in golds if text.startswith(r"\frac{") and text.count("{") == 2 and text.endswith("}")]
    plain = [text for text in fractions if all(part.isdigit() for part in text[6:-1].split("}{"))]
    assert len(plain) >= 20
    for reference in plain:
        above, below = reference[6:-1].split("}{")
        value = Fraction(int(above), int(below))
        spellings = [reference, f"{above}/{below}", rf"\dfrac{{{above}}}{{{below}}}"]
        if value.denominator in (1, 2, 4, 5, 8, 10, 16, 20, 25):
            spellings[1] = str(float(value))
        votes = [*spellings, "7777", "7777"]
        seen = score_row(Row("q", reference), [Completion(gold(vote), (1,)) for vote in votes], cons_k=5)
        assert (seen.correct, seen.consensus) == (3, 1.0), reference
