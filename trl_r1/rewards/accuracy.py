"""Accuracy: 1 for a right final answer, 0 for a wrong one, `None` where nothing can tell (arXiv 2501.12948v1 §2.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trl_r1.exceptions import DataError
from trl_r1.responses import completion_text, parse
from trl_r1.rows import Row
from trl_r1.verifiers import verify_all

# Where data sets for TRL's own rewards keep the gold answer, tried after our own column.
REFERENCE_COLUMNS = ("reference", "solution", "answer")

Completions = Sequence[str | list[dict[str, Any]]]


def column(values: Any, index: int, default: Any = None) -> Any:
    """Return one row's value of a reward's keyword argument, which is one value for all, a list, or missing."""
    if values is None:
        return default
    if isinstance(values, str):
        return values
    value = values[index]
    return default if value is None else value


def rows_of(n: int, columns: dict[str, Any]) -> list[Row]:
    """Build the rows that belong to `n` completions from the columns a trainer passes to a reward.

    Raises:
        [`DataError`]: When no column holds the gold answers.
    """
    name = next((name for name in REFERENCE_COLUMNS if columns.get(name) is not None), None)
    if name is None:
        have = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list))) or "none"
        raise DataError(
            f"The accuracy reward needs a column 'reference' with the gold answers. Columns given: {have}. Map yours, "
            "e.g. columns: {reference: final_answer}."
        )
    return [
        Row(
            prompt=column(columns.get("prompts"), i, ""),  # a judge reads it
            reference=str(column(columns[name], i, "")),
            domain=column(columns.get("domain"), i, "math"),
            language=column(columns.get("language"), i),
            verifier=column(columns.get("verifier"), i),
        )
        for i in range(n)
    ]


def accuracy_reward(
    completions: Completions,
    *,
    prefill: Sequence[str | None] | str | None = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Reward a right final answer, whatever the form around it.

    Only what follows the last `</think>` is graded; two different final answers are wrong.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions as text or as messages.
        prefill (`list[str]` or `str`, *optional*): What the prompts had already opened, e.g. `"<think>\\n"`.
        log_extra (`Callable`, *optional*): Given by TRL; adds the answers to its table of completions.
        kwargs: Columns of the data set, each a list as long as `completions`: `reference` (or `solution`, `answer`),
            `domain`, `verifier`. Others are ignored.

    Returns:
        `list[float | None]`: 1.0, 0.0, or `None` where the row has no rule or an unreadable gold answer.
    """
    rows = rows_of(len(completions), kwargs)
    answers = [
        parse(completion_text(completion), prefill=column(prefill, i, "")).answer
        for i, completion in enumerate(completions)
    ]
    verdicts = verify_all(answers, rows)
    if log_extra is not None:
        log_extra("answer", [answer if answer is not None else "" for answer in answers])
        log_extra("reference", [row.reference for row in rows])
    return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]
