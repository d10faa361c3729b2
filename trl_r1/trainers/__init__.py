"""Who learns? TRL's trainers, subclassed at their smallest hooks."""

from trl_r1.trainers.checkpoints import last_complete_checkpoint
from trl_r1.trainers.grpo import R1GRPOTrainer
from trl_r1.trainers.grpo_config import R1GRPOConfig
from trl_r1.trainers.presets import PRESETS

__all__ = ["PRESETS", "R1GRPOConfig", "R1GRPOTrainer", "last_complete_checkpoint"]
