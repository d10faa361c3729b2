"""The rows of one optimizer step, regrouped into micro-batches of equal cost whose losses add up to TRL's.

TRL's loss of a micro-batch is a mean over its rows, a sum over tokens divided by those of the whole step, or a mean over
its tokens. Each bin carries the factor that turns its own mean back into its share of TRL's (see [`factor_of`]), so any
grouping has the same sum and the same gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.balance import SequenceCost, balanced_bins
from trl_r1.modeling.packing import Span, spans
from trl_r1.trainers.exchange import KNOWN_FIELDS, Rows, concatenate, gather_rows, take_rows

# Losses whose value for a micro-batch is a mean over its rows: a bin of another size is weighted by its rows.
MEANS_OVER_ROWS = frozenset({"grpo", "sapo", "luspo", "dr_grpo", "r1"})
# Losses whose sums are divided by the tokens of the whole optimizer step, however rows are grouped.
SUMS_OVER_TOKENS = frozenset({"dapo", "cispo", "vespo"})
# Losses that divide by the tokens of TRL's micro-batch, so that a bin stays inside one.
MEANS_OVER_TOKENS = frozenset({"bnpo"})

# What a bin carries beside TRL's inputs: the factor of its loss, and how many tokens and rows it scores.
FACTOR = "_bin_factor"
SCORED_TOKENS = "_bin_scored_tokens"
SCORED_ROWS = "_bin_scored_rows"


def regroup(
    pending: Sequence[Rows],
    *,
    loss_type: str,
    budget: int,
    cost: SequenceCost,
    skip_zero_advantages: bool,
    accelerator: Accelerator,
) -> list[Rows]:
    """Make this rank's bins; a collective, and every rank gets the same number.

    Args:
        pending (`list[dict]`): TRL's micro-batches of one optimizer step, all of one rollout.
        loss_type (`str`): TRL's, or `"r1"`.
        budget (`int`): Tokens in a bin, at most; a longer row gets a bin of its own.
        cost ([`~trl_r1.modeling.balance.SequenceCost`]): What is made equal.
        skip_zero_advantages (`bool`): Leave out rows whose advantage is 0. Exact only if nothing else is in the loss.
        accelerator ([`~accelerate.Accelerator`]): For the ranks.

    Returns:
        `list[dict]`: The inputs of each bin's loss, with [`FACTOR`], [`SCORED_TOKENS`] and [`SCORED_ROWS`]; the most costly comes first.

    Raises:
        [`ConfigurationError`]: The rollout carries fields that cannot be regrouped.
    """
    if strange := {name for micro in pending for name in micro} - KNOWN_FIELDS:
        raise ConfigurationError(
            f"The rollout carries {sorted(strange)}, which cannot be regrouped. Set max_tokens_per_microbatch: null to "
            "keep TRL's micro-batches."
        )
    rows_per_micro_batch = pending[0]["completion_ids"].size(0)
    whole = concatenate(pending)
    ranks = accelerator.num_processes
    if ranks > 1 and loss_type not in MEANS_OVER_TOKENS:
        whole = gather_rows(whole, accelerator)
    where = spans(torch.cat([whole["prompt_mask"], whole["completion_mask"]], dim=1))
    start = whole["prompt_ids"].size(1)
    rows = [row for row in _rows_that_teach(whole, skip_zero_advantages) if where[row].scored(start)]
    if loss_type in MEANS_OVER_TOKENS:
        chosen = _inside_micro_batches(rows, where, start, cost, budget, rows_per_micro_batch)
        most = max(gather_object([len(chosen)]))
        chosen += [[] for _ in range(max(most, 1) - len(chosen))]
    else:
        tokens, costs = _sizes(rows, where, start, cost)
        shared = balanced_bins(tokens, costs, budget, ranks)[accelerator.process_index]
        chosen = [[rows[i] for i in items] for items in shared]
    return [
        {
            **take_rows(whole, members, where),
            FACTOR: factor_of(members, whole, loss_type, rows_per_micro_batch),
            SCORED_TOKENS: sum(where[row].scored(start) for row in members),
            SCORED_ROWS: len(members),
        }
        for members in chosen
    ]


def factor_of(members: Sequence[int], whole: Rows, loss_type: str, rows_per_micro_batch: int) -> Any:
    """Return what a bin's loss is multiplied by, so that the bins of a step add up to TRL's loss.

    Args:
        members (`list[int]`): Rows in the bin.
        whole (`dict`): All rows of the step.
        loss_type (`str`): TRL's, or `"r1"`.
        rows_per_micro_batch (`int`): TRL's `per_device_train_batch_size`.

    Returns:
        `float` or `torch.Tensor`: Rows in the bin over rows in TRL's micro-batch for means over rows; 1 for sums over
        tokens; tokens in the bin over tokens in TRL's micro-batch for `bnpo`; 0 for a bin without rows.
    """
    if not members:
        return 0.0
    if loss_type in MEANS_OVER_ROWS:
        return len(members) / rows_per_micro_batch
    if loss_type in SUMS_OVER_TOKENS:
        return 1.0
    first = members[0] // rows_per_micro_batch * rows_per_micro_batch
    mask = whole["completion_mask"] * whole.get("tool_mask", 1)
    return mask[list(members)].sum() / mask[first : first + rows_per_micro_batch].sum().clamp(min=1)


def _rows_that_teach(whole: Rows, skip_zero_advantages: bool) -> list[int]:
    count = whole["completion_ids"].size(0)
    if not skip_zero_advantages:
        return list(range(count))
    return whole["advantages"].reshape(count, -1).ne(0).any(dim=1).nonzero().flatten().tolist()


def _sizes(rows: Sequence[int], where: Sequence[Span], start: int, cost: SequenceCost) -> tuple[list[int], list[float]]:
    tokens = [where[row].length for row in rows]
    return tokens, [cost(where[row].length, where[row].scored(start)) for row in rows]


def _inside_micro_batches(
    rows: Sequence[int], where: Sequence[Span], start: int, cost: SequenceCost, budget: int, rows_per_micro_batch: int
) -> list[list[int]]:
    bins = []
    for first in range(0, max(rows, default=-1) + 1, rows_per_micro_batch):
        members = [row for row in rows if first <= row < first + rows_per_micro_batch]
        tokens, costs = _sizes(members, where, start, cost)
        parts = balanced_bins(tokens, costs, budget)[0] if members else []
        bins += [[members[i] for i in items] for items in parts if items]
    return bins
