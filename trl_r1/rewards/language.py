"""Language consistency: the share of the thinking's words that are in the target language (arXiv 2501.12948v1 §2.3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trl_r1.exceptions import ConfigurationError
from trl_r1.language import SCRIPT_LANGUAGES, check_language, detect_language, language_share
from trl_r1.prompts import BOXED_INSTRUCTION, TAG_INSTRUCTION, template_source
from trl_r1.responses import completion_text, parse
from trl_r1.rewards.accuracy import Completions, column

# [?] Eq. 7 is 0/0 for thinking in bare formulas. Half: above the wrong language, below the right one, so that neither
# dropping all words nor hiding them pays.
WORDLESS = 0.5


@dataclass(frozen=True)
class LanguageConsistencyReward:
    """Reward thinking in the target language: words in it / all words (arXiv 2501.12948v2, Eq. 7).

    Only the thinking is scored, maths and code stripped. It is meant to be *added* to accuracy.

    Args:
        target (`str`, *optional*):
            ISO 639-1 code of the language to think in, for every row. By default the row's `language`, or else the
            language that most words of its question are in.
        others (`tuple[str, ...]`, defaults to `("en", "zh")`):
            Languages the model may slip into. Telling languages other than English and Chinese apart needs lingua.
        wordless (`float`, defaults to 0.5): What thinking in bare formulas or code, without any words, earns.

    Example:

    ```python
    >>> from trl_r1.rewards import LanguageConsistencyReward
    >>> reward = LanguageConsistencyReward(target="zh")
    >>> reward(["<think>先算 add up</think> 3", "<think></think> 3"])
    [0.5, 0.0]
    ```
    """

    target: str | None = None
    others: tuple[str, ...] = SCRIPT_LANGUAGES
    wordless: float = WORDLESS

    # TRL names its columns after this.
    __name__ = "language_consistency_reward"

    def __post_init__(self) -> None:
        if not 0 <= self.wordless < 1:
            raise ConfigurationError(
                f"wordless is {self.wordless}. It must be at least 0 and below 1, or thinking without words would pay best."
            )
        object.__setattr__(self, "others", tuple(self.others))
        check_language(self.target or self.others[0], self.others)

    def __call__(
        self,
        completions: Completions,
        *,
        prompts: Sequence[Any] | None = None,
        language: Sequence[str | None] | str | None = None,
        prefill: Sequence[str | None] | str | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Score completions.

        Args:
            completions (`list[str]` or `list[list[dict]]`): Completions as text or as messages.
            prompts (`list`, *optional*): Given by TRL; a row without `language` is answered in its question's.
            language (`list[str]` or `str`, *optional*): The rows' target languages.
            prefill (`list[str]` or `str`, *optional*): What the prompts had already opened, e.g. `"<think>\\n"`.
            log_extra (`Callable`, *optional*): Given by TRL; adds the target languages to its table of completions.
            kwargs: Ignored; TRL passes the data set's columns.

        Returns:
            `list[float | None]`: In [0, 1]; 0.0 without thinking; `None` when no target is given and the question has
            no words to tell its language from.
        """
        targets = [
            self.target
            or column(language, i)
            or _question_language(_question(prompts[i]) if prompts else "", self.others)
            for i in range(len(completions))
        ]
        if log_extra is not None:
            log_extra("language", [target or "" for target in targets])
        return [
            None if target is None else self._score(completion_text(item), column(prefill, i, ""), target)
            for i, (item, target) in enumerate(zip(completions, targets, strict=True))
        ]

    def _score(self, text: str, prefill: str, target: str) -> float:
        thinking = parse(text, prefill=prefill).reasoning
        share = language_share(thinking, target, self.others)
        if share is not None:
            return share
        return self.wordless if any(char.isalnum() for char in thinking) else 0.0


language_consistency_reward = LanguageConsistencyReward()


def _question(prompt: Any) -> str:
    """Return what the user asked, without the sentences our templates put around it (they are English)."""
    if isinstance(prompt, str):
        before, _, after = template_source("r1_zero").partition("{{ prompt }}")
        # The prompt may go on after the template, with a prefilled tag.
        if prompt.startswith(before):
            return prompt[len(before) :].rpartition(after)[0]
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"]
    content = asked[-1].get("content") or "" if asked else ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    for instruction in (TAG_INSTRUCTION, BOXED_INSTRUCTION):
        content = content.removesuffix(instruction)
    return content


# A group's completions share their question.
@lru_cache(maxsize=4096)
def _question_language(question: str, languages: tuple[str, ...]) -> str | None:
    return detect_language(question, languages)
