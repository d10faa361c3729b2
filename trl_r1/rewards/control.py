"""Rewards that teach nothing, for control runs: whatever improves under them is not learned from being right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from trl_r1.responses import completion_text
from trl_r1.rewards.accuracy import Completions

DEFAULT_SEED = 0


def random_reward(
    completions: Completions,
    *,
    prompts: Sequence[Any] | None = None,
    seed: int = DEFAULT_SEED,
    **kwargs: Any,
) -> list[float | None]:
    """Reward half of all completions by the toss of a coin that depends on nothing but the texts and a seed.

    Deterministic in (seed, prompt, completion), so that runs resume and ranks agree.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions as text or as messages.
        prompts (`list`, *optional*): Their prompts, given by TRL.
        seed (`int`, defaults to 0): Another seed is another coin (`functools.partial(random_reward, seed=1)`).
        kwargs: Ignored; TRL passes the data set's columns.

    Returns:
        `list[float]`: 1.0 or 0.0, each with probability one half.
    """
    rewards: list[float | None] = []
    for i, completion in enumerate(completions):
        key = json.dumps([seed, prompts[i] if prompts is not None else "", completion_text(completion)], sort_keys=True)
        rewards.append(float(hashlib.sha256(key.encode()).digest()[0] & 1))
    return rewards
