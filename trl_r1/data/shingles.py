r"""Texts as hashed tokens and n-grams, by numpy alone: what near-duplicate removal and decontamination compare.

Two ways to typeset the same words must give the same tokens (trap 32). A token is a run of letters, a run of digits or
one character of a script written without spaces. Letter case, width, punctuation, operators, diagrams (`[asy]`), GSM8K's
calculator marks (`<<6*7=42>>`) and LaTeX commands that only set type (`\left`, `\text`, `\dfrac`) leave no token; commands
that name something (`\sqrt`, `\pi`) leave that name. Since operators leave none, equal tokens do not make equal *questions*:
[`exact_key`] and [`numbers_key`] keep them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_SEPARATOR, _LETTER, _DIGIT, _SINGLE = range(4)
_PLANE = 0x10000
# Odd constants of 64-bit mixing (splitmix64) and of the polynomial hashes.
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WORD_BASE, _GRAM_BASE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_WORD_POWERS = 1024
# Characters of a block: bounds the memory of the arrays, some 60 bytes a character.
BLOCK_CHARACTERS = 100_000

# LaTeX that sets type, and operators: after a backslash these names leave no token.
_SILENT = ["left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "displaystyle", "textstyle", "limits", "nolimits", "quad", "qquad", "hspace", "vspace", "text", "textbf", "textit", "textrm", "mbox", "mathrm", "mathbf", "mathit", "mathbb", "mathcal", "mathsf", "operatorname", "rm", "bf", "it", "emph", "underline", "frac", "dfrac", "tfrac", "cfrac", "cdot", "times", "div", "pm", "mp", "le", "leq", "leqslant", "ge", "geq", "geqslant", "lt", "gt", "ne", "neq", "equiv", "approx", "boxed", "fbox", "ldots", "cdots", "dots", "vdots", "ddots", "item", "hline", "nonumber", "notag", "label", "tag", "n", "t"]  # fmt: skip
# One sign for what LaTeX spells out.
_SPELT = {"π": "pi", "θ": "theta", "∞": "infty", "√": "sqrt", "°": "circ", "∠": "angle", "△": "triangle"}
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\{[lcr| ]*\})?")
_DIAGRAM = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_OPTION_LABEL = re.compile(r"^[ \t]*\(?[A-Ja-j][.):][ \t]+", re.MULTILINE)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s*([0-9]))")
_OPERATORS = {"\\cdot": "*", "\\times": "*", "\\div": "/", "\\leq": "<=", "\\le": "<=", "\\geq": ">=", "\\ge": ">=",
              "×": "*", "·": "*", "÷": "/", "≤": "<=", "≥": ">=", "−": "-", "–": "-"}  # fmt: skip
_OPERATOR_NAMES = re.compile("|".join(rf"{re.escape(name)}(?![A-Za-z])" for name in _OPERATORS))
_EXACT_TOKEN = re.compile(r"[^\W\d_]+|[0-9]+(?:\.[0-9]+)?|[-+*/=<>!%]")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|[-+*/=<>]")


@dataclass(frozen=True)
class Tokens:
    """The tokens of several texts, end to end.

    Args:
        text (`str`): The texts as they were hashed, joined by newlines.
        hashes (`np.ndarray`): Shape `(tokens,)`, 64-bit.
        starts (`np.ndarray`): Shape `(tokens,)`: where each begins in `text`.
        ends (`np.ndarray`): Shape `(tokens,)`: where each ends.
        bounds (`np.ndarray`): Shape `(texts + 1,)`: text `i` has tokens `bounds[i]` to `bounds[i + 1]`.
        offsets (`np.ndarray`): Shape `(texts + 1,)`: text `i` begins at character `offsets[i]` of `text`.
    """

    text: str
    hashes: Hashes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    bounds: NDArray[np.int64]
    offsets: NDArray[np.int64]


def clean(text: str) -> str:
    """Drop what holds no words of the text: diagrams, calculator marks, LaTeX environments, labels of options."""
    if "[asy]" in text:
        text = _DIAGRAM.sub(" ", text)
    if "<<" in text:
        text = _CALCULATOR.sub(" ", text)
    if "\\begin" in text:
        text = _ENVIRONMENT.sub(" ", text)
    return text


def without_option_labels(text: str) -> str:
    """Drop `A.`, `(B)` and the like before the options of a question, which every data set sets its own way."""
    return _OPTION_LABEL.sub("", text)


def tokenize(texts: Sequence[str]) -> Tokens:
    """Hash the tokens of some texts at once.

    Args:
        texts (`Sequence[str]`): Texts, through [`clean`]; together a block (see [`blocks`]).

    Returns:
        [`Tokens`]
    """
    joined = "\n".join(texts)
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    canonical, kinds = _tables()
    if points.size and points.max() >= _PLANE:
        # Beyond the basic plane only Han is text here; the rest (emoji) separates.
        han = (points >= 0x20000) & (points < 0x40000)
        small = np.where(points < _PLANE, points, 0)
        characters = np.where(han, points, canonical[small]).astype(np.uint64)
        kind = np.where(han, _SINGLE, kinds[small]).astype(np.uint8)
    else:
        characters, kind = canonical[points].astype(np.uint64), kinds[points]
    _join_thousands(points, kind)
    starts, ends = _runs(kind)
    hashes = _word_hashes(characters, kind, starts)
    hashes, starts, ends = _normalised(points, hashes, starts, ends)
    offsets = np.cumsum([0, *(len(text) + 1 for text in texts)])
    return Tokens(joined, hashes, starts, ends, np.searchsorted(starts, offsets), offsets)


def ngrams(tokens: Tokens, n: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash all runs of `n` tokens that lie inside one text.

    Args:
        tokens ([`Tokens`]): The texts' tokens.
        n (`int`): Tokens of a run.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Hashes, shape `(runs,)`, and the first token of each. A text with fewer tokens
        has none.
    """
    count = len(tokens.hashes) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    total = np.zeros(count, np.uint64)
    factor = 1
    for offset in range(n):
        total += tokens.hashes[offset : offset + count] * np.uint64(factor)
        factor = factor * _GRAM_BASE % 2**64
    document = np.repeat(np.arange(len(tokens.bounds) - 1), np.diff(tokens.bounds))
    inside = np.flatnonzero(document[:count] == document[n - 1 :])
    return mix(total[inside]), inside


def mix(values: Hashes) -> Hashes:
    """Spread hashes over all 64 bits (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def blocks(texts: Iterable[str], characters: int = BLOCK_CHARACTERS) -> Iterator[list[str]]:
    """Group texts, in their order, so that a group has about so many characters (one text at least)."""
    block: list[str] = []
    size = 0
    for text in texts:
        if block and size + len(text) > characters:
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text)
    if block:
        yield block


def exact_key(text: str) -> int:
    r"""Hash a short text so that typesetting does not count but every word, number, operator and option does.

    Args:
        text (`str`): A question.

    Returns:
        `int`: 64-bit. `$\frac{1}{2} \cdot x$` and `1/2 × x` are equal, `3 + 5` and `3 - 5` are not.
    """
    return _hash64(" ".join(_exact_tokens(text)))


def numbers_key(text: str) -> int:
    """Hash the numbers and operators of a question in their order: questions that differ in them are two questions."""
    return _hash64(" ".join(_NUMBER.findall(_plain(text))))


def _exact_tokens(text: str) -> list[str]:
    return _EXACT_TOKEN.findall(_plain(clean(without_option_labels(text))))


def _plain(text: str) -> str:
    """Resolve what LaTeX and typography write differently, operators kept."""
    latex, plain = "\\" in text, text.isascii()
    if latex:
        for _ in range(2):  # a fraction inside a fraction
            text = _FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", text)
    if latex or not plain:
        text = unicodedata.normalize("NFKC", _OPERATOR_NAMES.sub(lambda m: f" {_OPERATORS[m[0]]} ", text))
    if latex:
        text = _COMMAND.sub(lambda m: " " if m[1] in _SILENT_NAMES else f" {m[1]} ", text)
    if not plain:
        for sign, name in _SPELT.items():
            text = text.replace(sign, f" {name} ")
    if "," in text:
        text = _THOUSANDS.sub("", text)
    text = text.casefold()
    return _HYPHEN.sub(" ", text) if "-" in text else text


_SILENT_NAMES = frozenset(_SILENT)


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """For every character of the basic plane: the one that stands for it, and its kind."""
    canonical = np.arange(_PLANE, dtype=np.uint16)
    kinds = np.zeros(_PLANE, np.uint8)
    for point in range(_PLANE):
        character = unicodedata.normalize("NFKC", chr(point)).lower() if not 0xD800 <= point < 0xE000 else " "
        character = unicodedata.normalize("NFKD", character)[:1] if 0xC0 <= point < 0x250 else character
        if len(character) != 1 or ord(character) >= _PLANE:
            continue
        canonical[point] = ord(character)
        kinds[point] = _kind(character)
    return canonical, kinds


def _kind(character: str) -> int:
    if character in _SPELT:
        return _SINGLE
    category = unicodedata.category(character)
    if category == "Nd":
        return _DIGIT
    if category[0] not in "LM":
        return _SEPARATOR
    point = ord(character)
    # Scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han.
    spaceless = (
        (0x0E00, 0x0F00),
        (0x1000, 0x10A0),
        (0x1780, 0x1800),
        (0x3005, 0x3100),
        (0x3400, 0xA000),
        (0xF900, 0xFB00),
    )
    return _SINGLE if any(low <= point < high for low, high in spaceless) else _LETTER


def _join_thousands(points: NDArray[np.uint32], kind: NDArray[np.uint8]) -> None:
    """Make the comma of `1,234` part of the number; its value counts as nothing, in place."""
    commas = np.flatnonzero(points == ord(","))
    commas = commas[(commas > 0) & (commas + 4 <= len(points))]
    if commas.size:
        digits = (kind[commas - 1] == _DIGIT) & (kind[commas + 1] == _DIGIT)
        digits &= (kind[commas + 2] == _DIGIT) & (kind[commas + 3] == _DIGIT)
        after = np.minimum(commas + 4, len(points) - 1)
        digits &= (commas + 4 == len(points)) | (kind[after] != _DIGIT)
        kind[commas[digits]] = _DIGIT


def _runs(kind: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the runs of one kind begin and end; a single character is a run of its own."""
    edge = np.ones(len(kind) + 1, bool)
    edge[1:-1] = (kind[1:] != kind[:-1]) | (kind[1:] == _SINGLE)
    places = np.flatnonzero(edge)
    starts, ends = places[:-1], places[1:]
    words = kind[starts] != _SEPARATOR if len(kind) else np.zeros(0, bool)
    return starts[words], ends[words]


def _word_hashes(characters: Hashes, kind: NDArray[np.uint8], starts: NDArray[np.int64]) -> Hashes:
    """Polynomial hash of every run."""
    if not starts.size:
        return np.zeros(0, np.uint64)
    counted = (kind != _SEPARATOR) & (characters != ord(","))
    first = starts[0]
    # The place inside the run, commas of numbers not counted, so that 1,234 is 1234.
    before = np.cumsum(counted)
    lengths = np.diff(np.append(starts, len(characters)))
    place = before[first:] - np.repeat(before[starts], lengths)
    values = np.where(counted[first:], characters[first:] * _powers()[place & (_WORD_POWERS - 1)], 0).astype(np.uint64)
    return mix(np.add.reduceat(values, starts - first))


@lru_cache(maxsize=1)
def _powers() -> Hashes:
    powers = [1]
    for _ in range(_WORD_POWERS - 1):
        powers.append(powers[-1] * _WORD_BASE % 2**64)
    return np.array(powers, np.uint64)


@lru_cache(maxsize=1)
def _names() -> tuple[Hashes, Hashes, Hashes]:
    """Hashes of the silent commands, sorted; of the signs that have a name, sorted; and of those names."""
    silent = np.sort(_hash_words([name.lower() for name in _SILENT]))
    signs, named = _hash_words(list(_SPELT)), _hash_words(list(_SPELT.values()))
    order = np.argsort(signs)
    return silent, signs[order], named[order]


def _hash_words(words: list[str]) -> Hashes:
    text = "\n".join(words)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    canonical, kinds = _tables()
    kind = kinds[points]
    return _word_hashes(canonical[points].astype(np.uint64), kind, _runs(kind)[0])


def _normalised(
    points: NDArray[np.uint32], hashes: Hashes, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[Hashes, NDArray[np.int64], NDArray[np.int64]]:
    """Give signs their names and drop silent commands."""
    silent, signs, named = _names()
    place = np.minimum(np.searchsorted(signs, hashes), len(signs) - 1)
    hashes = np.where(signs[place] == hashes, named[place], hashes)
    commands = np.flatnonzero((starts > 0) & (points[np.maximum(starts - 1, 0)] == ord("\\")))
    if commands.size:
        place = np.minimum(np.searchsorted(silent, hashes[commands]), len(silent) - 1)
        dropped = commands[silent[place] == hashes[commands]]
        kept = np.ones(len(hashes), bool)
        kept[dropped] = False
        hashes, starts, ends = hashes[kept], starts[kept], ends[kept]
    return hashes, starts, ends
