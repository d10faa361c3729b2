"""cons@k: is the answer that most samples agree on right? Answers are compared by value, not by spelling."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from trl_r1.rows import Row, Verdict, structured_reference
from trl_r1.verifiers import verifier_name, verify


def consensus(row: Row, votes: Sequence[str | None], verdicts: Mapping[str | None, Verdict], k: int) -> float:
    """Share of blocks of `k` votes whose majority answer is right.

    Samples beyond the last whole block are left out. Of answers tied for the majority each counts in equal part, the
    expectation over breaking the tie at random; samples without an answer do not vote.

    Args:
        row (`Row`): The question.
        votes (`Sequence[str | None]` of length `n`): The samples' answers, in sample order.
        verdicts (`Mapping[str | None, Verdict]`): The verdict on every distinct answer.
        k (`int`): Votes per majority.

    Returns:
        `float`: In [0, 1].
    """
    group_of = answer_groups(row, verdicts)
    blocks = [votes[start : start + k] for start in range(0, len(votes) - k + 1, k)]
    return sum(_majority_right(block, group_of, verdicts) for block in blocks) / len(blocks)


def answer_groups(row: Row, verdicts: Mapping[str | None, Verdict]) -> dict[str, str]:
    """Map every distinct answer to one that stands for all equal to it (`\\frac12`, `0.5` and `1/2` are one answer).

    Right answers equal the gold answer, hence each other. Wrong ones are compared by normalised text, then as numbers,
    then by the row's own verifier with one of them in the gold answer's place.
    """
    representatives: dict[str, str] = {}
    wrong: list[str] = []
    right: str | None = None
    for answer, verdict in verdicts.items():
        if answer is None:
            continue
        if verdict.correct:
            right = answer if right is None else right
            representatives[answer] = right
            continue
        same = next((other for other in wrong if _equivalent(answer, other, row)), None)
        if same is None:
            wrong.append(answer)
        representatives[answer] = answer if same is None else same
    return representatives


def _majority_right(
    votes: Sequence[str | None], group_of: Mapping[str, str], verdicts: Mapping[str | None, Verdict]
) -> float:
    counts = Counter(group_of[vote] for vote in votes if vote is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    leaders = [answer for answer, count in counts.items() if count == most]
    return sum(bool(verdicts[answer].correct) for answer in leaders) / len(leaders)


def _equivalent(answer: str, other: str, row: Row) -> bool:
    """Whether two wrong answers are the same answer, cheap comparisons first."""
    first, second = "".join(answer.split()).casefold(), "".join(other.split()).casefold()
    if first == second:
        return True
    numbers = _number(first), _number(second)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if verifier_name(row) == "expression":
        return _same_value(answer, other, row)
    reference = _as_reference(other, row)
    return reference is not None and bool(verify(answer, replace(row, reference=reference)).correct)


def _same_value(answer: str, other: str, row: Row) -> bool:
    """Whether two expressions have one value: their difference, from the numbers they use, reaches 0."""
    answer, other = answer.partition("=")[0], other.partition("=")[0]
    numbers = re.findall(r"\d+(?:\.\d+)?", answer + " " + other)
    reference = json.dumps({"numbers": numbers, "target": 0})
    return bool(verify(f"({answer}) - ({other})", replace(row, reference=reference)).correct)


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _as_reference(answer: str, row: Row) -> str | None:
    """The row's reference with `answer` in the gold answer's place; `None` where the verifier allows no such thing."""
    match verifier_name(row):
        case "math":
            return answer
        case "exact":
            return json.dumps([answer])
        case "choice":
            return json.dumps({**structured_reference(row.reference), "answer": answer})
        case _:
            return None
