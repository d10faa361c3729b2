"""One completion taken apart: the reasoning, the final answer, and what is wrong with its form.

Two forms are read by the same function, because training, rejection sampling and evaluation must agree on the answer:

- R1-Zero's tags, `<think> … </think> <answer> … </answer>` (arXiv 2501.12948v1, Table 1);
- R1's own, `<think> … </think>` followed by a summary, usually with a `\\boxed{}` (model card, "Usage").

Only what follows the last `</think>` is graded. Two different final answers are no answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

# Tempered so that no tag of either kind can hide inside a pair; linear in the text's length.
_NO_TAG = r"(?:(?!</?(?:think|answer)>).)"
_STRICT = re.compile(rf"\s*<think>({_NO_TAG}+)</think>\s*<answer>({_NO_TAG}+)</answer>\s*", re.DOTALL)
_THINK_ONLY = re.compile(r"\s*<think>((?:(?!</?think>).)+)</think>((?:(?!</?think>).)+)", re.DOTALL)
_ANSWER = re.compile(rf"<answer>({_NO_TAG}*)</answer>", re.DOTALL)
_BOX = re.compile(r"\\f?boxed\s*\{")

# A number as people write it. `[0-9]` rather than `\d`: other scripts' digits are not what was asked for.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_LAST_NUMBER = re.compile(
    rf"(?:(?<![0-9A-Za-z)\]}}])[-−]\s?)?[$€£¥]?"
    rf"(?:\\[dt]?frac\{{-?[0-9]{{1,40}}\}}\{{[0-9]{{1,40}}\}}|(?:{_DIGITS})(?:/[0-9]{{1,40}})?)(?:\s?\\?%)?"
)


@dataclass(frozen=True)
class Response:
    """What [`parse`] found in one completion.

    Args:
        reasoning (`str`): The thinking, without its tags; `""` when there is none.
        answer (`str`, *optional*): The final answer, or `None` when there is none or there are several.
        well_formed (`bool`): Whether the text is exactly R1-Zero's form, nothing before, between or after the tags.
        truncated (`bool`): Whether the completion was cut off by the length limit (told by the caller).
        flags (`tuple[str, ...]`): What is wrong or notable, e.g. `"several_answers"`, `"unclosed_think"`.
        summary (`str`): All that follows the thinking, tags included.
        think_only (`bool`): Whether the text is exactly R1's form: thinking, then a non-empty summary.
    """

    reasoning: str
    answer: str | None
    well_formed: bool
    truncated: bool
    flags: tuple[str, ...] = ()
    summary: str = ""
    think_only: bool = False


def completion_text(completion: str | Sequence[dict[str, Any]]) -> str:
    """Return the text of a completion given as a string or as messages.

    Args:
        completion (`str` or `list[dict]`):
            Plain text, or the assistant's messages as TRL passes them. Content may be a string or a list of parts
            (`{"type": "text", "text": …}`); a separate `reasoning_content` (servers with a reasoning parser) is put
            back between thinking tags, because that is where the model wrote it.

    Returns:
        `str`: The text, contents of several assistant messages joined by newlines.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(_message_text(m) for m in completion if m.get("role", "assistant") == "assistant")


def _message_text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    thinking = message.get("reasoning_content")
    return f"{THINK_OPEN}{thinking}{THINK_CLOSE}{content}" if thinking else content


def parse(text: str, *, prefill: str = "", truncated: bool = False) -> Response:
    r"""Take a completion apart.

    Args:
        text (`str`): The completion, without its prompt.
        prefill (`str`, defaults to `""`):
            What the rendered prompt had already opened for the model, such as `"<think>\n"`. It is part of the form
            and is put in front before anything is read.
        truncated (`bool`, defaults to `False`): Whether the engine cut the completion off.

    Returns:
        [`Response`]

    Example:

    ```python
    >>> from trl_r1.responses import parse
    >>> parse("<think> 9 * 8 </think> <answer> 72 </answer>").answer
    '72'
    >>> parse("it is \\boxed{1} </think> so \\boxed{72}", prefill="<think>").answer
    '72'
    ```
    """
    return _parse(prefill + text, truncated)


# Every reward reads the same completions; a rollout of R1's size (8,192 outputs) is not kept whole on purpose.
@lru_cache(maxsize=1024)
def _parse(text: str, truncated: bool) -> Response:
    flags: list[str] = []
    before, closed, after = text.rpartition(THINK_CLOSE)
    if closed:
        reasoning, summary = _strip_tag(before, THINK_OPEN), after
        if THINK_OPEN in after:
            # Thinking started again and never ended: whatever follows is thinking, not an answer.
            flags.append("unclosed_think")
            summary = after[: after.index(THINK_OPEN)]
    elif THINK_OPEN in text:
        flags.append("unclosed_think")
        reasoning, summary = _strip_tag(text, THINK_OPEN), ""
    else:
        flags.append("no_think")
        reasoning, summary = "", text
    answer = None
    if "unclosed_think" not in flags:
        answer = _final_answer(summary, plain=bool(closed), flags=flags)
    return Response(
        reasoning=reasoning.strip(),
        answer=answer,
        well_formed=_filled(_STRICT.fullmatch(text)),
        truncated=truncated,
        flags=tuple(flags),
        summary=summary.strip(),
        think_only=_filled(_THINK_ONLY.fullmatch(text)),
    )


def _strip_tag(text: str, tag: str) -> str:
    """Drop everything up to the first opening tag; without one the whole text is the reasoning."""
    _, found, rest = text.partition(tag)
    return rest if found else text


def _filled(match: re.Match[str] | None) -> bool:
    """Whether a form was matched and each of its parts shows something."""
    return match is not None and not any(_blank(part) for part in match.groups())


def _blank(text: str) -> bool:
    """Whether a text shows nothing: spaces, control characters and zero-width ones do not count as content."""
    return all(ch.isspace() or unicodedata.category(ch) in ("Cc", "Cf") for ch in text)


def _final_answer(summary: str, *, plain: bool, flags: list[str]) -> str | None:
    """Find the one final answer after the thinking; append to `flags` why there is none."""
    opened, closed = summary.count(ANSWER_OPEN), summary.count(ANSWER_CLOSE)
    if opened or closed:
        inside = _ANSWER.findall(summary)
        if not (opened == closed == len(inside)):
            flags.append("broken_answer_tags")
            return None
        candidates: list[str] = []
        for content in inside:
            candidates.extend(boxes(content) or [content])
        candidates.extend(boxes(_ANSWER.sub(" ", summary)))
    else:
        flags.append("no_answer_tags")
        candidates = boxes(summary)
        if not candidates and plain:
            candidates = [summary]
    answers = {_same(candidate): candidate.strip() for candidate in candidates}
    if len(answers) > 1:
        flags.append("several_answers")
        return None
    answer = next(iter(answers.values()), "")
    if _blank(answer):
        flags.append("no_answer")
        return None
    return answer


def _same(answer: str) -> str:
    """A key under which two ways to write the same final answer are equal. Values are the verifiers' concern."""
    key = re.sub(r"\\[dt]frac", r"\\frac", answer)
    key = re.sub(r"\\[,;:! ]|\\left|\\right|[\s$]", "", key)
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", key).rstrip(".。")


def boxes(text: str) -> list[str]:
    r"""Return the contents of every complete `\boxed{…}` in a text, braces balanced, innermost for nested ones.

    Args:
        text (`str`): Any text. Escaped braces (`\{`) do not count. The time taken is linear in its length.

    Returns:
        `list[str]`: Contents in order of appearance; boxes that never close are left out.
    """
    starts = {match.end() - 1: match.start() for match in _BOX.finditer(text)}
    if not starts:
        return []
    found: list[tuple[int, int]] = []
    stack: list[int] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char == "\\" and position not in starts:
            position += 2
            continue
        if char == "{":
            stack.append(position)
        elif char == "}" and stack:
            opening = stack.pop()
            if opening in starts:
                found.append((opening, position))
        position += 1
    # A box around a box is one answer: keep those that hold no other.
    found.sort()
    inner = [
        (start, end) for index, (start, end) in enumerate(found) if index + 1 == len(found) or found[index + 1][0] > end
    ]
    return [text[start + 1 : end] for start, end in inner]


def last_number(text: str) -> str | None:
    r"""Return the last number in a text as it is written there, for lenient grading.

    Args:
        text (`str`): Any text; tags and boxes mean nothing here.

    Returns:
        `str` or `None`: E.g. `"1,234"`, `"-5"`, `"3/4"`, `"\frac{3}{4}"`, `"50%"`; currency signs are dropped. A minus
        counts as a sign only where it cannot be a subtraction.

    Example:

    ```python
    >>> from trl_r1.responses import last_number
    >>> last_number("9 - 5 = 4, so she pays $1,204.")
    '1,204'
    ```
    """
    matches = deque(_LAST_NUMBER.finditer(text), maxlen=1)
    if not matches:
        return None
    return re.sub(r"[$€£¥]", "", matches[0].group()).replace("−", "-").replace("- ", "-").strip()
