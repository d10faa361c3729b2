"""A packed forward of a few tokens, to see whether a model keeps the sequences of a row apart.

Nothing in a configuration says whether layers hand the bounds of sequences on to attention, or mix tokens elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trl_r1.modeling.attention import Attention, enable_packing, unused_mask
from trl_r1.modeling.packing import pack, spans

# Of different lengths, so that bounds matter.
_LENGTHS = (7, 5)
# Largest error of a token's logits, relative to their norm, in half precision or not. In half precision two kernels differ
# by a few percent, and by more where a router then takes another expert: there the median over a row's tokens counts.
_TOLERANCE = {True: 0.1, False: 1e-3}
# Of a change in the other row: kernel and shapes stay the same.
_LEAK_TOLERANCE = {True: 0.02, False: 1e-3}


def why_packing_fails(model: Any, attention: Attention, dtype: torch.dtype) -> str | None:
    """Say how packed rows differ from rows on their own, or `None` if they agree; leaves the model as it was.

    Two rows share a forward pass; neither may change when the other does, and both must be what they are alone.

    Args:
        model (`PreTrainedModel`): The policy, without PEFT's wrapper, its weights whole. Called under autocast where
            training is.
        attention ([`~trl_r1.modeling.attention.Attention`]): The choice, which packs.
        dtype (`torch.dtype`): The type its layers compute in.

    Returns:
        `str` or `None`: The reason.
    """
    device = model.get_input_embeddings().weight.device
    kind = attention.kind if device.type == "cuda" else "sdpa"  # a model that goes to its device later
    half = dtype in (torch.bfloat16, torch.float16)
    width, vocabulary = max(_LENGTHS), model.get_input_embeddings().weight.size(0)
    step = max(1, vocabulary // (4 * width))
    rows = (torch.arange(4 * width, device=device).view(4, width) * step + step // 2) % vocabulary
    one, other, new_one, new_other = rows.unbind()
    with _undisturbed(model, device):
        try:
            alone = [_logits(model, row[None, :length]) for row, length in zip((one, other), _LENGTHS, strict=True)]
            enable_packing(model, Attention(kind, attention.reason))
            packed = _packed_logits(model, one, other)
            after_new_one = _packed_logits(model, new_one, other)
            after_new_other = _packed_logits(model, one, new_other)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"a trial of {type(model).__name__} on a packed row fails: {str(error).partition('. ')[0]}"
    leaks = max(_error(after_new_one[1], packed[1], half), _error(after_new_other[0], packed[0], half))
    if not leaks <= _LEAK_TOLERANCE[half]:
        return f"a sequence of {type(model).__name__} sees its neighbour in a packed row"
    if not max(_error(ours, row, half) for ours, row in zip(packed, alone, strict=True)) <= _TOLERANCE[half]:
        return f"packed rows of {type(model).__name__} differ from the same rows on their own"
    return None


def _logits(model: Any, ids: torch.Tensor, **bounds: Any) -> torch.Tensor:
    mask = unused_mask(ids.device) if bounds else torch.ones_like(ids)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **bounds).logits
    return logits[0].float()


def _packed_logits(model: Any, *rows: torch.Tensor) -> list[torch.Tensor]:
    columns = torch.arange(max(_LENGTHS), device=rows[0].device)
    mask = torch.stack([columns < length for length in _LENGTHS])
    inputs = pack(torch.stack(rows), range(len(rows)), spans(mask), completion_start=1).model_inputs
    del inputs["shift_labels"]
    logits = _logits(model, ids=inputs.pop("input_ids"), **inputs)  # type: ignore[arg-type]
    return list(logits.split(_LENGTHS))


def _error(ours: torch.Tensor, expected: torch.Tensor, half: bool) -> float:
    """Error of a row's logits relative to their norm, without what softmax ignores; NaN stays NaN."""
    ours, expected = (logits - logits.mean(dim=-1, keepdim=True) for logits in (ours, expected))
    errors = (ours - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)
    return float(errors.median() if half else errors.max())


@contextmanager
def _undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Evaluate without gradient; modes of modules, attention and random numbers are afterwards what they were."""
    attention = model.config._attn_implementation
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            model.set_attn_implementation(attention)
