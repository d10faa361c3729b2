"""What a completion does besides being right or wrong: reflection, re-starts, repetition.

R1-Zero's reflective words grew five- to sevenfold in training (arXiv 2501.12948v2, method §10). Counting them proves
little by itself (a model may say "check" and check nothing), so read these beside accuracy and, for nano's
countdown traces, beside the precision of checks ([`trl_r1.evaluation`]).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# The paper's list, word for word (method §10).
REFLECTIVE_WORDS = (
    "wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check",
)  # fmt: skip
# Their Chinese equivalents; the paper gives none, so the choice is ours.
REFLECTIVE_WORDS_ZH = (
    "等等", "等一下", "错误", "出错", "弄错", "然而", "不过", "但是", "但", "重试", "再试", "验证", "检验", "不对",
    "错了", "评估", "检查", "核对",
)  # fmt: skip
# A new attempt after the one before was given up ("aha": the first approach is evaluated again).
RESTART_PHRASES = (
    "let me try", "try again", "try another", "another way", "alternatively", "start over", "instead, ", "on second thought",
    "再试", "重新", "换一种", "换个", "另一种",
)  # fmt: skip

# What opens a step of a worked solution: ordinals, numbered lines, bullets, and their Chinese equivalents. Ours [?].
_STEP = re.compile(
    r"(?<![A-Za-z])step\s{0,3}[0-9]{1,3}(?![0-9])"
    r"|(?:^|(?<=[.!?;:\n])[ \t]{0,8})(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|next|then|finally|lastly)(?=[, ])"
    r"|^[ \t]{0,8}(?:[0-9]{1,3}[.)、](?=[ \t]|[\u3400-\u9fff])|[-*•][ \t])"
    r"|第[一二三四五六七八九十0-9]{1,3}步|首先|其次|接着|接下来|然后|最后",
    re.IGNORECASE | re.MULTILINE,
)

_LATIN = r"(?<![A-Za-z])(?:{})(?![A-Za-z])"
_WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?|\d+(?:\.\d+)?|[^\w\s]")
_CJK = re.compile(r"[\u3400-\u9fff]")


def _pattern(latin: Iterable[str], chinese: Iterable[str]) -> re.Pattern[str]:
    """One pattern for whole Latin words and for Chinese ones, the longest first so that none is counted twice."""
    alternatives = _LATIN.format("|".join(map(re.escape, latin)))
    return re.compile("|".join([alternatives, *sorted(map(re.escape, chinese), key=len, reverse=True)]), re.IGNORECASE)


_REFLECTIVE = _pattern(REFLECTIVE_WORDS, REFLECTIVE_WORDS_ZH)
_RESTART = re.compile("|".join(map(re.escape, RESTART_PHRASES)), re.IGNORECASE)


@dataclass(frozen=True)
class Behaviours:
    """Counts on one completion.

    Args:
        words (`int`): Words, numbers and signs; a Chinese character counts as one.
        reflective (`int`): Reflective words among them ([`REFLECTIVE_WORDS`] and their Chinese equivalents).
        restarts (`int`): Phrases that open a new attempt.
        repetition (`float`): Share of four-word sequences that occurred before in the completion, in [0, 1].
    """

    words: int
    reflective: int
    restarts: int
    repetition: float


def measure(text: str) -> Behaviours:
    """Measure one completion.

    Args:
        text (`str`): The completion as written, with or without its tags.

    Returns:
        [`Behaviours`]: Its counts.
    """
    return Behaviours(
        words=len(words(text)),
        reflective=reflective_words(text),
        restarts=len(_RESTART.findall(text)),
        repetition=repetition(text),
    )


def words(text: str) -> list[str]:
    """Split into words, numbers and signs; Chinese, written without spaces, splits into characters."""
    pieces: list[str] = []
    for piece in _WORD.findall(text):
        pieces.extend(piece if _CJK.search(piece) else [piece.lower()])
    return pieces


def reflective_words(text: str) -> int:
    """Count reflective words: whole words in English, occurrences in Chinese."""
    return len(_REFLECTIVE.findall(text))


def reasoning_steps(text: str) -> int:
    """Count what opens a step: "Step 2", "First,", numbered lines, bullets, "首先", "第二步".

    A metric, not a reward: paid for, the markers come without the steps.

    Args:
        text (`str`): The completion, or its thinking.

    Returns:
        `int`: Openings of steps; one that is marked twice ("1. First, …") counts once.
    """
    ends, count = -1, 0
    for found in _STEP.finditer(text):
        # "1. First," and "Step 1: First" are one step; a new line begins another.
        count += ends < 0 or bool(text[ends : found.start()].strip(" \t.:：,)、*"))
        ends = found.end()
    return count


def reflective_rate(texts: Iterable[str]) -> float:
    """Mean number of reflective words per completion, the figure the paper plots.

    Args:
        texts (`Iterable[str]`): Completions.

    Returns:
        `float`: 0.0 when there is none.
    """
    counts = [reflective_words(text) for text in texts]
    return sum(counts) / len(counts) if counts else 0.0


def repetition(text: str, n: int = 4) -> float:
    """Share of `n`-word sequences that already occurred earlier in the text.

    Near 0 for prose, near 1 for the endless loops R1-Zero falls into.

    Args:
        text (`str`): The completion.
        n (`int`, defaults to 4): Length of the sequences, in words.

    Returns:
        `float`: In [0, 1]; 0.0 for texts shorter than `n` words.
    """
    pieces = words(text)
    sequences = [tuple(pieces[start : start + n]) for start in range(len(pieces) - n + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0
