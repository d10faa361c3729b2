"""Which language a text is written in, word by word, maths and code left out.

R1's language-consistency reward is the share of target-language words in the thinking (arXiv 2501.12948v2, Eq. 7). How
to split words, what counts as one and which language is the target are stated nowhere: the choices below are ours.

- English and Chinese are told apart by script: a run of Latin letters is an English word, a Chinese character is a word.
- Any other language is told by lingua (`pip install 'trl-r1[language]'`) among the languages that are asked about.
- Formulas, code, numbers, single letters (variables), names of functions and units are no words of any language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from trl_r1.exceptions import ConfigurationError, MissingExtraError, unknown

SCRIPT_LANGUAGES = ("en", "zh")
# Words of scripts (or, under lingua, passages) that belong to none of the languages asked about.
OTHER = "other"

_HAN = "\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
_WORD = re.compile(
    rf"(?P<han>[{_HAN}])"
    # Letters that touch a digit or an underscore are a name (`x_1`, `2n`), not a word.
    rf"|(?<![0-9_{_LATIN}])(?P<latin>[{_LATIN}]+(?:['’-][{_LATIN}]+)*)(?![0-9_{_LATIN}])"
    rf"|(?P<other>(?:(?![{_HAN}{_LATIN}])[^\W\d_])+)"
)
_NOT_WORDS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim max min sup inf gcd lcm mod det rank "  # noqa: SIM905
    "arg deg sqrt frac boxed cdot times div leq geq neq pm infty mm cm dm km mg kg ml cl dl ms hz kw mph kmh".split()
)

# Everything that is maths or code. Tempered or bounded by their own delimiter, so that the time is linear.
_SPANS = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)"
    r"|`[^`\n]+`"
    r"|\$\$[^$]*\$\$"
    # Pandoc's rule, so that "$5 and $6" is no formula.
    r"|\$(?!\s)[^$\n]+(?<!\s)\$(?![0-9])"
    r"|\\\((?:(?!\\[()]).)*\\\)"
    r"|\\\[(?:(?!\\[\[\]]).)*\\\]"
    r"|\\begin\{(?P<environment>[a-z]{1,20}\*?)\}(?:(?!\\begin\{).)*?\\end\{(?P=environment)\}"
    r"|https?://[^\s\u3007-\uffff]+",
    re.DOTALL,
)
_COMMAND = re.compile(r"\\[A-Za-z]+|</?(?:think|answer)>")
# Eight words in a row are prose, whatever stands around them: thinking cannot hide in a formula or a code block.
_PROSE_WORD = r"(?:[^\W\d_]{2,}|[aI])"
# Between words stand what stands in a line, or the end of a sentence; a line's end alone is code's.
_PROSE = re.compile(
    rf"[{_HAN}](?:[，、,。；;：:！!？?]?\s?[{_HAN}]){{7,}}"
    rf"|(?<![^\W\d_])(?:{_PROSE_WORD}(?:[ ,'’]{{1,3}}|[.!?][ \n]{{1,2}})){{7,}}{_PROSE_WORD}(?![^\W\d_])"
)
# What a span in a line holds of prose: two words at least. Sentences could be spread over many spans, so that none has eight.
_INLINE_PROSE = re.compile(rf"[{_HAN}]{{2,}}|(?<![^\W\d_])(?:{_PROSE_WORD}[ ,'’]{{1,3}})+{_PROSE_WORD}(?![^\W\d_])")
_INLINE_WORDS = 8


def strip_maths_and_code(text: str) -> str:
    r"""Drop formulas, code, LaTeX commands, addresses and thinking tags; prose hidden inside them is kept.

    Args:
        text (`str`): Any text. The time taken is linear in its length.

    Returns:
        `str`: The rest, in Unicode's compatibility form (full-width letters become plain ones).

    Example:

    ```python
    >>> from trl_r1.language import strip_maths_and_code
    >>> strip_maths_and_code("所以 $x = \\text{two}$ 。").split()
    ['所以', '。']
    ```
    """
    # A lone surrogate is no character, and lingua refuses it.
    text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode("utf-8"))
    hidden = [" ".join(_inline_prose(span)) for span in _SPANS.finditer(text)]
    spread = sum(1 for one in hidden for _ in _WORD.finditer(one)) >= _INLINE_WORDS

    def prose_inside(span: re.Match[str]) -> str:
        found = _PROSE.findall(span.group()) or (_inline_prose(span) if spread else [])
        return f" {' '.join(found)} "

    return _COMMAND.sub(" ", _SPANS.sub(prose_inside, text))


def _inline_prose(span: re.Match[str]) -> list[str]:
    """Return the prose of a span inside of a line, one word being a name; none of a block, which is code's."""
    content = span.group()
    return [] if content.startswith(("```", "~~~")) else _INLINE_PROSE.findall(_COMMAND.sub(";", content))


def words_by_language(text: str, languages: Iterable[str] = SCRIPT_LANGUAGES) -> dict[str, int]:
    """Count the words of a text by language.

    Args:
        text (`str`): Any text; maths and code are stripped first.
        languages (`Iterable[str]`, defaults to `("en", "zh")`):
            ISO 639-1 codes of the languages to tell apart. English and Chinese go by script, any others by lingua.

    Returns:
        `dict[str, int]`: Words per language; those of no language asked about under `"other"`. Zeros are left out.

    Raises:
        [`ConfigurationError`]: For a code that lingua does not know, or none.
        [`MissingExtraError`]: When lingua is needed and not installed.

    Example:

    ```python
    >>> from trl_r1.language import words_by_language
    >>> words_by_language("首先 we add $3 + x$，得到 7")
    {'zh': 4, 'en': 2}
    ```
    """
    asked = tuple(dict.fromkeys(languages))
    if not asked:
        raise ConfigurationError("No languages to tell apart were given. Give ISO 639-1 codes, such as ('en', 'zh').")
    stripped = strip_maths_and_code(text)
    counts: Counter[str] = Counter()
    if set(asked) <= set(SCRIPT_LANGUAGES):
        for word in _WORD.finditer(stripped):
            if _counts(word):
                language = {"han": "zh", "latin": "en"}.get(word.lastgroup or "", OTHER)
                counts[language if language in asked else OTHER] += 1
        return dict(counts)
    for passage, language in _passages(stripped, asked):
        counts[language] += sum(map(_counts, _WORD.finditer(passage)))
    return {language: count for language, count in counts.items() if count}


def _counts(word: re.Match[str]) -> bool:
    """Whether a match is a word: a single Latin letter is a variable, and `sin` or `cm` belong to no language."""
    latin = word["latin"]
    return latin is None or (len(latin) > 1 and latin.casefold() not in _NOT_WORDS)


def language_share(text: str, target: str, others: Iterable[str] = SCRIPT_LANGUAGES) -> float | None:
    """Share of the words that are in the target language (arXiv 2501.12948v2, Eq. 7).

    Args:
        text (`str`): Any text; maths and code are stripped first.
        target (`str`): ISO 639-1 code.
        others (`Iterable[str]`, defaults to `("en", "zh")`): Languages the text may have slipped into.

    Returns:
        `float` or `None`: In [0, 1]; `None` for a text without words.

    Raises:
        [`ConfigurationError`], [`MissingExtraError`]: As [`words_by_language`].
    """
    counts = words_by_language(text, (target, *others))
    total = sum(counts.values())
    return counts.get(target, 0) / total if total else None


def detect_language(text: str, languages: Iterable[str] = SCRIPT_LANGUAGES) -> str | None:
    """Return the language that most words of a text are in, e.g. to take the question's as the target.

    Args:
        text (`str`): Any text.
        languages (`Iterable[str]`, defaults to `("en", "zh")`): Languages to choose from.

    Returns:
        `str` or `None`: An ISO 639-1 code; `None` without words, or when most are in none of the languages.
    """
    counts = words_by_language(text, languages)
    if not counts:
        return None
    language = max(counts, key=lambda name: counts[name])
    return None if language == OTHER else language


def check_language(code: str, others: Iterable[str] = SCRIPT_LANGUAGES) -> None:
    """Refuse, before training, a target language that cannot be told from the others.

    Raises:
        [`ConfigurationError`]: For a code that does not exist.
        [`MissingExtraError`]: When lingua is needed and not installed.
    """
    asked = tuple(dict.fromkeys((code, *others)))
    if not set(asked) <= set(SCRIPT_LANGUAGES):
        _detector(asked)


def _passages(text: str, languages: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    """Cut a text where its language changes."""
    detector, codes = _detector(languages)
    for found in detector.detect_multiple_languages_of(text):
        yield text[found.start_index : found.end_index], codes.get(found.language, OTHER)


@lru_cache(maxsize=32)
def _detector(languages: tuple[str, ...]) -> tuple[Any, dict[Any, str]]:
    """Build lingua's detector for these languages once per process; its models load when first used."""
    try:
        from lingua import Language, LanguageDetectorBuilder
    except ImportError as error:
        raise MissingExtraError(
            f"lingua, which tells {', '.join(languages)} apart,", "language", otherwise="Without it: 'en' and 'zh'."
        ) from error
    known = {language.iso_code_639_1.name.lower(): language for language in Language.all()}
    for code in languages:
        if code not in known:
            raise unknown("language", code, sorted(known), "Languages are ISO 639-1 codes in lower case.")
    if len(languages) < 2:
        raise ConfigurationError(
            f"Only {languages[0]!r} was given: one language cannot be told from nothing. Add others."
        )
    chosen = {known[code]: code for code in languages}
    return LanguageDetectorBuilder.from_languages(*chosen).build(), chosen
