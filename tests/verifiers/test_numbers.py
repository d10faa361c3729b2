from fractions import Fraction

import pytest

from trl_r1.verifiers.numbers import read_number, tidy


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("- 18", -18),
        ("−18", -18),
        ("-$5", -5),
        ("$-5", -5),
        ("1,234", 1234),
        ("1 234 567", 1234567),
        (".5", Fraction(1, 2)),
        ("0018", 18),
        ("1.5e3", 1500),
        ("1.5 \\times 10^{3}", 1500),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("\\frac{-3}{4}", Fraction(-3, 4)),
        ("5cm^2", 5),
        ("3千米", 3),
        ("**18**", 18),
        ("\\[18\\]", 18),
        ("１２，３４５。", 12345),
        ("\\text{18}", 18),
    ],
)
def test_plain_numbers_are_read_exactly(text, value):
    """Trap 5."""
    assert read_number(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "--5",
        "12,34",
        "5x",
        "2ab",
        "5 million",
        "3万",
        "1/0",
        "3 or 4",
        "18, 19",
        "1..2",
        "18:30",
        "2\\pi",
        "٧",
        "5!",
    ],
)
def test_everything_else_is_no_plain_number(text):
    assert read_number(text) is None


def test_tidy_strips_wrapping_but_not_meaning():
    assert tidy("**$18$.**") == "18"
    assert tidy("$3$ and $4$") == "$3$ and $4$"
    assert tidy("（１）") == "(1)"
