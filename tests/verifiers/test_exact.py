import pytest

from trl_r1.rows import Row
from trl_r1.verifiers.exact import find_lenient, gold_answer, verify


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("Hello World", "hello   world\n", True),
        ("ＡＢＣ", "abc", True),
        ("[1, 2]", "[1, 2]", True),
        ("[1, 2]", "[2, 1]", False),
        ("True", "`True`", True),
        ("abc", "'abc'", True),
        ("Tuesday", "\\text{Tuesday}.", True),
        ("Tuesday", "\\boxed{Tuesday}", True),
        ('["yes", "true"]', "TRUE", True),
        ('["yes", "true"]', "no", False),
        ("yes", "yes and no", False),
        ("3", "33", False),
        ("3", "", False),
        ("3", "3" * 100_000, False),
        ("", "anything", None),
        ("  ", "", None),
    ],
)
def test_cases(gold, answer, right):
    assert verify(answer, Row("", gold, domain="logic")).correct is right


def test_gold_and_lenient():
    assert gold_answer(Row("", '["yes", "true"]')) == "yes"
    assert find_lenient("<think> a </think>\n<answer> it prints Hello </answer>", Row("", "Hello")) == "hello"
    assert find_lenient("", Row("", "Hello")) is None
