"""Trap 11: exact rationals, each number as often as allowed, only + - x /."""

import json

import pytest

from trl_r1.rows import Row
from trl_r1.verifiers.expression import find_lenient, gold_answer, readable, verify


def puzzle(numbers, target, **more):
    return Row("", json.dumps({"numbers": numbers, "target": target, **more}), domain="logic", verifier="expression")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("3 * 5 + 7", True),
        ("7+5*3", True),
        ("3 × 5 + 7 = 22", True),
        ("$3 \\times 5 + 7$", True),
        ("\\boxed{(3*5)+7}", True),
        ("3 * 5 + 7 = 23", False),
        ("3 * 5 + 8", False),
        ("3 * 5 + 7 + 7", False),
        ("22", False),
        ("3 * 5", False),
        ("35 - 7", False),
        ("-3 + 5", False),
        ("3 ** 5", False),
        ("3 // 5", False),
        ("3 5 7", False),
        ("3(5)+7", False),
        ("(3 * 5 + 7", False),
        ("3 * 5 + 7)", False),
        ("3 / (5 - 5) + 7", False),
        ("__import__('os').system('true')", False),
        ("٣ * 5 + 7", False),
        ("(" * 400, False),
        ("1+" * 100_000, False),
        ("", False),
    ],
)
def test_answers(answer, right):
    """Trap 11."""
    assert verify(answer, puzzle([3, 5, 7], 22)).correct is right


def test_arithmetic_is_exact():
    """Trap 11."""
    assert verify("8 / (3 - 8 / 3)", puzzle([8, 8, 3, 3], 24)).correct
    assert verify("8 / (3 - 8 / 3)", puzzle([8, 8, 3, 3], 24.000000001)).correct is False
    assert verify("1 / 3 + 1 / 3 + 1 / 3", puzzle([1, 3, 1, 3, 1, 3], 1)).correct
    assert verify("0.1 + 0.2", puzzle([0.1, 0.2], 0.3)).correct


def test_any_allows_to_leave_numbers_out_but_not_to_repeat_them():
    """Trap 11."""
    assert verify("3 * 5", puzzle([3, 5, 7], 15, use="any")).correct
    assert verify("3 * 5", puzzle([3, 5, 7], 15)).correct is False
    assert verify("5 + 5 + 5", puzzle([3, 5, 7], 15, use="any")).correct is False


@pytest.mark.parametrize(
    "reference", ["", "22", "[]", "{}", '{"numbers": [], "target": 1}', '{"numbers": ["x"], "target": 1}']
)
def test_unreadable_reference_is_none(reference):
    row = Row("", reference, verifier="expression")
    assert verify("1 + 2", row).correct is None
    assert readable(row)


@pytest.mark.parametrize(
    ("numbers", "target"), [([8, 8, 3, 3], 24), ([1, 5, 5, 5], 24), ([3, 5, 7], 22), ([25, 50, 75, 3], 100), ([4], 4)]
)
def test_search_finds_what_the_verifier_accepts(numbers, target):
    row = puzzle(numbers, target)
    assert verify(gold_answer(row), row).correct


def test_search_tells_when_there_is_nothing_to_find():
    assert gold_answer(puzzle([1, 1, 1, 1], 24)) is None
    assert gold_answer(puzzle([1, 2], 3, solution="2 + 1")) == "2 + 1"


def test_lenient_takes_the_last_expression():
    assert find_lenient("try 3+5+7 = 15, no; so it is 3 * 5 + 7.", puzzle([3, 5, 7], 22)) == "3 * 5 + 7"
    assert find_lenient("none", puzzle([3], 3)) is None
