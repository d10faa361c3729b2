"""[`R1SFTTrainer`]: TRL's SFT trainer with packed attention that needs no flash-attn."""

from __future__ import annotations

import logging
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTTrainer

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.attention import Attention, choose_attention, enable_packing, unused_mask, why_not_packable
from trl_r1.trainers.sft_config import R1SFTConfig

logger = logging.getLogger(__name__)


class R1SFTTrainer(SFTTrainer):
    """TRL's [`~trl.SFTTrainer`]; packed and padding-free batches attend without flash-attn and without a dense mask.

    With `packing=True` (or `padding_free=True`) TRL lays sequences end to end and tells the model where each begins
    (`cu_seq_lens_q`, `max_length_q` as a Python integer). Flash attention reads that; any other attention of transformers
    gets a mask of the row's length squared instead: 1 GiB for one row of 32k tokens. Here the attention is chosen as in
    [`~trl_r1.trainers.R1GRPOTrainer`] (`packed_attention`), and a hook before the backbone keeps that mask from being made.
    Losses and metrics are TRL's.

    No method of TRL's is replaced: its constructor is wrapped, and it relies on `DataCollatorForLanguageModeling` yielding
    `cu_seq_lens_q` and `max_length_q`, and on the attribute `padding_free` (`tests/test_trl_contract.py`).

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, or the name or path to load it from.
        args ([`R1SFTConfig`], *optional*):
            Settings.
        **kwargs:
            Anything else that [`~trl.SFTTrainer`] takes.

    Raises:
        [`~trl_r1.exceptions.ConfigurationError`]: A `packed_attention` that cannot work here.
    """

    _tag_names = ["trl", "sft", "trl-r1"]  # noqa: RUF012 - TRL's own class attribute
    args: R1SFTConfig
    model: Any
    attention: Attention

    def __init__(
        self, model: str | PreTrainedModel | PeftModel, args: R1SFTConfig | None = None, **kwargs: Any
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else str(model.name_or_path)
            args = R1SFTConfig(f"{name}-SFT".split("/")[-1])
        if not isinstance(args, R1SFTConfig):
            raise ConfigurationError(f"args is a {type(args).__name__}: R1SFTTrainer takes an R1SFTConfig.")
        super().__init__(model=model, args=args, **kwargs)
        self.attention = self._enable_packing()
        if self.padding_free and self.accelerator.is_main_process:
            logger.info("Packed batches: %s (%s).", self.attention.kind, self.attention.reason)

    def _enable_packing(self) -> Attention:
        """Set the attention of packed batches, if there are any; called when the model is loaded."""
        if not self.padding_free or self.args.packed_attention == "none":
            return Attention("padded", "TRL's own")
        base: Any = self.accelerator.unwrap_model(self.model)
        prompt_learning = bool(getattr(getattr(base, "active_peft_config", None), "is_prompt_learning", False))
        base = base.get_base_model() if isinstance(base, PeftModel) else base
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        device, dtype = self.accelerator.device, mixed or base.dtype
        asked = self.args.packed_attention
        attention = choose_attention(base, device, dtype, asked, prompt_learning=prompt_learning)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            return Attention("padded", "context and sequence parallelism bring their own attention")
        if not attention.packs and why_not_packable(base) is None and not prompt_learning:
            # The rows are packed already, so there is nothing to trim: one SDPA call per sequence.
            attention = choose_attention(base, device, dtype, "sdpa")
        enable_packing(base, attention)
        if attention.packs:
            base.base_model.register_forward_pre_hook(_without_dense_mask, with_kwargs=True)
        return attention


def _without_dense_mask(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Give the backbone a mask that it hands on unread, for a packed row whose bounds are known.

    Not done in the inputs, where TRL counts the tokens of an attention mask.
    """
    if kwargs.get("cu_seq_lens_q") is None or kwargs.get("attention_mask") is not None:
        return None
    return args, kwargs | {"attention_mask": unused_mask(kwargs["cu_seq_lens_q"].device)}
