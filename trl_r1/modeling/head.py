"""The LM head in float32 under PEFT, where TRL's own `cast_lm_head_to_fp32` looks for it in the wrong place."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from trl_r1.exceptions import ConfigurationError


def use_float32_head(model: PeftModel, temperature: float, outputs: tuple[str, ...]) -> None:
    """Project to the vocabulary in float32, outside autocast, and score with TRL's fused head.

    A 16-bit head is the largest part of the gap between a trainer's and an engine's log-probabilities: the engine keeps
    its logits in float32.

    Args:
        model ([`~peft.PeftModel`]): The policy; its head must carry no adapter.
        temperature (`float`): The rollout's, which divides the logits.
        outputs (`tuple[str, ...]`): What the fused head computes, as for TRL's `add_fused_lm_head`.

    Raises:
        [`ConfigurationError`]: If the head carries an adapter, which would have to be cast with it.
    """
    base: Any = model.get_base_model()
    head: nn.Module = base.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        raise ConfigurationError(
            "cast_lm_head_to_fp32=True does not go with an adapter on the lm_head. Remove 'lm_head' from "
            "lora_target_modules, or set cast_lm_head_to_fp32: false."
        )
    embeddings: nn.Module = base.get_input_embeddings()
    before = next(head.parameters()).dtype
    head.float()
    if next(embeddings.parameters()).dtype != before:  # tied: the layers still expect what the embeddings gave them
        embeddings.register_forward_hook(lambda module, args, output: output.to(before))
    head.register_forward_pre_hook(lambda module, args: tuple(_float32(arg) for arg in args))
    add_fused_lm_head(base, temperature=temperature, cast_lm_head_to_fp32=True, outputs=outputs)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
