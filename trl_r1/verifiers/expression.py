"""Does this expression reach the target? Countdown and the 24-game, in exact rationals.

The answer is read by a parser of ten rules, never evaluated as code: numbers, `+ − × ÷` between them, brackets.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from trl_r1.responses import boxes
from trl_r1.rows import Row, Verdict, structured_reference
from trl_r1.verifiers.numbers import tidy

MAX_CHARACTERS = 500
USES = ("all", "any")
# Pairs tried by the search for a gold expression: seconds at most, enough for any five numbers.
MAX_TRIALS = 1_000_000

_TOKEN = re.compile(r"\s*(?:([0-9]{1,30}(?:\.[0-9]{1,30})?)|([-+*/()]))")
_LATEX = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": "", "×": "*", "·": "*", "÷": "/",
          "∗": "*", "⋅": "*", "[": "(", "]": ")", "\\,": "", "\\ ": ""}  # fmt: skip
# What an expression is made of; one that is cut out of it begins and ends at a number or a bracket.
_EXPRESSION_LIKE = re.compile(r"[0-9\s.+\-−–*/×÷·()]+")
_FIRST, _LAST, _BETWEEN = re.compile(r"[0-9(]"), "0123456789)", frozenset("+-−–*/×÷·")
_OPERATORS = "+-*/"


class Puzzle(NamedTuple):
    """Numbers, the value to reach, and whether all of them must be used."""

    numbers: tuple[Fraction, ...]
    target: Fraction
    use: str


def verify(answer: str, row: Row) -> Verdict:
    """Tell whether an expression has the target's value and uses the given numbers as often as allowed.

    Args:
        answer (`str`):
            Such as `"(3 + 5) * 7 - 34"`, also with `×`, `÷`, `\\times`; a final `= 22` is accepted if it is true. A
            sign before a number, powers and joined digits are not.
        row ([`Row`]):
            Its `reference` is JSON, `{"numbers": [3, 5, 7], "target": 22}`; with `"use": "any"` numbers may be left
            out, otherwise each is used exactly once.

    Returns:
        [`Verdict`]: `correct` is `None` when the reference is no such JSON.
    """
    puzzle = _read(row.reference)
    if isinstance(puzzle, str):
        return Verdict(None, f"reference {row.reference[:100]!r}: {puzzle}")
    if len(answer) > MAX_CHARACTERS:
        return Verdict(False, f"longer than {MAX_CHARACTERS} characters")
    inside = {box.strip() for box in boxes(answer)}
    left, _, right = _plain(inside.pop() if len(inside) == 1 else answer).partition("=")
    try:
        value, used = _evaluate(left)
        if right.strip() and _evaluate(right)[0] != value:
            return Verdict(False, f"{answer.strip()} is not true")
    except (ValueError, ZeroDivisionError) as error:
        return Verdict(False, str(error))
    given = Counter(puzzle.numbers)
    if puzzle.use == "all" and used != given:
        return Verdict(False, "not every number is used exactly once")
    if used - given:
        return Verdict(False, "uses a number that is not given, or one too often")
    return Verdict(value == puzzle.target, f"{left.strip()} = {value}, target {puzzle.target}")


def readable(row: Row) -> str | None:
    """Return why the reference of a row cannot be read, or `None` when it can."""
    puzzle = _read(row.reference)
    return puzzle if isinstance(puzzle, str) else None


def gold_answer(row: Row) -> str | None:
    """Return an expression that reaches the target, found by search, or `None` when there is none (or too many tries).

    A `"solution"` in the reference is taken as it is.
    """
    puzzle = _read(row.reference)
    if isinstance(puzzle, str):
        return None
    known = structured_reference(row.reference).get("solution")
    return str(known) if known else solve(puzzle)


def find_lenient(text: str, row: Row) -> str | None:
    """Return the last expression with an operator in a text, ignoring the text's form."""
    found = None
    for run in _EXPRESSION_LIKE.findall(text[-20_000:]):
        start, end = _FIRST.search(run), max(run.rfind(char) for char in _LAST)
        if start and not _BETWEEN.isdisjoint(run[start.end() : max(end, 0)]):
            found = run[start.start() : end + 1]
    return found


@lru_cache(maxsize=65536)
def _read(reference: str) -> Puzzle | str:
    try:
        parsed = structured_reference(reference)
        numbers = tuple(Fraction(str(number)) for number in parsed["numbers"])
        target, use = Fraction(str(parsed["target"])), parsed.get("use", "all")
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
        return "no JSON object with 'numbers' and 'target'"
    if not numbers:
        return "no numbers"
    if use not in USES:
        return f"use {use!r} is none of {USES}"
    return Puzzle(numbers, target, use)


def _plain(answer: str) -> str:
    text = tidy(answer)
    for symbol, plain in _LATEX.items():
        text = text.replace(symbol, plain)
    return text.replace("$", "").replace("{", "(").replace("}", ")")


def _evaluate(text: str) -> tuple[Fraction, Counter[Fraction]]:
    """Evaluate by shunting-yard. Raises `ValueError` for anything that is not an expression."""
    values: list[Fraction] = []
    operators: list[str] = []
    used: Counter[Fraction] = Counter()
    operand_next, position = True, 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text[position : position + 20]!r} is no part of an expression")
        position = match.end()
        number, symbol = match.groups()
        if operand_next != (number is not None or symbol == "("):
            raise ValueError(f"unexpected {number or symbol!r}")
        if number is not None:
            values.append(Fraction(number))
            used[values[-1]] += 1
            operand_next = False
        elif symbol == "(":
            operators.append(symbol)
        elif symbol == ")":
            while operators and operators[-1] != "(":
                _reduce(values, operators)
            if not operators:
                raise ValueError("unbalanced brackets")
            operators.pop()
        else:
            while operators and operators[-1] != "(" and (operators[-1] in "*/" or symbol in "+-"):
                _reduce(values, operators)
            operators.append(symbol)
            operand_next = True
    if operand_next:
        raise ValueError("not a complete expression")
    while operators:
        if operators[-1] == "(":
            raise ValueError("unbalanced brackets")
        _reduce(values, operators)
    return values[0], used


def _reduce(values: list[Fraction], operators: list[str]) -> None:
    right, left = values.pop(), values.pop()
    values.append(_combine(left, operators.pop(), right))


def _combine(left: Fraction, operator: str, right: Fraction) -> Fraction:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise ZeroDivisionError("division by zero")
    return left / right


@lru_cache(maxsize=16384)
def solve(puzzle: Puzzle) -> str | None:
    """Find an expression for a puzzle by exhaustive search, dead ends remembered.

    Args:
        puzzle ([`Puzzle`]): Up to five numbers are searched completely, more within [`MAX_TRIALS`] pairs.

    Returns:
        `str` or `None`: An expression such as `"(3 + 5) * 7"`.
    """
    sizes = range(1, len(puzzle.numbers) + 1) if puzzle.use == "any" else (len(puzzle.numbers),)
    budget = [MAX_TRIALS]
    for size in sizes:
        for chosen in combinations(puzzle.numbers, size):
            found = _search([(number, str(number)) for number in chosen], puzzle.target, set(), budget)
            if found is not None:
                return found
    return None


def _search(
    terms: list[tuple[Fraction, str]], target: Fraction, dead: set[tuple[Fraction, ...]], budget: list[int]
) -> str | None:
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == target else None
    key = tuple(sorted(value for value, _ in terms))
    if key in dead:
        return None
    for i, j in combinations(range(len(terms)), 2):
        rest = [term for index, term in enumerate(terms) if index not in (i, j)]
        for merged in _merges(terms[i], terms[j]):
            budget[0] -= 1
            if budget[0] < 0:
                return None
            found = _search([*rest, merged], target, dead, budget)
            if found is not None:
                return found
    dead.add(key)
    return None


def _merges(a: tuple[Fraction, str], b: tuple[Fraction, str]) -> Iterator[tuple[Fraction, str]]:
    """All results of one operation on two terms, with brackets where they are needed."""
    for (x, left), (y, right), operators in ((a, b, _OPERATORS), (b, a, "-/")):
        for operator in operators:
            if operator == "/" and y == 0:
                continue
            first = f"({left})" if operator in "*/" and re.search(r"[-+]", left) else left
            second = f"({right})" if operator in "-*/" and re.search(r"[-+*/]", right) else right
            yield _combine(x, operator, y), f"{first} {operator} {second}"
