"""What a completion does besides being right or wrong: reflection, re-starts, repetition.

R1-Zero's reflective words grew five- to sevenfold in training (arXiv 2501.12948v2). Counting them proves
little by itself (a model may say "check" and check nothing), so read these beside accuracy and, for nano's
countdown traces, beside the precision of checks ([`trl_r1.evaluation`]).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trl_r1.language import words_by_language

# The paper's list, word for word.
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
    "let me try", "try again", "try another", "start over", "from scratch", "on second thought", "wait, wait", "aha",
    "let me reconsider", "let me rethink", "let's redo", "let me redo", "再试", "重新", "从头", "重来",
)  # fmt: skip
# Another approach beside the first, whether or not that one failed.
ALTERNATIVE_PHRASES = (
    "alternatively", "another way", "another approach", "a different approach", "a different way", "instead, ",
    "we could also", "换一种", "换个", "另一种", "也可以",
)  # fmt: skip
# The answer is held against the question before it is given.
VERIFICATION_PHRASES = (
    "let me check", "let me verify", "let's check", "let's verify", "double-check", "double check", "to verify",
    "check:", "verify:", "verification", "plugging back", "plug back", "substitute back", "substituting back",
    "验证", "检验", "核对", "检查一下", "代入检验", "代回",
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
_ALTERNATIVE = re.compile("|".join(map(re.escape, ALTERNATIVE_PHRASES)), re.IGNORECASE)
_VERIFICATION = re.compile("|".join(map(re.escape, VERIFICATION_PHRASES)), re.IGNORECASE)
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Behaviours:
    """Counts on one completion.

    Phrases mark a behaviour, they do not prove it: read them beside accuracy. The paper names the reflective words and
    describes the others without a list (v1 §2.2.4, v2 §2.3), so the phrases are ours.

    Args:
        words (`int`): Words, numbers and signs; a Chinese character counts as one.
        reflective (`int`): Reflective words among them ([`REFLECTIVE_WORDS`] and their Chinese equivalents).
        verifications (`int`): Phrases that hold a result against the question.
        restarts (`int`): Phrases that open a new attempt ("aha").
        alternatives (`int`): Phrases that open another approach.
        steps (`int`): What opens a step ([`reasoning_steps`]).
        repetition (`float`): Share of four-word sequences that occurred before in the completion, in [0, 1].
        mixing (`float`): Share of the words that are not in the language most of them are in, in [0, 0.5]; English and
            Chinese, maths and code left out.
        longest_paragraph (`int`): Words of the longest paragraph: what a reader has to take in at once.
    """

    words: int
    reflective: int
    verifications: int
    restarts: int
    alternatives: int
    steps: int
    repetition: float
    mixing: float
    longest_paragraph: int


def measure(text: str) -> Behaviours:
    """Measure one completion.

    Args:
        text (`str`): The completion as written, with or without its tags.

    Returns:
        [`Behaviours`]: Its counts.
    """
    pieces = words(text)
    return Behaviours(
        words=len(pieces),
        reflective=reflective_words(text),
        verifications=len(_VERIFICATION.findall(text)),
        restarts=len(_RESTART.findall(text)),
        alternatives=len(_ALTERNATIVE.findall(text)),
        steps=reasoning_steps(text),
        repetition=_repetition(pieces),
        mixing=mixing(text),
        longest_paragraph=max((len(words(paragraph)) for paragraph in _PARAGRAPH.split(text)), default=0),
    )


def mixing(text: str) -> float:
    """Share of the words outside the main language of a text, maths and code stripped.

    Args:
        text (`str`): The completion, or its thinking.

    Returns:
        `float`: 0.0 for one language (or no words), up to 0.5.
    """
    counts = words_by_language(text).values()
    return 1 - max(counts) / sum(counts) if sum(counts) else 0.0


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
    return _repetition(words(text), n)


def _repetition(pieces: list[str], n: int = 4) -> float:
    sequences = [tuple(pieces[start : start + n]) for start in range(len(pieces) - n + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0
