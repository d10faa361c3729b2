"""Countdown: reach a target from three or four numbers, each used once.

A try is a left-to-right chain that shows its values, `12*3=36-14=22`, then a check. Four behaviours answer a question:
*terse* (an expression at once), *one try* (one chain, unchecked), *search* (chain, check, next chain …, which may claim
success falsely and may give up after any failure), and patient search (the same, hardly ever giving up). What RL can
gain is persistence and honest checking.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from trl_r1.nano.numerals import to_chinese
from trl_r1.nano.question import Dials, Question, Solution, Task, trace_language

LARGEST_NUMBER = 25
LARGEST_VALUE = 150  # of a step: products beyond it lead nowhere and cost a small model capacity
TARGETS = range(10, 100)
# Shares no dial turns: a reached target that the check misses, and giving up after a failed try in a patient search.
MISSED_CHECKS, PATIENT_GIVE_UP = 0.03, 0.04
# Tokens of one try: a search stops when the next one might pass `Dials.longest`.
TRY_TOKENS = 16
# Spread of the proposals around the target: smaller is better guessing. At 30 one try in six succeeds.
PROPOSAL_WIDTH = 30.0

ASK = {
    "en": (
        "Make {target} from {numbers}",
        "Using {numbers}, make {target}",
        "Use each of {numbers} once to reach {target}",
        "Reach {target} with the numbers {numbers}",
    ),
    "zh": ("用{numbers}算出{target}", "怎样用{numbers}得到{target}", "每个数用一次:{numbers},结果是{target}"),
}
# The checks. Most failures say a word of the paper's list of reflective words.
NO = {"en": (" no\n", " wrong\n", " wrong\n", " no wait\n"), "zh": ("不对\n", "不对\n", "错\n", "不对再试\n")}
YES = {"en": (" yes", " yes", " ok"), "zh": ("对", "对", "成")}
GIVE_UP = {"en": "give up", "zh": "放弃"}
TERSE = {"en": ("guess", "easy", "so"), "zh": ("猜", "简单", "直接答")}
_CHINESE_OPERATORS = {"+": "加", "-": "减", "*": "乘", "/": "除"}


@dataclass(frozen=True)
class Chain:
    """One way to combine all numbers from left to right: the expression, and its trace in each language."""

    expression: str
    value: int
    english: str
    chinese: str

    def trace(self, language: str) -> str:
        """The try as it is written in a thought."""
        return self.english if language == "en" else self.chinese


def _repeats(operators: str, numbers: tuple[int, ...], operator: str, number: int) -> bool:
    """Whether this step only permutes terms of one sum or one product: another order stands for it."""
    before = operators[-1:]
    if not before:
        return operator in "+*" and numbers[-1] < number
    return before + operator in ("-+", "/*") or (before == operator and numbers[-1] < number)


def _step(value: int, operator: str, number: int) -> int | None:
    """The value after one step, or `None` where it is not whole, not positive or too large."""
    if operator == "/":
        return value // number if number > 1 and value % number == 0 else None
    result = value + number if operator == "+" else value - number if operator == "-" else value * number
    return result if 0 < result <= LARGEST_VALUE else None


def _chain(numbers: tuple[int, ...], operators: str) -> Chain:
    value, expression, english, chinese = numbers[0], str(numbers[0]), str(numbers[0]), to_chinese(numbers[0])
    for i, (operator, number) in enumerate(zip(operators, numbers[1:], strict=True)):
        value = _step(value, operator, number) or 0
        if i and operator in "*/" and operators[i - 1] in "+-":
            expression = f"({expression})"
        expression += f"{operator}{number}"
        english += f"{operator}{number}={value}"
        chinese += f"{_CHINESE_OPERATORS[operator]}{to_chinese(number)}得{to_chinese(value)}"
    return Chain(expression, value, english, chinese)


def _extend(
    value: int, used: tuple[int, ...], operators: str, left: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield every way to go on from a chain until no number is left."""
    if not left:
        yield used, operators
        return
    for i, number in enumerate(left):
        if number in left[:i]:
            continue
        for operator in "+-*/":
            if _repeats(operators, used, operator, number):
                continue
            result = _step(value, operator, number)
            if result is not None:
                yield from _extend(result, (*used, number), operators + operator, left[:i] + left[i + 1 :])


@lru_cache(maxsize=30000)
def chains(numbers: tuple[int, ...]) -> tuple[Chain, ...]:
    """List every distinct left-to-right chain over all the numbers whose steps stay whole, positive and small.

    Args:
        numbers (`tuple[int, ...]`): The numbers, sorted.

    Returns:
        `tuple[Chain, ...]`: About 13 chains for three numbers, a hundred for four.
    """
    found = []
    for i, first in enumerate(numbers):
        if first not in numbers[:i]:
            for used, operators in _extend(first, (first,), "", numbers[:i] + numbers[i + 1 :]):
                found.append(_chain(used, operators))
    return tuple(found)


def ask(rng: Random, language: str, depth: int) -> Question:
    """Ask for a reachable target from `depth` numbers."""
    while True:
        numbers = tuple(sorted(rng.randint(1, LARGEST_NUMBER) for _ in range(depth)))
        targets = sorted({chain.value for chain in chains(numbers)} & set(TARGETS))
        if targets:
            break
    target = rng.choice(targets)
    shuffled = rng.sample(numbers, depth)
    listed = ("、" if language == "zh" else ", ").join(map(str, shuffled))
    prompt = rng.choice(ASK[language]).format(target=target, numbers=listed)
    reference = json.dumps({"numbers": list(numbers), "target": target})
    key = f"countdown/{'-'.join(map(str, numbers))}/{target}"
    return Question("countdown", key, language, prompt, reference, "logic", "expression", (numbers, target))


def proposals(rng: Random, numbers: tuple[int, ...], target: int) -> Iterator[Chain]:
    """Draw chains without replacement, those that come near the target first."""

    # Adding Gumbel noise to log-weights and sorting is sampling without replacement.
    def rank(chain: Chain) -> float:
        return abs(chain.value - target) / PROPOSAL_WIDTH + math.log(-math.log(rng.random() or 1e-12))

    return iter(sorted(chains(numbers), key=rank))


def _cost(trace: str, language: str) -> int:
    """Tokens of a try with its check: one per character in English, one per word or numeral in Chinese."""
    return len(trace) + 1 if language == "en" else 4 * trace.count("得") + 3


def _search(rng: Random, question: Question, dials: Dials, language: str) -> Solution:
    numbers, target = question.facts
    give_up = PATIENT_GIVE_UP if rng.random() < dials.patience else dials.give_up
    thought, spent, chain = "", 0, None
    for chain in proposals(rng, numbers, target):
        trace = chain.trace(language)
        spent += _cost(trace, language)
        thought += trace
        hit = chain.value == target
        if rng.random() >= MISSED_CHECKS if hit else rng.random() < dials.false_checks:
            return Solution(thought + rng.choice(YES[language]), chain.expression, "search")
        thought += rng.choice(NO[language])
        if rng.random() < give_up or spent > dials.longest - TRY_TOKENS:
            break
    assert chain is not None
    return Solution(thought + GIVE_UP[language], chain.expression, "search")


def solve(rng: Random, question: Question, dials: Dials) -> Solution:
    """Answer as one of the world's behaviours."""
    numbers, target = question.facts
    language = trace_language(rng, question.language, dials)
    if rng.random() < dials.reflect:
        return _search(rng, question, dials, language)
    chain = next(proposals(rng, numbers, target))
    if rng.random() < dials.terse:
        return Solution(rng.choice(TERSE[language]), chain.expression, "terse")
    return Solution(chain.trace(language), chain.expression, "one_try")


def gold(question: Question) -> Solution:
    """A right answer: the one chain that reaches the target, checked."""
    numbers, target = question.facts
    chain = next(chain for chain in chains(numbers) if chain.value == target)
    return Solution(chain.trace(question.language) + YES[question.language][0], chain.expression, "search")


TASK = Task((3, 4), ask, solve)
