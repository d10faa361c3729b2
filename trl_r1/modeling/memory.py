"""What training will take of a device's memory, from a model's configuration alone, and the token budget that fits.

The activations are derived from the architecture: what autograd keeps of one decoder layer, tensor by tensor. The test
holds the formula against `torch.autograd.graph.saved_tensors_hooks`; against measurements of the whole step (one H200)
it is within a few percent once the *largest* micro-batch is put in, not the mean one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.architecture import (
    Adapter,
    Architecture,
    describe,
    element_bytes,
    layer_activation_bytes,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

GIB = 1 << 30
BUDGET_STEP = 1024  # budgets are multiples of this
LARGEST_BUDGET = 65_536  # tokens; far beyond where a GPU is saturated, so more memory buys no speed
# Of the free memory, what is left to the allocator: bins differ in size, so its blocks do not fit each other exactly.
RESERVE = 0.08
# What the CUDA context, its libraries and their workspaces take outside the allocator's figures.
CUDA_CONTEXT_BYTES = 700 << 20
# Tile of TRL's fused LM head (trl/kernels/chunked_logprob.py and trainer/utils.py): tokens x vocabulary entries.
_HEAD_TILE = (4096, 32_768)
# Bytes of optimizer state per trained parameter held in `element` bytes. torch keeps the two moments in the parameter's
# own type; bitsandbytes' 8-bit blocks of 256 add one float32 each.
_ADAM_8BIT = 2 * (1 + 4 / 256)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per device at the peak of a training step, by part.

    Args:
        weights (`int`): The policy.
        reference (`int`): The reference model of the KL term.
        gradients (`int`): Gradients, with DDP's buckets.
        optimizer (`int`): Optimizer states.
        copies (`int`): Half-precision copies of float32 weights under autocast; layers gathered by FSDP.
        head (`int`): The fused LM head's working memory that adds to the peak.
        activations (`int`): What the forward pass keeps for the backward pass, and one layer's backward.
        engine (`int`): The rollout engine's share, where it stays allocated while training.
        context (`int`): The CUDA context.
        tokens (`int`): Tokens of a micro-batch that this is for.
        checkpointing (`bool`): Whether layers are recomputed.
        largest_tokens (`int`, *optional*): The largest micro-batch that fits `device_bytes`, in tokens, if those were
            given; 0 when not even the model fits.
    """

    weights: int
    reference: int
    gradients: int
    optimizer: int
    copies: int
    head: int
    activations: int
    engine: int
    context: int
    tokens: int
    checkpointing: bool
    largest_tokens: int | None = None

    def parts(self) -> dict[str, int]:
        """The parts in bytes, those that are empty left out."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: size for name, size in named.items() if name not in _NOT_PARTS and size}

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts().values())


_NOT_PARTS = {"tokens", "checkpointing", "largest_tokens"}


@dataclass(frozen=True)
class Budget:
    """Tokens per micro-batch, and whether layers must be recomputed for them.

    Args:
        tokens (`int`): A multiple of 1,024.
        checkpointing (`bool`): Whether gradient checkpointing is needed.
        reason (`str`): Why, in a sentence for the log.
        fits (`bool`): `False` when a sequence of the greatest length would run out of memory.
    """

    tokens: int
    checkpointing: bool
    reason: str
    fits: bool = True


def optimizer_bytes(optimizer: str, element: int) -> float:
    """Bytes of optimizer state per trained parameter.

    Args:
        optimizer (`str`): transformers' `optim`, such as `"adamw_torch_fused"` or `"paged_adamw_8bit"`.
        element (`int`): Bytes of a parameter; torch keeps the moments in its type.

    Returns:
        `float`: Bytes; 2 moments for anything unknown.
    """
    name = optimizer.lower()
    if "8bit" in name or "4bit" in name:
        return _ADAM_8BIT
    if name.startswith("sgd"):
        return 0.0
    if "adafactor" in name:
        return 0.02 * element  # a row and a column per matrix instead of the matrix
    return (1.0 if "lion" in name or "rmsprop" in name else 2.0) * element


@dataclass(frozen=True)
class _Peak:
    """Bytes at one point of the step: a fixed part and a part per token."""

    fixed: int
    per_token: int

    def at(self, tokens: int) -> int:
        return self.fixed + self.per_token * tokens

    def tokens_in(self, available: float) -> int:
        return max(0, int((available - self.fixed) / self.per_token))


def _peaks(
    architecture: Architecture,
    *,
    dtype: torch.dtype | str,
    autocast: bool,
    adapter: Adapter | None,
    checkpointing: bool,
    trains_head: bool,
) -> tuple[_Peak, _Peak]:
    """The two points where a step can peak: in the LM head's backward pass, and in the last layer's."""
    a = architecture
    element = element_bytes(dtype)
    compute = 2 if autocast else element
    layer = layer_activation_bytes(a, dtype=dtype, autocast=autocast, adapter=adapter)
    kept = a.layers * (element * a.hidden if checkpointing else layer)
    kept += (4 + 2 * element) * a.hidden  # the last norm, and the embedding's output
    # Gradients in flight while one layer is differentiated, and, under checkpointing, what was recomputed of it.
    backward = 3 * compute * a.intermediate + 12 * a.hidden + (layer if checkpointing else 0)
    tile = math.prod(_HEAD_TILE) * compute
    converted = _HEAD_TILE[1] * a.hidden * compute if compute != element else 0
    # The head's gradient is summed in float32 and then converted to the weight's type.
    gradient = a.vocabulary * a.hidden * (4 + (element if element != 4 else 0)) if trains_head else 0
    # Per scored token: its hidden state, the float32 gradient of it and that in its own type, and eight statistics.
    return _Peak(tile + converted + gradient, kept + (4 + 2 * element) * a.hidden + 32), _Peak(0, kept + backward)


def weight_bytes(a: Architecture, element: int, bits: int | None = None) -> int:
    """Return what a model's weights take.

    Args:
        a ([`Architecture`]): The model's.
        element (`int`): Bytes of a weight that is not quantised.
        bits (`int`, *optional*): Of those that are: the decoder layers' alone, with a float32 scale per 64 weights.
    """
    if bits is None:
        return a.parameters * element
    return round(a.blocks * (bits + 0.5) / 8) + (a.parameters - a.blocks) * element


def training_memory(
    config: PretrainedConfig | Architecture,
    *,
    dtype: torch.dtype | str,
    trained_parameters: int | None = None,
    optimizer: str = "adamw_torch_fused",
    reference: bool = False,
    checkpointing: bool = False,
    tokens_per_microbatch: int = 16_384,
    world_size: int = 1,
    sharded: bool = False,
    autocast: bool = False,
    adapter: Adapter | None = None,
    weight_bits: int | None = None,
    engine_bytes: int = 0,
    context_bytes: int = 0,
    device_bytes: int | None = None,
) -> MemoryPlan:
    """Work out the peak memory of a packed training step on one device.

    Args:
        config ([`~transformers.PretrainedConfig`] or [`Architecture`]): The policy's.
        dtype (`torch.dtype` or `str`): Type the weights are held in.
        trained_parameters (`int`, *optional*): Parameters with a gradient; all of them, or the adapter's, by default.
        optimizer (`str`, defaults to `"adamw_torch_fused"`): transformers' `optim`.
        reference (`bool`, defaults to `False`): Whether a second copy of the model is held (β ≠ 0 without LoRA).
        checkpointing (`bool`, defaults to `False`): Whether layers are recomputed in the backward pass.
        tokens_per_microbatch (`int`, defaults to 16384): Tokens of the largest micro-batch.
        world_size (`int`, defaults to 1): Number of devices.
        sharded (`bool`, defaults to `False`): Whether weights, gradients and states are sharded over them (FSDP, ZeRO-3).
        autocast (`bool`, defaults to `False`): bf16 or fp16 mixed precision.
        adapter ([`Adapter`], *optional*): LoRA; only it is trained.
        weight_bits (`int`, *optional*): 4 or 8 for a base quantised by bitsandbytes.
        engine_bytes (`int`, defaults to 0): What the rollout engine keeps while training.
        context_bytes (`int`, defaults to 0): [`CUDA_CONTEXT_BYTES`] on a GPU.
        device_bytes (`int`, *optional*): Memory of the device, to work out the largest micro-batch.

    Returns:
        [`MemoryPlan`]: Parts in bytes.
    """
    a = config if isinstance(config, Architecture) else describe(config)
    element = element_bytes(dtype)
    extra = adapter.parameters(a) if adapter is not None else 0
    trained = (extra if adapter is not None else a.parameters) if trained_parameters is None else trained_parameters
    shards = world_size if sharded else 1
    base = weight_bytes(a, element, weight_bits)
    adapter_element = 4 if adapter is not None and weight_bits is None else element
    gradients = trained * adapter_element * (2 if world_size > 1 and not sharded else 1)
    half = autocast and element == 4
    copies = a.parameters * 2 if half and not sharded else 0
    if sharded and world_size > 1:
        block = a.blocks // a.layers
        # The layer in use and the next one, its float32 gradient, and the embedding and head, which stay gathered.
        copies = (2 * block + a.embedding + a.head) * (2 if autocast else element) + block * 4
    if weight_bits is not None:
        copies = max((kind.inputs * kind.outputs for kind in a.linears), default=0) * 2  # one matrix, dequantised
    peaks = _peaks(
        a, dtype=dtype, autocast=autocast, adapter=adapter, checkpointing=checkpointing, trains_head=adapter is None
    )  # fmt: skip
    peak = max(peaks, key=lambda point: point.at(tokens_per_microbatch))
    plan = MemoryPlan(
        weights=base // shards + extra * adapter_element,
        reference=base // shards if reference else 0,
        gradients=gradients // shards,
        optimizer=round(trained * optimizer_bytes(optimizer, adapter_element)) // shards,
        copies=copies,
        head=peak.fixed,
        activations=peak.per_token * tokens_per_microbatch,
        engine=engine_bytes,
        context=context_bytes,
        tokens=tokens_per_microbatch,
        checkpointing=checkpointing,
    )
    if device_bytes is None:
        return plan
    available = device_bytes * (1 - RESERVE) - (plan.total - plan.head - plan.activations)
    return replace(plan, largest_tokens=min(point.tokens_in(available) for point in peaks))


def choose_budget(
    config: PretrainedConfig | Architecture,
    free_bytes: int,
    longest_sequence: int,
    *,
    dtype: torch.dtype | str,
    trained_parameters: int | None = None,
    optimizer: str = "adamw_torch_fused",
    checkpointing: bool | None = None,
    world_size: int = 1,
    sharded: bool = False,
    autocast: bool = False,
    adapter: Adapter | None = None,
    weight_bits: int | None = None,
    optimizer_ready: bool = False,
    weights_ready: bool = True,
) -> Budget:
    """Pick the token budget of a micro-batch, and whether layers must be recomputed, from the free memory.

    Without gradient checkpointing when a sequence of the greatest length fits so, since recomputing costs a third of
    the step; with it otherwise. Never above [`LARGEST_BUDGET`], where nothing is gained any more.

    Args:
        config ([`~transformers.PretrainedConfig`] or [`Architecture`]): The policy's.
        free_bytes (`int`): Free memory of the device once the model, the reference and the engine are loaded (and the
            engine is asleep, if it will be), before the first step; see [`free_device_bytes`].
        longest_sequence (`int`): Longest prompt + cap of a completion, in tokens.
        checkpointing (`bool`, *optional*): `True` or `False` when the user has decided; `None` to choose.
        optimizer_ready (`bool`, defaults to `False`): Whether gradients and states are allocated already (a later call).
        weights_ready (`bool`, defaults to `True`): Whether the weights are on the device already; FSDP brings its shards
            when training begins.
        dtype, trained_parameters, optimizer, world_size, sharded, autocast, adapter, weight_bits:
            As for [`training_memory`].

    Returns:
        [`Budget`]: A multiple of 1,024 tokens. It is below `longest_sequence`, and `fits` is `False`, when only shorter
            sequences fit.

    Raises:
        [`ConfigurationError`]: Not even 1,024 tokens fit.
    """
    a = config if isinstance(config, Architecture) else describe(config)
    plan = training_memory(
        a, dtype=dtype, trained_parameters=trained_parameters, optimizer=optimizer, world_size=world_size,
        sharded=sharded, autocast=autocast, adapter=adapter, weight_bits=weight_bits,
    )  # fmt: skip
    pending = plan.copies if optimizer_ready else plan.copies + plan.gradients + plan.optimizer
    pending += 0 if weights_ready else plan.weights
    available = free_bytes * (1 - RESERVE) - pending
    tokens = 0
    choices = [False, True] if checkpointing is None else [checkpointing]
    for recompute in choices:
        peaks = _peaks(
            a, dtype=dtype, autocast=autocast, adapter=adapter, checkpointing=recompute, trains_head=adapter is None
        )  # fmt: skip
        tokens = min(peak.tokens_in(available) for peak in peaks)
        if tokens >= longest_sequence:
            break
    chosen = min(_down(tokens), LARGEST_BUDGET)
    facts = f"{free_bytes / GIB:.1f} GiB free, {pending / GIB:.1f} GiB of it for "
    facts += f"{'' if weights_ready else 'weights, '}gradients and optimizer states"
    how = "with" if recompute else "without"
    if tokens >= longest_sequence:
        chosen = max(chosen, _up(longest_sequence))
        return Budget(chosen, recompute, f"{chosen} tokens {how} gradient checkpointing: {facts}")
    if chosen < BUDGET_STEP:
        raise ConfigurationError(
            f"Not even {BUDGET_STEP} tokens fit beside this model {how} gradient checkpointing: {facts}. Use LoRA "
            "(use_peft: true), 8-bit optimizer states (optim: adamw_8bit), bf16 weights, or more devices (FSDP)"
            f"{'' if recompute else ', or gradient_checkpointing: true'}."
        )
    return Budget(
        chosen, recompute,
        f"{chosen} tokens {how} gradient checkpointing: {facts}. A sequence of {longest_sequence} tokens, the longest "
        "that the caps allow, would run out of memory: lower max_completion_length",
        fits=False,
    )  # fmt: skip


def check_budget(tokens: int, longest_prompt: int) -> None:
    """Refuse a budget that no prompt could be answered within.

    Args:
        tokens (`int`): `max_tokens_per_microbatch`.
        longest_prompt (`int`): Tokens of the longest prompt.

    Raises:
        [`ConfigurationError`]: For a budget below the longest prompt, with the smallest that is allowed.
    """
    if tokens < longest_prompt:
        raise ConfigurationError(
            f"max_tokens_per_microbatch={tokens} is below the longest prompt, {longest_prompt} tokens. Use at least "
            f"{_up(longest_prompt + 1)}, or 'auto'."
        )


def next_budget(tokens: int) -> int | None:
    """The budget to try after running out of memory with `tokens`: half of it, or `None` if that is too little.

    Args:
        tokens (`int`): The budget that did not fit.

    Returns:
        `int` or `None`: A multiple of 1,024.
    """
    return _down(tokens // 2) or None


def free_device_bytes(device: torch.device) -> int | None:
    """Memory of a GPU that a step can still use: what is free, and what torch's allocator holds without using it.

    Args:
        device (`torch.device`): The trainer's.

    Returns:
        `int` or `None`: Bytes; `None` on a device that is no CUDA GPU, where no budget is chosen.
    """
    import torch

    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _down(tokens: int) -> int:
    return tokens // BUDGET_STEP * BUDGET_STEP


def _up(tokens: int) -> int:
    return -(-tokens // BUDGET_STEP) * BUDGET_STEP
