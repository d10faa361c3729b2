"""Worked solutions as training traces: a question with its thinking, its answer and, where there is one, its summary.

Traces come from a user's own files ([`from_columns`]), from GSM8K's solutions ([`gsm8k`]) and from reasoning-gym
([`trl_r1.data.reasoning_gym`]); [`trl_r1.data.cold_start`] verifies and filters them like any sampled completion.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1.data.files import BUILDERS, open_file, why
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.responses import completion_text, parse
from trl_r1.rows import Completion, Row

# GSM8K marks each calculation of a solution by `<<48/2=24>>`.
_CALCULATION = re.compile(r"<<[^<>]*>>")
_GSM8K_ANSWER = re.compile(r"\n?####\s*(.+?)\s*\Z")

_NUMBER = r"[0-9][0-9,]*(?:\.[0-9]+)?"
_MONEY = r"[$€£¥]?\s?"
# `12 * 3 = $36` with plain numbers on either side. What belongs to a longer term (`x * 3 = 36`, `= 36 / 4`), to a mixed
# number (`1 1/2`, `1 and 1/3`), to digits set apart (`18 000`) or to a time of day is left alone.
_EQUATION = re.compile(
    rf"(?<![\w.,:/*+×÷%^$€£¥-])(?<![*/+×÷x^-]\s)(?<![0-9]\s)(?<!and\s)"
    rf"(?P<left>{_MONEY}{_NUMBER}(?:\s*[-+*/×÷x]\s*{_MONEY}{_NUMBER})+)"
    rf"\s*=\s*{_MONEY}(?P<right>{_NUMBER})(?![0-9.,]*(?:\s*[-+*/×÷x%^(:]|\s(?:and\s)?[$(]*[0-9]))"
)
_TOKENS = re.compile(rf"{_NUMBER}|[-+*/×÷x]")
# Solutions round to cents or to a decimal.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class WorkedSolution:
    """A question with a worked solution.

    Args:
        row ([`~trl_r1.rows.Row`]): The question with its gold answer.
        reasoning (`str`): The thinking, without tags.
        answer (`str`): The final answer that the solution comes to.
        summary (`str`, defaults to `""`): What is said after the thinking; made from the answer where there is none.
        group (`str`, *optional*): What kind of question it is, such as its template.
    """

    row: Row
    reasoning: str
    answer: str
    summary: str = ""
    group: str | None = None


WorkedFunction = Callable[[Mapping[str, Any]], WorkedSolution | None]


def gsm8k(example: Mapping[str, Any]) -> WorkedSolution:
    """Turn a GSM8K example into a trace: its own solution, the `<<…>>` marks taken out.

    Args:
        example (`Mapping`): With `question` and `answer`, whose last line is `#### <number>`.

    Returns:
        [`WorkedSolution`]

    Raises:
        [`~trl_r1.exceptions.DataError`]: The answer has no `####` line.

    Example:

    ```python
    >>> from trl_r1.data.worked import gsm8k
    >>> gsm8k({"question": "…", "answer": "He has 4/2 = <<4/2=2>>2.\\n#### 2"}).reasoning
    'He has 4/2 = 2.'
    ```
    """
    found = _GSM8K_ANSWER.search(example["answer"])
    if found is None:
        raise DataError(f"The GSM8K answer {example['answer'][-60:]!r} has no line '#### <number>'.")
    answer = found[1].replace(",", "")
    reasoning = _CALCULATION.sub("", example["answer"][: found.start()]).strip()
    return WorkedSolution(Row(example["question"].strip(), answer, "math", "en"), reasoning, answer)


def from_columns(example: Mapping[str, Any]) -> WorkedSolution | None:
    """Turn a row of a user's own file into a trace.

    Args:
        example (`Mapping`):
            The columns of a [`~trl_r1.rows.Row`] (`prompt`, `reference`, optionally `domain`, `language`, `id`,
            `verifier`) and the solution: `reasoning` with `answer` or `summary`, or a whole `completion` (text or
            messages) with thinking tags.

    Returns:
        [`WorkedSolution`] or `None`: `None` for a row that review dropped.

    Raises:
        [`~trl_r1.exceptions.DataError`]: A column is missing, or the completion has no thinking.
    """
    missing = [name for name in ("prompt", "reference") if example.get(name) is None]
    if missing:
        raise DataError(f"A trace has no {' and no '.join(missing)}. Its columns: {', '.join(example)}.")
    if (example.get("review") or {}).get("status") == "drop":
        return None
    row = Row.from_columns({**example, "reference": str(example["reference"])})
    group = example.get("group")
    if example.get("reasoning") is not None:
        summary, answer = str(example.get("summary") or ""), example.get("answer")
        if answer is None:
            answer = parse(f"<think>{example['reasoning']}</think>{summary}").answer
        return WorkedSolution(row, str(example["reasoning"]).strip(), str(answer or "").strip(), summary.strip(), group)
    if example.get("completion") is None:
        raise DataError(f"A trace needs `reasoning` and `answer`, or `completion`. Its columns: {', '.join(example)}.")
    response = parse(completion_text(example["completion"]))
    if not response.reasoning:
        raise DataError(
            f"The completion of {str(row.prompt)[:80]!r} has no thinking: it must hold <think> … </think>. Use traces of "
            "a model that shows its thinking, or leave the row out."
        )
    summary = "" if response.well_formed else response.summary
    return WorkedSolution(row, response.reasoning, response.answer or "", summary, group)


def load_worked(
    path: str, function: str | None = None, *, config: str | None = None, split: str = "train"
) -> Iterator[WorkedSolution]:
    """Read traces from a file or a Hub data set.

    Args:
        path (`str`): A `.jsonl`, `.json`, `.csv` or `.parquet` file, or a Hub id.
        function (`str`, *optional*):
            Dotted path of a function from a row of the data set to a [`WorkedSolution`], or `None` to leave it out;
            [`from_columns`] by default.
        config (`str`, *optional*): Configuration name of a Hub data set.
        split (`str`, defaults to `"train"`): Split of a Hub data set.

    Returns:
        `Iterator[WorkedSolution]`: In the order of the data set.

    Raises:
        [`~trl_r1.exceptions.DataError`]: The data set cannot be read, or a row is no trace; says which.
        [`~trl_r1.exceptions.ConfigurationError`]: There is no such function.
    """
    make = from_columns if function is None else _imported(function)
    for index, example in enumerate(_examples(path, config, split)):
        try:
            trace = make(example)
        except DataError as error:
            raise DataError(f"{path}, row {index}: {error}") from None
        if trace is not None and not isinstance(trace, WorkedSolution):
            raise DataError(
                f"{function!r} returned a {type(trace).__name__} for row {index}. It must return a WorkedSolution."
            )
        if trace is not None:
            yield trace


def _examples(path: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    if Path(path).suffix in BUILDERS:
        yield from map(dict, open_file(path))
        return
    try:
        data = load_dataset(path, config, split=split)
    except Exception as error:  # the Hub's client raises a dozen unrelated kinds
        raise DataError(
            f"Traces {path!r} (configuration {config!r}, split {split!r}) cannot be loaded: {why(error)}. Give a Hub id, a "
            f"file ending in {', '.join(BUILDERS)}, or gym:<task>."
        ) from error
    for example in data:
        yield dict(example)


def _imported(path: str) -> WorkedFunction:
    module, _, name = path.rpartition(".")
    try:
        function: WorkedFunction = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"trace_function {path!r} cannot be imported: {error}. Give package.module.function, such as "
            "trl_r1.data.worked.gsm8k."
        ) from error
    return function


@dataclass(frozen=True)
class EquationFilter:
    """Keep thinking whose plain calculations are true: `12 * 3 = 36`, not `5 * 0.5 = 2`.

    Worked solutions of generators round in silence, and a small model learns the false step. About one in a hundred of
    reasoning-gym's gsm_symbolic solutions is dropped for it. Only terms of plain numbers are looked at.

    Args:
        tolerance (`float`, defaults to 0.01): Error let through, relative above 1, for honest rounding. [?]
    """

    tolerance: float = _TOLERANCE

    def __call__(self, row: Row, completion: Completion) -> str | None:
        """Return why the completion is dropped, or `None`."""
        for found in _EQUATION.finditer(parse(completion.text, prefill=completion.prefill).reasoning):
            value = _value(found["left"])
            if value is None:
                continue
            claimed = float(found["right"].replace(",", ""))
            if abs(value - claimed) > self.tolerance * max(1.0, abs(value)):
                return f"equation: {found.group()!r} is false, the left side is {value:g}"
        return None


def _value(term: str) -> float | None:
    """Calculate a term of numbers and operators; `None` where its reading is unclear (`12÷1/2`, `25/1/3`) or it divides by 0."""
    if term.count("÷") + term.count("/") > 1:
        return None
    tokens = _TOKENS.findall(term)
    numbers = [float(token.replace(",", "")) for token in tokens[::2]]
    total, product, sign = 0.0, numbers[0], 1
    for operator, number in zip(tokens[1::2], numbers[1:], strict=True):
        if operator in "+-":
            total, product, sign = total + sign * product, number, 1 if operator == "+" else -1
        elif operator in "*×x":
            product *= number
        elif number == 0:
            return None
        else:
            product /= number
    return total + sign * product
