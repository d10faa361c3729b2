"""Where a step's time goes: kernels by name and by kind, and how long the device waited."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

# First match wins. Names are those of cuBLAS, CUTLASS, PyTorch and Triton kernels, or of operators on a CPU.
KINDS = {
    "communication": r"nccl|all_reduce|all_gather|reduce_scatter",
    "attention": r"flash|fmha|attention|attn|varlen",
    "matmul": r"gemm|nvjet|cutlass|xmma|cublas|splitk|matmul|addmm|::mm|::bmm|::linear",
    "optimizer": r"multi_tensor|adam|foreach",
    "copy": r"memcpy|memset|copy|::to|::cat|index|gather|scatter|embedding",
}
TOP = 25


def start_profiler() -> Any:
    """Start recording: kernels where there is a GPU, operators otherwise."""
    cuda = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    profiler = torch.profiler.profile(activities=[activity])
    profiler.start()
    return profiler


def kind_of(name: str) -> str:
    """Say what sort of work a kernel does, by its name; what has no name of its own is elementwise (or a reduction)."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), "elementwise")


def busy_us(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of time spans, since kernels of several streams overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def kernel_table(profiler: Any, wall_s: float) -> dict[str, Any]:
    """Summarise a profile.

    Args:
        profiler (`torch.profiler.profile`): Stopped.
        wall_s (`float`): Seconds of the profiled step, generation and rewards left out.

    Returns:
        `dict`: `wall_s`, seconds and share by kind (`idle_s` is what no kernel covers), and the `top` kernels.
    """
    cuda = torch.cuda.is_available()
    device = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    spans = []
    for event in profiler.events():
        if event.device_type != device or event.is_user_annotation:  # a name around kernels, not a kernel
            continue
        start, stop = event.time_range.start, event.time_range.end
        spans.append((start, stop))
        seconds[event.name] += ((stop - start) if cuda else event.self_cpu_time_total) / 1e6
        calls[event.name] += 1
    busy_s = busy_us(spans) / 1e6
    kinds: dict[str, float] = defaultdict(float)
    for name, value in seconds.items():
        kinds[kind_of(name)] += value
    top = sorted(seconds, key=lambda name: -seconds[name])[:TOP]
    return {
        "wall_s": round(wall_s, 4),
        "busy_s": round(busy_s, 4),
        "idle_s": round(max(0.0, wall_s - busy_s), 4),
        "kinds": {
            kind: {"s": round(value, 4), "share": round(value / wall_s, 4)}
            for kind, value in sorted(kinds.items(), key=lambda item: -item[1])
        },
        "top": [
            {
                "name": name[:160],
                "kind": kind_of(name),
                "calls": calls[name],
                "s": round(seconds[name], 4),
                "share": round(seconds[name] / wall_s, 4),
            }
            for name in top
        ],
    }


def in_words(profile: dict[str, Any]) -> str:
    """Return where a profiled step's time went, in one line."""
    kinds = [f"{kind} {part['share']:.0%}" for kind, part in profile["kinds"].items()]
    return ", ".join([*kinds, f"idle {profile['idle_s'] / profile['wall_s']:.0%}"])
