"""[`PackedGRPOTrainer`]: TRL's GRPO step on packed rows, in micro-batches of equal cost, without forwards nobody needs.

Losses, gradients and metrics are TRL's own; only who shares a forward pass with whom is decided here:

- a micro-batch, or a bin of it, is one row without padding ([`trl_r1.modeling.packing`]);
- the rows of one optimizer step, of all ranks together, are parted into bins of equal cost within a token budget
  ([`trl_r1.modeling.balance`]), the same number on every rank; gradients are synchronised on the last;
- exactly on-policy there is no pass for the old log-probabilities: the policy pass gives them;
- rows that teach nothing (advantage 0 and no other term in the loss) are left out, and stay in the denominators.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import DistributedType, gather_object
from torch import nn
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.weights import is_4bit
from trl_r1.modeling.architecture import Adapter, describe
from trl_r1.modeling.attention import Attention, choose_attention, enable_packing, unused_mask
from trl_r1.modeling.balance import SequenceCost
from trl_r1.modeling.compiling import compile_layers
from trl_r1.modeling.memory import check_budget, choose_budget, free_device_bytes
from trl_r1.modeling.obstacles import why_not_trimmable
from trl_r1.modeling.out_of_memory import (
    NO_GRADIENT_BUDGET,
    explained,
    out_of_memory_message,
    scoring_out_of_memory_message,
)
from trl_r1.modeling.packing import Packed, Span, best_fit, pack, spans
from trl_r1.modeling.probe import why_packing_fails
from trl_r1.modeling.trimming import trimmed_chunks
from trl_r1.trainers.bins import (
    FACTOR,
    SCORED_ROWS,
    SCORED_TOKENS,
    regroup,
)
from trl_r1.trainers.grpo_config import R1GRPOConfig
from trl_r1.trainers.local_metrics import LocalMetrics, means_over_rows
from trl_r1.trainers.losses import sampling_ratio, sampling_ratio_metrics

logger = logging.getLogger(__name__)

_ROW_MULTIPLE = 128
# Rows of a trimmed pass on a CPU: few enough to be of similar length, enough to keep two cores busy.
_CPU_TRIM_ROWS = 16
# Room for a prompt where the longest is not known before it is asked, in tokens.
_PROMPT_ALLOWANCE = 1024


class PackedGRPOTrainer(GRPOTrainer):
    """TRL's [`~trl.GRPOTrainer`] with the packed, budgeted, balanced step. See the module for what it does.

    Hooks wrapped: `_get_per_token_logps_and_entropies`, `_generate_single_turn`, `_generate_and_score_completions`,
    `_prepare_inputs`, `training_step`, `compute_loss`.
    """

    args: R1GRPOConfig
    model: Any

    attention: Attention
    max_tokens_per_microbatch: int | None

    def _prepare_packing(self) -> None:
        """Choose attention and budget; called when model and engine are loaded, before the first step."""
        base = self.accelerator.unwrap_model(self.model)
        peft = getattr(base, "active_peft_config", None)
        base = base.get_base_model() if hasattr(base, "get_base_model") else base
        self.attention = self._choose_attention(base, bool(getattr(peft, "is_prompt_learning", False)))
        self._attention_of_its_own = enable_packing(base, self.attention)
        if self.ref_model is not None:
            enable_packing(self.accelerator.unwrap_model(self.ref_model), self.attention)
        self._why_not_trimmed = why_not_trimmable(base)
        self._trim_rows = 0 if self._why_not_trimmed else self.args.trim_rows
        if self._trim_rows is None:
            on_cpu = self.accelerator.device.type == "cpu"
            self._trim_rows = _CPU_TRIM_ROWS if on_cpu else self.args.per_device_train_batch_size
        self._pending: list[dict[str, Any]] = []
        self._policy_inputs: dict[str, Any] | None = None
        self._warned_about_longest = False
        self.max_tokens_per_microbatch = self._choose_budget(base)
        obstacle = self._why_not_regrouped() if self.max_tokens_per_microbatch else None
        self._regroups = bool(self.max_tokens_per_microbatch) and obstacle is None
        self._cost = self._cost_of_rows(base.config) if self._regroups else SequenceCost.by_tokens()
        self._announce_passes()
        if obstacle:
            self._warn(f"max_tokens_per_microbatch={self.max_tokens_per_microbatch} is not used: {obstacle}.")
        if self.args.compile_layers:
            compile_layers(base)
            if self.ref_model is not None:
                compile_layers(self.accelerator.unwrap_model(self.ref_model))

    def _choose_attention(self, base: Any, prompt_learning: bool) -> Attention:
        dtype = self._compute_dtype(base)
        asked = self.args.packing
        chosen = choose_attention(base, self.accelerator.device, dtype, asked, prompt_learning=prompt_learning)
        if not chosen.packs or self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            return chosen  # sharded weights are not there yet; attention itself refuses a row whose bounds got lost
        with self.accelerator.autocast():
            reason = why_packing_fails(base, chosen, dtype)
        reason = next((found for found in gather_object([reason]) if found), None)
        if reason and asked != "auto":
            raise ConfigurationError(f"packing={asked!r} cannot be used: {reason}. Use packing: auto or none.")
        return Attention("padded", reason) if reason else chosen

    def _announce_passes(self) -> None:
        said = f"Forward passes: {self.attention.kind} ({self.attention.reason})."
        if not self.attention.packs:
            how = f"keep TRL's padding: {self._why_not_trimmed}" if self._why_not_trimmed else "are sorted and trimmed"
            said = said[:-1] + (f"; rows {how}." if self._trim_rows or self._why_not_trimmed else ".")
        pads_policy = self.aux_loss_enabled and self.loss_type != "r1"  # which has no auxiliary loss
        if pads_policy:
            said = said[:-1] + "; the policy's are TRL's padded ones, for the router's auxiliary loss."
        # On a GPU padded passes cost several times as much: that, and a budget that does nothing, must not be overheard.
        falls_back = self.accelerator.device.type == "cuda" and self.args.packing != "none"
        (self._warn if falls_back and (pads_policy or not self.attention.packs) else self._say)(said)

    def _say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            logger.info(message)

    def _warn(self, message: str) -> None:
        if self.accelerator.is_main_process:
            logger.warning(message)

    def _compute_dtype(self, model: Any) -> torch.dtype:
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        return mixed or model.dtype

    def _choose_budget(self, base: Any) -> int | None:
        """Settle `max_tokens_per_microbatch` and, where it was left open, gradient checkpointing."""
        asked = self.args.max_tokens_per_microbatch
        if asked != "auto":
            return cast("int | None", asked)
        free = free_device_bytes(self.accelerator.device) if self.attention.packs else None
        if free is None:
            return None
        try:
            architecture = describe(base.config)
        except ConfigurationError as error:
            self._warn(f"max_tokens_per_microbatch: auto keeps TRL's micro-batches. {error}")
            return None
        chosen = choose_budget(
            architecture,
            min(gather_object([free])),
            self.args.vllm_max_model_length or self.args.longest_completion + _PROMPT_ALLOWANCE,
            dtype=base.dtype,
            trained_parameters=sum(
                getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad
            ),  # ZeRO-3's own parameters are empty
            optimizer=str(getattr(self.args.optim, "value", self.args.optim)),
            checkpointing=None if self.args.chooses_checkpointing else bool(self.args.gradient_checkpointing),
            world_size=self.accelerator.num_processes,
            sharded=self.is_fsdp_enabled or is_deepspeed_zero3_enabled(),
            autocast=self.accelerator.mixed_precision in ("bf16", "fp16"),
            adapter=Adapter.of(self.accelerator.unwrap_model(self.model)),
            weight_bits=4 if is_4bit(base) else None,
            weights_ready=base.device.type == self.accelerator.device.type,
        )
        if self.args.chooses_checkpointing and not chosen.checkpointing:
            self.args.gradient_checkpointing = False  # read by transformers when training begins
            base.gradient_checkpointing_disable()
        (self._say if chosen.fits else self._warn)(f"max_tokens_per_microbatch: {chosen.reason}.")
        return chosen.tokens

    def _cost_of_rows(self, config: Any) -> SequenceCost:
        try:
            return SequenceCost.of(config)
        except ConfigurationError:
            self._warn(
                f"Micro-batches are made equal in tokens, not in cost: no cost is known for {type(config).__name__}."
            )
            return SequenceCost.by_tokens()

    def _why_not_regrouped(self) -> str | None:
        """Say why rows keep TRL's micro-batches, or `None`."""
        if self._entropy_bonus_enabled or self.top_entropy_quantile < 1.0:
            return "entropy terms are means over TRL's micro-batch"
        if self.aux_loss_enabled:
            return "the router's auxiliary loss is a mean over TRL's micro-batch"
        if self._micro_batches_per_rollout % self.args.gradient_accumulation_steps:
            return "an optimizer step spans several rollouts"  # whose rows have other widths
        if self._why_not_trimmed and not self.attention.packs:
            return f"bins trim their rows, and {self._why_not_trimmed}"
        if self._is_vlm or self.tools:
            return "images and tools are laid out by TRL's micro-batch"
        return None

    # Forward passes

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        plain = compute_aux_loss or any(value is not None for value in multimodal.values())
        asked = (model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy)
        # With a gradient the backward pass may run out too: `_guarded` stands around both.
        message = partial(self._scoring_message, attention_mask, batch_size, plain=plain)
        with nullcontext() if torch.is_grad_enabled() else explained(message):
            if plain or not (self.attention.packs or self._trim_rows):
                outputs = super()._get_per_token_logps_and_entropies(*asked, compute_aux_loss, **multimodal)
            elif self.attention.packs:
                outputs = self._packed_logps(*asked)
            else:
                outputs = self._trimmed_logps(*asked)
        if self._policy_inputs is not None:
            self._add_sampling_ratio(self._policy_inputs, outputs[0].detach())
        return outputs

    def _scoring_message(self, attention_mask: torch.Tensor, batch_size: int | None, *, plain: bool) -> str:
        rows = min(batch_size or len(attention_mask), len(attention_mask))
        setting = f"per_device_{'train' if self.model.training else 'eval'}_batch_size"
        if not (plain or self.attention.packs) and self._trim_rows and self._trim_rows <= rows:
            rows, setting = self._trim_rows, "trim_rows"
        return scoring_out_of_memory_message(
            attention_mask.sum(dim=1).tolist(),
            rows,
            packs=self.attention.packs and not plain,
            budget=self.max_tokens_per_microbatch,
            rows_setting=setting,
        )

    def _packed_logps(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None,
        compute_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        completion_start = input_ids.size(1) - logits_to_keep
        where = spans(attention_mask)
        self._warn_about_longest(where)
        rows = [row for row, span in enumerate(where) if span.scored(completion_start)]
        logps = torch.zeros(input_ids.size(0) * logits_to_keep, device=input_ids.device)
        entropies = torch.zeros_like(logps) if compute_entropy else None
        for chosen in self._passes(rows, where, batch_size):
            packed = pack(input_ids, chosen, where, completion_start, _ROW_MULTIPLE)
            scored, entropy = self._score(model, packed)
            logps = packed.scatter(scored, logps)
            if entropies is not None and entropy is not None:
                entropies = packed.scatter(entropy, entropies)
        shape = (input_ids.size(0), logits_to_keep)
        return logps.view(shape), None if entropies is None else entropies.view(shape), None

    def _passes(self, rows: list[int], where: list[Span], batch_size: int | None) -> list[list[int]]:
        """Rows of each forward pass: one for the policy, as many as the budget asks for the others."""
        if batch_size is None:
            return [rows]
        lengths = [where[row].length for row in rows]
        if self.max_tokens_per_microbatch:
            budget = self.max_tokens_per_microbatch * NO_GRADIENT_BUDGET
        else:  # as many tokens as TRL would have had in a pass, padding included
            budget = batch_size * max((span.length for span in where), default=1)
        passes = [[rows[i] for i in items] for items in best_fit(lengths, budget)]
        if self.accelerator.num_processes > 1:  # sharded models gather their weights in every pass: all must take part
            most = max(gather_object([len(passes)]))
            passes += [[] for _ in range(most - len(passes))]
        return passes

    def _score(self, model: nn.Module, packed: Packed) -> tuple[torch.Tensor, torch.Tensor | None]:
        mask = unused_mask(packed.input_ids.device)
        with self.accelerator.autocast():
            outputs = model(attention_mask=mask, fused_lm_head=True, **packed.model_inputs)
        return outputs.log_probs, outputs.entropy

    def _trimmed_logps(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None,
        compute_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        score = super()._get_per_token_logps_and_entropies
        logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        entropies = torch.zeros_like(logps) if compute_entropy else None
        outside = input_ids.size(1) - logits_to_keep  # columns before the first completion token
        rows_per_chunk = min(self._trim_rows or 10**9, batch_size or 10**9)
        for chunk in trimmed_chunks(attention_mask, logits_to_keep, rows_per_chunk):
            columns = slice(chunk.start, chunk.stop)
            chunk_logps, chunk_entropies, _ = score(
                model, input_ids[chunk.rows, columns], attention_mask[chunk.rows, columns], chunk.stop - outside,
                compute_entropy=compute_entropy,
            )  # fmt: skip
            index = (chunk.rows[:, None], torch.arange(chunk.stop - outside, device=input_ids.device))
            logps = logps.index_put(index, chunk_logps.to(logps.dtype))
            if entropies is not None and chunk_entropies is not None:
                entropies = entropies.index_put(index, chunk_entropies.to(entropies.dtype))
        return logps, entropies, None

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.use_transformers_continuous_batching and self.attention.packs):
            return super()._generate_single_turn(*args, **kwargs)
        # Continuous batching looks for a paged variant of the attention in force, and there is one of the model's own.
        model = self.accelerator.unwrap_model(self.model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation(self._attention_of_its_own)
        try:
            return super()._generate_single_turn(*args, **kwargs)
        finally:
            enable_packing(base, self.attention)

    # No old-policy pass when on-policy

    @property
    def _on_policy(self) -> bool:
        """Whether every rollout is used for one update by the policy that wrote it."""
        return self.args.gradient_accumulation_steps % self._micro_batches_per_rollout == 0

    @property
    def _micro_batches_per_rollout(self) -> int:
        return cast(int, self.args.steps_per_generation) * self.num_iterations

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        skips = corrects and self.args.skip_old_logps and self._on_policy and self.model.training
        if skips:
            # TRL runs a whole pass to compare with the engine; the policy pass of the same weights tells the same.
            self.vllm_importance_sampling_correction = False
        try:
            rollout = super()._generate_and_score_completions(inputs)
        finally:
            if skips:
                self.vllm_importance_sampling_correction = True
        if self._regroups and self.max_tokens_per_microbatch:
            check_budget(self.max_tokens_per_microbatch, int(rollout["prompt_mask"].sum(dim=1).max()))
        return rollout

    def _add_sampling_ratio(self, inputs: dict[str, Any], logps: torch.Tensor) -> None:
        """Write the importance ratio between trainer and engine into the inputs of the loss, which reads it next."""
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        if not corrects or "importance_sampling_ratio" in inputs or "old_per_token_logps" in inputs:
            return
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        sampled = inputs["sampling_per_token_logps"]
        ratio = sampling_ratio(
            logps,
            sampled,
            mask,
            mode=self.vllm_importance_sampling_mode,
            clip_min=self.vllm_importance_sampling_clip_min,
            clip_max=self.vllm_importance_sampling_clip_max,
        )
        inputs["importance_sampling_ratio"] = ratio
        local = sampling_ratio_metrics(logps, sampled, mask, ratio)
        gathered = self.accelerator.gather(torch.stack(list(local.values()))[None])
        for name, values in zip(local, gathered.unbind(dim=1), strict=True):
            reduce = {"min": torch.min, "max": torch.max}.get(name.rpartition("/")[2], torch.mean)
            self._metrics["train" if self.model.training else "eval"][name].append(reduce(values).item())

    def compute_loss(  # noqa: D102 - as in transformers
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        inputs = dict(inputs)  # what is added to them must not stay in the rollout's buffer
        factor = inputs.pop(FACTOR, None)
        for name in (SCORED_TOKENS, SCORED_ROWS):
            inputs.pop(name, None)
        self._policy_inputs = inputs
        try:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self._policy_inputs = None
        return loss if factor is None else loss * factor

    # Micro-batches of equal cost

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if isinstance(generation_batch, dict) and FACTOR in generation_batch:
            return generation_batch  # a bin, made of inputs that were prepared before
        return super()._prepare_inputs(generation_batch)

    def training_step(  # noqa: D102 - as in transformers
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        if not self._regroups:
            return super().training_step(model, inputs, num_items_in_batch)
        # transformers runs a fixed number of micro-batches; all but the last only hand in their rows.
        started = time.perf_counter()
        model.train()  # TRL's `_prepare_inputs` tells a rollout for training from one for evaluation by it
        self._pending.append(self._prepare_inputs(inputs))
        if not self.accelerator.sync_gradients:
            self._step += 1
            self._current_train_step_time += time.perf_counter() - started
            return torch.zeros((), device=self.accelerator.device)
        pending, self._pending = self._pending, []
        bins = self._bins(pending)
        loss = torch.zeros((), device=self.accelerator.device)
        over_rows = means_over_rows(self.loss_type, self.importance_sampling_level, self.vllm_importance_sampling_mode)
        with LocalMetrics(self, over_rows) as metrics:
            for one in bins[:-1]:
                with metrics.of(one[SCORED_TOKENS], one[SCORED_ROWS]), self._unsynchronised(model):
                    loss = loss + self._guarded(Trainer.training_step, model, one, num_items_in_batch)
            self._current_train_step_time += time.perf_counter() - started
            with metrics.of(bins[-1][SCORED_TOKENS], bins[-1][SCORED_ROWS]):  # TRL's own, which counts the step
                loss = loss + self._guarded(GRPOTrainer.training_step, model, bins[-1], num_items_in_batch)
        return loss

    def _guarded(self, step: Any, model: nn.Module, one: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        def message() -> str:
            rows = one["prompt_mask"].sum(dim=1) + one["completion_mask"].sum(dim=1)
            return out_of_memory_message(
                max(self.max_tokens_per_microbatch or 0, int(rows.sum())),
                checkpointing=bool(self.args.gradient_checkpointing),
                longest=int(rows.max()),
            )

        with explained(message):
            return step(self, model, one, num_items_in_batch)

    @contextmanager
    def _unsynchronised(self, model: nn.Module) -> Iterator[None]:
        """Accumulate gradients without sending them, as transformers does between micro-batches."""
        state = self.accelerator.gradient_state
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        with ExitStack() as stack:
            stack.enter_context(nullcontext() if deepspeed else self.accelerator.no_sync(model=model))
            state._set_sync_gradients(False)
            stack.callback(state._set_sync_gradients, True)
            yield

    def _bins(self, pending: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Regroup the rows of one optimizer step: this rank's bins, each the inputs of one forward pass."""
        assert self.max_tokens_per_microbatch is not None
        bins = regroup(
            pending,
            loss_type=self.loss_type,
            budget=self.max_tokens_per_microbatch,
            cost=self._cost,
            skip_zero_advantages=self.args.skip_zero_advantages and self.beta == 0.0,
            accelerator=self.accelerator,
        )
        sizes = [one[SCORED_TOKENS] for one in bins]
        self._metrics["train"]["microbatch/count"].append(float(len(bins)))
        self._metrics["train"]["microbatch/scored_tokens"].append(sum(sizes) / len(sizes))
        return bins

    def _warn_about_longest(self, where: list[Span]) -> None:
        longest = max((span.length for span in where), default=0)
        budget = self.max_tokens_per_microbatch or longest
        if longest > budget and not self._warned_about_longest:
            self._warned_about_longest = True
            self._warn(
                f"A sequence of {longest} tokens is longer than max_tokens_per_microbatch={budget}: it gets a forward "
                "pass of its own. Said once."
            )
