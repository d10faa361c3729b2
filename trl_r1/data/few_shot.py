"""Row functions that show worked examples first, for base models too small to follow R1-Zero's template unaided."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trl_r1.exceptions import DataError
from trl_r1.rows import Row

_EXAMPLES = """\
Two questions with their answers, then yours.
Question: Ann has 3 bags with 4 apples each and eats 2 apples. How many apples are left?
<think> 3 bags with 4 apples are 3 * 4 = 12 apples. She eats 2, so 12 - 2 = 10 are left. </think> <answer> 10 </answer>
Question: A book costs 8 dollars. Ben buys 5 books and pays with 50 dollars. How much change does he get?
<think> 5 books cost 5 * 8 = 40 dollars. From 50 dollars he gets 50 - 40 = 10 back. </think> <answer> 10 </answer>
Question: """


def gsm8k(example: Mapping[str, Any]) -> Row:
    """Turn a GSM8K example into a row whose prompt shows two worked examples in R1-Zero's form.

    Args:
        example (`Mapping`): With `question` and `answer`, whose last line is `#### <number>`.

    Returns:
        [`~trl_r1.rows.Row`]: A maths row.

    Raises:
        [`~trl_r1.exceptions.DataError`]: The answer has no `####` line.
    """
    found = re.search(r"####\s*(.+)", example["answer"])
    if found is None:
        raise DataError(f"The GSM8K answer {example['answer'][-60:]!r} has no line '#### <number>'.")
    return Row(_EXAMPLES + example["question"], found[1].strip().replace(",", ""), "math", "en")
