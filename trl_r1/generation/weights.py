"""What is handed over to the engine: every weight as the policy computes with it, in one stream, one at a time.

Under an adapter that is W + ΔW, computed **out of place** and in float32: the frozen base is never written to, so it
stays bit-identical (merging and unmerging in bfloat16 drifts it, and with it the KL reference). 4-bit weights are
dequantised on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trl_r1.exceptions import ConfigurationError, EngineError

Weight = tuple[str, torch.Tensor]


def is_4bit(model: nn.Module) -> bool:
    """Whether bitsandbytes holds some of the model's linear layers in 4 bits."""
    return any(_quant_state(parameter) is not None for parameter in model.parameters())


def keep_4bit_weights(model: nn.Module) -> None:
    """Have bitsandbytes leave 4-bit weights on a CPU as they were quantised.

    Where the processor knows bfloat16 (AVX-512), its layers rearrange themselves at the first forward pass in evaluation mode
    and round their scales to bfloat16: from then on the frozen base computes otherwise than before, and its weights cannot
    be read any more (putting them back loses the scales' order).

    Raises:
        [`ConfigurationError`]: A layer has done so already.
    """
    if not is_4bit(model):
        return
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            if getattr(_quant_state(module.weight), "packing_format_for_cpu", False):
                raise ConfigurationError(
                    f"{name} is no longer the 4-bit layer that was loaded: bitsandbytes rearranged it when the model was "
                    "evaluated on this CPU. Load the model again and give it to the trainer before it is evaluated."
                )
            module.support_avx512bf16_for_cpu = False


def unwrapped(model: nn.Module) -> nn.Module:
    """Take a model out of `DistributedDataParallel`."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def without_adapters(model: Any) -> nn.Module:
    """Return the model below a `PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def effective_weights(model: nn.Module, gather: Any, *, adapters: bool = True) -> Iterator[Weight]:
    """Stream the weights a PEFT or 4-bit model computes with, named as in its checkpoint.

    Args:
        model (`PeftModel` or `PreTrainedModel`):
            The policy. Only its *active* adapters count, so a frozen reference adapter beside them changes nothing.
        gather (`Callable[[list[Parameter]], ContextManager]`):
            Gathers sharded parameters (DeepSpeed ZeRO-3) while one module is read.
        adapters (`bool`, defaults to `True`): `False` streams the base alone.

    Yields:
        `tuple[str, torch.Tensor]`: Name and weight. A tensor that was computed belongs to the receiver; others are the
        policy's own and valid until the next one is asked for.
    """
    seen: set[int] = set()
    for name, tensor, source in _walk(without_adapters(model), "", gather, adapters):
        if id(source) not in seen:  # tied weights are named once, as in a checkpoint
            seen.add(id(source))
            yield name.replace("_checkpoint_wrapped_module.", ""), tensor


def _walk(module: nn.Module, prefix: str, gather: Any, adapters: bool) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """Yield `(name, weight, what it came from)` of a module and all below it, adapters folded in or left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, ModulesToSaveWrapper):
        yield from _walk(_saved(module), prefix, gather, adapters)
    elif isinstance(module, TrainableTokensWrapper):
        yield from _walk(module.token_adapter, prefix, gather, adapters)
    elif isinstance(module, BaseTunerLayer):
        with gather(list(module.parameters())), torch.no_grad():
            merged = _merged(module, adapters)
            kept = _originals(module)
            for name, tensor in merged.items():
                yield f"{prefix}{name}", tensor, kept.get(name, tensor)
    else:
        for name, parameter in module.named_parameters(recurse=False):
            with gather([parameter]), torch.no_grad():
                yield f"{prefix}{name}", plain(parameter), parameter
        for name, child in module.named_children():
            yield from _walk(child, f"{prefix}{name}.", gather, adapters)


def _saved(wrapper: Any) -> nn.Module:
    """Return the module that a `modules_to_save` wrapper computes with."""
    active = _active(wrapper)
    return wrapper.modules_to_save[active[0]] if active else wrapper.original_module


def plain(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter as one ordinary tensor: unsharded (FSDP2) and dequantised (4-bit, in its compute type)."""
    state = _quant_state(parameter)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(parameter.data, state)
    full_tensor = getattr(parameter, "full_tensor", None)
    return full_tensor() if full_tensor is not None else parameter.data


def _quant_state(parameter: torch.Tensor) -> Any:
    return getattr(parameter, "quant_state", None)


def _originals(layer: Any) -> dict[str, nn.Parameter]:
    """Return the parameters of the layer below an adapter."""
    return dict(layer.get_base_layer().named_parameters())


def _merged(layer: Any, adapters: bool) -> dict[str, torch.Tensor]:
    """Compute the weights of one adapted layer, leaving the layer as it is."""
    from peft.tuners.lora.layer import Embedding, Linear, LoraLayer

    originals = _originals(layer)
    tensors = {name: plain(parameter) for name, parameter in originals.items()}
    off = not adapters or getattr(layer, "disable_adapters", False) or getattr(layer, "merged", False)
    active = [] if off else _active(layer)
    if not active:
        return tensors
    quantised = any(_quant_state(parameter) is not None for parameter in originals.values())
    linear = isinstance(layer, Linear) or (quantised and isinstance(layer, LoraLayer))
    if linear or isinstance(layer, Embedding):
        return _merged_lora(layer, tensors, active, embedding=isinstance(layer, Embedding))
    if quantised or any(hasattr(parameter, "full_tensor") for parameter in layer.parameters()):
        raise EngineError(
            f"The weights of a {type(layer).__name__} cannot be merged while they are 4-bit or sharded by FSDP. "
            "Use LoRA on linear and embedding layers, or `use_vllm: false`."
        )
    # Any other tuner knows how to merge itself: let a copy of this one layer do it.
    clone = copy.deepcopy(layer).float()
    clone.merge(safe_merge=False)
    return {name: parameter.data for name, parameter in _originals(clone).items()}


def _active(layer: Any) -> list[str]:
    active = layer.active_adapters
    return [active] if isinstance(active, str) else list(active)


def _merged_lora(
    layer: Any, tensors: dict[str, torch.Tensor], active: list[str], *, embedding: bool
) -> dict[str, torch.Tensor]:
    """Add the active LoRA deltas to one layer's weight and bias, in float32."""
    weight = tensors["weight"].float()
    for adapter in active:
        if adapter not in (layer.lora_embedding_A if embedding else layer.lora_A):
            continue
        if adapter in getattr(layer, "lora_variant", {}):  # DoRA and its kin: not a sum, so PEFT computes it
            weight = layer.lora_variant[adapter].merge_safe(layer, adapter, weight)
            continue
        if embedding:
            delta = (plain(layer.lora_embedding_B[adapter]).float() @ plain(layer.lora_embedding_A[adapter]).float()).T
        else:
            delta = plain(layer.lora_B[adapter].weight).float() @ plain(layer.lora_A[adapter].weight).float()
            delta = delta.T if getattr(layer, "fan_in_fan_out", False) else delta
            lora_bias = layer.lora_B[adapter].bias
            if lora_bias is not None and "bias" in tensors:
                tensors["bias"] = tensors["bias"].float() + plain(lora_bias).float() * layer.scaling[adapter]
        weight = weight.add(delta.to(weight.device), alpha=layer.scaling[adapter])
    return {**tensors, "weight": weight}


def check_tied(model: nn.Module) -> None:
    """Refuse adapters that untie what the engine ties: it computes logits with the embedding's weight.

    Raises:
        [`EngineError`]: If the embedding and the LM head of a tied model would compute with different weights.
    """
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    base: Any = without_adapters(model)
    if not base.config.get_text_config().tie_word_embeddings:
        return
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    used = [_saved(end) if isinstance(end, ModulesToSaveWrapper) else end for end in ends]
    copies = any(end is not one for end, one in zip(ends, used, strict=True))
    if any(isinstance(end, LoraLayer) for end in ends) or (copies and used[0].weight is not used[1].weight):
        raise EngineError(
            "The adapter changes the embedding or the LM head alone, but this model ties them, and so does vLLM. Use "
            "`trainable_token_indices` for new tokens, `ensure_weight_tying=True`, a model with an untied head, or "
            "`use_vllm: false`."
        )


def refresh_tied_heads(engine_model: nn.Module) -> None:
    """Prepack vLLM-CPU's tied LM heads again after a reload.

    A reload visits the embedding only; the head shares its weight but multiplies with a copy packed when the engine was
    loaded, which goes stale (the gap to the trainer grows from 0.0004 to 0.058 in four updates without this).
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings = [module for module in engine_model.modules() if isinstance(module, VocabParallelEmbedding)]
    for head in embeddings:
        shared = any(head.weight is other.weight for other in embeddings if other is not head)
        if isinstance(head, ParallelLMHead) and shared:
            head.quant_method.process_weights_after_loading(head)


def has_experts(engine_model: nn.Module) -> bool:
    """Whether vLLM rearranges some of the weights after loading them (mixtures of experts)."""
    return any("MoE" in type(module).__name__ for module in engine_model.modules())
