"""Rows of public data sets of programming problems, for `row_function`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trl_r1.rows import Row


def mbpp(example: Mapping[str, Any]) -> Row:
    """A problem of MBPP (arXiv 2108.07732): `row_function: trl_r1.data.programs.mbpp`.

    The first test is shown, since it alone says what the function is called; the others are hidden.

    Args:
        example (`dict`): `text`, `code`, `test_list`, `test_setup_code` and `task_id`, as in the configuration `full`.

    Returns:
        [`Row`]: Of the domain `code`, verified by all tests.
    """
    tests = [str(test).strip() for test in example["test_list"]]
    return Row(
        prompt=f"{str(example['text']).strip()} Your Python code should pass this test:\n{tests[0]}",
        reference=json.dumps(
            {
                "unit_tests": tests,
                "setup": str(example.get("test_setup_code") or "").replace("\r\n", "\n"),
                "solution": str(example["code"]).replace("\r\n", "\n"),
            },
            ensure_ascii=False,
        ),
        domain="code",
        language="en",
        id=f"mbpp/{example['task_id']}",
        verifier="code",
    )
