"""What a completion earns. Rewards of TRL's signature, `(completions, **columns) -> list[float | None]`.

`None` means "not applicable". All take completions as text or as messages, are told of a prefilled `<think>` by the
column `prefill`, and are module-level functions or configured objects with a `__name__`, hence picklable. They work in
plain TRL too: `trl grpo --reward_funcs trl_r1.rewards.accuracy_reward`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.prompts import PromptTemplate
from trl_r1.rewards.accuracy import accuracy_reward
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

RewardFunction = Callable[..., list[float | None]]

REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "think_format": think_format_reward,
    "random": random_reward,
    "language_consistency": language_consistency_reward,
    "tag_count": tag_count_reward,
    "repetition": repetition_reward,
}
# What a gold completion must earn; the others have no gold.
MAXIMA: dict[str, float] = {
    "accuracy_reward": 1.0,
    "format_reward": 1.0,
    "think_format_reward": 1.0,
    "tag_count_reward": 1.0,
}

__all__ = [
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
    "check_template",
    "format_reward",
    "get_reward",
    "language_consistency_reward",
    "random_reward",
    "repetition_reward",
    "tag_count_reward",
    "think_format_reward",
]


def get_reward(name: str | RewardFunction) -> RewardFunction:
    """Return a reward by its name in YAML.

    Args:
        name (`str` or `Callable`):
            One of [`REWARDS`] (`"accuracy"` or `"accuracy_reward"`), the dotted path of your own function, or a
            function, which is returned as it is.

    Raises:
        [`ConfigurationError`]: For a name that does not exist, a path that cannot be imported or is no function.
    """
    if callable(name):
        return name
    short = name.removeprefix("trl_r1.rewards.").removesuffix("_reward")
    if short in REWARDS:
        return REWARDS[short]
    if "." not in name:
        raise unknown("reward", name, REWARDS, "Your own function is named by its dotted path.")
    module, _, attribute = name.rpartition(".")
    try:
        reward = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise unknown("reward", name, REWARDS, f"Importing the dotted path failed: {error}.") from error
    if not callable(reward):
        raise ConfigurationError(f"Reward {name!r} is a {type(reward).__name__}. It must be a function.")
    return reward


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
        for function in functions:
            name = getattr(function, "__name__", type(function).__name__)
            prompt = template.trl_prompt(row.prompt)
            scores[name] = function(completions=[completion], prompts=[prompt], prefill=[template.prefill], **columns)[
                0
            ]
            maximum = MAXIMA.get(name)
            if maximum is not None and scores[name] != maximum:
                raise ConfigurationError(
                    f"Under the {template.name!r} template (form {template.form!r}) the gold completion "
                    f"{template.prefill + gold!r} to {str(row.prompt)[:80]!r} scores {scores[name]} by {name}, not "
                    f"{maximum}. 'format' goes with form 'answer', 'think_format' with 'answer' or 'boxed'."
                )
        shown.append((template.render(row.prompt, tokenizer), gold, scores))
    return shown
