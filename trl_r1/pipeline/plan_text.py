"""A plan as text for a terminal."""

from __future__ import annotations

import numpy as np

from trl_r1.modeling.memory import GIB
from trl_r1.pipeline.plan import Plan


def render_plan(plan: Plan) -> str:
    """Show a plan.

    Args:
        plan ([`Plan`]): From [`plan_r1_zero`].

    Returns:
        `str`: Text for a terminal.
    """
    device, a, memory = plan.device, plan.architecture, plan.memory
    explained = {
        "weights": f"{_count(a.parameters)} parameters in {plan.dtype}: embedding {_count(a.embedding)}, "
        f"layers {_count(a.blocks)}, head {'tied' if a.tied else _count(a.head)}",
        "reference": "the model of the KL term (beta)",
        "copies": "half-precision copies of the weights, or gathered layers",
        "head": "the fused LM head at work",
        "activations": f"{memory.tokens:,} tokens, gradient checkpointing {'on' if memory.checkpointing else 'off'}",
        "engine": "vLLM while the trainer computes",
        "context": "CUDA and its libraries",
    }
    rows = [f"  {name:<17}{size / GIB:8.2f} GiB  {explained.get(name, '')}" for name, size in memory.parts().items()]
    tokens = [sum(pair) for pair in plan.sequences]
    prompts, completions = (np.array([pair[part] for pair in plan.sequences]) for part in (0, 1))
    largest = f"{memory.largest_tokens or 0:,} tokens"
    times = [f"  {name:<17}{_time(seconds):>10}" for name, seconds in plan.seconds.items() if seconds]
    capacity = ""
    if plan.engine.cache_tokens:
        at_once = plan.engine.cache_tokens / max(tokens)
        capacity = f"; vLLM's cache holds {plan.engine.cache_tokens:,} tokens, {at_once:.0f} of the longest sequences"
    verdict = ["It fits."] if plan.fits else ["IT WILL NOT FIT.", *(f"- {note}" for note in plan.notes)]
    return "\n".join(
        [
            f"Plan for {plan.model} on {plan.devices} x {device.name}: {device.free_bytes / GIB:.1f} of "
            f"{device.total_bytes / GIB:.1f} GiB free, {device.flops / 1e12:.3g} TFLOP/s and "
            f"{device.bandwidth / 1e9:,.0f} GB/s measured just now; no weights were loaded.",
            "",
            "Memory of one device, at the peak of a training step",
            *[row.rstrip() for row in rows],
            f"  {'total':<17}{memory.total / GIB:8.2f} GiB  while generating: {plan.rollout_bytes / GIB:.2f} GiB",
            f"  largest micro-batch: {largest}{capacity}",
            "",
            f"One rollout on one device: {len(tokens)} completions of {completions.mean():.0f} tokens on average, "
            f"{completions.max()} at most (an assumption: --plan_mean_tokens); prompts of {prompts.mean():.0f}, "
            f"{prompts.max()} at most",
            _describe_bins(plan),
            "",
            "Time of an optimizer step (an estimate; expect a factor of two)",
            *times,
            f"  {'total':<17}{_time(sum(plan.seconds.values())):>10}  beside rewards and logging",
            "",
            *verdict,
        ]
    )


def _describe_bins(plan: Plan) -> str:
    if plan.budget is None:
        return f"Micro-batches of an optimizer step: {len(plan.bins)}, TRL's own, of up to {max(plan.bins):,} tokens"
    fill = sum(plan.bins) / (len(plan.bins) * plan.budget.tokens)
    return (
        f"Micro-batches of an optimizer step: {len(plan.bins)} bins of {plan.budget.tokens:,} tokens at most, "
        f"{fill:.0%} full ({plan.budget.reason})"
    )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def _time(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
