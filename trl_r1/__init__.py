"""Train a reasoning model the DeepSeek-R1 way, on TRL, PEFT, accelerate, datasets and vLLM.

Public names are imported when they are first used: `import trl_r1` alone loads neither torch nor vLLM.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

# Public name -> the module that defines it.
_PUBLIC = {
    "ColdStartBuilder": "data.cold_start",
    "Completion": "rows",
    "Evaluation": "evaluation",
    "NanoWorld": "nano",
    "R1DistillConfig": "trainers.sft_config",
    "R1GRPOConfig": "trainers",
    "R1GRPOTrainer": "trainers",
    "R1SFTConfig": "trainers.sft_config",
    "R1SFTTrainer": "trainers.sft",
    "RejectionSampler": "data.rejection",
    "RejectionSamplingCollator": "data.rejection_collator",
    "RewardPool": "rewards",
    "RewardRouter": "rewards",
    "Row": "rows",
    "Sampler": "generation.base",
    "SamplerConfig": "generation.config",
    "SamplingSettings": "generation.base",
    "SourceConfig": "data.sources",
    "Verdict": "rows",
    "accuracy_reward": "rewards",
    "checkpoint_path": "nano",
    "format_reward": "rewards",
    "load_rows": "data.sources",
    "load_traces": "data.traces",
    "open_sampler": "generation.config",
    "parse": "responses",
    "sample_all": "generation.base",
    "score": "evaluation",
    "select_template": "prompts",
    "verify": "verifiers",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from trl_r1.data.cold_start import ColdStartBuilder
    from trl_r1.data.rejection import RejectionSampler
    from trl_r1.data.rejection_collator import RejectionSamplingCollator
    from trl_r1.data.sources import SourceConfig, load_rows
    from trl_r1.data.traces import load_traces
    from trl_r1.evaluation import Evaluation, score
    from trl_r1.generation.base import Sampler, SamplingSettings, sample_all
    from trl_r1.generation.config import SamplerConfig, open_sampler
    from trl_r1.nano import NanoWorld, checkpoint_path
    from trl_r1.prompts import select_template
    from trl_r1.responses import parse
    from trl_r1.rewards import RewardPool, RewardRouter, accuracy_reward, format_reward
    from trl_r1.rows import Completion, Row, Verdict
    from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer
    from trl_r1.trainers.sft import R1SFTTrainer
    from trl_r1.trainers.sft_config import R1DistillConfig, R1SFTConfig
    from trl_r1.verifiers import verify


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'trl_r1' has no attribute {name!r}. Public names: {', '.join(_PUBLIC)}.")
    return getattr(import_module(f"trl_r1.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
