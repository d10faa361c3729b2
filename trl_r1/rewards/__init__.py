"""What a completion earns. Rewards of TRL's signature, `(completions, **columns) -> list[float | None]`.

`None` means "not applicable". All take completions as text or as messages, are told of a prefilled `<think>` by the
column `prefill`, and are module-level functions or configured objects with a `__name__`, hence picklable. They work in
plain TRL too: `trl grpo --reward_funcs trl_r1.rewards.accuracy_reward`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from trl_r1.exceptions import ConfigurationError
from trl_r1.prompts import PromptTemplate
from trl_r1.rewards.accuracy import accuracy_reward
from trl_r1.rewards.configured import CONFIGURABLE, REWARDS, RewardFunction, build_rewards, get_reward
from trl_r1.rewards.control import random_reward
from trl_r1.rewards.format import format_reward, think_format_reward
from trl_r1.rewards.language import LanguageConsistencyReward, language_consistency_reward
from trl_r1.rewards.pool import RewardPool
from trl_r1.rewards.router import RewardRouter, Schedule
from trl_r1.rewards.shaping import (
    CosineReward,
    RepetitionReward,
    SoftOverlongReward,
    TagCountReward,
    repetition_reward,
    tag_count_reward,
)
from trl_r1.rows import Row
from trl_r1.verifiers import gold_answer

# What a gold completion must earn; the others have no gold.
MAXIMA: dict[str, float] = {
    "accuracy_reward": 1.0,
    "format_reward": 1.0,
    "think_format_reward": 1.0,
    "tag_count_reward": 1.0,
}

__all__ = [
    "CONFIGURABLE",
    "MAXIMA",
    "REWARDS",
    "CosineReward",
    "LanguageConsistencyReward",
    "RepetitionReward",
    "RewardFunction",
    "RewardPool",
    "RewardRouter",
    "Schedule",
    "SoftOverlongReward",
    "TagCountReward",
    "accuracy_reward",
    "build_rewards",
    "check_template",
    "format_reward",
    "get_reward",
    "language_consistency_reward",
    "random_reward",
    "repetition_reward",
    "tag_count_reward",
    "think_format_reward",
]


def check_template(
    template: PromptTemplate,
    rows: Sequence[Row | Mapping[str, Any]],
    rewards: Sequence[str | RewardFunction],
    tokenizer: Any = None,
) -> list[tuple[str, str, dict[str, float | None]]]:
    """Refuse a template under which a right answer in the right form does not score the maximum.

    Also what `--preview` prints.

    Args:
        template ([`PromptTemplate`]): The template.
        rows (`list`): A few rows (or their columns, before [`PromptTemplate.apply`]); rows without a rule are skipped.
        rewards (`list`): Rewards by name or as functions; those not in [`MAXIMA`] are scored but not judged.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed by the chat template.

    Returns:
        `list[tuple[str, str, dict]]`: Per row the rendered prompt, the gold completion and its rewards by name.

    Raises:
        [`ConfigurationError`]: Naming the row, the completion, the reward and what it scored.
    """
    functions = [get_reward(reward) for reward in rewards]
    shown: list[tuple[str, str, dict[str, float | None]]] = []
    for item in rows:
        row = item if isinstance(item, Row) else Row.from_columns(item)
        answer = gold_answer(row)
        if answer is None:
            continue
        gold = template.gold(answer)
        completion: Any = gold if template.name == "base" else [{"role": "assistant", "content": gold}]
        columns: dict[str, Any] = {name: [value] for name, value in row.asdict().items() if name != "prompt"}
        # What else a trainer passes: lengths for the shaping rewards, the first step for a schedule.
        columns["completion_ids"] = [tokenizer(gold)["input_ids"] if tokenizer is not None else list(gold.encode())]
        columns["trainer_state"] = SimpleNamespace(global_step=0)
        scores: dict[str, float | None] = {}
        columns["prompts"] = [template.trl_prompt(row.prompt)]
        columns["prefill"] = [template.prefill]
        for function in functions:
            name = getattr(function, "__name__", type(function).__name__)
            scores[name] = function(completions=[completion], **columns)[0]
            if isinstance(function, RewardRouter):
                scores |= function.parts([completion], **columns | {"domain": row.domain})
        for name, score in scores.items():
            maximum = MAXIMA.get(name)
            if maximum is not None and score != maximum:
                raise ConfigurationError(
                    f"Under the {template.name!r} template (form {template.form!r}) the gold completion "
                    f"{template.prefill + gold!r} to {str(row.prompt)[:80]!r} scores {score} by {name}, not "
                    f"{maximum}. 'format' goes with form 'answer', 'think_format' with 'answer' or 'boxed'."
                )
        shown.append((template.render(row.prompt, tokenizer), gold, scores))
    return shown
