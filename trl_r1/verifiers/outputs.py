"""Is what a program wrote or returned what was expected?"""

from __future__ import annotations

import math
import re
from typing import Any

_PLAIN_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")


def same_output(expected: str, output: str, tolerance: float = 1e-6) -> bool:
    """Compare two outputs word by word; spaces and line breaks do not count.

    Args:
        expected (`str`): The right output.
        output (`str`): The program's. A word may differ only where a decimal number is expected (`3` is no `3.0`).
        tolerance (`float`, defaults to 1e-6): Relative and absolute.
    """
    wanted, found = expected.split(), output.split()
    return len(wanted) == len(found) and all(
        a == b or _close_words(a, b, tolerance) for a, b in zip(wanted, found, strict=True)
    )


def _close_words(wanted: str, found: str, tolerance: float) -> bool:
    numbers = _PLAIN_NUMBER.fullmatch(wanted), _PLAIN_NUMBER.fullmatch(found)
    if not all(numbers) or not re.search(r"[.eE]", wanted):
        return False
    return math.isclose(float(wanted), float(found), rel_tol=tolerance, abs_tol=tolerance)


def same_value(expected: Any, result: Any, tolerance: float = 1e-6) -> bool:
    """Compare a result with the expected JSON value.

    Args:
        expected (`Any`): From JSON. A list also stands for a tuple, an object's keys also for numbers.
        result (`Any`): Plain data. Numbers are equal by value, floats nearly; `True` is not 1.
        tolerance (`float`, defaults to 1e-6): Relative and absolute.
    """
    if isinstance(expected, list):
        if isinstance(result, (set, frozenset)):
            return len(expected) == len(result) and all(item in result for item in expected)
        return (
            isinstance(result, (list, tuple, range))
            and len(expected) == len(result)
            and all(same_value(a, b, tolerance) for a, b in zip(expected, result, strict=True))
        )
    if isinstance(expected, dict):
        if not isinstance(result, dict) or len(expected) != len(result):
            return False
        named = {str(key): value for key, value in result.items()}
        return expected.keys() == named.keys() and all(same_value(v, named[k], tolerance) for k, v in expected.items())
    if isinstance(expected, bool) or isinstance(result, bool):
        return isinstance(expected, bool) and isinstance(result, bool) and expected == result
    if isinstance(expected, (int, float)) and isinstance(result, (int, float)):
        near = isinstance(expected, float) and math.isclose(expected, result, rel_tol=tolerance, abs_tol=tolerance)
        return near or expected == result
    return type(expected) is type(result) and bool(expected == result)
