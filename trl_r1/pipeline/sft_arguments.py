"""The settings of the SFT stages, and how they are read from YAML and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from trl_r1.data.sources import SourceConfig
from trl_r1.data.traces import TraceConfig
from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.pipeline.configs import parse_options, with_config_path
from trl_r1.pipeline.lineage import BASE

if TYPE_CHECKING:
    from trl import ModelConfig

    from trl_r1.trainers.sft_config import R1SFTConfig

DRAWS = ("all", "uniform", "shortest", "diverse")


@dataclass
class SFTArguments(TraceConfig, SourceConfig):
    """What the SFT stage needs to know besides the trainer's and the model's settings.

    The fields of [`~trl_r1.data.traces.TraceConfig`] (`traces`, `traces_columns` …) say what is trained on, those of
    [`~trl_r1.data.sources.SourceConfig`] (`dataset`, `columns` …) where the held-out questions come from. The others:

    Args:
        dataset (`str`, *optional*): Questions whose held-out part is asked before and after; `None` measures nothing.
        draw (`str`, defaults to `"all"`):
            For rejection-sampling records: `"all"` makes a row of every accepted candidate; `"uniform"`, `"shortest"` and
            `"diverse"` draw one per question and epoch ([`~trl_r1.data.rejection_collator.RejectionSamplingCollator`]).
        template (`str`, defaults to `"auto"`): `"base"` (R1-Zero's plain text), `"chat"`, or chosen from the model.
        answer_form (`str`, defaults to `"answer"`): `"answer"` (R1-Zero's tags) or `"boxed"` (R1's own).
        prefill_think (`bool`, defaults to `False`): Open the thinking in the prompt.
        instruction (`str`, *optional*): Sentence added to the user's message of a chat; by default the one for the form.
        parent_stage (`str`, defaults to `"base"`):
            The stage that may have made the starting model. R1's SFT stages start from the base, both times; `"any"`
            allows all.
        heldout_questions (`int`, defaults to 128): Questions of the before/after evaluation.
        heldout_samples (`int`, defaults to 16): Samples per question, the k of cons@k.
        heldout_temperature (`float`, defaults to 1.0): R1 is evaluated at 0.6.
        heldout_top_p (`float`, defaults to 1.0): R1 is evaluated at 0.95.
        heldout_max_tokens (`int`, defaults to 1024): Cap of a completion.
        heldout_pass_k (`list[int]`, *optional*): Further k for which pass@k is reported, at most `heldout_samples`.
        heldout_cons_k (`int`, *optional*): Votes of cons@k; `heldout_samples` by default.
        heldout_sampler (`dict`, *optional*):
            Who samples the held-out questions, by the fields of [`~trl_r1.generation.config.SamplerConfig`], such as
            `{backend: vllm}`: from the checkpoints, before training and after. By default transformers does, with the
            trainer's weights.
        heldout_every_steps (`int`, defaults to 0): Steps between two points of the curve; 0 for none; transformers only.
        heldout_curve_questions (`int`, defaults to 64): Questions of a point of the curve.
        heldout_curve_samples (`int`, defaults to 8): Samples per question of a point of the curve.
        heldout_show (`int`, defaults to 0): Completions to print in a table at each point of the curve.
        preview (`bool`, defaults to `False`): Show three rows in token counts and text; load no weights.
        overwrite (`bool`, defaults to `False`): Start anew in an `output_dir` that holds checkpoints of another run.
        stage_name (`str`, defaults to `"SFT"`): What the report and the model card call the stage.
    """

    # The stage's folder of configurations, and its command.
    stage: ClassVar[str] = "sft"

    dataset: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Questions to measure on: Hub id, file, folder, nano:<task>; none by default."}
    )
    draw: str = field(
        default="all", metadata={"help": f"Candidates of a rejection-sampling record: {', '.join(DRAWS)}."}
    )
    template: str = field(default="auto", metadata={"help": "base, chat, or auto: chosen from the model."})
    answer_form: str = field(default="answer", metadata={"help": "answer (tags) or boxed."})
    prefill_think: bool = field(default=False, metadata={"help": "Open the thinking in the prompt."})
    instruction: str | None = field(default=None, metadata={"help": "Sentence added to a chat's user message."})
    parent_stage: str = field(
        default=BASE, metadata={"help": "Stage that may have made the starting model: base, any, or its name."}
    )
    heldout_questions: int = field(default=128, metadata={"help": "Questions of the before/after evaluation."})
    heldout_samples: int = field(default=16, metadata={"help": "Samples per question, the k of cons@k."})
    heldout_temperature: float = field(default=1.0, metadata={"help": "Sampling temperature (R1: 0.6)."})
    heldout_top_p: float = field(default=1.0, metadata={"help": "Nucleus (R1: 0.95)."})
    heldout_max_tokens: int = field(default=1024, metadata={"help": "Cap of a completion, in tokens."})
    heldout_pass_k: list[int] = field(default_factory=list, metadata={"help": "Further k for pass@k."})
    heldout_cons_k: int | None = field(default=None, metadata={"help": "Votes of cons@k."})
    heldout_sampler: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Sampler of the held-out questions, e.g. {backend: vllm}; else transformers."}
    )
    heldout_every_steps: int = field(default=0, metadata={"help": "Steps between points of the curve; 0 for none."})
    heldout_curve_questions: int = field(default=64, metadata={"help": "Questions of a point of the curve."})
    heldout_curve_samples: int = field(default=8, metadata={"help": "Samples per question of a point of the curve."})
    heldout_show: int = field(default=0, metadata={"help": "Completions to print at each point of the curve."})
    preview: bool = field(default=False, metadata={"help": "Show three rows; load no weights."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew over another run's checkpoints."})
    stage_name: str = field(default="SFT", metadata={"help": "What report and model card call the stage."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draw not in DRAWS:
            raise unknown("draw", self.draw, DRAWS)
        for name in ("heldout_questions", "heldout_samples", "heldout_curve_questions", "heldout_curve_samples"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.heldout_every_steps < 0:
            raise ConfigurationError(f"heldout_every_steps={self.heldout_every_steps} must be 0 (no curve) or more.")
        if self.heldout_every_steps and self.heldout_sampler is not None:
            raise ConfigurationError(
                "heldout_every_steps needs the trainer's weights, which heldout_sampler does not see. Set one of the two."
            )


Arguments = TypeVar("Arguments", bound=SFTArguments)


def parse_sft(args: list[str]) -> tuple[SFTArguments, R1SFTConfig, ModelConfig]:
    """Read the stage's settings: a YAML configuration (a file, or a name such as `nano_cpu`), then options over it.

    Args:
        args (`list[str]`): Command-line arguments. Without `--config` and `--model_name_or_path` the configuration is
            `nano_cpu`.

    Returns:
        `tuple`: Script, training and model settings, for [`trl_r1.pipeline.sft.sft`].
    """
    return parse_stage(SFTArguments, args)


def parse_stage(kind: type[Arguments], args: list[str]) -> tuple[Arguments, R1SFTConfig, ModelConfig]:
    """Read the settings of an SFT stage; see [`parse_sft`]."""
    from trl import ModelConfig

    from trl_r1.trainers.sft_config import R1DistillConfig, R1SFTConfig

    resolved = with_config_path(kind.stage, args, "nano_cpu", unless=("--model_name_or_path",))
    config = R1DistillConfig if kind.stage == "distill" else R1SFTConfig
    parsed: Any = parse_options(kind.stage, (kind, config, ModelConfig), resolved)
    return parsed
