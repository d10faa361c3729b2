"""MATH-500 as the benchmark reads it: every row's gold answer is right in both forms and in another spelling."""

import json
import re
from pathlib import Path

import pytest

from trl_r1.evaluation.benchmark_rows import math_500
from trl_r1.prompts import gold_completion
from trl_r1.responses import parse
from trl_r1.verifiers import gold_answer, readable, verify

FILE = Path(__file__).parents[3] / "shared" / "data" / "math500.jsonl"

# Gold answers that do not come back as right, with the reason. There is none.
KNOWN: dict[str, str] = {}


def row_of(answer):
    return math_500({"problem": "Which one?", "answer": answer, "unique_id": "test/0.json"})


def respelled(gold):
    """The same answer with other fractions and brackets, spaces where nothing ends a command, and dollar signs."""
    text = re.sub(r"\\(?:left|right)(?![a-z])", "", gold.replace("\\frac", "\\dfrac"))
    if "\\text" not in text:
        text = re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", text)
    return f"$ {text} $"


@pytest.mark.skipif(not FILE.is_file(), reason=f"the data set is not at {FILE}")
def test_every_gold_answer_comes_back():
    rows = [math_500(json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 500
    assert not [row.reference for row in rows if readable(row)]
    wrong = {}
    for row in rows:
        for answer in (gold_answer(row), respelled(row.reference)):
            for form in ("answer", "boxed"):
                response = parse(gold_completion(answer, form=form))
                verdict = verify(response.answer, row)
                if verdict.correct is not True:
                    wrong[row.reference] = f"{answer}: {verdict.detail}"
    print(f"\n{len(rows) - len(wrong)} of {len(rows)} gold answers are right in every form and spelling; not: {wrong}")
    assert len(wrong) <= 0.01 * len(rows), wrong
    assert set(wrong) == set(KNOWN)


@pytest.mark.parametrize("gold", ["\\text{(C)}", "\\text{C}", "(C)", "C", "\\textbf{(C)}"])
def test_an_option_is_its_letter_with_and_without_brackets(gold):
    row = row_of(gold)
    assert row.verifier == "choice"
    for answer in (
        "C",
        "(C)",
        "\\text{(C)}",
        "\\text{C}",
        "\\boxed{C}",
        "$\\textbf{(C)}$",
        "c",
        "The answer is (C).",
        gold,
    ):
        assert verify(answer, row).correct is True, answer
    for answer in ("B", "(B)", "\\text{(B)}", "C or B", "", "CC", "7"):
        assert verify(answer, row).correct is False, answer


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (
            "\\text{Monday}",
            ["Monday", "\\text{monday}", "\\boxed{\\text{Monday}}"],
            ["Tuesday", "Monday or Tuesday", "C", ""],
        ),
        ("\\frac{3}{4}", ["0.75", "3/4", "\\dfrac34"], ["0.7", "4/3", "C", ""]),
        ("5\\text{ cm}", ["5", "5 cm"], ["6", "(C)"]),
        ("x", ["x"], ["y", "C"]),
    ],
)
def test_words_are_compared_as_texts_and_formulas_by_value(gold, right, wrong):
    row = row_of(gold)
    assert row.verifier != "choice"
    for answer in right:
        assert verify(answer, row).correct is True, answer
    for answer in wrong:
        assert verify(answer, row).correct is False, answer
