"""The objective exactly as DeepSeek-R1 prints it (arXiv 2501.12948v1, Eq. 1-2); TRL has the others."""

from __future__ import annotations

import torch

# exp() of more than this overflows float32 in the k3 estimator; a sequence that far from its reference has no usable ratio.
_MAX_LOG_RATIO = 60.0

# TRL's ways to correct for an engine that samples from slightly other probabilities.
SAMPLING_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def sequence_log_ratio(logps: torch.Tensor, other_logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-ratio of whole sequences, log p(o) - log p'(o).

    Args:
        logps (`torch.Tensor` of shape `(B, T)`): Log-probabilities per token.
        other_logps (`torch.Tensor` of shape `(B, T)`): Those of the other policy.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens of the completion.

    Returns:
        `torch.Tensor` of shape `(B,)`: Clamped to ±60, beyond which its exponential is not finite.
    """
    return ((logps - other_logps) * mask).sum(-1).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def r1_sequence_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    ref_logps: torch.Tensor | None,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""GRPO with one ratio per sequence and no 1/|o|, as printed in R1.

    $$ -\min(\rho_i A_i, \mathrm{clip}(\rho_i, 1-\epsilon, 1+\epsilon) A_i) + \beta\, D_{KL}, \qquad
       \rho_i = \frac{\pi_\theta(o_i|q)}{\pi_{old}(o_i|q)}, \quad
       D_{KL} = \frac{\pi_{ref}(o_i|q)}{\pi_\theta(o_i|q)} - \log\frac{\pi_{ref}(o_i|q)}{\pi_\theta(o_i|q)} - 1 $$

    Args:
        logps (`torch.Tensor` of shape `(B, T)`): The policy's log-probabilities, with gradient.
        old_logps (`torch.Tensor` of shape `(B, T)`): Those of the policy that wrote the completions.
        ref_logps (`torch.Tensor` of shape `(B, T)`, *optional*): The reference's; needed when `beta` is not 0.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens of the completion.
        advantages (`torch.Tensor` of shape `(B,)`): Group-relative advantages.
        epsilon_low (`float`): Lower clip range.
        epsilon_high (`float`): Upper clip range.
        beta (`float`): KL coefficient.

    Returns:
        `tuple` of three `torch.Tensor` of shape `(B,)`: The policy term and the KL of every sequence, and its ratio.
    """
    ratio = sequence_log_ratio(logps, old_logps, mask).exp()
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    policy_loss = -torch.min(ratio * advantages, clipped * advantages)
    if ref_logps is None or beta == 0.0:
        return policy_loss, torch.zeros_like(policy_loss), ratio
    log_ref_ratio = sequence_log_ratio(ref_logps, logps, mask)
    return policy_loss, log_ref_ratio.exp() - log_ref_ratio - 1, ratio


def sampling_ratio(
    logps: torch.Tensor,
    sampling_logps: torch.Tensor,
    mask: torch.Tensor,
    *,
    mode: str,
    clip_min: float | None,
    clip_max: float | None,
) -> torch.Tensor:
    """Importance ratio between the trainer and the engine that sampled (the modes are TRL's).

    Args:
        logps (`torch.Tensor` of shape `(B, T)`): The trainer's log-probabilities, without gradient.
        sampling_logps (`torch.Tensor` of shape `(B, T)`): The engine's; NaN where it has none, which counts as equal.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens that are learned from.
        mode (`str`): One of [`SAMPLING_MODES`]: `truncate` clamps the ratio, `mask` drops what lies outside.
        clip_min (`float`, *optional*): Lower bound of the ratio.
        clip_max (`float`, *optional*): Upper bound.

    Returns:
        `torch.Tensor` of shape `(B, T)`, or `(B, 1)` for a ratio of sequences.
    """
    difference = torch.nan_to_num((logps - sampling_logps) * mask, nan=0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        return ratio if clip_min is None and clip_max is None else ratio.clamp(clip_min, clip_max)
    outside = torch.zeros_like(ratio, dtype=torch.bool)
    if clip_min is not None:
        outside |= ratio < clip_min
    if clip_max is not None:
        outside |= ratio > clip_max
    return ratio.masked_fill(outside, 0.0)


def sampling_ratio_metrics(
    logps: torch.Tensor, sampling_logps: torch.Tensor, mask: torch.Tensor, ratio: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What TRL logs of the ratio: how far trainer and engine are apart, and how far the correction goes.

    Args:
        logps, sampling_logps, mask (`torch.Tensor` of shape `(B, T)`): As in [`sampling_ratio`].
        ratio (`torch.Tensor` of shape `(B, T)` or `(B, 1)`): What it returned.

    Returns:
        `dict[str, torch.Tensor]`: Scalars by TRL's names; this rank's own.
    """
    known = mask.bool() & ~sampling_logps.isnan()
    gap = torch.where(known, (logps - sampling_logps).abs(), 0.0)
    counted = known if ratio.size(1) == mask.size(1) else mask.any(dim=1, keepdim=True)
    largest = torch.finfo(ratio.dtype).max
    values = torch.stack(
        [
            gap.sum() / known.sum().clamp(min=1),
            gap.max(),
            torch.where(counted, ratio, largest).min(),
            (ratio * counted).sum() / counted.sum().clamp(min=1),
            (ratio * counted).max(),
        ]
    )
    difference, correction = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"
    names = [f"{difference}/mean", f"{difference}/max", *(f"{correction}/{part}" for part in ("min", "mean", "max"))]
    return dict(zip(names, values.unbind(), strict=True))
