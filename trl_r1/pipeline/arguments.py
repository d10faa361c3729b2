"""The settings of the RL stages with rule rewards, and how they are read from YAML and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from trl_r1.data.question_mixture import WeightedSource, read_sources
from trl_r1.data.sources import SourceConfig, as_mapping
from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.configs import parse_options, with_config_path

if TYPE_CHECKING:
    from trl import ModelConfig

    from trl_r1.trainers import R1GRPOConfig


@dataclass
class RLArguments(SourceConfig):
    """What an RL stage with rule rewards needs to know besides the trainer's and the model's settings.

    The fields of [`~trl_r1.data.sources.SourceConfig`] (`dataset`, `columns`, `patterns`, `domain` …) say where the
    questions come from. The others:

    Args:
        datasets (`list[dict]`, *optional*):
            Several sources instead of one `dataset`: each with the fields of `SourceConfig` and, if all have one, a
            `weight` ([`~trl_r1.data.question_mixture.load_mixture`]).
        rewards (`list[str]`, *optional*):
            Rewards of every row: names, or dotted paths of functions and classes. The stage's own by default, or none with
            `domain_rewards`.
        reward_settings (`dict`, *optional*): Reward to the arguments of its class ([`~trl_r1.rewards.configured`]).
        domain_rewards (`dict`, *optional*): Domain to its rewards, their weights, or their weights by step.
        reward_workers (`int`, *optional*):
            Processes, of each rank, that compute the rewards while the trainer does something else, each completion by itself,
            and score the held-out samples; 0 for none. By default one per core of the rank's share where rows are verified by
            `gym` or `code`, and none otherwise. `gym` evaluates model text, so that 0 is refused there.
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
        stage_name (`str`): What the model card calls the stage.
    """

    # The stage's folder of configurations, its command, and its rewards where nobody names any.
    stage: ClassVar[str]
    default_rewards: ClassVar[tuple[str, ...]] = ("accuracy", "format")

    # TRL's parser takes a union with text for text only when `None` is in it; a mapping comes from YAML as it is.
    dataset: str = field(
        default="nano:countdown",
        metadata={
            "help": "Hub id, local file or folder, {split: file} as JSON, nano:<task>[,<task>], gym:<task>[,<task>]."
        },
    )
    datasets: list[Any] | str | None = field(
        default=None, metadata={"help": "Several sources, as JSON: a list of {dataset: …, weight: …, …}."}
    )
    rewards: list[str] | None = field(
        default=None,
        metadata={"help": "Rewards of every row by name, or dotted paths of reward functions and classes."},
    )
    reward_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Reward to its settings, e.g. {language_consistency: {target: zh}}."}
    )
    domain_rewards: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Domain to its rewards, e.g. {math: [accuracy], code: {accuracy: 2.0}}."}
    )
    reward_workers: int | None = field(
        default=None, metadata={"help": "Processes that compute rewards; 0 for none. By default where rows need them."}
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
    stage_name: str = field(default="RL", metadata={"help": "What the model card calls the stage."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reward_settings = as_mapping("reward_settings", self.reward_settings)
        self.domain_rewards = as_mapping("domain_rewards", self.domain_rewards)
        if self.rewards is None:
            self.rewards = [] if self.domain_rewards else list(self.default_rewards)
        if self.reward_workers is not None and self.reward_workers < 0:
            raise ConfigurationError(
                f"reward_workers={self.reward_workers} must be 0 (none) or a number of processes; leave it out to have them "
                "where rows need them."
            )
        for name in ("heldout_questions", "heldout_samples", "heldout_curve_questions", "heldout_curve_samples"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.heldout_every_steps < 0:
            raise ConfigurationError(
                f"heldout_every_steps={self.heldout_every_steps} must be 0 (no curve) or a number of steps."
            )

    @property
    def sources(self) -> list[WeightedSource]:
        """Where the questions come from: `datasets`, or the one `dataset`."""
        return read_sources(self.datasets, self) if self.datasets is not None else [WeightedSource(self)]

    @property
    def data_name(self) -> str:
        """The names of the sources, for titles and cards."""
        return " + ".join(str(source.config.dataset) for source in self.sources)

    @property
    def reward_names(self) -> list[str]:
        """The names of all rewards, those of domains included."""
        routed = [name for route in (self.domain_rewards or {}).values() for name in route]  # type: ignore[union-attr]
        return list(dict.fromkeys([*(self.rewards or []), *map(str, routed)]))


@dataclass
class R1ZeroArguments(RLArguments):
    """What the R1-Zero stage needs to know; see [`RLArguments`]. Its rewards are accuracy and format (v1 §2.2.2)."""

    stage: ClassVar[str] = "r1_zero"

    stage_name: str = field(default="R1-Zero", metadata={"help": "What the model card calls the stage."})


@dataclass
class ReasoningRLArguments(RLArguments):
    """What the reasoning RL stage needs to know; see [`RLArguments`].

    Its rewards are R1-Zero's and language consistency (v2 §3.2.1, Eq. 7), summed. The algorithm's settings are
    [`~trl_r1.trainers.R1GRPOConfig`]'s defaults, which are R1's for this stage: learning rate 3e-6, β 0.001, clip ε 10,
    temperature 1.0, 16 answers per question, the reference replaced every 400 steps (v2 §3.2.1; N, Methods).
    """

    stage: ClassVar[str] = "reasoning_rl"
    default_rewards: ClassVar[tuple[str, ...]] = ("accuracy", "format", "language_consistency")

    dataset: str = field(
        default="nano:arithmetic,countdown,ordering,choice,code_output",
        metadata={
            "help": "Hub id, local file or folder, {split: file} as JSON, nano:<task>[,<task>], gym:<task>[,<task>]."
        },
    )
    stage_name: str = field(default="Reasoning RL", metadata={"help": "What the model card calls the stage."})


Arguments = TypeVar("Arguments", bound=RLArguments)


def parse_r1_zero(args: list[str]) -> tuple[R1ZeroArguments, R1GRPOConfig, ModelConfig]:
    """Read the stage's settings: a YAML configuration (a file, or a name such as `nano_cpu`), then options over it.

    Args:
        args (`list[str]`): Command-line arguments. Without `--config`, `--dataset` and `--model_name_or_path` the
            configuration is `nano_cpu`.

    Returns:
        `tuple`: Script, training and model settings, for [`trl_r1.pipeline.r1_zero`].
    """
    return _parse(R1ZeroArguments, args)


def parse_reasoning_rl(args: list[str]) -> tuple[ReasoningRLArguments, R1GRPOConfig, ModelConfig]:
    """Read the stage's settings, as [`parse_r1_zero`] does.

    Args:
        args (`list[str]`): Command-line arguments. Without `--config`, `--dataset`, `--datasets` and
            `--model_name_or_path` the configuration is `nano_cpu`.

    Returns:
        `tuple`: Script, training and model settings, for [`trl_r1.pipeline.reasoning_rl`].
    """
    return _parse(ReasoningRLArguments, args)


def _parse(kind: type[Arguments], args: list[str]) -> tuple[Arguments, R1GRPOConfig, ModelConfig]:
    from trl import ModelConfig

    from trl_r1.trainers import R1GRPOConfig

    resolved = with_config_path(
        kind.stage, args, "nano_cpu", unless=("--dataset", "--datasets", "--model_name_or_path")
    )
    parsed: Any = parse_options(kind.stage.replace("_", "-"), (kind, R1GRPOConfig, ModelConfig), resolved)
    return parsed
