"""[`R1GRPOTrainer`]: TRL's GRPO trainer with R1's schedule, engine, reference resets and bookkeeping."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from trl_r1.data.rollouts import RolloutLog
from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.engine import ColocatedEngine, colocated_engine
from trl_r1.generation.transformers import sample_with_transformers
from trl_r1.generation.weights import keep_4bit_weights
from trl_r1.modeling.head import use_float32_head
from trl_r1.rewards.pool import RewardPool
from trl_r1.rows import Completion, Prompt
from trl_r1.trainers.callbacks import AdapterReferenceReset, GivesSignalsBack, StopAtRolloutBoundary, TrainingAlarms
from trl_r1.trainers.checkpoints import (
    add_reference_adapter,
    load_reference,
    save_reference,
    without_reference,
    without_reference_adapter,
)
from trl_r1.trainers.checks import check_data, check_engine, check_reference
from trl_r1.trainers.dynamic_sampling import GroupResampler, group_spread
from trl_r1.trainers.grpo_config import R1GRPOConfig
from trl_r1.trainers.losses import r1_sequence_loss
from trl_r1.trainers.order import EpochSampler
from trl_r1.trainers.packed import PackedGRPOTrainer
from trl_r1.trainers.rollout_metrics import behaviour_facts, behaviour_metrics, completion_facts, rollout_metrics
from trl_r1.trainers.truncation import without_end, without_truncated

# Learning rates beyond which a warning is due (traps 31): full fine-tuning of a pretrained model above R1's own 3e-6 by
# half again, LoRA below what moves an adapter. Models under 50M parameters, such as nano, need and bear far larger ones.
_HIGHEST_FULL_LEARNING_RATE = 5e-6
_LOWEST_LORA_LEARNING_RATE = 1e-5
_SMALL_MODEL_PARAMETERS = 50_000_000

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., list[float | None]]


class R1GRPOTrainer(GivesSignalsBack, PackedGRPOTrainer):
    """GRPO the DeepSeek-R1 way (arXiv 2501.12948), on TRL's [`~trl.GRPOTrainer`].

    Hooks of TRL and transformers that are wrapped with `super()`; `tests/test_trl_contract.py` checks their signatures:

    - `_get_train_sampler`: the shuffle depends on (seed, epoch) alone, so that a resumed run keeps the order.
    - `_generate_and_score_completions`: the length cap in force; hands the rows to dynamic sampling; what
      `mask_truncated_completions` masks, by finish reason.
    - `_generate`: finish reasons; dynamic sampling.
    - `_calculate_rewards`: a completion without one of its rewards is left out; lengths, truncation, reflection.
    - `_compute_loss`: `loss_type="r1"`.
    - `_save`, `_save_optimizer_and_scheduler`, `_save_rng_state`, `_load_optimizer_and_scheduler`: the reference in
      checkpoints, and a trainer state that is written only when all ranks are done.

    The step itself, on packed rows, is [`~trl_r1.trainers.packed.PackedGRPOTrainer`]'s; its hooks are listed there.

    While TRL's constructor runs, its `VLLMGeneration` is [`~trl_r1.generation.engine.ColocatedEngine`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, or the name or path to load it from.
        reward_funcs (`list` of callables):
            TRL's signature `(completions, **kwargs) -> list[float | None]`.
        args ([`R1GRPOConfig`]):
            Settings.
        train_dataset ([`~datasets.Dataset`]):
            Rows with a `prompt` column, and what the rewards read.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            As in TRL.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; loaded from the model when not given.
        callbacks (`list`, *optional*):
            As in TRL; alarms and a graceful stop are added.
        quantization_config (*optional*):
            4-bit by bitsandbytes, as in TRL.
        peft_config ([`~peft.PeftConfig`], *optional*):
            LoRA, as in TRL. The reference for the KL is then a frozen snapshot of the adapter.
        **kwargs:
            Anything else that [`~trl.GRPOTrainer`] takes.

    Raises:
        [`~trl_r1.exceptions.ConfigurationError`]: A setting that cannot work; before weights are loaded.
        [`~trl_r1.exceptions.DataError`]: Fewer questions than one rollout needs.
    """

    _tag_names = ["trl", "grpo", "trl-r1"]  # noqa: RUF012 - TRL's own class attribute
    # What this trainer makes of attributes that its bases type more loosely.
    args: R1GRPOConfig
    model: Any
    max_completion_length: int | None
    num_generations: int
    num_generations_eval: int
    train_dataset: Any

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunction | list[RewardFunction] | None = None,
        args: R1GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = R1GRPOConfig(f"{model if isinstance(model, str) else model.name_or_path}-R1".split("/")[-1])
        if not isinstance(args, R1GRPOConfig):
            raise ConfigurationError(f"args is a {type(args).__name__}: R1GRPOTrainer takes an R1GRPOConfig.")
        check_data(args, train_dataset)
        check_reference(args)
        if args.use_vllm and args.vllm_mode == "colocate":
            check_engine(args, model, quantization_config)
        self._rows: list[dict[str, Any]] | None = None
        self._resampled_rewards: torch.Tensor | None = None
        self.truncated: list[bool] = []
        self._said_that_eos_decides = False

        is_peft = peft_config is not None or isinstance(model, PeftModel)
        reset_adapter = is_peft and bool(args.sync_ref_model)
        if reset_adapter:
            args.sync_ref_model = False  # TRL refuses it under PEFT; the snapshot below takes its place
        float32_head = is_peft and args.cast_lm_head_to_fp32
        if float32_head:
            args.cast_lm_head_to_fp32 = False  # TRL does not find the head of a wrapped model
        with ExitStack() as stack:
            if args.use_vllm and args.vllm_mode == "colocate":
                engine = colocated_engine(
                    args.engine_options,
                    need_logprobs=args.vllm_importance_sampling_correction
                    or args.off_policy_mask_threshold is not None,
                    lora_hand_over=args.lora_hand_over,
                    stop_loops=args.stop_loops,
                )
                stack.enter_context(engine)
            super().__init__(
                model=model,
                reward_funcs=cast(Any, reward_funcs),
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                **kwargs,
            )
        keep_4bit_weights(self.model)
        if float32_head:
            args.cast_lm_head_to_fp32 = True
            use_float32_head(cast("PeftModel", self.model), self.temperature, ("log_probs", "entropy"))
        if reset_adapter:
            args.sync_ref_model = True
            add_reference_adapter(self.accelerator.unwrap_model(self.model))
            self.add_callback(AdapterReferenceReset())
        self.add_callback(TrainingAlarms())
        self.add_callback(StopAtRolloutBoundary())
        self._rollouts = RolloutLog(str(args.output_dir), self.accelerator.process_index) if args.log_rollouts else None
        self._resampler = GroupResampler(self, args.dynamic_sampling_max_rounds) if args.dynamic_sampling else None
        self._warn_about_learning_rate(is_peft)
        self._prepare_packing()
        for reward in self.reward_funcs:
            if isinstance(reward, RewardPool):
                reward.workers.start(wait=False)

    # Checks

    def _warn_about_learning_rate(self, is_peft: bool) -> None:
        rate = self.args.learning_rate
        if is_peft and 0 < rate < _LOWEST_LORA_LEARNING_RATE:
            self._warn(f"learning_rate={rate:g} is meant for full fine-tuning; LoRA needs about 1e-5 to 1e-4 to learn.")
        size = sum(p.numel() for p in self.model.parameters())
        if not is_peft and size > _SMALL_MODEL_PARAMETERS and rate > _HIGHEST_FULL_LEARNING_RATE:
            self._warn(f"learning_rate={rate:g} is high for RL of a pretrained model in full; R1 used 3e-6.")

    # Rollouts

    @property
    def engine(self) -> ColocatedEngine | None:
        """The colocated vLLM engine, if there is one."""
        engine = getattr(self, "vllm_generation", None)
        return engine if isinstance(engine, ColocatedEngine) else None

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return EpochSampler(super()._get_train_sampler(dataset), self.args.seed)

    def _set_completion_length(self, length: int | None) -> None:
        self.max_completion_length = length
        if hasattr(self, "vllm_generation"):
            self.vllm_generation.max_completion_length = length  # type: ignore[assignment]
        else:
            self.generation_config.max_new_tokens = length
            self.generation_kwargs["max_new_tokens"] = length

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:
            self._set_completion_length(self.args.completion_length_at(self.state.global_step))
        self._rows = inputs
        # TRL would mask whatever lacks EOS, and so all that a stop string ended.
        masks, self.mask_truncated_completions = self.mask_truncated_completions, False
        try:
            rollout = super()._generate_and_score_completions(inputs)
        finally:
            self._rows = self._resampled_rewards = None
            self.mask_truncated_completions = masks
        return without_truncated(rollout, self.truncated, self.accelerator) if masks else rollout

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        output = self.generate_group_batch(prompts)
        if self._resampler is not None and self.model.training and self._rows is not None:
            output, self._resampled_rewards = self._resampler(self._rows, prompts, output)
            self._log_rollout_metric("groups/resampled", float(self._resampler.replaced_groups))
        elif self._rows is not None:
            self._submit_rewards(prompts, output)
        return output

    def _submit_rewards(self, prompts: list[Any], output: tuple[Any, ...]) -> None:
        """Let pools score during the old and reference passes; `_calculate_rewards` collects."""
        rows = self._rows or []
        names = [name for name in rows[0] if name not in ("prompt", "completion", "completion_ids")]
        columns = {name: [row[name] for row in rows] for name in names}
        for reward in self.reward_funcs:
            if isinstance(reward, RewardPool):
                reward.submit(
                    output[3], prompts=prompts, completion_ids=output[1], trainer_state=self.state,
                    log_extra=self._log_completion_extra, log_metric=self._log_metric, **columns,
                )  # fmt: skip

    def generate_group_batch(self, prompts: list[Any]) -> tuple[Any, ...]:
        """TRL's `_generate`, and which of the completions were cut off: by the engine's finish reason where it knows."""
        output = super()._generate(prompts)
        engine, completion_ids = self.engine, output[1]
        in_one_turn = not self.tools and self.rollout_func is None
        if engine is not None and in_one_turn and len(engine.finish_reasons) == len(completion_ids):
            self.truncated = [reason == "length" for reason in engine.finish_reasons]
            return output
        if engine is not None and not self._said_that_eos_decides:
            self._said_that_eos_decides = True  # the engine only knows the reasons of its last call, for the rows of it
            self._warn(
                "Tools or a rollout_func generate a completion in several turns: one counts as truncated when it does "
                "not end in EOS, as in TRL, whatever the engine's finish reason. Said once."
            )
        self.truncated = without_end(completion_ids, [*self.eos_token_ids, self._tokenizer.pad_token_id])
        return output

    # Rewards

    def compute_rewards(
        self, rows: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]
    ) -> torch.Tensor:
        """Rewards of all ranks, of shape `(completions, functions)`; NaN in the whole row of what cannot be scored.

        TRL sums a missing reward as 0, which would punish a completion for a gold answer that no verifier can read.
        """
        rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids)
        if not self.args.partial_rewards:
            rewards = rewards.masked_fill(rewards.isnan().any(dim=1, keepdim=True), torch.nan)
        return rewards

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        rewards = self._resampled_rewards
        if rewards is None:
            rewards = self.compute_rewards(inputs, prompts, completions, completion_ids_list)
        self._log_rollout(rewards, completions, completion_ids_list)
        if self._rollouts is not None and self.model.training:
            first = self.accelerator.process_index * len(prompts)
            own = rewards[first : first + len(prompts)].T.tolist()
            self._rollouts.write(
                self.state.global_step, inputs, prompts, completions, [len(ids) for ids in completion_ids_list],
                self.truncated, dict(zip(self.reward_func_names, own, strict=True)),
            )  # fmt: skip
        return rewards

    def _log_rollout_metric(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _log_rollout(self, rewards: torch.Tensor, completions: list[Any], completion_ids: list[list[int]]) -> None:
        """Log what R1's curves show: lengths of right and wrong answers, truncation, spread, reflection."""
        local = completion_facts(completions, completion_ids, self.truncated, rewards.device)
        size = self.num_generations if self.model.training else self.num_generations_eval
        values = rollout_metrics(
            self.accelerator.gather(local),
            rewards,
            self.reward_func_names,
            group_spread(rewards, self.reward_weights.to(rewards.device), size) <= self.args.zero_spread_tolerance,
        )
        values |= behaviour_metrics(self.accelerator.gather(behaviour_facts(completions, rewards.device)))
        for name, value in values.items():
            self._log_rollout_metric(name, value.item())

    # Loss

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        if self.loss_type != "r1":
            return super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
        )
        old_logps = inputs.get("old_per_token_logps")
        policy_loss, kl, ratio = r1_sequence_loss(
            logps,
            logps.detach() if old_logps is None else old_logps,
            inputs.get("ref_per_token_logps"),
            mask,
            inputs["advantages"],
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            beta=self.beta,
        )
        if "importance_sampling_ratio" in inputs:  # of shape (B, 1): the config admits sequence modes only
            policy_loss = policy_loss * inputs["importance_sampling_ratio"].squeeze(1)
        reduce = self.accelerator.reduce
        tokens = reduce(torch.stack([(entropies * mask).sum(), mask.sum().float()]))
        self._log_rollout_metric("entropy", (tokens[0] / tokens[1].clamp(min=1)).item())
        self._log_rollout_metric("kl", reduce(kl.detach().mean(), reduction="mean").item())
        self._log_rollout_metric("ratio/sequence_mean", reduce(ratio.detach().mean(), reduction="mean").item())
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1.0
        return (policy_loss + self.beta * kl).mean() / accumulation

    # Checkpoints

    @property
    def _reference(self) -> nn.Module | None:
        """What holds the reference once it was reset: the reference model, or the PEFT model with its snapshot."""
        if self.beta == 0.0 or not self.args.sync_ref_model:
            return None
        return self.accelerator.unwrap_model(self.model if self.ref_model is None else self.ref_model)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        with without_reference_adapter(model) as hidden:
            if hidden:  # PEFT picks an adapter's tensors by name and would take the reference's along
                state_dict = without_reference(model.state_dict() if state_dict is None else state_dict)
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._reference is not None and self.state.global_step >= self.args.ref_model_sync_steps:
            save_reference(self._reference, output_dir, is_main=self.args.should_save)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The main process writes the trainer's state next, which marks the checkpoint as whole: all must be done.
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        # Here and not in `_load_from_checkpoint`, which transformers does not call under DeepSpeed.
        if checkpoint is not None and self._reference is not None:
            load_reference(self._reference, checkpoint)

    # Sampling outside training

    def sample(
        self,
        prompts: list[Prompt],
        n: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> list[list[Completion]]:
        """Sample completions from the current policy with the trainer's own engine; every rank must call it.

        Args:
            prompts (`list`): Prompts as the data set holds them, rendered text or messages; this rank's share.
            n (`int`): Completions per prompt.
            temperature (`float`, defaults to 1.0): Sampling temperature.
            top_p (`float`, defaults to 1.0): Nucleus.
            max_tokens (`int`, *optional*): Cap in tokens; the training cap when not given.
            seed (`int`, *optional*): For reproducible samples.

        Returns:
            `list[list[Completion]]`: `n` completions for each prompt, in order.
        """
        max_tokens = max_tokens or self.args.completion_length_at(self.state.global_step)
        prompt_ids = self._tokenize_prompts(prompts)[0] if prompts else []
        if self.engine is not None:
            if self.state.global_step != self._last_loaded_step:
                self.engine.sync_weights()
                self._last_loaded_step = self.state.global_step
            samples = self.engine.sample(
                prompt_ids, n, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed
            )
        else:
            samples = sample_with_transformers(
                self.model_wrapped,
                self.accelerator,
                prompt_ids,
                n,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                seed=seed,
            )
        texts = self._tokenizer.batch_decode(
            [sample.token_ids for group in samples for sample in group], skip_special_tokens=True
        )
        decoded = iter(texts)
        return [
            [Completion(next(decoded), tuple(sample.token_ids), sample.finish_reason) for sample in group]
            for group in samples
        ]
