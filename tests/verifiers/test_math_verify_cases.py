r"""What Math-Verify documents, in cases of our own: ours and its own `verify` agree with it, or the difference is listed.

Documented means: the features in its README, the docstrings of `parse` and `verify`, and what its comments promise.
"""

import re

import pytest
from math_verify import parse
from math_verify import verify as compare

from trl_r1.rows import Row
from trl_r1.verifiers.math import verify


def theirs(gold, answer):
    """Math-Verify's own verdict; it reads formulas in dollar signs, numbers and sentences as they are."""
    parsed = []
    for text in (gold, answer):
        plain = re.search(r"\$.+\$|\\boxed|answer", text) or re.fullmatch(r"\$?[0-9.,]+(?:m2)?|XDY2K", text)
        parsed.append(parse(text if plain else f"${text}$", parsing_timeout=None))
    return compare(*parsed, timeout_seconds=None)


AGREED = [
    # finite sets, their unions, intervals; open and closed ends
    ("\\{2,4\\} \\cup \\{6,8\\}", "\\{2,4,6,8\\}", True),
    ("\\{2,4\\} \\cup \\{6,8\\}", "\\{2,4,6\\}", False),
    ("\\{7,3\\}", "3, 7", True),
    ("\\{\\frac{1}{3}, 2\\}", "\\{0.333333, 2\\}", True),
    ("(-\\infty,4)\\cup(4,\\infty)", "\\mathbb{R}\\setminus\\{4\\}", True),
    ("\\emptyset", "\\{\\}", True),
    ("[1,4)", "[1.0, 4)", True),
    ("[1,4)", "(1,4)", False),
    ("(3,7)", "(7,3)", False),
    ("x=7, x=9", "7, 9", True),
    ("1\\pm\\sqrt{2}", "\\{1+\\sqrt2, 1-\\sqrt2\\}", True),
    # typing: Unicode symbols, malformed LaTeX, mixed numbers
    ("2\\beta", "2β", True),
    ("\\frac{1}{7}", "\\frac17", True),
    ("\\sqrt{5}", "\\sqrt5", True),
    ("\\frac{5}{2}", "2\\frac{1}{2}", True),
    ("\\frac{5}{2}", "2 \\frac 1 2", True),
    # assignments, chains of equations: the last part counts, the name does when both have one
    ("y = 8", "8", True),
    ("8", "y = 8", True),
    ("10", "7 + 3 = 10", True),
    ("x=10", "x = 7 + 3 = 10", True),
    ("x=4", "y=4", False),
    ("2x+z=4", "4", False),
    # percentages and units
    ("0.3", "30\\%", True),
    ("30\\%", "0.3", True),
    ("30\\%", "30", True),
    ("15\\text{ km}", "15", True),
    ("15", "15\\text{ km}", True),
    ("15", "15 km", True),
    # numbers: rounding to six places, zeros in front, groups of three, currency
    ("\\frac{2}{3}", "0.666667", True),
    ("0.666667", "\\frac{2}{3}", True),
    ("\\frac{2}{3}", "0.67", False),
    ("\\sqrt{12}", "3.4641016", True),
    ("7", "0007", True),
    ("0.123", ".123", True),
    ("1234.56", "1,234.56", True),
    ("100", "$100", True),
    ("1/2", "The answer is 1/2", True),
    ("5", "The answer is $\\frac{10}{2}$", True),
    # formulas are equal when their difference simplifies to nothing; names matter
    ("\\frac{\\pi}{4}", "\\frac{3\\pi}{12}", True),
    ("\\sqrt{12}", "2\\sqrt{3}", True),
    ("(a+b)^2", "a^2+2ab+b^2", True),
    ("(a+b)^2", "a^2+b^2", False),
    ("a+4", "b+4", False),
    ("e", "E", True),
    ("3+2i", "2i+3", True),
    ("3+2i", "3-2i", False),
    ("\\infty", "-\\infty", False),
    # equations and inequalities, turned round; an inequality may be answered by its interval, not the reverse
    ("y = 2x + 3", "2x + 3 = y", True),
    ("y = 2x + 3", "y - 2x = 3", True),
    ("y = 2x + 3", "y = 2x + 4", False),
    ("x > 6", "6 < x", True),
    ("x > 6", "x \\ge 6", False),
    ("x > 6", "(6,\\infty)", True),
    ("(6,\\infty)", "x > 6", False),
    ("3 < x < 9", "(3,9)", True),
    ("3 < f(x) < 9", "(3,9)", True),
    ("3 < x < 9", "[3,9]", False),
    # matrices, element by element
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}", True),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}", False),
    ("\\begin{pmatrix}\\frac{1}{3}\\\\2\\end{pmatrix}", "\\begin{pmatrix}0.333333\\\\2\\end{pmatrix}", True),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}", False),
    # a number inside a name is none
    ("2", "XDY2K", False),
    # ways to say it
    ("5", "so \\boxed{5}", True),
    ("5", "The final answer is $5$. I hope it is correct.", True),
]

# gold, answer, Math-Verify's verdict, ours, and why ours differs.
DIFFERENT = [
    ("7, 9", "$7$ and $9$", True, False, "two final answers in a sentence are none (trap 3); a list is `7, 9`"),
    ("C", "C", True, None, "a letter may be an option or a variable: such rows name the verifier `choice` (trap 4)"),
    ("\\text{tin}", "tin", True, None, "words are no formula (t·i·n): such rows name the verifier `exact` (trap 4)"),
    ("100", "100m2", True, False, "without a caret `m2` is a product as in `2ab`; `100 m^2` is a unit"),
    ("123.45", "123,45", True, False, "a comma is no decimal point in any data set used here; 123,45 are two numbers"),
    ("1000", "1e3", False, True, "a number as programs write it"),
    ("100", "100 m^2", False, True, "units with a power, set apart by a space"),
]


@pytest.mark.parametrize(("gold", "answer", "right"), AGREED, ids=lambda value: str(value)[:30])
def test_documented_cases_agree(gold, answer, right):
    assert theirs(gold, answer) is right
    assert verify(answer, Row("", gold)).correct is right


@pytest.mark.parametrize(
    ("gold", "answer", "their", "ours", "why"), DIFFERENT, ids=[f"{gold} {answer}" for gold, answer, *_ in DIFFERENT]
)
def test_differences_are_deliberate(gold, answer, their, ours, why):
    assert theirs(gold, answer) is their
    assert verify(answer, Row("", gold)).correct is ours, why
