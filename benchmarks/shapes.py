"""Models of public shapes with random weights, so that a benchmark needs no download.

Speed depends on a model's shape, not on what it has learnt. A checkpoint is written once per machine, from one generator on
the CPU, so that every process and every machine measures the same weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Longest sequence the shapes are built for; rotary positions need no more memory for it.
MAX_POSITIONS = 131_072
# Written checkpoints are shared by every benchmark on a machine.
CACHE_VARIABLE = "TRL_R1_BENCHMARK_CACHE"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Qwen2-type decoder, as its authors publish them.

    Args:
        hidden (`int`): Width of the residual stream.
        layers (`int`): Number of blocks.
        heads (`int`): Query heads; their width is `hidden / heads`.
        key_value_heads (`int`): Heads of the keys and values, shared by groups of query heads.
        intermediate (`int`): Width of the gated feed-forward layer.
        vocabulary (`int`, defaults to 151,936): Rows of the embedding, which is also the LM head.
    """

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int = 151_936

    def config(self, eos_token_id: int, pad_token_id: int) -> Any:
        """Return the model's configuration, embeddings tied."""
        from transformers import Qwen2Config

        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            use_sliding_window=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            bos_token_id=None,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )


# Qwen2.5's technical report (arXiv 2412.15115), table 1.
SHAPES = {
    "0.5b": ModelShape(hidden=896, layers=24, heads=14, key_value_heads=2, intermediate=4864),
    "1.5b": ModelShape(hidden=1536, layers=28, heads=12, key_value_heads=2, intermediate=8960),
}


def build_tokenizer(vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer in which every id of the model is a word, so that any ids can be decoded.

    Qwen's own class, because transformers and vLLM choose it by the model's type whatever the folder's files say.

    Args:
        vocabulary (`int`): Number of ids; the last is EOS, the one before it padding.
    """
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # every byte has a token, as in any byte-level BPE
    words = [*letters, *(f"\u0120w{index}" for index in range(vocabulary - len(letters) - 2))]
    vocab = {word: index for index, word in enumerate([*words, "<|pad|>", "<|endoftext|>"])}
    return Qwen2Tokenizer(
        vocab=vocab, merges=[], unk_token=None, eos_token="<|endoftext|>", pad_token="<|pad|>", padding_side="left"
    )


def cache_folder() -> Path:
    """Return the folder of the written checkpoints: `$TRL_R1_BENCHMARK_CACHE`, or one in the system's temporary folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path(tempfile.gettempdir()) / "trl_r1_benchmarks")


def checkpoint(model: str) -> str:
    """Return a checkpoint folder for a shape's name, written on first use; any other name is returned as it is.

    Args:
        model (`str`): A key of [`SHAPES`], `"nano"`, or a path.

    Raises:
        `FileNotFoundError`: It is neither a shape nor a folder.
    """
    if model == "nano":
        from trl_r1.nano import checkpoint_path

        return str(checkpoint_path())
    if model not in SHAPES:
        if not Path(model).is_dir():
            raise FileNotFoundError(f"--model {model!r} is neither a folder nor one of {[*SHAPES, 'nano']}.")
        return model
    folder = cache_folder() / model
    with _locked(cache_folder() / f"{model}.lock"):
        if not folder.exists():
            _write(SHAPES[model], folder)
    return str(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process of this machine write a checkpoint while the others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(shape: ModelShape, folder: Path) -> None:
    """Write random bfloat16 weights and a tokenizer; the folder appears only once it is whole."""
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer(shape.vocabulary)
    config = shape.config(tokenizer.eos_token_id, tokenizer.pad_token_id)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    try:
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
