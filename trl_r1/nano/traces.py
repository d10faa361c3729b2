"""Reading countdown thoughts: which tries were made, what was claimed of each, and what is true of it.

Counting reflective words proves nothing (a check may claim anything), so behaviour is measured on the tries themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trl_r1.nano.countdown import GIVE_UP, NO, YES
from trl_r1.nano.numerals import NUMERAL_CHARACTERS, from_chinese
from trl_r1.rows import Row, structured_reference

# Six digits at most: a broken model's endless digits are no numbers, and reading them would take quadratic time.
_ENGLISH = re.compile(r"(?<!\d)\d{1,6}(?:[+\-*/]\d{1,6}=\d{1,6}(?!\d))+")
_NUMERAL = f"[{NUMERAL_CHARACTERS}]{{1,7}}"
_CHINESE = re.compile(f"{_NUMERAL}(?:[加减乘除]{_NUMERAL}得{_NUMERAL})+")
_OPERATORS = dict(zip("加减乘除", "+-*/", strict=True))
_OK = tuple(word.strip() for words in YES.values() for word in words)
_FAILED = tuple(word.strip() for words in NO.values() for word in words)


@dataclass(frozen=True)
class Try:
    """One chain of a thought.

    Args:
        numbers (`tuple[int, ...]`): The numbers it uses, in order.
        value (`int`): What it says it comes to.
        correct (`bool`): Whether every step is calculated right.
        claimed (`bool`, *optional*): What its check says; `None` when it is not checked.
    """

    numbers: tuple[int, ...]
    value: int
    correct: bool
    claimed: bool | None

    def reaches(self, numbers: Iterable[int], target: int) -> bool:
        """Whether the try truly solves the question."""
        return self.correct and self.value == target and sorted(self.numbers) == sorted(numbers)


@dataclass(frozen=True)
class Trace:
    """A thought taken apart: its tries, whether it gives up, its mode and the languages it is written in.

    `mode` is `"terse"` (no chain), `"one_try"` (one chain, unchecked) or `"search"` (a chain that is checked, or several).
    """

    tries: tuple[Try, ...]
    gave_up: bool
    mode: str
    languages: tuple[str, ...]


def _read_try(chain: str, after: str) -> Try:
    tokens: list[int] = []
    operators: list[str] = []
    for piece in re.findall(rf"\d+|{_NUMERAL}|[+\-*/加减乘除]", chain.replace("得", "=")):
        if piece in "+-*/加减乘除":
            operators.append(_OPERATORS.get(piece, piece))
        else:
            tokens.append(int(piece) if piece.isascii() else from_chinese(piece) or 0)
    # A chain reads number, (operator, number, result), (operator, number, result) …
    value, correct, numbers = tokens[0], True, [tokens[0]]
    for operator, number, result in zip(operators, tokens[1::2], tokens[2::2], strict=True):
        exact = operator != "/" or (number != 0 and value % number == 0)
        true = {"+": value + number, "-": value - number, "*": value * number, "/": value // (number or 1)}[operator]
        correct = correct and exact and true == result
        value = result
        numbers.append(number)
    mark = re.split(r"[\n<]", after)[0].strip()
    claimed = True if mark.startswith(_OK) else False if mark.startswith(_FAILED) else None
    return Try(tuple(numbers), value, correct, claimed)


def read_trace(thought: str) -> Trace:
    """Take the thought of a countdown answer apart.

    Args:
        thought (`str`): The text between the thinking tags.

    Returns:
        [`Trace`]

    Example:

    ```python
    >>> from trl_r1.nano import read_trace
    >>> trace = read_trace("7*3=21-5=16 wrong\\n7*3=21-4=17 yes")
    >>> trace.mode, [t.claimed for t in trace.tries], trace.tries[1].reaches([3, 4, 7], 17)
    ('search', [False, True], True)
    ```
    """
    found = sorted(
        [(m.start(), m.end(), "en") for m in _ENGLISH.finditer(thought)]
        + [(m.start(), m.end(), "zh") for m in _CHINESE.finditer(thought)]
    )
    tries = tuple(_read_try(thought[start:end], thought[end : end + 12]) for start, end, _ in found)
    checked = any(one.claimed is not None for one in tries)
    mode = "search" if checked or len(tries) > 1 else "one_try" if tries else "terse"
    return Trace(
        tries=tries,
        gave_up=thought.strip().endswith(tuple(GIVE_UP.values())),
        mode=mode,
        languages=tuple(sorted({language for _, _, language in found})),
    )


def checks(text: str, row: Row) -> tuple[int, int]:
    """Count the checks that claim success in a countdown answer, and those of them that are true.

    Args:
        text (`str`): The completion, or its thought.
        row (`Row`): The question. Rows of other tasks have no checks to count.

    Returns:
        `tuple[int, int]`: Claimed, and truly reaching the target.
    """
    if row.verifier != "expression":
        return 0, 0
    reference = structured_reference(row.reference)
    claimed = [one for one in read_trace(text).tries if one.claimed]
    return len(claimed), sum(one.reaches(reference["numbers"], reference["target"]) for one in claimed)
