"""Is this text the expected one? For logic puzzles, ciphers and the output of programs."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache

from trl_r1.responses import boxes
from trl_r1.rows import Row, Verdict

# Answers are single facts; a text far longer than the gold answer needs no comparison.
MAX_CHARACTERS = 20_000

_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}")
_WRAPPERS = ("```", "**", "`", "$", '"', "'", "“”", "「」")


def verify(answer: str, row: Row) -> Verdict:
    """Tell whether an answer is one of the accepted texts, apart from spaces, letter case and character width.

    Args:
        answer (`str`): The answer.
        row ([`Row`]): Its `reference` is the text, or a JSON list of accepted texts.

    Returns:
        [`Verdict`]: `correct` is `None` when the reference is empty.
    """
    accepted = _accepted(row.reference)
    if not accepted:
        return Verdict(None, "the gold answer is empty")
    if len(answer) > MAX_CHARACTERS:
        return Verdict(False, f"longer than {MAX_CHARACTERS} characters")
    inside = {normalize(box) for box in boxes(answer)}
    text = inside.pop() if len(inside) == 1 else normalize(answer)
    right = text in accepted or _unwrap(text) in accepted
    return Verdict(right, f"{text[:100]!r} against {min(accepted)[:100]!r}")


def readable(row: Row) -> str | None:
    """Return why the gold answer of a row cannot be read, or `None` when it can."""
    return None if _accepted(row.reference) else "empty"


def gold_answer(row: Row) -> str:
    """Return the first accepted text."""
    texts = _texts(row.reference)
    return texts[0].strip() if texts else ""


def find_lenient(text: str, row: Row) -> str | None:
    """Return the accepted text that ends the last line, if one does, else that line."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    last = re.sub(r"</?(?:think|answer)>", " ", lines[-1])
    # The longest first, so that "not b" is found before "b".
    for gold in sorted(_accepted(row.reference), key=len, reverse=True):
        if re.search(rf"(?<!\w){re.escape(gold)}[.。!]?$", normalize(last)):
            return gold
    return last


def normalize(text: str) -> str:
    """Fold what does not matter: full-width forms, letter case, runs of white space, invisible characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    visible = "".join(ch for ch in folded if ch.isspace() or unicodedata.category(ch) not in ("Cc", "Cf"))
    return " ".join(visible.split())


def _unwrap(text: str) -> str:
    """Drop marks around a whole answer: Markdown, quotes, `\\text{}`, a final full stop."""
    text = _TEXT_COMMAND.sub(r"\1", text).strip()
    for _ in range(4):
        before = text
        for mark in _WRAPPERS:
            left, right = (mark[0], mark[1]) if mark in ("“”", "「」") else (mark, mark)
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                text = text[len(left) : -len(right)].strip()
        if text.endswith(("。", ".")) and len(text) > 1:
            text = text[:-1].rstrip()
        if text == before:
            break
    return text


def _texts(reference: str) -> list[str]:
    """Split a reference into its accepted texts. A JSON list of anything but texts is itself the text: `[1, 2]`."""
    if reference.lstrip().startswith("["):
        try:
            parsed = json.loads(reference)
        except json.JSONDecodeError:
            parsed = None
        if isinstance(parsed, list) and parsed and all(isinstance(item, str) for item in parsed):
            return parsed
    return [reference]


@lru_cache(maxsize=65536)
def _accepted(reference: str) -> frozenset[str]:
    texts = {normalize(text) for text in _texts(reference)}
    return frozenset(text for texts_ in (texts, {_unwrap(text) for text in texts}) for text in texts_ if text)
