"""Format: 1 for exactly the form that was asked for, 0 for anything else (arXiv 2501.12948v1 §2.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl_r1.responses import Response, completion_text, parse
from trl_r1.rewards.accuracy import Completions, column

Prefill = Sequence[str | None] | str | None


def _responses(completions: Completions, prefill: Prefill) -> list[Response]:
    return [parse(completion_text(item), prefill=column(prefill, i, "")) for i, item in enumerate(completions)]


def format_reward(completions: Completions, *, prefill: Prefill = None, **kwargs: Any) -> list[float | None]:
    """Reward R1-Zero's form: `<think> … </think> <answer> … </answer>`, one of each, non-empty, nothing around them.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions as text or as messages.
        prefill (`list[str]` or `str`, *optional*): What the prompts had already opened, e.g. `"<think>\\n"`.
        kwargs: Ignored; TRL passes the data set's columns.

    Returns:
        `list[float]`: 1.0 or 0.0. It has the same weight as accuracy (arXiv 2501.12948v2, Eq. 4).
    """
    return [float(response.well_formed) for response in _responses(completions, prefill)]


def think_format_reward(completions: Completions, *, prefill: Prefill = None, **kwargs: Any) -> list[float | None]:
    """Reward R1's form: `<think> … </think>` once, then a non-empty summary without answer tags being needed.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions as text or as messages.
        prefill (`list[str]` or `str`, *optional*): What the prompts had already opened, e.g. `"<think>\\n"`.
        kwargs: Ignored; TRL passes the data set's columns.

    Returns:
        `list[float]`: 1.0 or 0.0.
    """
    return [float(response.think_only) for response in _responses(completions, prefill)]
