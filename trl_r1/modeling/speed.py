"""How fast a device is, measured in half a second, and the least time that training and decoding can take on it.

The formulas count matrix products and bytes; what a step takes in practice is a share of them ([`TRAINING_SHARE`]), plus the
engine's own time per decoding step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trl_r1.modeling.balance import SequenceCost

if TYPE_CHECKING:
    import torch

# Share of the limit that a packed training step reaches. On one H200 51 % at 0.5B and 65 % at 1.5B at best, less with
# checkpointing and small budgets (`benchmarks/README.md`).
TRAINING_SHARE = 0.5
# What the engine takes for one decoding step beside the arithmetic: scheduling, sampling, Python. On a GPU vLLM 0.26 with
# 256 sequences and log-probs takes 6.1 ms asynchronously, about 1 ms of it arithmetic. On a CPU it is a
# guess that fits nano: a step planned at 5.9 s took 6.6 to 8.2 s on two cores.
ENGINE_STEP_SECONDS = {"cuda": 5e-3, "cpu": 15e-3}
_SIGMA = 0.9  # spread of the logarithm of the lengths of reasoning, that of the benchmarks' long tail
_PROBE_SECONDS = 0.25
_TENSOR_LAUNCH_SECONDS = 20e-6  # of handing over one tensor
_INTEGRATION_STEPS = 512


@dataclass(frozen=True)
class Device:
    """A device, and what was measured on it.

    Args:
        name (`str`): For people.
        kind (`str`): `"cuda"` or `"cpu"`.
        total_bytes (`int`): Its memory.
        free_bytes (`int`): What of it is free.
        flops (`float`): Matrix products, FLOP/s in the type that layers compute in.
        bandwidth (`float`): Bytes read and written per second by a copy.
    """

    name: str
    kind: str
    total_bytes: int
    free_bytes: int
    flops: float
    bandwidth: float


def measure_device(device: torch.device, dtype: torch.dtype) -> Device:
    """Read a device's memory and measure its speed, in about half a second.

    Args:
        device (`torch.device`): A GPU, or the CPU.
        dtype (`torch.dtype`): The type that layers compute in.

    Returns:
        [`Device`]: What was found.
    """
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name, side, elements = torch.cuda.get_device_name(device), 8192, 1 << 28
    else:
        import psutil

        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
        name, side, elements = f"CPU, {torch.get_num_threads()} threads", 768, 1 << 24

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    flops = 2 * side**3 / _seconds(lambda: torch.mm(left, right, out=product), wait)
    source = torch.ones(elements, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _seconds(lambda: target.copy_(source), wait)
    if device.type == "cuda":
        del left, right, product, source, target
        torch.cuda.empty_cache()
    return Device(name, device.type, total, free, flops, bandwidth)


def _seconds(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """Seconds of one call: twice to warm up, then as many as the probe's time allows."""
    work()
    wait()
    started = time.perf_counter()
    work()
    wait()
    count = max(1, min(1000, int(_PROBE_SECONDS / (time.perf_counter() - started))))
    started = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - started) / count


def training_seconds(
    cost: SequenceCost, sequences: Sequence[tuple[int, int]], forwards: int, flops: float, share: float = TRAINING_SHARE
) -> float:
    """Seconds to train on some sequences: (2 for the backward pass + forwards) ΣF / (R x share).

    Args:
        cost ([`SequenceCost`]): Operations of a forward pass.
        sequences (`Sequence[tuple[int, int]]`): Prompt and completion tokens of each.
        forwards (`int`): Forward passes: the policy's, and those for old and reference log-probabilities and
            checkpointing.
        flops (`float`): R, FLOP/s.
        share (`float`): Of R that is reached.

    Returns:
        `float`: Seconds.
    """
    total = sum(cost(prompt + completion, completion) for prompt, completion in sequences)
    return (2 + forwards) * total / (flops * share)


def decoding_seconds(
    cost: SequenceCost,
    sequences: Sequence[tuple[int, int]],
    device: Device,
    *,
    element_bytes: int,
    cache_bytes_per_token: int,
    slots: int,
) -> float:
    """Seconds to decode completions, `slots` of them side by side, in waves where there are more.

    Per token the slower of reading (weights once, the keys and values of every active sequence) and arithmetic, and the
    engine's own time per step.

    Args:
        cost ([`SequenceCost`]): Operations of a forward pass.
        sequences (`Sequence[tuple[int, int]]`): Prompt and completion tokens of each.
        device ([`Device`]): Its speed.
        element_bytes (`int`): Bytes of one weight in the engine.
        cache_bytes_per_token (`int`): Bytes of one token's keys and values over all layers.
        slots (`int`): Sequences that decode at once, at most.

    Returns:
        `float`: Seconds.
    """
    weights = cost.backbone + cost.vocabulary * cost.hidden
    own = ENGINE_STEP_SECONDS["cuda" if device.kind == "cuda" else "cpu"]
    seconds = 0.0
    for begin in range(0, len(sequences), max(1, slots)):
        wave = np.array(sequences[begin : begin + max(1, slots)])
        prompt, lengths = wave[:, 0].mean(), wave[:, 1]
        last = int(lengths.max())
        width = max(1, -(-last // _INTEGRATION_STEPS))
        for step in range(0, last, width):
            active = int((lengths > step).sum())
            read = weights * element_bytes + cache_bytes_per_token * active * (prompt + step)
            compute = active * 2 * weights / device.flops
            seconds += (max(read / device.bandwidth, compute) + own) * min(width, last - step)
    return seconds


def sync_seconds(parameter_bytes: int, tensors: int, device: Device) -> float:
    """Seconds to hand the weights over to a colocated engine: twice a copy, and a launch per tensor.

    Args:
        parameter_bytes (`int`): Bytes handed over.
        tensors (`int`): In how many tensors.
        device ([`Device`]): Its speed.

    Returns:
        `float`: Seconds.
    """
    return 2 * 2 * parameter_bytes / device.bandwidth + tensors * _TENSOR_LAUNCH_SECONDS


def expected_lengths(count: int, mean: float, cap: int) -> list[int]:
    """Lengths of completions as reasoning has them: log-normal, cut at the cap, always the same ones.

    Args:
        count (`int`): How many.
        mean (`float`): Their mean after the cut, in tokens, below the cap.
        cap (`int`): The longest, in tokens.

    Returns:
        `list[int]`: Lengths of at least 1.
    """
    noise = np.exp(_SIGMA * np.random.default_rng(0).standard_normal(count))
    low, high = 1e-3, 1e3 * cap
    for _ in range(60):  # bisect the scale, in which the mean only rises
        scale = (low * high) ** 0.5
        low, high = (scale, high) if np.minimum(noise * scale, cap).mean() < mean else (low, scale)
    return [int(length) for length in np.clip(np.round(noise * low), 1, cap)]
