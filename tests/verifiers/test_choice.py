import json

import pytest

from trl_r1.rows import Row
from trl_r1.verifiers.choice import find_lenient, gold_answer, readable, verify

REFERENCE = json.dumps({"answer": "B", "options": ["red", "blue", "a dog", "1,000"]})


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        ("b", True),
        ("(B)", True),
        ("B.", True),
        ("**B**", True),
        ("$B$", True),
        ("\\text{B}", True),
        ("\\boxed{B}", True),
        ("blue", True),
        ("Blue.", True),
        ("B. blue", True),
        ("(B) blue", True),
        ("The answer is B.", True),
        ("option B", True),
        ("答案是B", True),
        ("选B", True),
        ("B) because red is wrong", True),
        ("A", False),
        ("A or B", False),
        ("B and C", False),
        ("A, B", False),
        ("A. blue", False),
        ("B. red", False),
        ("not sure", False),
        ("E", False),
        ("", False),
        ("ABCD", False),
        ("B" * 5_000, False),
    ],
)
def test_answers(answer, right):
    assert verify(answer, Row("", REFERENCE, domain="stem")).correct is right


def test_options_are_compared_by_value_and_by_text():
    row = Row("", json.dumps({"answer": "D", "options": ["red", "blue", "a dog", "1,000"]}), domain="stem")
    assert verify("1000", row).correct
    assert verify("A dog", row).correct is False
    twins = Row("", json.dumps({"answer": "B", "options": ["5 cm", "5 m"]}), domain="stem")
    assert verify("5", twins).correct is False
    assert verify("5 m", twins).correct


def test_a_bare_letter_is_a_reference():
    assert verify("c", Row("", "C", domain="stem")).correct
    assert verify("A", Row("", "(C)", domain="stem")).correct is False


@pytest.mark.parametrize(
    "reference", ["", "blue", "{}", '{"answer": "E", "options": ["x", "y"]}', '{"answer": 1}', "["]
)
def test_unreadable_reference_is_none(reference):
    row = Row("", reference, domain="stem")
    assert verify("B", row).correct is None
    assert readable(row)


def test_gold_and_lenient():
    row = Row("", REFERENCE, domain="stem")
    assert gold_answer(row) == "B"
    assert find_lenient("First A, but I think the answer is (B)", row) == "B"
    assert find_lenient("nothing here", row) is None
