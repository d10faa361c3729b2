"""What a colocated engine is told on a GPU beyond TRL's own settings: scheduling, CUDA graphs, prefill budget."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

logger = logging.getLogger(__name__)

# A capture costs about 0.1 s and some memory, and a batch this large is bound by arithmetic, not by launches.
_LARGEST_GRAPH = 2048
# TRL's own prefill budget is the least; from 16k tokens on, a prefill is bound by arithmetic on any GPU.
_LEAST_PREFILL, _MOST_PREFILL = 4096, 16384
# Share of the free memory that the activations of a prefill may take.
_PREFILL_SHARE = 0.01


def graph_sizes(largest: int) -> list[int]:
    """List batch sizes whose decoding step is captured in a CUDA graph.

    A step is padded to the next size: fine steps where a step is bound by reading the weights, and where few long
    completions are left; coarser ones above.

    Args:
        largest (`int`): Sequences that decode at once, at most. Always captured, up to 2048.

    Returns:
        `list[int]`: In ascending order.
    """
    largest = min(largest, _LARGEST_GRAPH)
    sizes = [1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, 512, 32), *range(512, largest, 64)]
    return sorted({size for size in sizes if size < largest} | {largest})


def prefill_tokens(config: Any, free_bytes: int, max_num_seqs: int) -> int:
    """Return how many tokens one step may process, from the memory that their activations need.

    Args:
        config (`PretrainedConfig`): The policy's.
        free_bytes (`int`): Free memory of the device.
        max_num_seqs (`int`): Sequences that decode at once; a step must hold a token of each.

    Returns:
        `int`: A multiple of 256.
    """
    text = config.get_text_config()
    # What is alive at once in one layer, 16-bit: residual, its norm, q, k, v and output; gate, up and their product.
    per_token = 2 * (6 * text.hidden_size + 3 * (getattr(text, "intermediate_size", None) or 4 * text.hidden_size))
    tokens = int(free_bytes * _PREFILL_SHARE) // per_token
    return max(_LEAST_PREFILL, min(_MOST_PREFILL, tokens // 256 * 256), -(-max_num_seqs // 256) * 256)


def gpu_options(config: Any, max_num_seqs: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Choose what makes decoding fast on a GPU. Everything in `options` stays the user's.

    Args:
        config (`PretrainedConfig`): The policy's.
        max_num_seqs (`int`): Sequences that decode at once, as TRL sets it.
        options (`Mapping[str, Any]`): The user's engine options.

    Returns:
        `dict[str, Any]`: Arguments of `vllm.LLM`.
    """
    sequences = int(options.get("max_num_seqs", max_num_seqs) or max_num_seqs)
    chosen: dict[str, Any] = {}
    if "speculative_config" not in options:
        chosen["async_scheduling"] = True  # elsewhere vLLM decides: not every draft method can be scheduled ahead
    if not options.get("enforce_eager"):
        chosen["compilation_config"] = {"cudagraph_capture_sizes": graph_sizes(sequences)}
    chosen["max_num_batched_tokens"] = prefill_tokens(config, torch.cuda.mem_get_info()[0], sequences)
    said = {name: options.get(name, value) for name, value in chosen.items()}
    logger.info("Engine: %s.", ", ".join(f"{name}={value}" for name, value in said.items()))
    return chosen


def merged_options(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay options over each other, the last on top; mappings of one name are merged key by key.

    A user's `compilation_config` with its own `max_cudagraph_capture_size` keeps our sizes out: vLLM refuses both.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            below = result.get(name)
            if isinstance(below, Mapping) and isinstance(value, Mapping):
                value = {**below, **value}
                if "max_cudagraph_capture_size" in layer[name]:
                    value.pop("cudagraph_capture_sizes", None)
            result[name] = value
    return result
