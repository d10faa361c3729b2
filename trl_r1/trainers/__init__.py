"""Who learns? TRL's trainers, subclassed at their smallest hooks."""

from trl_r1.trainers.checkpoints import last_complete_checkpoint
from trl_r1.trainers.grpo import R1GRPOTrainer
from trl_r1.trainers.grpo_config import R1GRPOConfig
from trl_r1.trainers.presets import PRESETS
from trl_r1.trainers.sft import R1SFTTrainer
from trl_r1.trainers.sft_config import R1DistillConfig, R1SFTConfig

__all__ = [
    "PRESETS",
    "R1DistillConfig",
    "R1GRPOConfig",
    "R1GRPOTrainer",
    "R1SFTConfig",
    "R1SFTTrainer",
    "last_complete_checkpoint",
]
