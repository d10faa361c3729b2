"""Rewards that shape how something is written: tags, repetition, length. TRL's own where TRL has one.

None of them belongs to R1, whose rules are accuracy, format and language. Lengths are in tokens, which only the trainer
knows: the length rewards need the `completion_ids` that TRL passes. TRL is imported when they are called, because a
worker of the reward pool must start in less time than that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.responses import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, completion_text
from trl_r1.rewards.accuracy import Completions, accuracy_reward, column

TokenIds = Sequence[Sequence[int]] | None
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)


@dataclass(frozen=True)
class TagCountReward:
    """Reward each tag of the form that stands exactly once and in its place: a step towards the format reward.

    Small models reach the strict form sooner with it. A repeated tag earns nothing, nor does one with a tag before it
    that belongs after it.

    Args:
        tags (`tuple[str, ...]`): The tags in order; R1-Zero's four by default, `("<think>", "</think>")` for R1's form.
    """

    tags: tuple[str, ...] = TAGS

    __name__ = "tag_count_reward"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple(self.tags))
        if not self.tags or len(set(self.tags)) < len(self.tags) or not all(self.tags):
            raise ConfigurationError(
                f"tags are {self.tags}. Give different, non-empty tags in the order they stand in."
            )

    def __call__(
        self, completions: Completions, *, prefill: Sequence[str | None] | str | None = None, **kwargs: Any
    ) -> list[float | None]:
        """Score completions (text or messages), `prefill` put in front; 1.0 for all tags, `1 / len(tags)` for each."""
        return [
            self._score((column(prefill, i, "") or "") + completion_text(completion))
            for i, completion in enumerate(completions)
        ]

    def _score(self, text: str) -> float:
        earned = 0
        for index, tag in enumerate(self.tags):
            later = (text.find(other) for other in self.tags[index + 1 :])
            position = text.find(tag)
            if text.count(tag) == 1 and all(place < 0 or place > position for place in later):
                earned += 1
        return earned / len(self.tags)


@dataclass(frozen=True)
class RepetitionReward:
    """Punish repeated runs of tokens: TRL's `get_repetition_penalty_reward` (arXiv 2502.03373, Appendix C.2).

    Args:
        ngram_size (`int`, defaults to 3): Length of the runs in tokens, TRL's default.
        max_penalty (`float`, defaults to -1.0): What a completion earns that does nothing but repeat itself.
    """

    ngram_size: int = 3
    max_penalty: float = -1.0

    __name__ = "repetition_reward"

    def __post_init__(self) -> None:
        if self.ngram_size < 1 or self.max_penalty > 0:
            raise ConfigurationError(
                f"ngram_size is {self.ngram_size} and max_penalty {self.max_penalty}. The first must be at least 1, the "
                "second at most 0."
            )

    def __call__(
        self, completions: Completions | None = None, *, completion_ids: TokenIds = None, **kwargs: Any
    ) -> list[float | None]:
        """Score completions by their token ids; in `[max_penalty, 0]`."""
        from trl.rewards import get_repetition_penalty_reward

        ids = _token_ids(self.__name__, completion_ids)
        return list(get_repetition_penalty_reward(self.ngram_size, self.max_penalty)(completion_ids=ids))


@dataclass(frozen=True)
class SoftOverlongReward:
    """Punish completions that come near the length limit: TRL's `get_soft_overlong_punishment` (DAPO, Eq. 13).

    Args:
        max_length (`int`): The limit, in tokens: `max_completion_length`.
        cache (`int`): The punishment grows from 0 to -1 over this many tokens before the limit. DAPO: 4,096 of 20,480.
    """

    max_length: int
    cache: int

    __name__ = "soft_overlong_reward"

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.max_length:
            raise ConfigurationError(
                f"cache is {self.cache} and max_length {self.max_length}. The cache must be at least 1 and at most "
                "max_length."
            )

    def __call__(
        self, completions: Completions | None = None, *, completion_ids: TokenIds = None, **kwargs: Any
    ) -> list[float | None]:
        """Score completions by their number of tokens; in [-1, 0]."""
        from trl.rewards import get_soft_overlong_punishment

        ids = _token_ids(self.__name__, completion_ids)
        return list(get_soft_overlong_punishment(self.max_length, self.cache)(completion_ids=ids))


@dataclass(frozen=True)
class CosineReward:
    """Scale accuracy by length: TRL's `get_cosine_scaled_reward` on our verifiers (arXiv 2502.03373, Appendix C.1).

    A right answer earns more the shorter it is, a wrong one loses less the longer it is. It replaces the accuracy reward.
    A wrong answer thus gains by length: watch the length of wrong answers, which is logged apart (trap 24).

    Args:
        max_length (`int`): Length in tokens at which the curve ends: `max_completion_length`.
        min_value_wrong (`float`, defaults to -1.0): A wrong answer at length 0.
        max_value_wrong (`float`, defaults to -0.5): A wrong answer at `max_length` and above.
        min_value_correct (`float`, defaults to 0.5): A right answer at `max_length` and above.
        max_value_correct (`float`, defaults to 1.0): A right answer at length 0.
    """

    max_length: int
    min_value_wrong: float = -1.0
    max_value_wrong: float = -0.5
    min_value_correct: float = 0.5
    max_value_correct: float = 1.0

    __name__ = "cosine_reward"

    def __post_init__(self) -> None:
        values = (self.min_value_wrong, self.max_value_wrong, self.min_value_correct, self.max_value_correct)
        if self.max_length < 1 or list(values) != sorted(values):
            raise ConfigurationError(
                f"max_length is {self.max_length}, the values are {values}. The length must be at least 1 and the values "
                "(min and max when wrong, min and max when right) must not fall, or a wrong answer could beat a right one."
            )

    def __call__(
        self, completions: Completions, *, completion_ids: TokenIds = None, **kwargs: Any
    ) -> list[float | None]:
        """Score completions; `None` where [`accuracy_reward`] gives `None`. `kwargs` are those it takes."""
        from trl.rewards import get_cosine_scaled_reward

        ids = _token_ids(self.__name__, completion_ids)
        correct = accuracy_reward(completions, **kwargs)
        # TRL's schedule asks its own verifier, which reads the whole completion. It is shown our verdict instead: a
        # right, a wrong or an unreadable answer to the question whose answer is 1.
        shown = [[{"role": "assistant", "content": "\\boxed{1}" if one else "\\boxed{2}"}] for one in correct]
        solutions = ["" if one is None else "$1$" for one in correct]
        schedule: Callable[..., list[float | None]] = get_cosine_scaled_reward(
            self.max_length,
            self.min_value_wrong,
            self.max_value_wrong,
            self.min_value_correct,
            self.max_value_correct,
        )
        return schedule(completions=shown, solution=solutions, completion_ids=ids)


tag_count_reward = TagCountReward()
repetition_reward = RepetitionReward()


def _token_ids(name: str, completion_ids: TokenIds) -> list[list[int]]:
    if completion_ids is None:
        raise DataError(
            f"{name} needs the completions' token ids (`completion_ids`), which TRL's trainers pass. Without a trainer, "
            "tokenize the completions and pass them yourself."
        )
    return [list(ids) for ids in completion_ids]
