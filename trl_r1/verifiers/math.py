r"""Is this mathematical answer right? Exact arithmetic for plain numbers, Math-Verify (sympy) for everything else.

An answer is data, never code: only Math-Verify's LaTeX grammar reads it, and every check is bounded in time (see
[`trl_r1.verifiers.bounds`]).
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from trl_r1.responses import boxes, last_number
from trl_r1.rows import Row, Verdict
from trl_r1.verifiers.bounds import MAX_CHARACTERS, MAX_DIGITS, DeadlineExceeded, deadline, digits, too_complex
from trl_r1.verifiers.numbers import CHANGED, FACTORS, PlainNumber, read_number, tidy

# CPU seconds. Parsing and comparing an answer of MATH-500 takes 10 ms warm; one bad answer must not delay a step by
# more than a second. Gold answers are read once and may take longer.
ANSWER_SECONDS, GOLD_SECONDS = 0.5, 10.0

# A gold answer with more words than this is a solution, not an answer ("x = 2 or x = 3 where both are integers").
MAX_GOLD_WORDS = 6

# A formula holds no second opening of its own kind, or the time would be quadratic in openings that nothing closes.
_SEGMENT = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\(((?:(?!\\\().)+?)\\\)|\\\[((?:(?!\\\[).)+?)\\\]", re.DOTALL
)
# A variable before what it is said to be, which is the answer: "the value of $x$ is $5$"; and inside: "$x = 5$".
_VARIABLE = re.compile(
    r"\$\s*[A-Za-z](?:_\{?[A-Za-z0-9]{1,3}\}?)?\s*\$(?=\s*(?:(?:is|equals?|must be)(?![A-Za-z])|[=为是]|等于))"
)
_VALUE_OF = re.compile(r"\A\s*[A-Za-z](?:_\{?[A-Za-z0-9]{1,3}\}?)?\s*=\s*(?=[^=]*\Z)")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-z*]+\}|\\[A-Za-z]+")
# Function names that people write without a backslash; LaTeX would read "pi" as p times i.
_FUNCTIONS = r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|infty|theta"
_BARE_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])")
_NAMES = frozenset(_FUNCTIONS.split("|")) | frozenset(("sqrt", "mod", "gcd", "lcm", "max", "min", "deg", "det", "abs"))
_UNICODE_MATH = {"π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "√": r"\sqrt ", "≤": r"\le ",
                 "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "²": "^{2}", "³": "^{3}",
                 "∅": r"\emptyset ", r"\varnothing": r"\emptyset ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "θ": r"\theta ", "±": r"\pm "}  # fmt: skip


# sympy imports and learns at the first use of each notation, which takes up to an answer's whole deadline: a right answer
# must not be wrong for being the first.
_NOTATIONS = (
    (r"\frac{x}{3}", r"\frac{x}{2}"),
    (r"(u-v)^2", r"u^2-2uv+v^2"),
    (r"\sqrt{2}\cdot x+2x^{2}-1", r"x^2+3x-\sqrt{2}"),
    (r"(3, \pi)", r"\left(2,\frac{\pi}{3}\right)"),
    (r"(-\infty,2]\cup[3,4)", r"[2,\infty)"),
    (r"\{2,x\}", r"\{1,-x\}"),
    (r"2 < f(x) < 5", r"(1,4)"),
    (r"y \le 5", r"x=\sin(2)+\log 3"),
    (r"x = 3u + 1", r"y - 3u = 2"),
)


def verify(answer: str, row: Row) -> Verdict:
    r"""Tell whether an answer equals a row's gold answer.

    Args:
        answer (`str`): LaTeX or plain text, with or without `$`, `\boxed{}`, unit, currency or percent sign.
        row ([`Row`]): Its `reference` is the gold answer, in the same notations.

    Returns:
        [`Verdict`]: `correct` is `None` when the gold answer cannot be read (words, a bare letter, empty text), never
        because of the answer: what cannot be read there is wrong.
    """
    try:
        return _verify(answer[: MAX_CHARACTERS + 1], row.reference)
    except DeadlineExceeded:
        return Verdict(False, f"not verified within {ANSWER_SECONDS} s")


def readable(row: Row) -> str | None:
    """Return why the gold answer of a row cannot be read, or `None` when it can."""
    try:
        gold = _read_gold(row.reference)
    except DeadlineExceeded:
        return f"not read within {GOLD_SECONDS} s"
    return gold if isinstance(gold, str) else None


def gold_answer(row: Row) -> str:
    """Return a right answer, as a model would write it."""
    return row.reference.strip()


def find_lenient(text: str, row: Row) -> str | None:
    """Find the answer in a text whose form is ignored: its last number, or its last formula if the gold is one."""
    if read_number(_unbox(row.reference) or "") is not None:
        return last_number(text)
    formulas = boxes(text) or [next(filter(None, groups)) for groups in _SEGMENT.findall(text)]
    return formulas[-1] if formulas else last_number(text)


# A group's answers repeat each other, and so do epochs; a verdict that ran out of time is not kept.
@lru_cache(maxsize=16384)
def _verify(answer: str, reference: str) -> Verdict:
    gold = _read_gold(reference)
    if isinstance(gold, str):
        return Verdict(None, f"gold answer {reference[:100]!r} cannot be read: {gold}")
    candidate = _single(answer)
    if candidate is None:
        return Verdict(False, "several different answers, or none")
    gold_number, gold_text = gold
    number = read_number(candidate)
    if gold_number is not None and number is not None:
        return Verdict(gold_number.equals(number), f"{candidate.strip()} against {reference.strip()}")
    problem = _readable_text(candidate)
    if problem:
        return Verdict(False, problem)
    if tidy(candidate) == tidy(gold_text):
        return Verdict(True, "the same text")
    _load_math_verify()
    with deadline(ANSWER_SECONDS):
        expressions = _parse(candidate)
        size = digits(expressions)
        if not expressions or size > MAX_DIGITS:
            return Verdict(False, "not a formula" if not expressions else "a number of too many digits")
        golds = _gold_expressions(gold_text)
        return Verdict(_equal(golds, expressions), f"{candidate.strip()} against {reference.strip()}")


@lru_cache(maxsize=65536)
def _read_gold(reference: str) -> tuple[PlainNumber | None, str] | str:
    """Read a gold answer once: its exact number if it is one and its text, or the reason why it cannot be read."""
    text = _unbox(reference)
    if text is None:
        return "several different boxes"
    if not text.strip():
        return "empty"
    number = read_number(text)
    if number is not None:
        return number, text
    problem = _readable_text(text)
    if problem:
        return problem
    if len(_words(text)) > MAX_GOLD_WORDS:
        return "a text; extract the answer with a pattern"
    bare = re.sub(r"[\s()$.]", "", _TEXT_COMMAND.sub(lambda m: m.group().partition("{")[2][:-1], text))
    if re.fullmatch(r"[A-Z]", bare):
        return "a bare letter; use the verifier 'choice'"
    without_text = re.sub(r"[\s(){}$.,]", "", _TEXT_COMMAND.sub("", text))
    if not without_text or (_prose(text) and not re.search(r"[0-9\\]", text)):
        return "words; use the verifier 'exact'"
    if _single(text) != text:
        # Then the very same words would be a wrong answer: "5 million", "x equals 3", "-2 and 2".
        return "words around a number or a formula; give the number or the formula alone"
    _load_math_verify()
    expressions = _gold_expressions(text)
    if not expressions:
        return "not a formula"
    if digits(expressions) > MAX_DIGITS:
        return "a number of too many digits"
    return None, text


@lru_cache(maxsize=65536)
def _gold_expressions(text: str) -> list[Any]:
    with deadline(GOLD_SECONDS):
        return _parse(text)


def _unbox(text: str) -> str | None:
    """Return the content of the one box of a text, the text itself without a box, `None` for different boxes."""
    inside = {re.sub(r"\s", "", box): box for box in boxes(text)}
    if not inside:
        return text
    return next(iter(inside.values())) if len(inside) == 1 else None


def _single(answer: str) -> str | None:
    """Reduce an answer to the one thing it says; a sentence must hold exactly one number or formula."""
    if len(answer) > MAX_CHARACTERS:
        return answer
    text = _unbox(answer)
    if text is None:
        return None
    text = _bare(text)
    if read_number(text) is not None or not _prose(tidy(text)):
        return text
    found = [next(filter(None, groups)) for groups in _SEGMENT.findall(_VARIABLE.sub(" ", text))]
    if not found:
        after = re.split(r"(?<![<>!\\])=", text)[-1]
        found = [number for number in [last_number(after)] if number and _only_number(after, number)]
    values: dict[Any, str] = {}
    for item in found:
        # "$x=5$, so the answer is $5$" says one thing.
        item = _VALUE_OF.sub("", item)
        number = read_number(item)
        values[number.value if number else re.sub(r"\s", "", item)] = item
    return next(iter(values.values())) if len(values) == 1 else None


def _bare(text: str) -> str:
    """Take off what stands around an answer and says nothing: GSM8K's `####`, "about", bold type, a final line break."""
    text = re.sub(r"^\s*#{2,}\s*|^\s*(?:\$\s*)?(?:\\approx|\\simeq|≈)(?![A-Za-z])(?=[^$]*\Z)|\\\\\s*\Z", "", text)
    return re.sub(r"\\(?:boldsymbol|bm)\s*\{([^{}]*)\}|\{?\\bf(?:series)?(?![a-z])\s*([^{}]*)\}?", r"\1\2", text)


def _only_number(text: str, number: str) -> bool:
    """Whether a sentence names no other number than this one, and this one whole ("72 million" or "A72" is not 72)."""
    before, _, after = text.replace("−", "-").rpartition(number)
    if re.search(r"[A-Za-z_]\Z", before) or CHANGED.search(before) or FACTORS.match(after):
        return False
    # It may be said twice: "18, i.e. 18 dollars".
    others = re.sub(rf"(?<![0-9.,-]){re.escape(number)}(?![0-9]|[.,/][0-9])", "", before) + after
    return re.search(r"[0-9]", others) is None


def _prose(text: str) -> bool:
    """Whether a text has words outside of LaTeX commands, i.e. is (part of) a sentence."""
    return bool(_words(text))


def _words(text: str) -> list[str]:
    """Words of three letters and more, or of Chinese characters, that are no part of a formula."""
    bare = _COMMAND.sub(" ", _TEXT_COMMAND.sub(" ", text))
    words = re.findall(r"[^\W\d_]{3,}|[\u4e00-\u9fff]+", bare)
    return [word for word in words if word.lower() not in _NAMES]


def _readable_text(text: str) -> str | None:
    """Say why a text cannot go to the parser."""
    if any(char.isdecimal() and not char.isascii() for char in tidy(text)):
        return "digits of another script"
    return too_complex(text)


@lru_cache(maxsize=1)
def _load_math_verify() -> None:
    """Import Math-Verify and try each notation outside of any deadline; silence its warning that we bring our own."""
    from math_verify import parse  # noqa: F401

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for gold, answer in _NOTATIONS:
        _equal(_parse(gold), _parse(answer))


def _parse(text: str) -> list[Any]:
    """Parse one formula with Math-Verify's LaTeX grammar, unevaluated. An empty list when it is none."""
    from math_verify import LatexExtractionConfig, parse

    text = tidy(text)
    for char, latex in _UNICODE_MATH.items():
        text = text.replace(char, latex)
    text = re.sub(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text.replace("**", "^"))
    text = _BARE_FUNCTION.sub(r"\\\1 ", text)
    text = re.sub(r"\^\(([^()]*)\)|\^(-?[0-9]+)", lambda m: f"^{{{m[1] or m[2]}}}", text)
    # A dollar sign would end the formula: currency, or the inner half of "$3$ and $4$".
    text = re.sub(r"\s+", " ", text.replace("\\$", "").replace("$", " ")).strip()
    if not text:
        return []
    # Units only where they are marked as text or set apart: "ab" in `2ab` is a product, not a unit.
    units = re.search(r"\\(?:text|mathrm|mbox)|\s[^\W\d_]{2,}$", text) is not None
    normalization = replace(LatexExtractionConfig().normalization_config, units=units)
    config = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)
    return parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None)


def _equal(golds: list[Any], answers: list[Any]) -> bool:
    """Compare with Math-Verify. Gold comes first: a gold inequality may be answered by its interval, not reversed."""
    from math_verify import verify as compare

    return bool(compare(golds, answers, timeout_seconds=None))
