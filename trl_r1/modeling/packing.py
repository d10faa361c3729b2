"""Packing: the tokens of many padded rows in one row without padding, and what comes out put back where it belongs.

A batch of TRL is `(B, P + C)`: prompts padded on the left, completions on the right. Here each row is the span from its
first token to its last ([`spans`]); spans are laid end to end ([`pack`]), one forward pass scores them all, and
[`Packed.scatter`] returns the values of the completion tokens in a `(B, C)` tensor, zeros elsewhere.

Everything about the layout is computed on the host from one transfer of the spans, so a pass does not wait for the device.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Span:
    """Where one row's tokens are.

    Args:
        start (`int`): Column of the first token.
        stop (`int`): One past the column of the last.
    """

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    def scored(self, completion_start: int) -> int:
        """Number of tokens that get a log-probability: those of the completion."""
        return max(0, self.stop - max(completion_start, self.start + 1))


def spans(attention_mask: torch.Tensor) -> list[Span]:
    """Find the tokens of every row, in one transfer from the device.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, W)`): 1 for tokens. Each row's tokens are one run.

    Returns:
        `list[Span]`: One per row; an empty span for a row without tokens.

    Raises:
        `ValueError`: A row has a hole.
    """
    width = attention_mask.size(1)
    columns = torch.arange(width, device=attention_mask.device)
    mask = attention_mask.bool()
    first = torch.where(mask, columns, width).amin(dim=1)
    stop = torch.where(mask, columns + 1, 0).amax(dim=1)
    found = torch.stack([first, stop, mask.sum(dim=1)], dim=1).tolist()
    result = []
    for row, (start, end, count) in enumerate(found):
        if count == 0:
            result.append(Span(0, 0))
            continue
        if end - start != count:
            raise ValueError(f"Row {row} has a hole in its attention mask: {count} tokens in columns {start} to {end}.")
        result.append(Span(start, end))
    return result


@dataclass(frozen=True)
class Packed:
    """Several rows laid end to end, as a model takes them.

    Args:
        input_ids (`torch.Tensor` of shape `(1, T)`): Tokens.
        position_ids (`torch.Tensor` of shape `(1, T)`): Counted from 0 in each sequence.
        shift_labels (`torch.Tensor` of shape `(1, T)`): The next token where it is scored, -100 elsewhere.
        cu_seq_lens (`torch.Tensor` of shape `(n + 1,)`): Where the sequences begin and the last one ends, int32.
        max_length (`int`): Length of the longest sequence.
        source (`torch.Tensor` of shape `(S,)`): Positions in the packed row that score a completion token.
        target (`torch.Tensor` of shape `(S,)`): Where their values go in the flattened `(B, C)`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    shift_labels: torch.Tensor
    cu_seq_lens: torch.Tensor
    max_length: int
    source: torch.Tensor
    target: torch.Tensor

    @property
    def model_inputs(self) -> dict[str, torch.Tensor | int]:
        """Keywords for the model's forward, except the attention mask."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "shift_labels": self.shift_labels,
            "cu_seq_lens_q": self.cu_seq_lens,
            "cu_seq_lens_k": self.cu_seq_lens,
            "max_length_q": self.max_length,
            "max_length_k": self.max_length,
        }

    def scatter(self, values: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """Put values of the packed row back in place.

        Args:
            values (`torch.Tensor` of shape `(1, T)`): One per packed token.
            into (`torch.Tensor` of shape `(B * C,)`): Where to; not changed.

        Returns:
            `torch.Tensor` of shape `(B * C,)`: `into` with the scored tokens' values, differentiable in both.
        """
        return into.index_put((self.target,), values[0].index_select(0, self.source).to(into.dtype))


def pack(
    input_ids: torch.Tensor, rows: Sequence[int], where: Sequence[Span], completion_start: int, multiple_of: int = 1
) -> Packed:
    """Lay rows end to end.

    Args:
        input_ids (`torch.Tensor` of shape `(B, P + C)`): Padded tokens.
        rows (`list[int]`): Indices of the rows to lay, in order.
        where (`list[Span]`): The spans of all B rows.
        completion_start (`int`): P, the first column of completions.
        multiple_of (`int`, defaults to 1):
            The row's length is filled up to a multiple of it by one more sequence, which scores nothing. Matrix products
            are fastest at multiples of 8 and more.

    Returns:
        [`Packed`]: On the device of `input_ids`.
    """
    width = input_ids.size(1)
    completion_width = width - completion_start
    taken = [(row, where[row]) for row in rows if where[row].length]
    lengths = [span.length for _, span in taken]
    total = sum(lengths)
    filling = -total % multiple_of if total else max(multiple_of, 1)
    bounds = np.cumsum([0, *lengths, *([filling] if filling else [])]).astype(np.int32)
    size = int(bounds[-1])
    flat = np.zeros(size, dtype=np.int64)  # the filling repeats the first token of the batch; nobody sees it
    positions = np.zeros(size, dtype=np.int64)
    scored = np.zeros(size, dtype=bool)
    targets = []
    for (row, span), begin in zip(taken, bounds.tolist(), strict=False):
        end = begin + span.length
        flat[begin:end] = np.arange(row * width + span.start, row * width + span.stop)
        positions[begin:end] = np.arange(span.length)
        first = max(completion_start, span.start + 1)  # first column that is predicted from one before it
        if span.stop > first:
            scored[begin + first - 1 - span.start : end - 1] = True
            offset = row * completion_width - completion_start
            targets.append(np.arange(offset + first, offset + span.stop))
    if filling:
        positions[size - filling :] = np.arange(filling)
    device = input_ids.device
    source = _to(np.flatnonzero(scored), device)
    index = _to(flat, device)
    tokens = input_ids.reshape(-1)
    following = tokens.index_select(0, (index + 1).clamp_(max=tokens.numel() - 1))
    return Packed(
        input_ids=tokens.index_select(0, index).unsqueeze(0),
        position_ids=_to(positions, device).unsqueeze(0),
        shift_labels=following.masked_fill(~_to(scored, device), -100).unsqueeze(0),
        cu_seq_lens=_to(bounds, device),
        max_length=int(max([*lengths, filling])),
        source=source,
        target=_to(np.concatenate(targets) if targets else np.zeros(0, dtype=np.int64), device),
    )


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack lengths into few bins of a token budget: best fit, longest first.

    Args:
        lengths (`list[int]`): Tokens of each sequence.
        budget (`int`): Tokens in a bin, at most. A longer sequence gets a bin of its own.

    Returns:
        `list[list[int]]`: Indices in each bin.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(room, (lengths[index], -1))
        if place < len(room):
            left, chosen = room.pop(place)
            bins[chosen].append(index)
        else:
            left, chosen = max(budget, lengths[index]), len(bins)
            bins.append([index])
        bisect.insort(room, (left - lengths[index], chosen))
    return bins
