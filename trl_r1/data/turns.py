"""What the columns of a trace may hold: one text, or turns of a conversation in the shapes that data sets write them.

A column of another type is refused with its row and name. Written out as Python shows it, a list would be trained on as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl_r1.exceptions import DataError
from trl_r1.responses import completion_text
from trl_r1.rows import Prompt

# ShareGPT's `from`, and what chat templates call the same speaker.
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def read_text(value: Any, column: str, index: int, *, numbers: bool = False) -> str:
    """Read a column that holds one text.

    Args:
        value (`Any`): What it holds; `None` is no text.
        column (`str`): Its name, for errors.
        index (`int`): The row's place, for errors.
        numbers (`bool`, defaults to `False`): Take numbers too, as they are written: an answer may be one.

    Returns:
        `str`: Stripped.

    Raises:
        [`DataError`]: It is something else, such as a list.
    """
    if value is None or isinstance(value, str):
        return (value or "").strip()
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise _wrong(
        value, column, index, "text or a number" if numbers else "text", "Name another column or join it first."
    )


def read_prompt(value: Any, column: str, index: int) -> Prompt:
    """Read a prompt: text as it is, or turns with role and text alone.

    Raises:
        [`DataError`]: See [`read_turns`].
    """
    if isinstance(value, str):
        return value
    return [{"role": turn["role"], "content": turn["content"]} for turn in read_turns(value, column, index)]


def read_completion(value: Any, column: str, index: int) -> str:
    """Read a completion: text as it is, or the assistant's turns, which need not say whose they are.

    Raises:
        [`DataError`]: See [`read_turns`].
    """
    return value if isinstance(value, str) else completion_text(read_turns(value, column, index, role="assistant"))


def read_turns(value: Any, column: str, index: int, *, role: str | None = None) -> list[dict[str, Any]]:
    """Read the turns of a conversation.

    Args:
        value (`Any`): A list of turns: `role` and `content`, or ShareGPT's `from` and `value`. The content is text or a list of
            parts `{"type": "text", "text": …}`; it may be missing beside a `reasoning_content`.
        column (`str`): Its name, for errors.
        index (`int`): The row's place, for errors.
        role (`str`, *optional*): Of turns that name none.

    Returns:
        `list[dict]`: `role`, `content` as text and, where there is one, `reasoning_content`.

    Raises:
        [`DataError`]: It is something else, such as several texts or a picture; or calls of tools.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        allowed = "a list of turns {role, content}, or one text if it is a prompt or a completion"
        raise _wrong(value, column, index, allowed, "Give each of several texts a row of its own.")
    return [_turn(turn, column, index, role) for turn in value]


def _turn(turn: Mapping[str, Any], column: str, index: int, role: str | None) -> dict[str, Any]:
    if turn.get("tool_calls") or turn.get("role") == "tool":
        raise DataError(
            f"Row {index}: tools are neither rendered nor trained on here. Got {dict(turn)!r:.200}. Leave such rows out."
        )
    speaker, content, thinking = turn.get("role"), turn.get("content"), turn.get("reasoning_content")
    if speaker is None and turn.get("from") is not None:
        speaker, content = SHAREGPT_ROLES.get(str(turn["from"])), turn.get("value")
        if speaker is None:
            raise _wrong(turn["from"], f"{column}[].from", index, ", ".join(SHAREGPT_ROLES), "Leave such rows out.")
    speaker = speaker or role
    if not isinstance(speaker, str):
        allowed = "turns with `role` and `content`, or `from` and `value`"
        raise _wrong(dict(turn), column, index, allowed, "Rename the keys of its turns.")
    if not thinking:
        return {"role": speaker, "content": _content(content, column, index)}
    if not isinstance(thinking, str):
        raise _wrong(thinking, f"{column}[].reasoning_content", index, "text", "Join it first.")
    content = "" if content is None else _content(content, column, index)
    return {"role": speaker, "content": content, "reasoning_content": thinking}


def _content(content: Any, column: str, index: int) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [None]
    texts = [
        part.get("text") if isinstance(part, Mapping) and (part.get("type") or "text") == "text" else None
        for part in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        allowed = "text, or a list of parts {type: text, text: …}"
        raise _wrong(content, f"{column}[].content", index, allowed, "Leave such rows out.")
    return "".join(map(str, texts))


def _wrong(value: Any, column: str, index: int, allowed: str, fix: str) -> DataError:
    kind = type(value).__name__
    return DataError(f"Row {index}: column {column!r} holds a {kind}, {value!r:.100}. It must be {allowed}. {fix}")
