"""The rows of an optimizer step as they travel: put together, sent to all ranks, taken apart again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from trl_r1.modeling.packing import Span

# What TRL's rollout gives, by shape: (B, P) padded left, (B, C) padded right, one value or more per row, one per rollout.
PROMPT_FIELDS = {"prompt_ids", "prompt_mask"}
COMPLETION_FIELDS = {
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
}
ROW_FIELDS = {"advantages", "importance_sampling_ratio"}  # (B,), (B, 1) or (B, C)
ROLLOUT_FIELDS = {"num_items_in_batch"}
KNOWN_FIELDS = PROMPT_FIELDS | COMPLETION_FIELDS | ROW_FIELDS | ROLLOUT_FIELDS

Rows = dict[str, Any]


def concatenate(pending: Sequence[Rows]) -> Rows:
    """Put the micro-batches of one rollout, which share their widths, under one another."""
    return {
        name: pending[0][name] if name in ROLLOUT_FIELDS else torch.cat([micro[name] for micro in pending])
        for name in pending[0]
    }


def gather_rows(whole: Rows, accelerator: Accelerator) -> Rows:
    """Give every rank the rows of all, padded to common widths; a collective.

    Args:
        whole (`dict`): This rank's rows; every rank has equally many, and the same fields.
        accelerator ([`~accelerate.Accelerator`]): To gather with.

    Returns:
        `dict`: The same fields with `B * ranks` rows, in the order of ranks.
    """
    widths = torch.tensor([whole["prompt_ids"].size(1), whole["completion_ids"].size(1)], device=accelerator.device)
    prompt, completion = accelerator.gather(widths).view(-1, 2).amax(dim=0).tolist()
    own = whole["completion_ids"].size(1)
    gathered: Rows = {}
    for name in sorted(whole):
        value = whole[name]
        if name in ROLLOUT_FIELDS:
            gathered[name] = value
            continue
        if name in PROMPT_FIELDS:
            value = torch.nn.functional.pad(value, (prompt - value.size(1), 0))
        elif name in COMPLETION_FIELDS or (value.dim() == 2 and value.size(1) == own and own > 1):
            value = torch.nn.functional.pad(value, (0, completion - value.size(1)))
        gathered[name] = accelerator.gather(value.contiguous())
    return gathered


def take_rows(whole: Rows, chosen: Sequence[int], where: Sequence[Span]) -> Rows:
    """Take some rows, trimmed to their own widths.

    Args:
        whole (`dict`): Fields with B rows.
        chosen (`list[int]`): Indices. When there are none, one row is taken and its tokens masked, so that a forward pass
            has something to hold on to.
        where (`list[Span]`): Spans of the rows in prompt and completion laid side by side.

    Returns:
        `dict`: The same fields.
    """
    prompt_width, width = whole["prompt_ids"].size(1), whole["completion_ids"].size(1)
    index = torch.tensor(list(chosen) or [0], device=whole["completion_ids"].device)
    start = min((where[row].start for row in chosen), default=prompt_width - 1)
    stop = max((where[row].stop for row in chosen), default=prompt_width + 1) - prompt_width
    taken: Rows = {}
    for name, value in whole.items():
        if name in ROLLOUT_FIELDS:
            taken[name] = value
            continue
        rows = value.index_select(0, index)
        if name in PROMPT_FIELDS:
            rows = rows[:, start:]
        elif name in COMPLETION_FIELDS or (value.dim() == 2 and value.size(1) == width and width > 1):
            rows = rows[:, :stop]
        taken[name] = rows
    if not chosen:
        taken["completion_mask"] = torch.zeros_like(taken["completion_mask"])
        taken["prompt_mask"] = torch.ones_like(taken["prompt_mask"])
        taken["advantages"] = torch.zeros_like(taken["advantages"])
    return taken
