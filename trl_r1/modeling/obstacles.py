"""What in a model's structure keeps its rows from sharing a packed row, or from being trimmed."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PretrainedConfig

# Layers whose every token sees its own sequence only through attention.
_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
# Older configurations list their layers under these names, and call attention just that.
_BLOCK_LISTS = ("block_types", "layers_block_type")
# Rotary embeddings that depend on the longest sequence of the batch, and so on who is packed with whom.
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def why_not_packable(model: Any) -> str | None:
    """Say why a model's sequences cannot share a row with equal results, or `None` if nothing in its structure does.

    What cannot be seen from outside is tried by [`~trl_r1.modeling.probe.why_packing_fails`].

    Args:
        model (`PreTrainedModel`): The policy, without PEFT's wrapper. Anything with a `config` is enough.

    Returns:
        `str` or `None`: The reason.
    """
    config: PretrainedConfig = model.config
    text = config.get_text_config()
    if text is not config or hasattr(config, "vision_config"):
        return "multimodal models place their images by padded position"
    if config.is_encoder_decoder:
        return "encoder-decoder models attend across rows"
    if not getattr(model, "_supports_attention_backend", True) or not getattr(model, "_supports_flash_attn", True):
        return f"{type(model).__name__} does not take another attention function"
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    stateful = (layers - _PACKABLE_LAYERS) | _other_blocks(text)
    if stateful:
        return f"layers of type {sorted(stateful)} carry state from one sequence to the next"
    if getattr(text, "attn_logit_softcapping", None):
        return "attention logits are soft-capped"
    if text.model_type == "gpt_oss" or any(getattr(module, "sinks", None) is not None for module in _modules(model)):
        return "attention sinks are not supported"
    if getattr(text, "attention_dropout", 0.0):
        return "attention_dropout is not 0"
    if ropes := _length_dependent_ropes(text):
        return f"rotary embeddings of type {ropes} depend on the longest sequence"
    return None


def why_not_trimmable(model: Any) -> str | None:
    """Say why a row's result depends on how wide it is padded, or `None` if it does not.

    Such rows keep TRL's padding, since a width that changes from one pass to the next would change the importance ratio.

    Args:
        model (`PreTrainedModel`): The policy, without PEFT's wrapper. Anything with a `config` is enough.

    Returns:
        `str` or `None`: The reason.
    """
    text = model.config.get_text_config()
    if ropes := _length_dependent_ropes(text):
        return f"rotary embeddings of type {ropes} depend on the padded width"
    if blocks := _other_blocks(text):
        return f"layers of type {sorted(blocks)} may see padding"
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if _counts_padding(name.rpartition(".")[2], module):
            return f"the positions of {name} count padding"
    return None


def _modules(model: Any) -> list[nn.Module]:
    return list(model.modules()) if isinstance(model, nn.Module) else []


def _other_blocks(text: PretrainedConfig) -> set[str]:
    """Layers that are no attention, by the older names of the list."""
    blocks = {str(block) for name in _BLOCK_LISTS for block in getattr(text, name, None) or ()}
    return blocks - _PACKABLE_LAYERS - {"attention"}


def _counts_padding(name: str, module: nn.Module) -> bool:
    """Whether a module embeds absolute positions that it is not given the attention mask to count (OPT's is)."""
    learned = isinstance(module, nn.Embedding) and (name == "wpe" or "pos" in name)
    if not (learned or "PositionalEmbedding" in type(module).__name__):
        return False
    return "attention_mask" not in inspect.signature(module.forward).parameters


def _length_dependent_ropes(text: PretrainedConfig) -> list[str]:
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return sorted(_rope_types(parameters) & _LENGTH_DEPENDENT_ROPE)


def _rope_types(parameters: Any) -> set[str]:
    if not isinstance(parameters, dict):
        return set()
    found = {str(parameters.get("rope_type", parameters.get("type", "default")))}
    for value in parameters.values():  # one set of parameters per kind of layer
        found |= _rope_types(value)
    return found
