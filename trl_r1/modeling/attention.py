"""Attention for packed rows: many sequences in one row, each attending to itself alone.

[`choose_attention`] walks a ladder and says what it took and why:

1. `flash_attention_4`, `_3`, `_2`: the flash-attn packages' kernels for sequences of varying length, where installed;
2. `varlen`: `torch.nn.attention.varlen`, which comes with PyTorch (half precision, CUDA);
3. `padded`: no packing; rows are sorted and trimmed instead (CPU, float32, layers that cannot be packed).

`sdpa` packs on any device and in any type, one call per sequence: exact, made for checking, chosen only when asked for.

All of them look at the keyword `cu_seq_lens_q`: with it the row is packed, without it they are
transformers' SDPA. So one model does packed passes, padded passes and `generate` without being switched.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.modeling.architecture import sizes_of
from trl_r1.modeling.obstacles import why_not_packable

FLASH = ("flash_attention_4", "flash_attention_3", "flash_attention_2")
KINDS = (*FLASH, "varlen", "sdpa", "padded")
# Not "flash…": transformers takes any such name for a package of its own to load.
_NAMES = {kind: "trl_r1_" + kind.replace("flash_attention_", "fa") for kind in (*FLASH, "varlen", "sdpa")}
# The module of each flash-attn, and the compute capabilities (major) its kernels are for.
_FLASH_MODULES = {
    "flash_attention_4": ("flash_attn.cute", {9, 10, 11}),
    "flash_attention_3": ("flash_attn_interface", {9}),
    "flash_attention_2": ("flash_attn", {8, 9, 10, 11, 12}),
}
# The widest head of FlashAttention 2's kernels, which `torch.nn.attention.varlen` calls.
_LARGEST_HEAD = 256


@dataclass(frozen=True)
class Attention:
    """What was chosen, and why.

    Args:
        kind (`str`): One of [`KINDS`].
        reason (`str`): For the log: what the choice rests on.
    """

    kind: str
    reason: str

    @property
    def packs(self) -> bool:
        """Whether sequences share a row."""
        return self.kind != "padded"


def head_dim(config: PretrainedConfig) -> int:
    """Return the size of one attention head.

    Args:
        config ([`~transformers.PretrainedConfig`]): The model's.

    Returns:
        `int`: The size.

    Raises:
        [`ConfigurationError`]: There are no heads, or their size differs from layer to layer.
    """
    text = config.get_text_config()
    with sizes_of(config):
        return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def choose_attention(
    model: Any, device: torch.device, dtype: torch.dtype, asked: str = "auto", *, prompt_learning: bool = False
) -> Attention:
    """Choose how sequences share a forward pass.

    Args:
        model (`PreTrainedModel`): The policy, without PEFT's wrapper.
        device (`torch.device`): Where it computes.
        dtype (`torch.dtype`): The type its layers compute in: autocast's, where that is on.
        asked (`str`, defaults to `"auto"`): One of [`KINDS`], `"auto"` for the ladder, or `"none"` for padded rows.
        prompt_learning (`bool`, defaults to `False`): Whether PEFT puts learned tokens before every row.

    Returns:
        [`Attention`]: The kind, and the reason.

    Raises:
        [`ConfigurationError`]: `asked` is unknown, or cannot work here.
    """
    if asked == "none":
        asked = "padded"
    if asked not in (*KINDS, "auto"):
        raise unknown("packing", asked, ["auto", "none", *KINDS])
    obstacle = why_not_packable(model)
    if prompt_learning:
        obstacle = "prompt learning puts its tokens before every row"
    half = dtype in (torch.bfloat16, torch.float16)
    if asked == "auto":
        return Attention("padded", obstacle) if obstacle else _climb(model.config, device, dtype, half=half)
    if asked != "padded" and obstacle:
        raise ConfigurationError(f"packing={asked!r} cannot be used: {obstacle}. Use packing: auto or none.")
    if asked in ("varlen", *FLASH) and not (device.type == "cuda" and half):
        raise ConfigurationError(
            f"packing={asked!r} needs a CUDA device and half precision, but layers compute in {dtype} on {device.type}. "
            "Use packing: auto, or sdpa, which packs anywhere."
        )
    if asked in FLASH and (reason := _why_no_flash(asked, device)):
        raise ConfigurationError(f"packing={asked!r} cannot be used: {reason}. Use packing: auto or varlen.")
    return Attention(asked, "asked for")


def _climb(config: PretrainedConfig, device: torch.device, dtype: torch.dtype, *, half: bool) -> Attention:
    """Take the first step of the ladder that holds."""
    if device.type != "cuda":
        return Attention("padded", f"no kernel for a {device.type}")
    if not half:
        return Attention("padded", f"{dtype} has no variable-length kernel")
    try:
        size = head_dim(config)
    except ConfigurationError:
        return Attention("padded", "the size of its heads is not stated, or differs from layer to layer")
    if size > _LARGEST_HEAD or size % 8:
        return Attention("padded", f"heads of size {size} do not fit a kernel")
    for kind in FLASH:
        if _why_no_flash(kind, device) is None:
            return Attention(kind, f"{_FLASH_MODULES[kind][0]} is installed")
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return Attention("padded", f"PyTorch {torch.__version__} has no torch.nn.attention.varlen")
    return Attention("varlen", "torch.nn.attention.varlen")


def _why_no_flash(kind: str, device: torch.device) -> str | None:
    """Say why a flash-attn cannot be used on a device, or `None` if it can."""
    module, capabilities = _FLASH_MODULES[kind]
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        found = False
    if not found:
        return f"{module} is not installed"
    major = torch.cuda.get_device_capability(device)[0] if torch.cuda.is_available() else None
    return None if major in capabilities else f"{module} has no kernel for this GPU (compute capability {major}.x)"


def enable_packing(model: Any, attention: Attention) -> str:
    """Set the attention function of a loaded model (and of nothing else).

    Args:
        model (`PreTrainedModel`): The policy, without PEFT's wrapper.
        attention ([`Attention`]): The choice. With `padded` the model is left alone.

    Returns:
        `str`: The name of the function it had, for `model.set_attn_implementation`.
    """
    before: str = model.config._attn_implementation
    if attention.packs:
        register()
        model.set_attn_implementation(_NAMES[attention.kind])
    return before


@functools.cache
def register() -> None:
    """Make the packed functions known to transformers."""
    for kind, name in _NAMES.items():
        AttentionInterface.register(
            name, sdpa_attention if kind == "sdpa" else functools.partial(kernel_attention, kind)
        )
        AttentionMaskInterface.register(name, sdpa_mask)  # for passes that are not packed


def unused_mask(device: torch.device) -> torch.Tensor:
    """Return a mask that transformers hands on unread, as it does with every mask of four dimensions.

    Without one it would look for the sequences' bounds in the position ids, and wait for the device to tell.
    """
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def kernel_attention(
    kind: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence of a packed row by one kernel for all.

    Args:
        kind (`str`): `"varlen"`, or one of [`FLASH`].
        module (`nn.Module`): The attention layer.
        query (`torch.Tensor` of shape `(1, H, T, D)`): Queries.
        key (`torch.Tensor` of shape `(1, H_kv, T, D)`): Keys.
        value (`torch.Tensor` of shape `(1, H_kv, T, D)`): Values.
        attention_mask (`torch.Tensor`, *optional*): Read only when the row is not packed.
        dropout (`float`, defaults to 0.0): Not available when packed; models with it are not packed.
        scaling (`float`, *optional*): Of the logits; `D ** -0.5` by default.
        sliding_window (`int`, *optional*): How many tokens a query sees, itself included.
        cu_seq_lens_q (`torch.Tensor` of shape `(n + 1,)`, *optional*): Where the sequences begin; `None` for SDPA.
        max_length_q (`int`, *optional*): Length of the longest.
        kwargs: As in transformers.

    Returns:
        `tuple`: The output of shape `(1, T, H, D)`, and `None`.
    """
    _check_call(query, attention_mask, cu_seq_lens_q, kwargs)
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **_dense(kwargs))
    assert max_length_q is not None
    if query.dtype == torch.float32:  # PEFT keeps some norms in float32; the kernels take half precision only
        half: Any = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else module.config.dtype
        query, key, value = query.to(half), key.to(half), value.to(half)
    kernel = _varlen if kind == "varlen" else _flash
    window = sliding_window - 1 if sliding_window else None
    output = kernel(
        kind,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q,
        max_length_q,
        scaling,
        window,
    )
    return output.unsqueeze(0), None


def _varlen(
    kind: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    size = (-1 if window is None else window, 0)
    output = varlen_attn(
        query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=size, **_GROUPED
    )
    return cast(torch.Tensor, output)


@torch.compiler.disable
def _flash(
    kind: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Call flash-attn's kernel; compiled layers stop before it and go on behind it."""
    none = None if kind == "flash_attention_4" else -1  # how a package writes a window without bound
    output = _flash_function(kind)(
        query,
        key,
        value,
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scaling,
        causal=True,
        window_size=(none, none) if window is None else (window, 0),
    )
    return output[0] if isinstance(output, tuple) else output


@functools.cache
def _flash_function(kind: str) -> Any:
    return importlib.import_module(_FLASH_MODULES[kind][0]).flash_attn_varlen_func


def _grouped() -> dict[str, Any]:
    """Newer versions of PyTorch want to be told that there are fewer heads of keys than of queries."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # PyTorch before 2.10
        return {}
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


_GROUPED = _grouped()


def sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence of a packed row by one SDPA call per sequence; see [`kernel_attention`]."""
    _check_call(query, attention_mask, cu_seq_lens_q, kwargs)
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **_dense(kwargs))
    bounds = cu_seq_lens_q.tolist()
    outputs = []
    for start, stop in itertools.pairwise(bounds):
        one = slice(start, stop)
        mask = None
        if sliding_window and stop - start > sliding_window:
            mask = _window(stop - start, sliding_window, query.device)
        outputs.append(
            sdpa_attention_forward(
                module, query[:, :, one], key[:, :, one], value[:, :, one], mask, dropout, scaling, is_causal=True
            )[0]
        )
    return torch.cat(outputs, dim=1), None


def _check_call(
    query: torch.Tensor, mask: torch.Tensor | None, bounds: torch.Tensor | None, kwargs: dict[str, Any]
) -> None:
    """Refuse what would be computed wrongly without a word: lost bounds of packed sequences, and attention sinks.

    Only a packed row comes with [`unused_mask`]'s shape and more than one query.
    """
    if bounds is None and mask is not None and mask.shape == (1, 1, 1, 1) and query.size(2) > 1:
        raise RuntimeError(
            "A packed row reached attention without cu_seq_lens_q, the bounds of its sequences: a layer of this model "
            "does not hand its keywords on. Use packing: none (for fine-tuning: packed_attention: none)."
        )
    if kwargs.get("s_aux") is not None:
        raise RuntimeError(
            "Attention sinks (s_aux) are not supported by packed attention. Use packing: none (for fine-tuning: "
            "packed_attention: none)."
        )


def _dense(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keep what SDPA reads of the keywords that a model hands to its attention."""
    return {name: kwargs[name] for name in ("is_causal", "position_bias", "output_attentions") if name in kwargs}


def _window(length: int, size: int, device: torch.device) -> torch.Tensor:
    """Causal mask of shape `(1, 1, length, length)` in which a token sees `size` tokens, itself included."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return ((distance >= 0) & (distance < size))[None, None]
