"""The least time that a training step and a rollout can take on a device, from arithmetic alone.

Written apart from `trl_r1.modeling.balance`, which computes the same cost: a benchmark does not measure with the ruler of
what it measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Measured on one H200: an 8192 x 8192 x 8192 bf16 product in FLOP/s, a device-to-device copy in bytes/s.
DEVICES = {"NVIDIA H200": (790e12, 4.3e12)}


@dataclass(frozen=True)
class Cost:
    """What one model costs per token and per pair of tokens.

    Args:
        backbone (`int`): N, parameters without embeddings and LM head.
        layers (`int`): L.
        query_width (`int`): d_q, heads times their width.
        hidden (`int`): h.
        vocabulary (`int`): V.
        cache_bytes (`int`): κ, bytes of one token's keys and values in bfloat16.
    """

    backbone: int
    layers: int
    query_width: int
    hidden: int
    vocabulary: int
    cache_bytes: int

    @classmethod
    def of(cls, config: Any) -> Cost:
        """Read the sizes of a dense decoder with gated feed-forward layers off its configuration."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        query, key_value = config.num_attention_heads * head, config.num_key_value_heads * head
        attention = config.hidden_size * (2 * query + 2 * key_value)
        layer = attention + 3 * config.hidden_size * config.intermediate_size
        return cls(
            backbone=config.num_hidden_layers * layer,
            layers=config.num_hidden_layers,
            query_width=query,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            cache_bytes=4 * config.num_hidden_layers * key_value,
        )

    def forward_flops(self, prompt: int, completion: int) -> float:
        """Return the FLOPs of one sequence's forward pass, attention counted as causal, logits for the completion only."""
        length = prompt + completion
        return float(
            2 * self.backbone * length
            + 2 * self.layers * self.query_width * length**2
            + 2 * self.vocabulary * self.hidden * completion
        )

    def training_seconds(
        self, prompt: int, completions: Sequence[int], *, extra_forwards: int, flops_per_s: float
    ) -> float:
        """Return the least seconds for one forward and backward over all sequences, and some more forwards.

        Args:
            prompt (`int`): Tokens of each prompt.
            completions (`list[int]`): Tokens of each completion.
            extra_forwards (`int`): Passes for old and for reference log-probabilities that the schedule cannot do without.
            flops_per_s (`float`): Of all devices together.
        """
        total = sum(self.forward_flops(prompt, completion) for completion in completions)
        return (3 + extra_forwards) * total / flops_per_s

    def decoding_seconds(
        self, prompt: int, completions: Sequence[int], *, flops_per_s: float, bytes_per_s: float
    ) -> float:
        """Return the least seconds to decode all sequences side by side: per token the slower of memory and arithmetic."""
        weights = 2 * (self.backbone + self.vocabulary * self.hidden)
        seconds, lengths = 0.0, sorted(completions)
        start = 0
        for step in range(max(lengths, default=0)):
            while lengths[start] <= step:
                start += 1
            active = len(lengths) - start
            memory = (weights + self.cache_bytes * active * (prompt + step)) / bytes_per_s
            seconds += max(memory, active * weights / flops_per_s)
        return seconds


def device_speed(name: str, peak_tflops: float | None = None) -> tuple[float, float] | None:
    """Return FLOP/s and bytes/s of a device by its name, or `None` where nobody has measured it.

    Args:
        name (`str`): As `torch.cuda.get_device_name` gives it.
        peak_tflops (`float`, *optional*): Measured matrix speed to use instead.
    """
    flops, bandwidth = DEVICES.get(name, (None, None))
    if peak_tflops is not None:
        flops = peak_tflops * 1e12
    return None if flops is None else (flops, bandwidth or 0.0)
