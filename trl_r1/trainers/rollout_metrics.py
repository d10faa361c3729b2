"""What R1's curves show of a rollout: lengths of right and wrong answers, truncation, spread, behaviours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trl_r1.behaviours import measure, reflective_words
from trl_r1.responses import completion_text

_ACCURACY = "accuracy_reward"
# Behaviours in the log, of as many completions per process: measuring one of 8k tokens takes 30 ms.
_BEHAVIOURS = ("verifications", "restarts", "alternatives", "repetition", "mixing")
_MEASURED = 32


def completion_facts(
    completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], truncated: Sequence[bool], device: torch.device
) -> torch.Tensor:
    """Measure this rank's completions.

    Args:
        completions (`list`): Texts or messages.
        completion_ids (`list[list[int]]`): Their tokens.
        truncated (`list[bool]`): Which were cut off.
        device (`torch.device`): Where to.

    Returns:
        `torch.Tensor` of shape `(B, 3)`: Tokens, whether cut off, reflective words.
    """
    texts = [completion_text(completion) for completion in completions]
    return torch.tensor(
        [
            [len(ids), float(cut), reflective_words(text)]
            for ids, cut, text in zip(completion_ids, truncated, texts, strict=True)
        ],
        device=device,
    )


def behaviour_facts(completions: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Measure some of this rank's completions, evenly spread over the rollout.

    Args:
        completions (`list`): Texts or messages.
        device (`torch.device`): Where to.

    Returns:
        `torch.Tensor` of shape `(1, 1 + 5)`: How many were measured, and their sums of [`_BEHAVIOURS`].
    """
    stride = -(-len(completions) // _MEASURED) or 1
    seen = [measure(completion_text(completion)) for completion in completions[::stride]]
    sums = [sum(float(getattr(one, name)) for one in seen) for name in _BEHAVIOURS]
    return torch.tensor([[float(len(seen)), *sums]], device=device)


def behaviour_metrics(facts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Average [`behaviour_facts`] of all ranks, as `behaviours/restarts` and so on, per completion."""
    count, *sums = facts.sum(dim=0)
    return {f"behaviours/{name}": total / count.clamp(min=1) for name, total in zip(_BEHAVIOURS, sums, strict=True)}


def rollout_metrics(
    facts: torch.Tensor, rewards: torch.Tensor, names: Sequence[str], without_spread: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Average over the completions of all ranks.

    Args:
        facts (`torch.Tensor` of shape `(B, 3)`): [`completion_facts`] of all ranks.
        rewards (`torch.Tensor` of shape `(B, F)`): Of all ranks; NaN where a row cannot be scored.
        names (`list[str]`): Names of the F rewards.
        without_spread (`torch.Tensor` of shape `(groups,)`): Which groups teach nothing.

    Returns:
        `dict[str, torch.Tensor]`: Scalars by their names in the log.
    """
    lengths, truncated, reflective = facts.unbind(dim=1)
    values = {
        "completions/truncated": truncated.mean(),
        "completions/unscorable": rewards.isnan().all(dim=1).float().mean(),
        "completions/reflective_words": reflective.mean(),
        "groups/without_spread": without_spread.float().mean(),
    }
    if _ACCURACY in names:
        accuracy = rewards[:, list(names).index(_ACCURACY)]
        values["completions/mean_length_right"] = lengths[accuracy > 0.5].mean()
        values["completions/mean_length_wrong"] = lengths[accuracy <= 0.5].mean()
    return values
