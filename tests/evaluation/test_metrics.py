"""pass@1, cons@k and the rest on hand-made samples whose figures are known."""

from __future__ import annotations

import json
import math

import pytest

from trl_r1.evaluation import Evaluation, score, score_row
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.rows import Completion, Row

MATH = Row("What is one half?", r"\frac{1}{2}", id="half")
COUNTDOWN = Row(
    "Make 22 from 3, 5, 7",
    json.dumps({"numbers": [3, 5, 7], "target": 22}),
    domain="logic",
    id="countdown/3-5-7/22",
    verifier="expression",
)


def gold(answer: str, thought: str = "so") -> str:
    return f"<think> {thought} </think> <answer> {answer} </answer>"


def sample(text: str, tokens: int = 10, finish_reason: str = "stop") -> Completion:
    return Completion(text, tuple(range(tokens)), finish_reason)


def test_sums_of_one_problem() -> None:
    samples = [
        sample(gold("1/2"), 10),
        sample(gold("0.5", "wait, check"), 30),
        sample(gold("3"), 20),
        sample("it is 0.5", 5),
        sample("<think> 1/2", 99, "length"),
    ]
    seen = score_row(MATH, samples, cons_k=5)
    assert (seen.samples, seen.n, seen.correct, seen.well_formed) == (5, 5, 2, 3)
    assert seen.lenient == 4  # also without tags, and when cut off
    assert (seen.truncated, seen.no_answer) == (1, 1)
    assert (seen.tokens, seen.tokens_correct, seen.finished_correct) == (164, 40, 2)
    assert seen.reflective == 2


def test_prefill_belongs_to_the_answer() -> None:
    text = "so </think> <answer> 0.5 </answer>"
    assert score_row(MATH, [Completion(text, (1, 2), prefill="<think>\n")], 1).well_formed == 1
    assert score_row(MATH, [Completion(text, (1, 2))], 1).well_formed == 0


def test_right_answer_in_a_cut_off_sample_has_no_length() -> None:
    seen = score_row(MATH, [sample(gold("0.5"), 50, "length")], 1)
    assert (seen.correct, seen.finished_correct, seen.tokens_correct) == (1, 0, 0)


def test_majority_by_value_not_by_spelling() -> None:
    # Three spellings of the right answer outvote two equal wrong ones.
    spellings = [gold(r"\frac12"), gold("0.5"), gold("1/2"), gold("0.25"), gold("1/4"), "no answer", "nor here"]
    evaluation = score([MATH], [[sample(text) for text in spellings]])
    assert evaluation.summary()["cons@7"] == 1.0
    assert evaluation.summary()["pass@1"] == pytest.approx(3 / 7)
    # And the other way round: four spellings of one wrong answer outvote three right ones.
    wrong = [gold("0.25"), gold("1/4"), gold(r"\frac{1}{4}"), gold("25\\%")]
    outvoted = score([MATH], [[sample(text) for text in [*spellings[:3], *wrong]]])
    assert outvoted.summary()["cons@7"] == 0.0


def test_tie_counts_in_part_and_blocks_are_averaged() -> None:
    votes = [gold("0.5"), gold("9"), gold("0.5"), gold("0.5"), gold("9"), gold("8")]
    assert score_row(MATH, [sample(v) for v in votes[:2]], 2).consensus == 0.5
    # Blocks of two: tie (1/2), right (1), tie of two wrong ones (0).
    assert score_row(MATH, [sample(v) for v in votes], 2).consensus == pytest.approx(0.5)


def test_wrong_expressions_are_grouped_by_value() -> None:
    # 3*5+7 = 22 is right once; two spellings of 15 are one wrong answer with two votes.
    votes = [gold("3*5+7"), gold("3+5+7"), gold("(7+5)+3"), gold("7*5-3")]
    assert score_row(COUNTDOWN, [sample(v) for v in votes], 4).consensus == 0.0
    assert score_row(COUNTDOWN, [sample(v) for v in [*votes, gold("7+3*5"), gold("5*3+7")]], 6).consensus == 1.0


def test_checks_are_counted_as_claimed_and_as_true() -> None:
    honest = gold("3*5+7", "3+5=8+7=15 no\n3*5=15+7=22 yes")
    lying = gold("3+5+7", "3+5=8+7=15 yes")
    seen = score_row(COUNTDOWN, [sample(honest), sample(lying)], 2)
    assert (seen.tries, seen.checks_claimed, seen.checks_true) == (3, 2, 1)
    assert seen.modes == {"search": [2, 1]}
    summary = Evaluation([seen], 2).summary()
    assert summary["check_precision"] == 0.5
    assert summary["modes"]["search"] == {"share": 1.0, "pass@1": 0.5}
    assert summary["by_depth"]["3"]["mean_tokens_correct"] == 10


def test_unreadable_gold_counts_nowhere() -> None:
    unreadable = Row("Which day?", r"\text{Tuesday}", id="day")
    evaluation = score([MATH, unreadable], [[sample(gold("0.5"))], [sample(gold("Tuesday"))]])
    assert evaluation.summary()["unverifiable"] == 1
    assert evaluation.summary()["pass@1"] == 1.0
    assert math.isnan(evaluation.per_problem("pass@1")[1])


def test_summary_has_the_keys_of_the_report_and_intervals_around_them() -> None:
    rows = [Row(f"{n}+1?", str(n + 1), id=str(n)) for n in range(20)]
    samples = [[sample(gold(str(n + 1 if k <= n % 4 else 0))) for k in range(4)] for n in range(20)]
    summary = score(rows, samples, pass_k=(2, 4)).summary()
    for key in ("pass@1", "cons@4", "pass@2", "pass@4", "pass@1_lenient", "well_formed", "mean_tokens_correct"):
        low, high = summary["intervals"][key]
        assert low <= summary[key] <= high, key
    assert summary["pass@1"] == pytest.approx((1 + 2 + 3 + 4) / 16)
    assert summary["pass@2"] == pytest.approx((1 / 2 + 5 / 6 + 1 + 1) / 4)
    assert summary["pass@4"] == 1.0
    assert "check_precision" not in summary


def test_scores_survive_json() -> None:
    evaluation = score([MATH], [[sample(gold("0.5")), sample(gold("1"))]], pass_k=(2,))
    again = Evaluation.from_dict(json.loads(json.dumps(evaluation.asdict())))
    assert again == evaluation
    assert again.summary() == evaluation.summary()


def test_refusals_name_value_and_fix() -> None:
    with pytest.raises(DataError, match="2 rows but completions for 1"):
        score([MATH, MATH], [[sample("x")]])
    with pytest.raises(DataError, match=r"same number of samples.*\[1, 2\]"):
        score([MATH, MATH], [[sample("x")], [sample("x"), sample("y")]])
    with pytest.raises(ConfigurationError, match=r"pass@64 cannot be measured with 1 samples.*at least 64"):
        score([MATH], [[sample("x")]], pass_k=(64,))
    with pytest.raises(ConfigurationError, match="cons@3"):
        score([MATH], [[sample("x")]], cons_k=3)
