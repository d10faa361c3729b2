"""Which completions are readable enough to train on: repetition, mixed languages, length, broken form, code in the thinking.

R1 drops "chain-of-thought with mixed languages, long paragraphs, and code blocks" before SFT (arXiv 2501.12948v1 §2.3.3)
and keeps readable, unrepetitive R1-Zero outputs for its cold start (v2 B.3.2). It gives no thresholds: the numbers below
are ours, marked [?].

A filter is any callable `(row, completion) -> str | None`: `None` to keep the completion, else a reason of the form
`"name: what was found and what is allowed"`. Ours are frozen dataclasses, hence picklable and run in worker processes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trl_r1.behaviours import repetition, words
from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.language import SCRIPT_LANGUAGES, check_language, detect_language, language_share
from trl_r1.responses import Response, parse
from trl_r1.rows import Completion, Prompt, Row

Filter = Callable[[Row, Completion], str | None]

_FENCE = re.compile(r"```|^[ \t]*~~~", re.MULTILINE)
# Flags of a parsed response.
_BROKEN_TAGS, _NO_ONE_ANSWER = ("unclosed_think", "broken_answer_tags"), ("several_answers", "no_answer")


def parsed(completion: Completion) -> Response:
    """Take a completion apart as every verifier does, prefill included."""
    return parse(completion.text, prefill=completion.prefill, truncated=completion.truncated)


@dataclass(frozen=True)
class StructureFilter:
    """Keep what ended by itself and is exactly one thinking followed by something to read.

    Args:
        require_thinking (`bool`, defaults to `True`):
            Whether an answer without any thinking is dropped. R1 has none for "hello" (v1 §2.3.3): set it to `False` for
            general prompts. Thinking that is there must be well formed in any case.
    """

    require_thinking: bool = True

    def __call__(self, row: Row, completion: Completion) -> str | None:
        """Return why the completion is dropped, or `None`."""
        if completion.truncated:
            return "structure: cut off by the length limit"
        response = parsed(completion)
        if "no_think" in response.flags:
            if self.require_thinking:
                return "structure: no thinking"
            return None if response.summary else "structure: empty"
        # A general answer may speak of several things; where a rule looks for one, it must be the only one.
        fatal = _BROKEN_TAGS if row.domain == "general" else (*_BROKEN_TAGS, *_NO_ONE_ANSWER)
        if broken := [flag for flag in response.flags if flag in fatal]:
            return f"structure: {', '.join(broken)}"
        if not response.think_only or not (response.well_formed or "no_answer_tags" in response.flags):
            return "structure: not one thinking followed by one answer and nothing else"
        return None


@dataclass(frozen=True)
class LanguageMixingFilter:
    """Keep what thinks and answers in one language: the row's, or else the question's.

    Args:
        min_share (`float`, defaults to 0.95):
            Least share of words in that language, in the thinking and in the summary, maths and code left out. [?]
        others (`tuple[str, ...]`, defaults to `("en", "zh")`): Languages the model may slip into.
    """

    min_share: float = 0.95
    others: tuple[str, ...] = SCRIPT_LANGUAGES

    def __post_init__(self) -> None:
        if not 0 < self.min_share <= 1:
            raise ConfigurationError(f"min_share={self.min_share} of the language filter must be in (0, 1].")
        object.__setattr__(self, "others", tuple(self.others))
        check_language(self.others[0], self.others)

    def __call__(self, row: Row, completion: Completion) -> str | None:
        """Return why the completion is dropped, or `None`; text without words is in no language."""
        target = row.language or detect_language(question_text(row.prompt), self.others)
        if target is None:
            return None
        response = parsed(completion)
        for where, text in (("thinking", response.reasoning), ("summary", response.summary)):
            share = language_share(text, target, self.others)
            if share is not None and share < self.min_share:
                return (
                    f"language: {share:.0%} of the {where} is in {target!r}, at least {self.min_share:.0%} is asked for"
                )
        return None


@dataclass(frozen=True)
class LengthFilter:
    """Keep what is neither too long as a whole nor written in paragraphs too long to read.

    Args:
        max_tokens (`int`, *optional*, defaults to 32768):
            R1's context in SFT (v2 B.4.2). Not checked where the sampler does not know the tokens.
        max_characters (`int`, *optional*): Of the whole completion.
        max_paragraph_words (`int`, *optional*, defaults to 400):
            Words between two line breaks of the thinking; a Chinese character is a word. R1 drops "long paragraphs"
            without saying how long. [?]
        min_words (`int`, defaults to 0): Least words of the thinking, where there is one.
    """

    max_tokens: int | None = 32768
    max_characters: int | None = None
    max_paragraph_words: int | None = 400
    min_words: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_characters", "max_paragraph_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(
                    f"{name}={value} of the length filter must be at least 1, or None for no limit."
                )

    def __call__(self, row: Row, completion: Completion) -> str | None:
        """Return why the completion is dropped, or `None`."""
        if self.max_tokens is not None and len(completion.token_ids) > self.max_tokens:
            return f"length: {len(completion.token_ids)} tokens, at most {self.max_tokens}"
        if self.max_characters is not None and len(completion.text) > self.max_characters:
            return f"length: {len(completion.text)} characters, at most {self.max_characters}"
        reasoning = parsed(completion).reasoning
        if self.min_words and reasoning and (count := len(words(reasoning))) < self.min_words:
            return f"length: {count} words of thinking, at least {self.min_words}"
        limit = self.max_paragraph_words
        if limit is not None:
            # A word has at least one character: what is shorter needs no counting.
            longest = max((len(words(line)) for line in reasoning.splitlines() if len(line) > limit), default=0)
            if longest > limit:
                return f"paragraph: {longest} words, at most {limit}"
        return None


@dataclass(frozen=True)
class RepetitionFilter:
    """Keep what does not go round in circles, as R1-Zero does when it finds no answer.

    Args:
        max_share (`float`, defaults to 0.4): Most of the `n`-word sequences that may have occurred before. [?]
        n (`int`, defaults to 8): Words of a sequence; shorter ones recur in any honest calculation. [?]
        max_lines (`int`, defaults to 4): Most times that one line may stand directly after itself. [?]
    """

    max_share: float = 0.4
    n: int = 8
    max_lines: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 1:
            raise ConfigurationError(f"max_share={self.max_share} of the repetition filter must be in (0, 1].")
        if self.n < 1 or self.max_lines < 1:
            raise ConfigurationError(f"n={self.n} and max_lines={self.max_lines} must be at least 1.")

    def __call__(self, row: Row, completion: Completion) -> str | None:
        """Return why the completion is dropped, or `None`."""
        share = repetition(completion.text, self.n)
        if share > self.max_share:
            return f"repetition: {share:.0%} of {self.n}-word sequences occurred before, at most {self.max_share:.0%}"
        run, last = 0, ""
        for line in completion.text.splitlines():
            if not (line := line.strip()):
                continue
            run, last = (run + 1 if line == last else 1), line
            if run > self.max_lines:
                return f"repetition: {line[:60]!r} stands {run} times in a row, at most {self.max_lines}"
        return None


@dataclass(frozen=True)
class CodeBlockFilter:
    """Keep thinking without code blocks (v1 §2.3.3); the summary may have them.

    Args:
        allowed_domains (`tuple[str, ...]`, defaults to none): Domains whose thinking may hold code. R1 excepts none.
    """

    allowed_domains: tuple[str, ...] = ()

    def __call__(self, row: Row, completion: Completion) -> str | None:
        """Return why the completion is dropped, or `None`."""
        if row.domain not in self.allowed_domains and _FENCE.search(parsed(completion).reasoning):
            return "code: a code block in the thinking"
        return None


# By the names that YAML files use, cheapest first.
FILTERS: dict[str, Callable[..., Filter]] = {
    "structure": StructureFilter,
    "code": CodeBlockFilter,
    "length": LengthFilter,
    "repetition": RepetitionFilter,
    "language": LanguageMixingFilter,
}


def default_filters() -> tuple[Filter, ...]:
    """Return R1's filters with our thresholds: structure, code blocks, length, repetition, mixed languages."""
    return tuple(make() for make in FILTERS.values())


def build_filters(
    names: Iterable[str] = tuple(FILTERS), settings: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Filter, ...]:
    """Build filters from a configuration.

    Args:
        names (`Iterable[str]`, defaults to all): Filters to apply, in order.
        settings (`dict`, *optional*): Filter → its fields that differ, such as `{"length": {"max_tokens": 4096}}`.

    Returns:
        `tuple[Filter, ...]`: In the order of `names`.

    Raises:
        [`ConfigurationError`]: For a name, a field or a value that does not exist.
    """
    settings, names = dict(settings or {}), list(names)
    for name in (*names, *settings):
        if name not in FILTERS:
            raise unknown("filter", name, FILTERS)
    if unused := [name for name in settings if name not in names]:
        raise ConfigurationError(
            f"Settings for {', '.join(unused)}, which is not among the filters {', '.join(names)}."
        )
    built = []
    for name in names:
        make = FILTERS[name]
        fields = tuple(make.__dataclass_fields__)  # type: ignore[attr-defined]
        for field in settings.get(name, {}):
            if field not in fields:
                raise unknown(f"setting of the {name} filter", field, fields)
        built.append(make(**settings.get(name, {})))
    return tuple(built)


def first_reason(filters: Iterable[Filter], row: Row, completion: Completion) -> str | None:
    """Return the first filter's reason to drop a completion, `None` when all keep it."""
    return next((reason for check in filters if (reason := check(row, completion)) is not None), None)


def reason_name(reason: str) -> str:
    """Return the kind of a reason, by which reports count: what stands before the colon."""
    return reason.partition(":")[0].strip()


def question_text(prompt: Prompt) -> str:
    """Return what the user asked last: of messages, the last one of the user."""
    if isinstance(prompt, str):
        return prompt
    return next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
