"""The settings of the R1-Zero stage, and how they are read from YAML and the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.configs import with_config_path

if TYPE_CHECKING:
    from trl import ModelConfig

    from trl_r1.data.sources import SourceConfig
    from trl_r1.trainers import R1GRPOConfig

STAGE = "r1_zero"


@dataclass
class R1ZeroArguments:
    """What the R1-Zero stage needs to know besides the trainer's and the model's settings.

    The fields up to `split_seed` describe the data, as in [`~trl_r1.data.sources.SourceConfig`].

    Args:
        dataset (`str`, defaults to `"nano:countdown"`): Hub id, local file or folder, or `nano:<task>`.
        dataset_config (`str`, *optional*): Name of the Hub data set's configuration.
        train_split (`str`, defaults to `"train"`): Split to train on.
        test_split (`str`, *optional*): Held-out split; made from the training split when there is none.
        columns (`dict`, *optional*): Row field → source column, e.g. `{"prompt": "question", "reference": "answer"}`.
        patterns (`dict`, *optional*): Row field → regular expression whose first group is kept, e.g.
            `{"reference": "#### (.*)"}`.
        domain (`str`, *optional*): Domain of rows whose source has no such column.
        verifier (`str`, *optional*): Verifier of all rows, when it is not the domain's.
        language (`str`, *optional*): ISO 639-1 code of the language the answers should be in.
        row_function (`str`, *optional*): Dotted path of a function that makes a row from a source row.
        test_fraction (`float`, defaults to 0.05): Size of the held-out split when one is made.
        max_rows (`int`, *optional*): Keep this many rows per split.
        split_seed (`int`, defaults to 0): Seed of the split.
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
        max_unverifiable (`float`, defaults to 0.01): Share of gold answers that may be unreadable.
        preview (`bool`, defaults to `False`): Show three rendered rows with their gold scored; load no weights.
        overwrite (`bool`, defaults to `False`): Start anew in an `output_dir` that holds checkpoints of another run.
        stage_name (`str`, defaults to `"R1-Zero"`): What the model card calls the stage.
    """

    dataset: str = field(default="nano:countdown", metadata={"help": "Hub id, local file or folder, or nano:<task>."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": "Held-out split; made when there is none."})
    columns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Row field -> source column, as a mapping or JSON."}
    )
    patterns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Row field -> regular expression whose first group is kept."}
    )
    domain: str | None = field(default=None, metadata={"help": "Domain of the rows: math, code, stem, logic, general."})
    verifier: str | None = field(default=None, metadata={"help": "Verifier, when it is not the domain's."})
    language: str | None = field(default=None, metadata={"help": "Language the answers should be in (ISO 639-1)."})
    row_function: str | None = field(default=None, metadata={"help": "Dotted path of a function source row -> row."})
    test_fraction: float = field(default=0.05, metadata={"help": "Size of the held-out split when one is made."})
    max_rows: int | None = field(default=None, metadata={"help": "Keep this many rows per split."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the split."})
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
    max_unverifiable: float = field(default=0.01, metadata={"help": "Share of gold answers that may be unreadable."})
    preview: bool = field(default=False, metadata={"help": "Show three rows, scored; load no weights."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew over another run's checkpoints."})
    stage_name: str = field(default="R1-Zero", metadata={"help": "What the model card calls the stage."})

    def __post_init__(self) -> None:
        self.columns = _mapping("columns", self.columns)
        self.patterns = _mapping("patterns", self.patterns)
        for name in ("heldout_questions", "heldout_samples", "heldout_curve_questions", "heldout_curve_samples"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.heldout_every_steps < 0:
            raise ConfigurationError(
                f"heldout_every_steps={self.heldout_every_steps} must be 0 (no curve) or a number of steps."
            )

    def source(self) -> SourceConfig:
        """The part that describes the data, as `data.sources` takes it."""
        from trl_r1.data.sources import SourceConfig

        names = {f.name for f in fields(SourceConfig)} & {f.name for f in fields(self)}
        values = {name: getattr(self, name) for name in names}
        return SourceConfig(
            **{name: value for name, value in values.items() if value is not None}, seed=self.split_seed
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
    parser = TrlParser((R1ZeroArguments, R1GRPOConfig, ModelConfig), prog="trl-r1 r1-zero")
    return parser.parse_args_and_config(resolved)


def _mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Read a mapping given as JSON on the command line."""
    if value is None or isinstance(value, dict):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ConfigurationError(
            f"{name}={value!r} is no mapping. Write JSON such as "
            f"""'{{"prompt": "question", "reference": "answer"}}', or a mapping in the YAML file."""
        )
    return parsed
