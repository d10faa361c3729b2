"""Row functions that show worked examples first, for base models too small to follow R1-Zero's template unaided."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trl_r1.exceptions import DataError
from trl_r1.rows import Message, Row

# Three answers that differ, or a small model repeats the one it saw.
_EXAMPLES = (
    (
        "Ann has 3 bags with 4 apples each and eats 2 apples. How many apples are left?",
        "3 bags with 4 apples are 3 * 4 = 12 apples. She eats 2, so 12 - 2 = 10 are left.",
        "10",
    ),
    (
        "Tom reads 6 pages a day. How many pages does he read in 2 weeks?",
        "2 weeks are 2 * 7 = 14 days. He reads 14 * 6 = 84 pages.",
        "84",
    ),
    (
        "Mia has 20 dollars. She buys 3 pens for 4 dollars each. How much money does she have left?",
        "3 pens cost 3 * 4 = 12 dollars. She has 20 - 12 = 8 dollars left.",
        "8",
    ),
)
# GSM8K marks each calculation of a solution by `<<48/2=24>>`.
_SHORT = 2


def gsm8k(example: Mapping[str, Any]) -> Row:
    """Turn a GSM8K example into a row whose prompt shows three worked examples in R1-Zero's form.

    The examples are earlier turns of the conversation, so that under either template the question asked stands exactly
    as theirs did. A model that goes on with a further turn is stopped by `generation_kwargs: {stop: ["</answer>"]}`.

    Args:
        example (`Mapping`): With `question` and `answer`, whose last line is `#### <number>`.

    Returns:
        [`~trl_r1.rows.Row`]: A maths row, its prompt as messages.

    Raises:
        [`~trl_r1.exceptions.DataError`]: The answer has no `####` line.
    """
    found = re.search(r"####\s*(.+)", example["answer"])
    if found is None:
        raise DataError(f"The GSM8K answer {example['answer'][-60:]!r} has no line '#### <number>'.")
    turns: list[Message] = []
    for question, reasoning, answer in _EXAMPLES:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": f"<think> {reasoning} </think> <answer> {answer} </answer>"})
    return Row(
        [*turns, {"role": "user", "content": example["question"]}], found[1].strip().replace(",", ""), "math", "en"
    )


def gsm8k_short(example: Mapping[str, Any]) -> Row | None:
    """[`gsm8k`], but only questions solved in at most two calculations: about a third of GSM8K.

    Args:
        example (`Mapping`): As for [`gsm8k`].

    Returns:
        [`~trl_r1.rows.Row`] or `None`: `None` leaves the question out.
    """
    return gsm8k(example) if example["answer"].count("<<") <= _SHORT else None
