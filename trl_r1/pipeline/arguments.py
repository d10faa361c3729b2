"""The settings of the R1-Zero stage, and how they are read from YAML and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trl_r1.data.sources import SourceConfig
from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.configs import with_config_path

if TYPE_CHECKING:
    from trl import ModelConfig

    from trl_r1.trainers import R1GRPOConfig

STAGE = "r1_zero"


@dataclass
class R1ZeroArguments(SourceConfig):
    """What the R1-Zero stage needs to know besides the trainer's and the model's settings.

    The fields of [`~trl_r1.data.sources.SourceConfig`] (`dataset`, `columns`, `patterns`, `domain` …) say where the
    questions come from. The others:

    Args:
        rewards (`list[str]`, defaults to accuracy and format): Names of the rewards, or dotted paths of functions.
        template (`str`, defaults to `"auto"`): `"base"` (R1-Zero's plain text), `"chat"`, or chosen from the model.
        answer_form (`str`, defaults to `"answer"`): `"answer"` (tags) or `"boxed"`.
        prefill_think (`bool`, defaults to `False`): Open the thinking in the prompt.
        heldout_questions (`int`, defaults to 128): Questions of the before/after evaluation.
        heldout_samples (`int`, defaults to 16): Samples per question, the k of cons@k.
        heldout_temperature (`float`, defaults to 1.0): Training's; R1 is evaluated at 0.6.
        heldout_top_p (`float`, defaults to 1.0): Training's; R1 is evaluated at 0.95.
        heldout_max_tokens (`int`, *optional*): Cap of a completion; training's by default.
        heldout_pass_k (`list[int]`, *optional*): Further k for which pass@k is reported, at most `heldout_samples`.
        heldout_cons_k (`int`, *optional*): Votes of cons@k; `heldout_samples` by default.
        heldout_every_steps (`int`, defaults to 0): Steps between two points of the training curve; 0 for none.
        heldout_curve_questions (`int`, defaults to 64): Questions of a point of the curve.
        heldout_curve_samples (`int`, defaults to 8): Samples per question of a point of the curve.
        heldout_show (`int`, defaults to 2): Completions to print in a table at each point of the curve.
        preview (`bool`, defaults to `False`): Show three rendered rows with their gold scored; load no weights.
        plan (`bool`, defaults to `False`): Print the memory, micro-batches and time to expect; load no weights.
        plan_mean_tokens (`float`, *optional*): Mean completion that the plan expects; a quarter of the cap by default.
        overwrite (`bool`, defaults to `False`): Start anew in an `output_dir` that holds checkpoints of another run.
        stage_name (`str`, defaults to `"R1-Zero"`): What the model card calls the stage.
    """

    # TRL's parser takes a union with text for text only when `None` is in it; a mapping comes from YAML as it is.
    dataset: str = field(
        default="nano:countdown",
        metadata={"help": "Hub id, local file or folder, {split: file} as JSON, or nano:<task>[,<task>]."},
    )
    rewards: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "Rewards by name, or dotted paths of reward functions (R1-Zero: accuracy format)."},
    )
    template: str = field(default="auto", metadata={"help": "base, chat, or auto: chosen from the model."})
    answer_form: str = field(default="answer", metadata={"help": "answer (tags) or boxed."})
    prefill_think: bool = field(default=False, metadata={"help": "Open the thinking in the prompt."})
    heldout_questions: int = field(default=128, metadata={"help": "Questions of the before/after evaluation."})
    heldout_samples: int = field(default=16, metadata={"help": "Samples per question, the k of cons@k."})
    heldout_temperature: float = field(default=1.0, metadata={"help": "Sampling temperature (R1: 0.6)."})
    heldout_top_p: float = field(default=1.0, metadata={"help": "Nucleus (R1: 0.95)."})
    heldout_max_tokens: int | None = field(default=None, metadata={"help": "Cap of a completion, in tokens."})
    heldout_pass_k: list[int] = field(default_factory=list, metadata={"help": "Further k for pass@k."})
    heldout_cons_k: int | None = field(default=None, metadata={"help": "Votes of cons@k."})
    heldout_every_steps: int = field(default=0, metadata={"help": "Steps between points of the curve; 0 for none."})
    heldout_curve_questions: int = field(default=64, metadata={"help": "Questions of a point of the curve."})
    heldout_curve_samples: int = field(default=8, metadata={"help": "Samples per question of a point of the curve."})
    heldout_show: int = field(default=2, metadata={"help": "Completions to print at each point of the curve."})
    preview: bool = field(default=False, metadata={"help": "Show three rows, scored; load no weights."})
    plan: bool = field(
        default=False, metadata={"help": "Print memory, micro-batches and time to expect; load no weights."}
    )
    plan_mean_tokens: float | None = field(default=None, metadata={"help": "Mean completion that the plan expects."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew over another run's checkpoints."})
    stage_name: str = field(default="R1-Zero", metadata={"help": "What the model card calls the stage."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heldout_questions", "heldout_samples", "heldout_curve_questions", "heldout_curve_samples"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.heldout_every_steps < 0:
            raise ConfigurationError(
                f"heldout_every_steps={self.heldout_every_steps} must be 0 (no curve) or a number of steps."
            )


def parse_r1_zero(args: list[str]) -> tuple[R1ZeroArguments, R1GRPOConfig, ModelConfig]:
    """Read the stage's settings: a YAML configuration (a file, or a name such as `nano_cpu`), then options over it.

    Args:
        args (`list[str]`): Command-line arguments. Without `--config`, `--dataset` and `--model_name_or_path` the
            configuration is `nano_cpu`.

    Returns:
        `tuple`: Script, training and model settings, for [`trl_r1.pipeline.r1_zero`].
    """
    from trl import ModelConfig, TrlParser

    from trl_r1.trainers import R1GRPOConfig

    resolved = with_config_path(STAGE, args, "nano_cpu", unless=("--dataset", "--model_name_or_path"))
    types: Any = (R1ZeroArguments, R1GRPOConfig, ModelConfig)
    parsed: Any = TrlParser(types, prog="trl-r1 r1-zero").parse_args_and_config(resolved)
    return parsed
