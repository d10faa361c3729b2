"""Is this the right option? Letters and option texts are accepted; naming two options is wrong."""

from __future__ import annotations

import json
import re
from functools import lru_cache

from trl_r1.responses import boxes
from trl_r1.rows import Row, Verdict, structured_reference
from trl_r1.verifiers.exact import normalize
from trl_r1.verifiers.numbers import read_number, tidy

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_CHARACTERS = 2_000

_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
# A letter alone, or a letter set off from the option's text that follows: "(B) blue", "B. blue", "B, blue", on two lines.
_LETTER = re.compile(r"\(?\[?\s*([A-Za-z])\s*\]?\)?\s*[.):：、]?", re.ASCII)
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-Z])\)[:.,]?|([A-Z])[^\S\n]*[.):、,\n])\s*(\S.*)", re.DOTALL)
# What may stand before an answer, which is an option's text rather than any letter in it: "The answer is Vitamin C".
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:(?:correct|right|final|best)\s+)?(?:answer|option|choice)"
    r"\s*(?:is\s*:?|[:：])\s*|答案\s*(?:[为是]\s*[:：]?|[:：])\s*",
    re.I,
)
# Possessive, or the spaces behind "answer" would be shared out among three places in every possible way. A small letter
# must stand in brackets or at the end: "the answer is a lower pH" names no option.
_NAMED = re.compile(
    r"(?i:answer|option|choice|答案|选项?|选择)\s*+(?:(?i:is|are|为|是)\s*+)?(?:[:：]\s*+)?"
    r"(?:\(([A-Za-z])\)|([A-Z])(?![A-Za-z])|([a-z])(?=\W*\Z))"
)
_ALONE = re.compile(r"(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’])")


def verify(answer: str, row: Row) -> Verdict:
    """Tell whether an answer names the right option.

    Args:
        answer (`str`): `"B"`, `"(b)"`, `"B. blue"`, `"The answer is B."`, or the text of the option.
        row ([`Row`]): Its `reference` is JSON, `{"answer": "B", "options": ["red", "blue", …]}`, or just the letter.

    Returns:
        [`Verdict`]: `correct` is `None` when the reference is no such JSON.
    """
    gold = _read(row.reference)
    if isinstance(gold, str):
        return Verdict(None, f"reference {row.reference[:100]!r}: {gold}")
    right, options = gold
    if len(answer) > MAX_CHARACTERS:
        return Verdict(False, f"longer than {MAX_CHARACTERS} characters")
    inside = {box.strip() for box in boxes(answer)}
    chosen = _chosen(inside.pop() if len(inside) == 1 else answer, options)
    return Verdict(right in chosen, f"chose {', '.join(sorted(chosen)) or 'nothing'}, right is {right}")


def readable(row: Row) -> str | None:
    """Return why the reference of a row cannot be read, or `None` when it can."""
    gold = _read(row.reference)
    return gold if isinstance(gold, str) else None


def gold_answer(row: Row) -> str:
    """Return the letter of the right option."""
    gold = _read(row.reference)
    return row.reference if isinstance(gold, str) else gold[0]


def find_lenient(text: str, row: Row) -> str | None:
    """Return the last option that a text names by its letter, ignoring its form."""
    gold = _read(row.reference)
    allowed = LETTERS if isinstance(gold, str) or not gold[1] else LETTERS[: len(gold[1])]
    named = boxes(text)[-1:] or _named_letters(text)[-1:] or [x for x in _ALONE.findall(text) if x in allowed][-1:]
    return named[0] if named else None


@lru_cache(maxsize=65536)
def _read(reference: str) -> tuple[str, tuple[str, ...]] | str:
    """Return the right letter and the options, or why there are none."""
    bare = _TEXT_COMMAND.sub(r"\1", reference).strip().strip("()").upper()
    if len(bare) == 1 and bare in LETTERS:
        return bare, ()
    try:
        parsed = structured_reference(reference)
    except json.JSONDecodeError:
        return "neither a letter nor JSON"
    if not isinstance(parsed, dict) or "answer" not in parsed:
        return "JSON without 'answer'"
    options = tuple(str(option) for option in parsed.get("options") or ())
    letter = str(parsed["answer"]).strip().upper()
    if len(letter) != 1 or letter not in (LETTERS[: len(options)] if options else LETTERS):
        return f"answer {parsed['answer']!r} is no letter of its {len(options)} options"
    return letter, options


def _chosen(answer: str, options: tuple[str, ...]) -> set[str]:
    """Return the letters that an answer may mean: several only for options of the same text, none if unclear."""
    text = tidy(_TEXT_COMMAND.sub(r"\1", answer))
    letters = LETTERS[: len(options)] if options else LETTERS
    lead = _LEAD.match(text)
    for whole in (text, text[lead.end() :]) if lead else (text,):
        found = _chosen_outright(whole, options, letters)
        if found is not None:
            return found
    named = _named(text, letters)
    return named if len(named) == 1 else set()


def _chosen_outright(text: str, options: tuple[str, ...], letters: str) -> set[str] | None:
    """Return the options that a text is by its letter, its own text or both; `None` when it is a sentence around them."""
    match = _LETTER.fullmatch(text)
    if match:
        letter = match[1].upper()
        return {letter} if letter in letters else _by_text(text, options)
    by_text = _by_text(text, options)
    if by_text:
        return by_text
    match = _LETTER_AND_TEXT.fullmatch(text)
    if match and (match[1] or match[2]) in letters:
        letter, rest = match[1] or match[2], match[3]
        others = _by_text(rest, options)
        # A letter with the text of another option answers nothing.
        if others:
            return {letter} & others
        return {letter} if not _named(rest, letters) - {letter} else set()
    return None


def _named(text: str, letters: str) -> set[str]:
    """Collect the options that a sentence names by letter; the words "A" and "I" are not letters."""
    named = {letter.upper() for letter in _named_letters(text)}
    alone = set(_ALONE.findall(re.sub(r"\bA(?=\s+(?!or\b|and\b|is\b)[a-z])|\bI\b(?=\s+[a-z])", " ", text)))
    return {letter for letter in named | alone if letter in letters}


def _named_letters(text: str) -> list[str]:
    return ["".join(groups) for groups in _NAMED.findall(text)]


def _by_text(text: str, options: tuple[str, ...]) -> set[str]:
    """Collect the options whose text this is, numbers compared by value."""
    wanted, number = _plain(text), read_number(text)
    found = {LETTERS[i] for i, option in enumerate(options) if wanted and _plain(option) == wanted}
    if not found and number is not None:
        values = [read_number(option) for option in options]
        found = {LETTERS[i] for i, value in enumerate(values) if value is not None and value.equals(number)}
        # Two options of one number differ in their unit, which the answer did not name.
        found = found if len(found) == 1 else set()
    return found


def _plain(text: str) -> str:
    return normalize(tidy(_TEXT_COMMAND.sub(r"\1", text)).replace("$", "")).replace(" ", "")
