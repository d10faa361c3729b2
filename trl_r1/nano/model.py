"""The nano base model's shape: a stock Qwen3 of 2.7M parameters, loadable by transformers and vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

# Five layers: a try's steps need depth, and each layer costs a decoding step its overhead on a CPU.
HIDDEN, LAYERS, INTERMEDIATE, HEADS, KEY_VALUE_HEADS = 224, 5, 576, 6, 2
# vLLM's attention kernels on CPU need at least 32.
HEAD_DIM = 32
MAX_POSITIONS = 1024


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Return the model's configuration for a tokenizer."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=INTERMEDIATE,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen3ForCausalLM:
    """Return a freshly initialised model in float32, with the generation config that its checkpoint carries.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The nano tokenizer.
        seed (`int`, defaults to 0): Seed of the weights.
    """
    import torch
    from transformers import GenerationConfig, Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(build_config(tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
    )
    return model
