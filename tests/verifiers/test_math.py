"""Traps 4-8: one table of cases, both orders where the order matters, bounded time on any thread."""

import threading
from itertools import count

import pytest

from tests.timing import least_seconds, timed
from trl_r1.rows import Row
from trl_r1.verifiers.math import find_lenient, gold_answer, readable, verify


def check(gold, answer):
    return verify(answer, Row("", gold)).correct


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        # plain numbers, units, currency, percentages, separators
        ("72", "72", True),
        ("72", "72.0", True),
        ("72", "73", False),
        ("72", "-72", False),
        ("72", "\\boxed{72}", True),
        ("72", "$72$", True),
        ("72", "$72", True),
        ("72", "\\$72.00", True),
        ("72", "72 eggs per day", True),
        ("72", "72元", True),
        ("72", "７２", True),
        ("72", "The answer is 72.", True),
        ("72", "9 * 8 = 72", True),
        ("72", "so 9 * 8 = 72 eggs", True),
        ("72", "72 or 73", False),
        ("72", "72 and then 73", False),
        ("72", "72 million", False),
        ("72", "72x", False),
        ("1234567", "1,234,567", True),
        ("10,000", "10{,}000", True),
        ("10,000", "10\\,000", True),
        ("50\\%", "50", True),
        ("50\\%", "0.5", True),
        ("50\\%", "\\frac{1}{2}", True),
        ("50\\%", "0.5\\%", False),
        ("50", "50\\%", True),
        ("50", "0.5", False),
        ("5.4 \\text{ cents}", "5.4", True),
        ("90^\\circ", "90", True),
        ("\\frac{270}7\\text{ degrees}", "\\frac{270}{7}", True),
        ("4210_7", "4210_{7}", True),
        ("4210_7", "4210_{6}", False),
        # fractions
        ("\\frac{1}{3}", "\\frac13", True),
        ("\\frac{1}{3}", "\\dfrac{1}{3}", True),
        ("\\frac{1}{3}", "1/3", True),
        ("\\frac{1}{3}", "0.333333", True),
        ("\\frac{1}{3}", "0.33", False),
        ("2\\frac{1}{2}", "2.5", True),
        ("2.5", "2 1/2", True),
        ("0.0000001", "0", False),
        ("\\frac{1}{4}", "0.2500001", False),
        # bare LaTeX and plain typing
        ("\\frac{\\pi}{2}", "\\frac{\\pi}{2}", True),
        ("2\\pi", "2pi", True),
        ("2\\pi", "2π", True),
        ("\\sqrt{2}", "sqrt(2)", True),
        ("2", "\\sqrt{4}", True),
        ("1024", "2^10", True),
        ("1024", "2**10", True),
        ("45", "\\binom{10}{2}", True),
        ("120", "5!", True),
        ("x+1", "1+x", True),
        ("x+1", "\\frac{x^2-1}{x-1}", True),
        ("x+1", "x-1", False),
        ("2ab", "2ba", True),
        ("2ab", "2", False),
        ("2\\pi", "2", False),
        ("x=5", "5", True),
        ("5", "x=5", True),
        ("x=5", "x=6", False),
        ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}", True),
        # sets, tuples, intervals, matrices
        ("\\{1,2\\}", "\\{2,1\\}", True),
        ("1,2", "2, 1", True),
        ("\\{1,2\\}", "\\{1,3\\}", False),
        ("(3, \\frac{\\pi}{2})", "\\left( 3, \\frac{\\pi}{2} \\right)", True),
        ("(3, 4)", "(4, 3)", False),
        ("(1,2]", "(1,2]", True),
        ("(1,2]", "[1,2]", False),
        ("(-\\infty,2)\\cup(3,\\infty)", "(-\\infty, 2) \\cup (3, \\infty)", True),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", True),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}", False),
        # trap 6: gold first
        ("x<2", "(-\\infty,2)", True),
        ("(-\\infty,2)", "x<2", False),
        # not an answer
        ("72", "", False),
        ("72", "٧٢", False),
        ("72", "unknown", False),
        ("72", "$x=72$ and $y=4$", False),
        ("72", "\\boxed{72} or \\boxed{73}", False),
        ("72", "\x00\x01", False),
    ],
)
def test_table_of_cases(gold, answer, right):
    """Trap 5."""
    assert check(gold, answer) is right


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *[("2", f"{word} 2") for word in ("minus", "negative", "not", "it is not", "half of", "twice", "isn't")],
        *[("2", f"2 {words}") for words in ("and a half", "thousands", "millions", "dozens", "thirds", "fifths")],
        ("3", "3 fifths"),
        ("3", "3个半"),
        ("3", "负3"),
        ("5", "either $x$ or $5$"),
        ("18", "18, i.e. 118 dollars"),
        ("18", "18, or 180 dollars"),
        ("5", "$x=5$, so the answer is $6$"),
        ("5", "#### 5 #### 6"),
    ],
)
def test_words_that_change_a_number_make_it_wrong(gold, answer):
    assert check(gold, answer) is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "The value of $x$ is $5$."),
        ("\\frac{\\pi}{2}", "The value of $x$ is $\\frac{\\pi}{2}$."),
        ("5", "$x=5$, so the answer is $5$"),
        ("18", "18, i.e. 18 dollars"),
        ("5", "#### 5"),
        ("3.14", "\\approx 3.14"),
        ("3.14", "≈ 3.14"),
        ("\\emptyset", "\\varnothing"),
        ("10", "\\boldsymbol{10}"),
        ("10", "{\\bf 10}"),
        ("10", "10\\\\"),
        ("2.5", "It is 2.5 cups."),
    ],
)
def test_ordinary_forms_are_right(gold, answer):
    assert check(gold, answer) is True


@pytest.mark.parametrize(
    "gold",
    ["5 million", "1 and 1/2", "x equals 3", "at least 5", "-2 and 2", "$x=2$ and $y=3$", "1 hour 30 minutes",
     "July 4, 1990", "minus 2", "2 and a half"],
)  # fmt: skip
def test_gold_that_would_be_wrong_as_an_answer_is_unreadable(gold):
    """Trap 4."""
    assert "alone" in readable(Row("", gold))
    assert check(gold, gold) is None


@pytest.mark.parametrize("gold", ["", "  ", "A", "(B)", "\\text{(C)}", "\\text{Tuesday}", "east", "\\text{even}"])
def test_unreadable_gold_is_none_never_zero(gold):
    """Trap 4."""
    assert readable(Row("", gold))
    for answer in (gold, "72", "A", ""):
        assert check(gold, answer) is None


def test_gold_that_is_a_whole_solution_is_unreadable_at_once():
    solution = "Janet sells 16 - 3 - 4 = 9 duck eggs a day. She makes 9 * 2 = $18 every day at the market. #### 18"
    assert "pattern" in readable(Row("", solution))
    numbers = count()  # another text each time, since gold answers are read once
    assert least_seconds(lambda: readable(Row("", f"{solution} {next(numbers)}")), enough=0.1) < 0.1


PATHOLOGICAL = [
    "9^{9^{9^{9}}}",
    "9**9**9**9",
    "((((9^99)^99)^99)^99)",
    "2^{10000000000}",
    "0.1^{-99999999}",
    "(10^9)!",
    "((1000!)!)!",
    "\\Gamma(10^8)",
    "\\binom{1000000}{500000}",
    "\\binom{\\binom{99}{50}}{9}",
    "\\prod_{k=1}^{1000000000} k",
    "\\sum_{k=1}^{1000000000} k^{k}",
    "(x+y+z+w)^{99}",
    "\\cos(" * 18 + "x" + ")" * 18,
    "{" * 1000 + "1" + "}" * 1000,
    "(" * 100_000,
    "\\frac{" * 300,
    "1+" * 900 + "1",
    "1" * 100_000,
    "1e999999999",
    "x" * 1_900,
    "a " * 50_000,
    " " * 1_900 + "-",
    "\\int_0^1 x^{x^{x}} dx",
]


BOXED = [f"\\boxed{{{answer}}}" for answer in (PATHOLOGICAL[0], PATHOLOGICAL[15], PATHOLOGICAL[18])]


@pytest.mark.parametrize("answer", PATHOLOGICAL + BOXED, ids=lambda text: text[:24])
def test_pathological_answers_take_bounded_time_off_the_main_thread(answer):
    """Trap 7. Trap 8."""
    verdicts = []

    def work():
        verdict, seconds = timed(verify, answer, Row("", "7"))
        verdicts.append((verdict.correct, seconds))

    check("7", "\\sqrt{49}")  # imports and grammar are loaded once, outside of what is measured
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    correct, seconds = verdicts[0]
    assert correct is False
    assert seconds < 3


def test_pathological_gold_is_none():
    assert check("9^{9^{9^{9}}}", "7") is None


def test_an_answer_that_ran_out_of_time_harms_no_later_one():
    assert check("7", PATHOLOGICAL[10]) is False
    assert check("x+1", "1+x") is True
    assert check("\\frac{\\pi}{2}", "\\frac{2\\pi}{4}") is True


def test_lenient_takes_the_last_number_or_formula():
    assert find_lenient("9 * 8 = 72, so 72 eggs.", Row("", "72")) == "72"
    assert find_lenient("so $x$ is $\\frac{\\pi}{2}$.", Row("", "\\frac{\\pi}{2}")) == "\\frac{\\pi}{2}"
    assert gold_answer(Row("", " 72 ")) == "72"
