"""Chinese numerals. In the nano tokenizer each of them up to 99 is one token, while digits are one token each: the built-in
temptation to think in Chinese."""

from __future__ import annotations

from functools import lru_cache

DIGITS = "零一二三四五六七八九"
_UNITS = ((1000, "千"), (100, "百"), (10, "十"))
NUMERAL_CHARACTERS = DIGITS + "十百千"


@lru_cache(maxsize=16384)
def to_chinese(number: int) -> str:
    """Write a number below ten thousand in Chinese.

    Args:
        number (`int`): The number, -9999 to 9999.

    Returns:
        `str`: Its numeral.

    Example:
        >>> to_chinese(108), to_chinese(12), to_chinese(-20)
        ('一百零八', '十二', '负二十')
    """
    if number < 0:
        return "负" + to_chinese(-number)
    if number < 10:
        return DIGITS[number]
    text, rest, gap = "", number, False
    for size, unit in _UNITS:
        digit, rest = divmod(rest, size)
        if digit:
            text += ("零" if gap else "") + DIGITS[digit] + unit
            gap = False
        elif text and rest:
            gap = True
    if rest:
        text += ("零" if gap else "") + DIGITS[rest]
    return text[1:] if text.startswith("一十") else text


def from_chinese(text: str) -> int | None:
    """Read a Chinese numeral; `None` when the text is none.

    Example:
        >>> from_chinese("一百零八"), from_chinese("十二"), from_chinese("好")
        (108, 12, None)
    """
    total = digit = 0
    if not text:
        return None
    for character in text:
        if character in DIGITS:
            digit = DIGITS.index(character)
            continue
        size = {unit: size for size, unit in _UNITS}.get(character)
        if size is None:
            return None
        total += (digit or 1) * size
        digit = 0
    return total + digit
