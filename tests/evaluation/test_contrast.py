"""Two models on the same questions."""

import numpy as np
import pytest

from trl_r1.evaluation import Evaluation, ProblemScore
from trl_r1.evaluation.contrast import contrast, contrast_table
from trl_r1.exceptions import DataError


def evaluation(correct, samples=16, ids=None):
    """Scores of questions with so many right answers each."""
    zero = dict.fromkeys(ProblemScore.__dataclass_fields__, 0)
    return Evaluation(
        [
            ProblemScore(**zero | {
                "id": f"q{i}" if ids is None else ids[i], "domain": "math", "n": samples, "samples": samples, "correct": c,
                "consensus": float(c > samples / 2), "modes": {}, "depth": None, "language": None,
            })
            for i, c in enumerate(correct)
        ],
        samples,
    )  # fmt: skip


def test_sharpening_is_told_by_the_crossing_curves():
    base = evaluation([2] * 60)  # every question now and then
    tuned = evaluation([16] * 30 + [0] * 30)  # half of them always, the others never
    found = contrast([base], [tuned])
    assert found.difference["pass@1"].value == pytest.approx(0.5 - 2 / 16)
    assert found.curves[-1]["k"] == 16
    assert found.crossing in (8, 16)
    assert found.verdict().startswith("sharpening: the second model leads at pass@1")
    assert found.only_first == 0.5


def test_discovery_is_told_by_a_lead_at_every_k():
    base = evaluation([2] * 30 + [0] * 30)
    tuned = evaluation([12] * 50 + [0] * 10)
    found = contrast([base], [tuned])
    assert found.crossing is None
    assert found.verdict().startswith("discovery")
    assert found.only_second == pytest.approx(20 / 60)


def test_equal_models_are_undecided():
    found = contrast([evaluation([4] * 40)], [evaluation([4] * 40)])
    assert found.verdict().startswith("undecided")
    assert "40 questions" in contrast_table(found, ("a", "b"))


def test_intervals_widen_with_the_spread_between_seeds():
    rng = np.random.default_rng(0)
    base = [evaluation(rng.binomial(16, 0.3, 50)) for _ in range(3)]
    steady = [evaluation(rng.binomial(16, 0.5, 50)) for _ in range(3)]
    erratic = [evaluation(rng.binomial(16, p, 50)) for p in (0.3, 0.5, 0.7)]
    widths = []
    for tuned in (steady, erratic):
        gain = contrast(base, tuned).difference["pass@1"]
        widths.append(gain.high - gain.low)
    assert widths[1] > 2 * widths[0]


def test_only_common_questions_are_compared_in_pairs():
    first = evaluation([16, 0], ids=["a", "b"])
    second = evaluation([0, 16, 16], ids=["b", "c", "a"])
    found = contrast([first], [second])
    assert found.questions == 2
    assert found.difference["pass@1"].value == 0


def test_errors_name_what_does_not_fit():
    with pytest.raises(DataError, match="share no question"):
        contrast([evaluation([1], ids=["a"])], [evaluation([1], ids=["b"])])
    with pytest.raises(DataError, match="'a' occurs twice"):
        contrast([evaluation([1, 2], ids=["a", "a"])], [evaluation([1], ids=["a"])])
    with pytest.raises(DataError, match="equally many"):
        contrast([evaluation([1])], [])
