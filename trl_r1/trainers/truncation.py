"""Which completions were cut off, and how they are kept out of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator


def without_end(completion_ids: Iterable[Sequence[int]], end_ids: Sequence[int | None]) -> list[bool]:
    """Whether each completion lacks a token that ends it, which is TRL's own test of truncation.

    Args:
        completion_ids (`list[list[int]]`): Tokens of the completions.
        end_ids (`list[int]`): Tokens that end one.

    Returns:
        `list[bool]`: One for each completion.
    """
    return [not ids or ids[-1] not in end_ids for ids in completion_ids]


def without_truncated(rollout: dict[str, Any], truncated: Sequence[bool], accelerator: Accelerator) -> dict[str, Any]:
    """Take truncated completions out of a rollout's masks, as `mask_truncated_completions` asks; a collective.

    Args:
        rollout (`dict`): What TRL's `_generate_and_score_completions` returns.
        truncated (`list[bool]`): Which of this rank's completions were cut off.
        accelerator ([`~accelerate.Accelerator`]): To count the tokens of all ranks anew.

    Returns:
        `dict`: The rollout with other masks, and another number of tokens that the loss divides by.
    """
    mask = rollout["completion_mask"]
    kept = ~torch.tensor(truncated, dtype=torch.bool, device=mask.device).unsqueeze(1)
    names = [name for name in ("completion_mask", "tool_mask") if name in rollout]
    masks: dict[str, Any] = {name: rollout[name] * kept for name in names}
    learnt = masks["completion_mask"] * masks.get("tool_mask", 1)
    return {**rollout, **masks, "num_items_in_batch": accelerator.gather(learnt.sum()).sum()}
