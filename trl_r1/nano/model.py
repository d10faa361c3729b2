"""The nano base models' shapes: stock Qwen3 of 2.7M and 1.1M parameters, loadable by transformers and vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl_r1.exceptions import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class Size:
    """How large a nano model is.

    Args:
        hidden (`int`): Width.
        layers (`int`): Depth.
        intermediate (`int`): Width inside an MLP.
        heads (`int`): Query heads.
        key_value_heads (`int`): Key and value heads.
    """

    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_value_heads: int = 2


# Five layers: a try's steps need depth, and each layer costs a decoding step its overhead on a CPU. `small` is the student of
# distillation: 40 % of the parameters.
SIZES = {"default": Size(224, 5, 576, 6), "small": Size(160, 4, 384, 4)}
# vLLM's attention kernels on CPU need at least 32.
HEAD_DIM = 32
MAX_POSITIONS = 1024


def build_config(tokenizer: PreTrainedTokenizerFast, size: str = "default") -> Qwen3Config:
    """Return a model's configuration for a tokenizer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The nano tokenizer.
        size (`str`, defaults to `"default"`): One of [`SIZES`].

    Raises:
        `ConfigurationError`: There is no such size.
    """
    from transformers import Qwen3Config

    if size not in SIZES:
        raise unknown("size of a nano model", size, SIZES)
    shape = SIZES[size]
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, size: str = "default") -> Qwen3ForCausalLM:
    """Return a freshly initialised model in float32, with the generation config that its checkpoint carries.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The nano tokenizer.
        seed (`int`, defaults to 0): Seed of the weights.
        size (`str`, defaults to `"default"`): One of [`SIZES`].
    """
    import torch
    from transformers import GenerationConfig, Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(build_config(tokenizer, size))
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
    )
    return model
