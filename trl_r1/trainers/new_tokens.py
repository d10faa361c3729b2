"""New tokens for supervised fine-tuning: visible when decoded, begun from what they replace, trained under LoRA too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.other import TrainableTokensWrapper
from tokenizers import AddedToken

from trl_r1.exceptions import ConfigurationError


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> dict[int, list[int]]:
    """Add tokens to a tokenizer, not as special ones: TRL and vLLM leave special tokens out of decoded text (trap 21).

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Changed in place.
        tokens (`Sequence[str]`): Tokens; those already in the vocabulary are left as they are.

    Returns:
        `dict[int, list[int]]`: New token id → ids of the pieces that wrote this text before.
    """
    known = tokenizer.get_vocab()
    fresh = [token for token in dict.fromkeys(tokens) if token not in known]
    pieces = [list(tokenizer(token, add_special_tokens=False)["input_ids"]) for token in fresh]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in fresh])
    return dict(zip(tokenizer.convert_tokens_to_ids(fresh), pieces, strict=True))


@torch.no_grad()
def embed_tokens(model: Any, tokenizer: Any, pieces: dict[int, list[int]]) -> None:
    """Make room for new tokens in the embeddings and the head, each the mean of its pieces.

    Args:
        model (`PreTrainedModel`): Changed in place. Rows that a padded vocabulary has already are used.
        tokenizer (`PreTrainedTokenizerBase`): With the new tokens.
        pieces (`dict[int, list[int]]`): From [`add_tokens`].
    """
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for token, parts in pieces.items():
            layer.weight[token] = layer.weight[parts].mean(0)


def train_tokens(peft_config: PeftConfig, model: Any, tokens: Sequence[int]) -> None:
    """Have PEFT train the rows of new tokens, in the embeddings and, where it is not tied to them, in the head.

    Args:
        peft_config (`PeftConfig`): Changed in place.
        model (`PreTrainedModel`): Whose layers are named.
        tokens (`Sequence[int]`): Ids of the new tokens.

    Raises:
        [`ConfigurationError`]: A kind of adapter that cannot train single tokens.
    """
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    whole = set(getattr(peft_config, "modules_to_save", None) or ())
    layers = [_name(model, inputs)]
    if head is not None and head.weight is not inputs.weight:
        layers.append(_name(model, head))
    missing = [layer for layer in layers if layer not in whole]
    if not missing:
        return
    if not hasattr(peft_config, "trainable_token_indices"):
        raise ConfigurationError(
            f"new_tokens cannot be trained by {type(peft_config).__name__}, which has no trainable_token_indices. Use "
            "LoRA, full fine-tuning, or tokens that the tokenizer has."
        )
    own = peft_config.trainable_token_indices or {}
    if not isinstance(own, dict):
        own = {layers[0]: own}
    for layer in missing:
        own[layer] = sorted({*own.get(layer, []), *tokens})
    peft_config.trainable_token_indices = own


def show_bias(model: Any) -> None:
    """Give a head whose new rows PEFT trains the `bias` that TRL's fused head reads; PEFT's wrapper hides it."""
    head = model.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper) and not hasattr(head, "bias"):
        bias: Any = getattr(head.original_module, "bias", None)
        head.bias = bias


def _name(model: Any, layer: Any) -> str:
    return next(name for name, module in model.named_modules() if module is layer).split(".")[-1]
