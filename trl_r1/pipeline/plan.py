"""`--plan`: the memory by part, the bins and the time per step to expect on this machine, before any weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.architecture import Adapter, Architecture, describe, element_bytes
from trl_r1.modeling.balance import SequenceCost, balanced_bins
from trl_r1.modeling.memory import (
    CUDA_CONTEXT_BYTES,
    GIB,
    Budget,
    MemoryPlan,
    check_budget,
    choose_budget,
    training_memory,
    weight_bytes,
)
from trl_r1.modeling.speed import (
    Device,
    decoding_seconds,
    expected_lengths,
    measure_device,
    sync_seconds,
    training_seconds,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from trl import ModelConfig

    from trl_r1.pipeline.arguments import RLArguments
    from trl_r1.pipeline.preflight import Prepared
    from trl_r1.trainers import R1GRPOConfig

# Mean completion as a share of the cap, where nobody says otherwise: that of the workload that everything here is measured
# on (2,154 tokens under a cap of 8,192: log-normal lengths, as R1's are).
_MEAN_SHARE = 0.25
_ASLEEP_BYTES = 3 * GIB // 2  # what a sleeping vLLM keeps: CUDA graphs, workspaces, its half of the context
_ENGINE_WORK_SHARE = 0.1  # of vLLM's share: activations and graphs, not cache
_CPU_CACHE_BYTES = GIB  # trl_r1.generation's own choice on a CPU
_PROMPTS_READ = 512


@dataclass(frozen=True)
class Engine:
    """The rollout engine's memory on one device.

    Args:
        awake (`int`): Bytes while it generates.
        training (`int`): Bytes while the trainer computes.
        cache_tokens (`int`): Tokens whose keys and values it can hold; 0 when transformers generates.
    """

    awake: int = 0
    training: int = 0
    cache_tokens: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Args:
        model (`str`): Its name.
        architecture ([`Architecture`]): Its sizes.
        device ([`Device`]): Where, and how fast that is.
        devices (`int`): How many.
        memory ([`MemoryPlan`]): The peak of a training step.
        rollout_bytes (`int`): The peak while the engine generates.
        engine ([`Engine`]): Its memory.
        budget ([`Budget`], *optional*): Tokens per micro-batch; `None` where TRL's micro-batches stay.
        bins (`list[int]`): Tokens of one optimizer step's micro-batches on one device.
        sequences (`list[tuple[int, int]]`): Prompt and completion tokens of one device's share of a rollout.
        steps_per_rollout (`int`): Optimizer steps between two rollouts.
        seconds (`dict[str, float]`): Time of an optimizer step by phase.
        dtype (`str`): Of the weights.
        notes (`list[str]`): What will not fit, and what to change.
    """

    model: str
    architecture: Architecture
    device: Device
    devices: int
    memory: MemoryPlan
    rollout_bytes: int
    engine: Engine
    budget: Budget | None
    bins: list[int]
    sequences: list[tuple[int, int]]
    steps_per_rollout: int
    seconds: dict[str, float]
    dtype: str
    notes: list[str]

    @property
    def fits(self) -> bool:
        """Whether nothing was found that will not fit."""
        return not self.notes


def plan_r1_zero(
    script_args: RLArguments, training_args: R1GRPOConfig, model_args: ModelConfig, prepared: Prepared
) -> Plan:
    """Plan a run on this machine.

    Args:
        script_args ([`RLArguments`]): `plan_mean_tokens`.
        training_args ([`R1GRPOConfig`]): The algorithm.
        model_args ([`~trl.ModelConfig`]): Precision, LoRA, quantisation.
        prepared ([`~trl_r1.pipeline.preflight.Prepared`]): Prompts and tokenizer.

    Returns:
        [`Plan`]: For [`render_plan`].
    """
    import torch
    from transformers import AutoConfig

    revision = None if Path(prepared.model_path).is_dir() else model_args.model_revision
    config = AutoConfig.from_pretrained(prepared.model_path, revision=revision)
    half = "bfloat16" if training_args.bf16 else "float16" if training_args.fp16 else None
    device = measure_device(training_args.device, getattr(torch, half or _weights_dtype(model_args.dtype, config)))
    texts = [prepared.template.render(row.prompt, prepared.tokenizer) for row in prepared.train[:_PROMPTS_READ]]
    prompts = [len(ids) for ids in prepared.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return plan_run(
        config,
        prepared.model_path,
        device,
        training_args,
        model_args,
        prompts,
        mean_tokens=script_args.plan_mean_tokens,
    )


def plan_run(
    config: PretrainedConfig,
    model: str,
    device: Device,
    training_args: R1GRPOConfig,
    model_args: ModelConfig,
    prompts: Sequence[int],
    *,
    mean_tokens: float | None = None,
    lengths: Sequence[int] | None = None,
) -> Plan:
    """Plan a run from a configuration, a device's figures and lengths; nothing is loaded or measured.

    Args:
        config ([`~transformers.PretrainedConfig`]): The policy's.
        model (`str`): Its name.
        device ([`Device`]): Where.
        training_args ([`R1GRPOConfig`]): The algorithm.
        model_args ([`~trl.ModelConfig`]): Precision, LoRA, quantisation.
        prompts (`Sequence[int]`): Tokens of prompts.
        mean_tokens (`float`, *optional*): Mean completion to expect; a quarter of the cap by default.
        lengths (`Sequence[int]`, *optional*): Tokens of completions, instead of the log-normal ones.

    Returns:
        [`Plan`]: For [`render_plan`].

    Raises:
        [`ConfigurationError`]: A mean beyond the cap, or a budget below the longest prompt.
    """
    a = describe(config)
    cap = training_args.longest_completion
    mean = _MEAN_SHARE * cap if mean_tokens is None else mean_tokens
    if not 0 < mean < cap:
        raise ConfigurationError(f"plan_mean_tokens={mean:g} must lie between 0 and the cap, {cap} tokens.")
    world, rollout = training_args.world_size, cast("int", training_args.generation_batch_size)
    completions = list(lengths) if lengths is not None else expected_lengths(rollout, mean, cap)
    pairs = [(prompts[i // training_args.num_generations % len(prompts)], c) for i, c in enumerate(completions)]
    settings = _memory_settings(a, config, training_args, model_args)
    engine = _engine(a, device, training_args, settings, cap + max(prompts))
    budget, notes = _budget(a, device, training_args, settings, engine, cap + max(prompts), max(prompts))
    cost = SequenceCost.of(config)
    steps = training_args.steps_per_rollout
    bins = _bins(pairs[: len(pairs) // steps], cost, training_args, budget)
    # The peak to plan for is a full bin; TRL's own micro-batches have the size that the lengths give them.
    full = budget.tokens if budget else max(bins)
    recompute = budget.checkpointing if budget else bool(training_args.gradient_checkpointing)
    memory = training_memory(
        a, **settings, checkpointing=recompute, tokens_per_microbatch=full, engine_bytes=engine.training,
        context_bytes=CUDA_CONTEXT_BYTES if device.kind == "cuda" else 0, device_bytes=device.free_bytes,
    )  # fmt: skip
    rollout_bytes = memory.weights + memory.reference + memory.optimizer + memory.context + engine.awake
    notes += _what_does_not_fit(memory, rollout_bytes, device, engine, training_args)
    share = pairs[: max(1, len(pairs) // world)]
    seconds = _seconds(a, cost, device, training_args, settings, engine, share, recompute)
    return Plan(
        model, a, device, world, memory, rollout_bytes, engine, budget, bins, share, steps, seconds,
        str(settings["dtype"]), notes,
    )  # fmt: skip


def _weights_dtype(asked: Any, config: PretrainedConfig) -> str:
    """Type the weights are loaded in, by name; `auto` is the checkpoint's own."""
    own = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    name = str(own if asked == "auto" and own else asked).removeprefix("torch.")
    return "float32" if name in ("auto", "None") else name


def _memory_settings(
    a: Architecture, config: PretrainedConfig, training_args: R1GRPOConfig, model_args: ModelConfig
) -> dict[str, Any]:
    """Arguments of `training_memory` that follow from the run's settings."""
    adapter = None
    if model_args.use_peft:
        targets = model_args.lora_target_modules or ("q_proj", "v_proj")
        adapter = Adapter(model_args.lora_r, (targets,) if isinstance(targets, str) else tuple(targets))
    environment = os.environ.get
    sharded = environment("ACCELERATE_USE_FSDP") == "true" or environment("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    return {
        "dtype": _weights_dtype(model_args.dtype, config),
        "optimizer": str(getattr(training_args.optim, "value", training_args.optim)),
        "reference": training_args.beta != 0.0 and adapter is None,
        "world_size": training_args.world_size,
        "sharded": sharded or bool(training_args.fsdp),
        "autocast": bool(training_args.bf16 or training_args.fp16),
        "adapter": adapter,
        "weight_bits": 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None,
    }


def _engine_element(settings: dict[str, Any]) -> int:
    return 2 if settings["autocast"] else element_bytes(settings["dtype"])


def _engine(
    a: Architecture, device: Device, training_args: R1GRPOConfig, settings: dict[str, Any], longest: int
) -> Engine:
    if not training_args.use_vllm or training_args.vllm_mode != "colocate":
        return Engine()
    element = _engine_element(settings)
    options = training_args.engine_options
    quantised = str(options.get("quantization") or "")
    bits = 4 if quantised == "bitsandbytes" else 8 if "fp8" in quantised else None
    weights = weight_bytes(a, element, bits) // training_args.vllm_tensor_parallel_size
    held = 1 if "fp8" in str(options.get("kv_cache_dtype") or "") else element
    per_token = a.key_value_elements * held // training_args.vllm_tensor_parallel_size
    asked = training_args.engine_options.get("kv_cache_memory_bytes")
    if device.kind != "cuda":
        space = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
        cache = int(asked or (float(space) * GIB if space else _CPU_CACHE_BYTES))
        return Engine(weights + cache, weights + cache, cache // per_token)
    share = int(training_args.vllm_gpu_memory_utilization * device.total_bytes)
    cache = int(asked) if asked else int(share * (1 - _ENGINE_WORK_SHARE)) - weights
    awake = weights + cache + int(share * _ENGINE_WORK_SHARE) if asked else share
    asleep = _ASLEEP_BYTES if training_args.vllm_enable_sleep_mode else awake
    return Engine(awake, asleep, max(0, cache) // per_token)


def _budget(
    a: Architecture, device: Device, training_args: R1GRPOConfig, settings: dict[str, Any], engine: Engine,
    longest: int, longest_prompt: int,
) -> tuple[Budget | None, list[str]]:  # fmt: skip
    """The budget that the trainer will choose, or was given, and what is wrong with it."""
    asked = cast("Any", training_args.max_tokens_per_microbatch)
    recompute = bool(training_args.gradient_checkpointing)
    if isinstance(asked, int):
        check_budget(asked, longest_prompt)
        return Budget(asked, recompute, "as asked for"), []
    if asked is None or device.kind != "cuda":
        return None, []
    loaded = training_memory(a, **settings, engine_bytes=engine.training, context_bytes=CUDA_CONTEXT_BYTES)
    free = device.free_bytes - loaded.weights - loaded.reference - loaded.engine - loaded.context
    decided = None if training_args.chooses_checkpointing else recompute
    keys = ("dtype", "optimizer", "world_size", "sharded", "autocast", "adapter", "weight_bits")
    try:
        chosen = choose_budget(a, free, longest, checkpointing=decided, **{key: settings[key] for key in keys})
    except ConfigurationError as error:
        return Budget(-(-longest // 1024) * 1024, True, "the longest sequence", fits=False), [str(error)]
    return chosen, [] if chosen.fits else [chosen.reason + "."]


def _bins(
    pairs: Sequence[tuple[int, int]], cost: SequenceCost, training_args: R1GRPOConfig, budget: Budget | None
) -> list[int]:
    """Tokens of the micro-batches of one optimizer step, on the first device."""
    tokens = [prompt + completion for prompt, completion in pairs]
    if budget is None:
        size = training_args.per_device_train_batch_size
        share = tokens[: max(1, len(tokens) // training_args.world_size)]
        return [sum(share[begin : begin + size]) for begin in range(0, len(share), size)]
    costs = [cost(prompt + completion, completion) for prompt, completion in pairs]
    shared = balanced_bins(tokens, costs, budget.tokens, training_args.world_size)
    return [sum(tokens[index] for index in items) for items in shared[0]]


def _what_does_not_fit(
    memory: MemoryPlan, rollout_bytes: int, device: Device, engine: Engine, training_args: R1GRPOConfig
) -> list[str]:
    notes = []
    room = f"and {device.free_bytes / GIB:.1f} GiB are free"
    advice = []
    if not memory.checkpointing:
        advice.append("gradient_checkpointing: true")
    if memory.reference:
        advice.append("beta: 0 (no reference model)")
    if memory.optimizer > memory.weights // 4:
        advice.append("use_peft: true, or optim: adamw_8bit")
    if engine.training > _ASLEEP_BYTES and device.kind == "cuda":
        advice.append("vllm_enable_sleep_mode: true")
    more = "; ".join([*advice, "a smaller model, or more devices with recipes/accelerate_configs/fsdp2.yaml"])
    if memory.total > device.free_bytes:
        notes.append(f"A training step needs {memory.total / GIB:.1f} GiB, {room}. Change: {more}.")
    if rollout_bytes > device.free_bytes:
        lower = "a lower vllm_gpu_memory_utilization; " if device.kind == "cuda" and engine.awake else ""
        notes.append(f"A rollout needs {rollout_bytes / GIB:.1f} GiB, {room}. Change: {lower}{more}.")
    if training_args.use_vllm and engine.awake and not engine.cache_tokens:
        notes.append("vLLM's share does not hold the weights. Change: a higher vllm_gpu_memory_utilization.")
    return notes


def _seconds(
    a: Architecture, cost: SequenceCost, device: Device, training_args: R1GRPOConfig, settings: dict[str, Any],
    engine: Engine, share: Sequence[tuple[int, int]], recompute: bool,
) -> dict[str, float]:  # fmt: skip
    """Seconds per optimizer step by phase, on one device's share of the rollout."""
    steps = training_args.steps_per_rollout
    on_policy = steps == 1 and training_args.num_iterations == 1
    forwards = 1 + (not on_policy) + (training_args.beta != 0.0) + recompute
    element = _engine_element(settings)
    mean = float(np.mean([sum(pair) for pair in share]))
    slots = len(share) if not engine.cache_tokens else max(1, min(len(share), int(engine.cache_tokens / mean)))
    rollout = decoding_seconds(
        cost, share, device, element_bytes=element, cache_bytes_per_token=a.key_value_elements * element, slots=slots
    )
    adapter = settings["adapter"]
    handed = (adapter.parameters(a) if adapter is not None else a.parameters) * element
    sync = sync_seconds(handed, a.tensors, device) if engine.awake else 0.0
    return {
        "rollout": rollout / steps,
        "training": training_seconds(cost, share, forwards, device.flops) / steps,
        "weight hand-over": sync / steps,
    }
