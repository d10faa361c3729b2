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


TEXTS = ["increase in pressure", "a decrease in entropy", "a rectangle", "Vitamin C"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is a decrease in entropy.", "B"),
        ("the answer is a lower pH", None),
        ("The answer is (D) Vitamin C.", "D"),
        ("The answer is D, Vitamin C", "D"),
        ("The answer is Vitamin C", "D"),
        ("So the correct answer is: increase in pressure", "A"),
        ("A\nincrease in pressure", "A"),
        ("A\na rectangle", None),
        ("The answer is (a).", "A"),
        ("The answer is a.", "A"),
        ("the answer is b", "B"),
        ("The answer is D, a rectangle", None),
        ("答案是 a rectangle", "C"),
        ("The answer is A, not B", None),
    ],
)
def test_letters_inside_of_texts_name_no_option(answer, letter):
    for right in "ABCD":
        row = Row("", json.dumps({"answer": right, "options": TEXTS}), domain="stem")
        assert verify(answer, row).correct is (right == letter), right


def test_options_are_compared_by_value_and_by_text():
    row = Row("", json.dumps({"answer": "D", "options": ["red", "blue", "a dog", "1,000"]}), domain="stem")
    assert verify("1000", row).correct
    assert verify("A dog", row).correct is False
    twins = Row("", json.dumps({"answer": "B", "options": ["5 cm", "5 m"]}), domain="stem")
    assert verify("5", twins).correct is False
    assert verify("5 m", twins).correct


@pytest.mark.parametrize("n", range(4, 11))
def test_four_to_ten_options_by_letter_and_by_text(n):
    colours = ("red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "silver")
    options = [f"the {colour} one" for colour in colours[:n]]
    for i, letter in enumerate("ABCDEFGHIJ"[:n]):
        row = Row("", json.dumps({"answer": letter, "options": options}), domain="stem")
        other = "ABCDEFGHIJ"[(i + 1) % n]
        for answer in (
            letter,
            letter.lower(),
            f"({letter})",
            f"The answer is {letter}.",
            options[i],
            f"{letter}. {options[i]}",
        ):
            assert verify(answer, row).correct is True, answer
        for answer in (other, options[(i + 1) % n], f"{letter} or {other}", f"{letter}. {options[(i + 1) % n]}"):
            assert verify(answer, row).correct is False, answer
        beyond = "ABCDEFGHIJK"[n]
        assert verify(beyond, row).correct is False
    # The word "I" is the ninth letter only where it stands for it.
    if n == 10:
        row = Row("", json.dumps({"answer": "J", "options": options}), domain="stem")
        assert verify("I think the answer is J", row).correct


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
