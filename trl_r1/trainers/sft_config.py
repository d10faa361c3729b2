"""[`R1SFTConfig`]: TRL's SFT settings, and how packed sequences attend."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from trl import SFTConfig

from trl_r1.exceptions import unknown
from trl_r1.modeling.attention import KINDS


@dataclass
class R1SFTConfig(SFTConfig):
    """Settings of [`R1SFTTrainer`]: every field of [`~trl.SFTConfig`].

    `bf16` defaults to `False` on a CPU, where it is emulated and slow.

    Args:
        packed_attention (`str`, defaults to `"auto"`):
            How the sequences of a packed or padding-free batch attend, each to itself alone
            ([`~trl_r1.modeling.attention.choose_attention`]): `"auto"` takes flash-attn where it is installed, else
            `torch.nn.attention.varlen`, else one SDPA call per sequence; `"none"` leaves TRL's own, which without
            flash-attn is one mask over the whole row, quadratic in its length.
    """

    packed_attention: str = field(
        default="auto",
        metadata={"help": "Attention of packed batches: auto, none, varlen, sdpa, flash_attention_2 to _4."},
    )

    def __post_init__(self) -> None:
        allowed = ["auto", "none", *(kind for kind in KINDS if kind != "padded")]
        if self.packed_attention not in allowed:
            raise unknown("packed_attention", self.packed_attention, allowed)
        if self.bf16 is None and not self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            self.bf16 = False
        super().__post_init__()
