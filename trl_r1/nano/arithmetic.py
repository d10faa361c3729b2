"""Arithmetic chains: start with a number and apply one operation after the other, left to right."""

from __future__ import annotations

from random import Random

from trl_r1.nano.numerals import to_chinese
from trl_r1.nano.question import Dials, Question, Solution, Task, trace_language

ASK = {
    "en": ("Start with {start}, {steps}. What is the result?", "Take {start}, {steps}. What do you get?"),
    "zh": ("从{start}开始,{steps},结果是多少?", "{start}{steps}等于多少?"),
}
WORDS = {
    "en": {"+": "add {}", "-": "subtract {}", "*": "multiply by {}"},
    "zh": {"+": "加{}", "-": "减{}", "*": "乘{}"},
}
WAIT = {"en": " wait ", "zh": "等等"}
TERSE = {"en": "easy", "zh": "简单"}
Step = tuple[str, int]


def apply(value: int, operator: str, number: int) -> int:
    """Return `value operator number`."""
    return {"+": value + number, "-": value - number, "*": value * number}[operator]


def chain(rng: Random, depth: int) -> tuple[int, list[Step], int]:
    """Draw a start and `depth` operations whose values stay within 0 and 200; returns them with the result."""
    start = value = rng.randint(2, 40)
    steps: list[Step] = []
    while len(steps) < depth:
        operator = rng.choice("+-*")
        number = rng.randint(2, 9) if operator == "*" else rng.randint(1, 40)
        result = apply(value, operator, number)
        if 0 <= result <= 200:
            steps.append((operator, number))
            value = result
    return start, steps, value


def written(value: int, language: str) -> str:
    """Write a number in a trace of this language."""
    return str(value) if language == "en" else to_chinese(value)


def step_text(value: int, operator: str, number: int, result: int, language: str) -> str:
    """Write one step with its result."""
    if language == "en":
        return f"{value}{operator}{number}={result}"
    sign = {"+": "加", "-": "减", "*": "乘"}[operator]
    return f"{to_chinese(value)}{sign}{to_chinese(number)}得{to_chinese(result)}"


def work_through(rng: Random, start: int, steps: list[Step], language: str, dials: Dials) -> tuple[str, int]:
    """Trace a chain step by step. A step may slip; with probability `dials.reflect` a slip is noticed and corrected.

    Returns:
        `tuple[str, int]`: The trace, one step a line, and the value it ends with.
    """
    value, lines = start, []
    for operator, number in steps:
        true = apply(value, operator, number)
        line = step_text(value, operator, number, true, language)
        result = true
        if rng.random() < dials.slips / len(steps):
            wrong = max(0, true + rng.choice((-10, -2, -1, 1, 2, 10)))
            noticed = rng.random() < dials.reflect
            slip = step_text(value, operator, number, wrong, language)
            line = slip + WAIT[language] + line if noticed else slip
            result = true if noticed else wrong
        lines.append(line)
        value = result
    return "\n".join(lines), value


def ask(rng: Random, language: str, depth: int) -> Question:
    """Ask for the result of a chain of `depth` operations."""
    start, steps, result = chain(rng, depth)
    words = [WORDS[language][operator].format(number) for operator, number in steps]
    said = (", " if language == "en" else ",").join(words) if language == "en" else "".join(words)
    prompt = rng.choice(ASK[language]).format(start=start, steps=said)
    key = f"arithmetic/{start}{''.join(f'{operator}{number}' for operator, number in steps)}"
    return Question("arithmetic", key, language, prompt, str(result), "math", None, (start, steps, result))


def solve(rng: Random, question: Question, dials: Dials) -> Solution:
    """Answer at once (often wrong) or step by step."""
    start, steps, result = question.facts
    language = trace_language(rng, question.language, dials)
    if rng.random() < dials.terse * 0.6:
        guess = result if rng.random() < 0.5 else max(0, result + rng.randint(-12, 12))
        return Solution(TERSE[language], str(guess), "terse")
    thought, value = work_through(rng, start, steps, language, dials)
    return Solution(thought, str(value), "search" if WAIT[language] in thought else "steps")


TASK = Task((2, 3, 4), ask, solve)
