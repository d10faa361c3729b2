"""Sort and trim: rows of similar length share a forward pass that is no wider than they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Chunk:
    """Some rows of a padded batch, and the columns that hold their tokens.

    Args:
        rows (`torch.Tensor` of shape `(n,)`): Indices of the rows.
        start (`int`): First column with a token.
        stop (`int`): One past the last column with a token.
    """

    rows: torch.Tensor
    start: int
    stop: int


def trimmed_chunks(attention_mask: torch.Tensor, completion_width: int, rows_per_chunk: int) -> Iterator[Chunk]:
    """Split a batch into chunks of rows with similar lengths, each trimmed on both sides.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, P + C)`): 1 for tokens; prompts padded left, completions right.
        completion_width (`int`): C. A column of the completion is always kept, so that every row has an output.
        rows_per_chunk (`int`): Rows in a chunk, at most. Their number depends on B alone, so that all ranks agree.

    Yields:
        [`Chunk`]: Together they cover every row once.
    """
    width = attention_mask.size(1)
    prompt_width = width - completion_width
    columns = torch.arange(width, device=attention_mask.device)
    mask = attention_mask.bool()
    first = torch.where(mask, columns, width).amin(dim=1).clamp(max=prompt_width - 1 if prompt_width else 0)
    last = torch.where(mask, columns, -1).amax(dim=1).clamp(min=prompt_width)
    order = torch.argsort(last - first, stable=True)
    bounds = torch.stack([first, last], dim=1)[order].tolist()  # one transfer for all chunks
    for begin in range(0, len(bounds), rows_per_chunk):
        part = bounds[begin : begin + rows_per_chunk]
        start, stop = min(low for low, _ in part), max(high for _, high in part) + 1
        yield Chunk(order[begin : begin + rows_per_chunk], start, stop)
