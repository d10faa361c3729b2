"""Accuracy and language by domain and by language: counted right, drawn, and compared on equal questions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from trl_r1.evaluation import Evaluation, score
from trl_r1.evaluation.plots import panels
from trl_r1.pipeline.artifacts import table
from trl_r1.rows import Completion, Row
from trl_r1.statistics import bootstrap_ratio, paired_difference, paired_ratio_difference

ROWS = [
    Row("What is 9 * 8?", "72", "math", "en"),
    Row("九乘八是多少？", "72", "math"),  # its language is read off the question
    Row("Which?", '{"answer": "B", "options": ["x", "y"]}', "stem", "en"),
]


def completion(thought, answer):
    return Completion(f"<think>{thought}</think> <answer>{answer}</answer>", (1, 2, 3))


def evaluation(*thoughts):
    answers = ["72", "72", "B"]
    return score(ROWS, [[completion(t, a) for t in group] for group, a in zip(thoughts, answers, strict=True)])


MIXED = (("nine times eight", "九乘八"), ("九乘 eight", "$9 \\times 8$"), ("it is a guess", "$x$"))


def test_shares_of_the_question_language():
    problems = evaluation(*MIXED).problems
    assert [problem.language for problem in problems] == ["en", "zh", "en"]
    # Thinking in bare formulas has no words and counts neither way.
    assert [(problem.worded, problem.in_language) for problem in problems] == [(2, 1.0), (1, 2 / 3), (1, 1.0)]
    assert evaluation(*MIXED).estimates()["language_share"].value == pytest.approx((1 + 2 / 3 + 1) / 4)


def test_language_without_lingua_is_not_measured():
    rows = [Row("Combien?", "72", "math", "fr")]
    found = score(rows, [[completion("neuf fois huit", "72")]])
    known = found.problems[0].language
    assert known in (None, "fr")  # lingua is an extra
    assert ("language_share" in found.estimates()) == (known == "fr")


def test_breakdown_and_its_way_through_json():
    found = evaluation(*MIXED)
    summary = found.summary()
    assert {name: part["problems"] for name, part in summary["by_domain"].items()} == {"math": 2, "stem": 1}
    assert summary["by_language"]["zh"]["language_share"] == pytest.approx(2 / 3)
    assert summary["by_domain"]["math"]["pass@1"] == 1.0
    assert Evaluation.from_dict(json.loads(json.dumps(found.asdict()))) == found
    # One domain in one language needs no breakdown.
    alone = score(ROWS[:1], [[completion("nine", "72")]]).summary()
    assert "by_domain" not in alone
    assert "by_language" not in alone


def test_scores_of_earlier_versions_are_read():
    old = evaluation(*MIXED).asdict()
    for problem in old["problems"]:
        for name in ("language", "worded", "in_language"):
            del problem[name]
    assert "language_share" not in Evaluation.from_dict(old).estimates()


def test_table_has_a_row_for_every_domain_and_language():
    before, after = evaluation(*MIXED).summary(), evaluation(*MIXED).summary()
    changes = {"math": {"pass@1": [0.1, 0.05, 0.15]}, "stem": {"pass@1": [0.0, 0.0, 0.0]}}
    text = table(
        {
            "before": before, "after": after, "change": {},
            "change_by_domain": changes, "change_by_language": {"zh": {"language_share": [0.2, 0.1, 0.3]}},
        }
    )  # fmt: skip
    assert "| pass@1, math (%)" in text
    assert "+10.0 [5.0, 15.0]" in text
    assert "| language_share, zh (%)" in text
    assert "+20.0 [10.0, 30.0]" in text


def test_curves_by_domain_and_by_language():
    log = [
        {
            "step": 1,
            "eval_pass@1/math": 0.4,
            "eval_pass@1/zh": 0.3,
            "eval_language_share": 0.8,
            "eval_language_share/zh": 0.7,
        }
    ]
    drawn = {panel.title: [curve.label for curve in panel.curves] for panel in panels(log)}
    assert drawn == {
        "Held-out accuracy by domain": ["math"],
        "Thinking's share of the question's language": ["all", "zh"],
    }


def test_a_point_of_the_curve_leaves_the_training_log_alone(monkeypatch):
    """Logging in the middle of a step takes back the wish to log the step itself."""
    from trl_r1.pipeline import heldout

    control = SimpleNamespace(should_log=True)
    monkeypatch.setattr(heldout, "log_evaluation", lambda *args: setattr(control, "should_log", False))
    point = SimpleNamespace(evaluate=lambda trainer, show: None)
    callback = heldout.HeldOutCallback(point, None)
    callback.every_steps, callback.point, callback.trainer = 2, point, SimpleNamespace()
    callback.on_step_end(None, SimpleNamespace(global_step=2, max_steps=4), control)
    assert control.should_log


def test_paired_ratio_difference():
    generator = np.random.default_rng(1)
    below = generator.integers(1, 9, size=(3, 60)).astype(float)
    before = generator.random((3, 60)) * below * 0.5
    found = paired_ratio_difference((before, below), (before + 0.25 * below, below))
    assert found.value == pytest.approx(0.25)
    # The same problems on both sides: a constant gain has no spread at all.
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
    assert found.n == 60
    # With equal denominators of one it is the paired difference of means.
    ones = np.ones((3, 60))
    other = before + generator.random((3, 60))
    plain, ratio = paired_difference(before, other), paired_ratio_difference((before, ones), (other, ones))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert paired_ratio_difference((before, below), (before, 0 * below)).n == 0
    with pytest.raises(ValueError, match="equal shapes"):
        paired_ratio_difference((before, below), (before[:2], below[:2]))
    assert bootstrap_ratio(before, below).value == pytest.approx(before.sum() / below.sum())
