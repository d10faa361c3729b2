"""[`R1SFTConfig`]: TRL's SFT settings with R1's values as defaults, and how packed sequences attend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from trl import SFTConfig

from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.modeling.attention import KINDS
from trl_r1.trainers.grpo_config import launched_world_size

# R1 trains on batches of 128 (SFT, both times) or 64 (distillation), arXiv 2501.12948v2 B.4.2 and B.4.3.
SFT_BATCH, DISTILL_BATCH = 128, 64
_TO_A_TENTH = "cosine_with_min_lr"


@dataclass
class R1SFTConfig(SFTConfig):
    """Settings of [`R1SFTTrainer`]: every field of [`~trl.SFTConfig`], with R1's values where the paper gives one.

    From arXiv 2501.12948v2 B.4.2: `learning_rate` 5e-5 falling to 5e-6 by a cosine (`lr_scheduler_type:
    cosine_with_min_lr` with `min_lr_rate: 0.1`), 2 epochs ("2–3"), `max_length` 32,768, batches of 128. `packing` is on:
    whether R1's batch counts sequences or packed rows is stated nowhere; here it counts rows of the data set as the
    model is given them, packed ones where `packing` is on. No warm-up, since the paper names none.

    `bf16` defaults to `False` on a CPU, where it is emulated and slow.

    Args:
        packed_attention (`str`, defaults to `"auto"`):
            How the sequences of a packed or padding-free batch attend, each to itself alone
            ([`~trl_r1.modeling.attention.choose_attention`]): `"auto"` takes flash-attn where it is installed, else
            `torch.nn.attention.varlen`, else one SDPA call per sequence; `"none"` leaves TRL's own, which without
            flash-attn is one mask over the whole row, quadratic in its length.
        rows_per_step (`int`, *optional*, defaults to 128):
            Rows in an optimizer step, over all processes; `gradient_accumulation_steps` follows from it. Set that one
            instead to count TRL's way.
        max_truncated_targets (`float`, defaults to 0.01):
            Largest share of the targets that may be longer than `max_length` and would so lose their EOS. Above it
            training does not start; below it they are left out and counted, since a target without its end teaches the
            model not to stop.
        new_tokens (`list[str]`, *optional*):
            Tokens to add to the vocabulary, such as `<think>`, never as special ones, which vanish when text is
            decoded. Each begins as the mean of the tokens it replaces, and is trained under LoRA as well.
    """

    # Of `rows_per_step`, where neither it nor gradient_accumulation_steps is set.
    default_rows_per_step: ClassVar[int] = SFT_BATCH
    # An interrupted run may stop after any step (`StopAtRolloutBoundary`): there are no rollouts to complete.
    steps_per_rollout: ClassVar[int] = 1

    packed_attention: str = field(
        default="auto",
        metadata={"help": "Attention of packed batches: auto, none, varlen, sdpa, flash_attention_2 to _4."},
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate (R1: 5e-5)."})
    lr_scheduler_type: str = field(default=_TO_A_TENTH, metadata={"help": "R1: a cosine to a tenth of the peak."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "Epochs (R1: 2 to 3)."})
    max_length: int | None = field(default=32768, metadata={"help": "Longest sequence and packed row (R1: 32,768)."})
    packing: bool = field(default=True, metadata={"help": "Lay sequences end to end in rows of max_length (Best-Fit)."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Rows in a forward pass."})
    rows_per_step: int | None = field(
        default=None, metadata={"help": "Rows in an optimizer step, over all processes (R1: 128)."}
    )
    max_truncated_targets: float = field(
        default=0.01, metadata={"help": "Largest share of targets that may be longer than max_length."}
    )
    new_tokens: list[str] = field(
        default_factory=list, metadata={"help": "Tokens to add to the vocabulary, such as <think>; trained under LoRA."}
    )

    def __post_init__(self) -> None:
        allowed = ["auto", "none", *(kind for kind in KINDS if kind != "padded")]
        if self.packed_attention not in allowed:
            raise unknown("packed_attention", self.packed_attention, allowed)
        if not 0 <= self.max_truncated_targets <= 1:
            raise ConfigurationError(f"max_truncated_targets={self.max_truncated_targets} is a share: 0 to 1.")
        if str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) == _TO_A_TENTH:
            own: Any = self.lr_scheduler_kwargs
            self.lr_scheduler_kwargs = own or {"min_lr_rate": 0.1}
        if self.bf16 is None and not self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            self.bf16 = False
        self._derive_accumulation(launched_world_size())
        super().__post_init__()

    def _derive_accumulation(self, world_size: int) -> None:
        """Turn `rows_per_step` into TRL's gradient accumulation."""
        if self.rows_per_step is None and self.gradient_accumulation_steps != 1:
            return  # TRL's words were used: leave them alone
        if self.gradient_accumulation_steps != 1:
            raise ConfigurationError(
                f"rows_per_step={self.rows_per_step} and gradient_accumulation_steps={self.gradient_accumulation_steps} "
                "both set the batch size. Use one of them."
            )
        asked = self.rows_per_step is not None
        rows = self.rows_per_step if self.rows_per_step is not None else self.default_rows_per_step
        at_once = self.per_device_train_batch_size * world_size
        if rows < 1 or (asked and rows % at_once):
            raise ConfigurationError(
                f"rows_per_step={rows} must be a multiple of per_device_train_batch_size x processes = {at_once}."
            )
        self.gradient_accumulation_steps = max(1, rows // at_once)
        self.rows_per_step = self.gradient_accumulation_steps * at_once


@dataclass
class R1DistillConfig(R1SFTConfig):
    """[`R1SFTConfig`] with distillation's batch of 64 (arXiv 2501.12948v2 B.4.3). Its learning rates depend on the student
    (`recipes/configs/distill`).
    """

    default_rows_per_step: ClassVar[int] = DISTILL_BATCH
