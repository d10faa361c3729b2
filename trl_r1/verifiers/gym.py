"""Is this answer to a reasoning-gym task right? The task's own scorer decides, and only its full score counts.

The scorers pay 0.01 to 0.5 for answers that are wrong, which scaling a group's rewards would amplify (trap 13). Some put
the answer through `eval` or sympy's parser: what could do anything there is refused before. Some give their full score to
wrong answers: those are refused too, by rules found by trying every task of reasoning-gym 0.1.19 on prefixes, pairs of
answers and junk ([`UNUSABLE`], `_refuse`). Needs `pip install 'trl-r1[reasoning-gym]'`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from trl_r1.exceptions import DataError, MissingExtraError, unknown
from trl_r1.responses import boxes
from trl_r1.rows import Row, Verdict, structured_reference
from trl_r1.verifiers import expression
from trl_r1.verifiers.bounds import MAX_DIGITS, DeadlineExceeded, deadline, digits
from trl_r1.verifiers.numbers import read_number

# The longest gold answers are boards and lists of a few thousand characters.
MAX_CHARACTERS = 20_000
# CPU seconds for one answer, so that a pathological one delays a step by less than a second. The gold answers of all tasks at
# reasoning-gym's own difficulty take at most 0.2 s (tests/verifiers/test_gym.py holds them to half of the deadline).
DEADLINE = 0.8
# Scorers that hand the answer to sympy's simplify, for which a right one in another form, or to a harder integral, may take
# longer. Below the 3 CPU seconds after which a worker is killed over one completion.
SLOW = {"intermediate_integration": 2.0, "simple_integration": 2.0}

# Tasks whose scorer calls any answer right, so that training on them teaches nothing.
UNUSABLE = {"game_of_life_halting": "its scorer accepts any text where the answer is True"}
# Tasks whose scorer does not look at the question's numbers or accepts other operators; ours is asked as well.
_EXPRESSIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "puzzle24": lambda metadata: {"numbers": metadata["numbers"], "target": 24},
    "countdown": lambda metadata: {"numbers": metadata["numbers"], "target": metadata["target"]},
}
# Scorers that read a part of the answer, so that the right one may stand among others: no more words than the gold's.
_ONE_ANSWER = frozenset(
    {"fraction_simplification", "gsm_symbolic", "knights_knaves", "letter_jumble", "polynomial_equations"}
)
# Scorers that look no further than what they search for, so that more may stand around it: what the whole answer must be.
_WHOLE = {
    "fraction_simplification": re.compile(
        r"\$?\s*(?:\\d?frac\s*\{-?[0-9]+\}\s*\{[0-9]+\}|-?[0-9]+\s*/\s*[0-9]+)\s*\$?"
    ),
    "time_intervals": re.compile(r"-?[0-9]+\s*(?:days?(?:,\s*[0-9:.]+)?)?|[0-9:.]+", re.IGNORECASE),
}
# A distance to one of these is no number either, which some scorers take for none at all.
_NOT_FINITE = re.compile(r"(?<![a-z])(?:nan|inf|infinity)(?![a-ik-z])", re.IGNORECASE)
# Scorers that `eval` what is not the expected text, for a part of the score: plain words and numbers evaluate to nothing.
_EVALUATED = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
_PLAIN = re.compile(r"[A-Za-z0-9_.\s-]*")
# Scorers that put the answer through sympy's parser, which is `eval` too.
_SYMBOLIC = frozenset({"simple_integration", "intermediate_integration", "polynomial_multiplication"})
_FORMULA = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|[A-Za-z]+|[+\-*/(),\s])*")
# `Integral` is missing on purpose: naming the integral is not solving it, and the scorers take it for an answer.
_FUNCTIONS = frozenset("sin cos tan cot sec csc asin acos atan sinh cosh tanh exp log ln sqrt Abs pi".split())  # noqa: SIM905
_MAX_FORMULA = 1_000
# `int`, `Fraction` and the like write 1e999999999 out before any deadline can strike.
_HUGE = re.compile(r"[0-9.][eE][+-]?[0-9_]{4,}")


def verify(answer: str, row: Row) -> Verdict:
    """Tell whether a task's scorer gives an answer its full score.

    Args:
        answer (`str`): The answer.
        row ([`Row`]): Its `reference` is an entry of reasoning-gym as [`gym_rows`] writes it.

    Returns:
        [`Verdict`]: `correct` is `None` when the reference is no such entry, or its task cannot be trusted.

    Raises:
        [`MissingExtraError`]: Without reasoning-gym.
    """
    entry = _read(row.reference)
    if isinstance(entry, str):
        return Verdict(None, entry)
    if len(answer) > MAX_CHARACTERS:
        return Verdict(False, f"longer than {MAX_CHARACTERS} characters")
    task, inside = entry["metadata"]["source_dataset"], boxes(answer)
    text = inside[0].strip() if len(inside) == 1 else answer.strip()
    seconds = SLOW.get(task, DEADLINE)
    scorer = load(task)  # before the clock runs: some read a dictionary, which is not the answer's doing
    try:
        with deadline(seconds):
            problem = _refuse(text, task, entry)
            # A scorer may change the entry, which is shared.
            score = 0.0 if problem else float(scorer(text, _decode(structured_reference(row.reference))))
    except DeadlineExceeded:
        return Verdict(False, f"{task}: not scored within {seconds:g} s")
    except Exception as error:  # scorers raise whatever they like on text they do not expect
        return Verdict(False, f"{task}: {type(error).__name__}: {str(error)[:100]}")
    return Verdict(score >= 1.0, f"{task}: {problem or f'score {score:g}'}")


def task_of(row: Row) -> str | None:
    """Return the name of the task that a row is of, `None` when its reference cannot be read."""
    entry = _read(row.reference)
    return None if isinstance(entry, str) else str(entry["metadata"]["source_dataset"])


@lru_cache(maxsize=256)
def load(task: str) -> Callable[[str, dict[str, Any]], float]:
    """Return a task's scorer. The first call of a process imports reasoning-gym and the task's data, which may take seconds."""
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


def readable(row: Row) -> str | None:
    """Return why the reference of a row cannot be read, or `None` when it can."""
    entry = _read(row.reference)
    return entry if isinstance(entry, str) else None


def gold_answer(row: Row) -> str | None:
    """Return the entry's answer; `None` for tasks that name none, and where it is an unsolved integral."""
    entry = _read(row.reference)
    if isinstance(entry, str) or entry["answer"] is None:
        return None
    answer = str(entry["answer"]).strip()
    return None if _refuse(answer, entry["metadata"]["source_dataset"], entry) else answer


def find_lenient(text: str, row: Row) -> str | None:
    """Return the last box, or the gold answer where the text ends in it, or the last line."""
    found = boxes(text)
    if found:
        return found[-1]
    bare = re.sub(r"</?(?:think|answer)>", " ", text).rstrip()
    gold = gold_answer(row)
    if gold and bare.endswith(gold) and not bare[: -len(gold)][-1:].isalnum():
        return gold
    return bare.splitlines()[-1].strip() if bare.strip() else None


def gym_rows(task: str, n: int, seed: int = 0, **settings: Any) -> Iterator[Row]:
    """Make rows of a reasoning-gym task.

    Args:
        task (`str`): Name of the task, such as `"leg_counting"`.
        n (`int`): Number of rows.
        seed (`int`, defaults to 0): Equal seeds and settings give equal rows.
        settings: Of the task's configuration, such as `min_animals=2`.

    Returns:
        `Iterator[Row]`: Rows of the domain `logic`, verified by `gym`.

    Raises:
        [`ConfigurationError`]: For an unknown or untrustworthy task.
        [`DataError`]: For an entry that cannot be stored as text.
        [`MissingExtraError`]: Without reasoning-gym.
    """
    tasks = [name for name in _tasks() if name not in UNUSABLE]
    if task not in tasks:
        raise unknown("reasoning-gym task", task, tasks, f"{UNUSABLE[task]}." if task in UNUSABLE else "")
    import reasoning_gym

    data = reasoning_gym.create_dataset(task, size=n, seed=seed, **settings)
    for index in range(n):
        entry = data[index]
        metadata = {**entry["metadata"], "source_dataset": task}
        yield Row(
            prompt=entry["question"],
            reference=json.dumps(_encode({**entry, "metadata": metadata}, task), ensure_ascii=False),
            domain="logic",
            language="en",
            id=f"gym/{task}/{seed}/{index}",
            verifier="gym",
        )


def _encode(value: Any, task: str) -> Any:
    """Turn an entry into JSON that keeps tuples, fractions and keys that are no text; scorers compare with them."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _encode(item, task) for key, item in value.items()}
        return {"__dict__": [[_encode(key, task), _encode(item, task)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_encode(item, task) for item in value]}
    if isinstance(value, Fraction):
        return {"__fraction__": str(value)}
    if isinstance(value, list):
        return [_encode(item, task) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise DataError(
        f"An entry of the reasoning-gym task {task!r} holds a {type(value).__name__}, which is no JSON. Use another task."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__tuple__"}:
            return tuple(_decode(item) for item in value["__tuple__"])
        if value.keys() == {"__fraction__"}:
            return Fraction(value["__fraction__"])
        if value.keys() == {"__dict__"}:
            return {_decode(key): _decode(item) for key, item in value["__dict__"]}
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value


@lru_cache(maxsize=65536)
def _read(reference: str) -> dict[str, Any] | str:
    """Return the entry of a reference, or why it is none. The entry is shared: do not change it."""
    try:
        entry = structured_reference(reference)
    except json.JSONDecodeError:
        return "not JSON"
    if not isinstance(entry, dict) or not {"question", "answer", "metadata"} <= entry.keys():
        return "not an entry of reasoning-gym (question, answer, metadata)"
    task = entry["metadata"].get("source_dataset") if isinstance(entry["metadata"], dict) else None
    if task not in _tasks():
        return f"reasoning-gym has no task {task!r} (metadata.source_dataset)"
    return f"{task}: {UNUSABLE[task]}" if task in UNUSABLE else entry


def _refuse(text: str, task: str, entry: dict[str, Any]) -> str | None:
    """Say why an answer must not reach the task's scorer, or is wrong by rules that the scorer lacks."""
    if _HUGE.search(text):
        return "too large a number"
    gold = str(entry["answer"])
    if _NOT_FINITE.search(text) and not _NOT_FINITE.search(gold):
        return "not a number"
    if task == "spell_backward" and text.casefold() != gold.casefold():
        # The scorer adds up shares of letters, which by rounding may come to all of them for a word that goes on.
        return f"{text[:40]} is not {gold}"
    if task == "gsm_symbolic" and (number := read_number(gold)) is not None:
        # The scorer sees neither the sign nor what stands behind the first number.
        value = read_number(text)
        return None if value is not None and number.equals(value) else f"{text[:40]} is not {gold}"
    if task in _WHOLE and not _WHOLE[task].fullmatch(text):
        return "more than the answer"
    if task == "coin_flip":
        # The scorer pays in full for the first digits of the probability: `0` for any.
        chance, right = Fraction(text.replace(",", "")), Fraction(entry["answer"])
        return None if abs(chance - right) <= abs(right) / 100 else f"{text[:40]} is not near {gold}"
    if task in _EXPRESSIONS:
        reference = json.dumps(_EXPRESSIONS[task](_decode(entry["metadata"])))
        verdict = expression.verify(text, Row("", reference))
        return None if verdict.correct else verdict.detail
    if task in _ONE_ANSWER and len(_words(text)) > len(_words(str(entry["answer"]))):
        return "longer than the one right answer"
    if task in _EVALUATED and not _PLAIN.fullmatch(text):
        return "more than words and numbers"
    if task in _SYMBOLIC:
        return _refuse_formula(text)
    return None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)) if word]


def _refuse_formula(text: str) -> str | None:
    """Say why a formula must not be evaluated: names that are no functions, attributes, huge numbers."""
    if len(text) > _MAX_FORMULA or not _FORMULA.fullmatch(text):
        return "not a formula"
    names = set(re.findall(r"[A-Za-z]+", text))
    strange = sorted(name for name in names if len(name) > 1 and name not in _FUNCTIONS)
    if strange:
        return f"unknown name {strange[0]!r}"
    import sympy

    # Single letters become symbols, `E` and `I` included: their values do not matter here.
    letters = {name: sympy.Symbol(name) for name in names if len(name) == 1}
    if digits(sympy.parse_expr(text, local_dict=letters, evaluate=False)) > MAX_DIGITS:
        return "too large a number"
    return None


@lru_cache(maxsize=1)
def _tasks() -> tuple[str, ...]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingExtraError("reasoning-gym, whose scorers verify these rows,", "reasoning-gym") from error
    # A mixture's entries name the task that they were drawn from.
    return tuple(sorted(set(DATASETS) - {"composite"}))
