"""A model's sizes, read from its configuration: parameters by part, and what a token leaves in a decoder layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl_r1.exceptions import ConfigurationError, unknown

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WIDE_NORMS = ("gemma",)  # families whose norms multiply by the weight in float32


@dataclass(frozen=True)
class Linear:
    """A kind of linear layer inside the decoder layers.

    Args:
        name (`str`): The module's own name, such as `"q_proj"`.
        inputs (`int`): Input features.
        outputs (`int`): Output features.
        per_layer (`float`): How many of them a decoder layer has, on average.
    """

    name: str
    inputs: int
    outputs: int
    per_layer: float


@dataclass(frozen=True)
class Architecture:
    """Sizes that memory and time depend on.

    Args:
        embedding (`int`): Parameters of the input embedding.
        blocks (`int`): Parameters of all decoder layers.
        head (`int`): Parameters of the LM head; 0 when it is tied to the embedding.
        rest (`int`): All others, such as the last norm.
        layers (`int`): Decoder layers.
        hidden (`int`): Width of the residual stream.
        intermediate (`int`): Width of the MLP, over all experts that see one token.
        query_width (`int`): Query heads x head dimension.
        key_value_width (`int`): Key heads x head dimension; values are as wide.
        heads (`int`): Query heads.
        key_value_heads (`int`): Key (and value) heads.
        vocabulary (`int`): Entries of the LM head.
        norms (`int`): Norms of the residual's width in a decoder layer.
        head_norms (`bool`): Whether queries and keys are normalised.
        wide_norms (`bool`): Whether norms multiply by their weight in float32.
        tensors (`int`): Number of parameter tensors.
        linears (`tuple[Linear, ...]`): Linear layers of the decoder layers, by name.
    """

    embedding: int
    blocks: int
    head: int
    rest: int
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    key_value_width: int
    heads: int
    key_value_heads: int
    vocabulary: int
    norms: int
    head_norms: bool
    wide_norms: bool
    tensors: int
    linears: tuple[Linear, ...]

    @property
    def parameters(self) -> int:
        """All parameters, shared ones once."""
        return self.embedding + self.blocks + self.head + self.rest

    @property
    def tied(self) -> bool:
        """Whether the LM head is the embedding."""
        return self.head == 0

    @property
    def key_value_elements(self) -> int:
        """Elements that the engine caches for one token."""
        return 2 * self.layers * self.key_value_width


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Args:
        rank (`int`): r.
        targets (`Sequence[str]`, defaults to PEFT's own, `q_proj` and `v_proj`): Names of linear layers, or
            `("all-linear",)`.
    """

    rank: int
    targets: Sequence[str] = ("q_proj", "v_proj")

    @classmethod
    def of(cls, model: Any) -> Adapter | None:
        """Read the adapter of a loaded model.

        Args:
            model (`PreTrainedModel` or `PeftModel`): The policy, unwrapped.

        Returns:
            [`Adapter`] or `None`: `None` without PEFT.
        """
        configs = getattr(model, "peft_config", None)
        if not configs:
            return None
        config = next(iter(configs.values()))
        targets = getattr(config, "target_modules", None) or ("all-linear",)
        return cls(getattr(config, "r", 8), (targets,) if isinstance(targets, str) else tuple(sorted(targets)))

    def linears(self, architecture: Architecture) -> list[Linear]:
        """The linear layers that get an adapter."""
        return [kind for kind in architecture.linears if self.targets == ("all-linear",) or kind.name in self.targets]

    def parameters(self, architecture: Architecture) -> int:
        """Parameters of the adapter."""
        per_layer = sum(kind.per_layer * (kind.inputs + kind.outputs) for kind in self.linears(architecture))
        return round(self.rank * per_layer * architecture.layers)


@contextmanager
def sizes_of(config: PretrainedConfig) -> Iterator[None]:
    """Say plainly that a model has no sizes of the usual names, or different ones from layer to layer.

    Args:
        config ([`~transformers.PretrainedConfig`]): Whose sizes are read inside.

    Raises:
        [`ConfigurationError`]: Reading them failed.
    """
    try:
        yield
    except (AttributeError, TypeError, RuntimeError) as error:  # transformers' for sizes by layer is a RuntimeError
        text = type(config.get_text_config()).__name__
        raise ConfigurationError(
            f"The sizes of a model cannot be read from its {text} ({str(error).partition('. ')[0]}), and "
            "max_tokens_per_microbatch: auto needs them. Set it to a number of tokens, or to null."
        ) from error


def describe(config: PretrainedConfig) -> Architecture:
    """Read the sizes of a causal language model, exactly, by building it without memory.

    Args:
        config ([`~transformers.PretrainedConfig`]): Of any model that `AutoModelForCausalLM` knows.

    Returns:
        [`Architecture`]: Its sizes.

    Raises:
        [`ConfigurationError`]: transformers has no causal language model for it, or its sizes cannot be read.
    """
    with sizes_of(config):
        return _describe(config)


def _describe(config: PretrainedConfig) -> Architecture:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text = copy.deepcopy(config.get_text_config())
    if hasattr(text, "quantization_config"):
        del text.quantization_config
    text._attn_implementation = "eager"  # nothing is computed; other kinds may not be installed or want a type
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    if type(text) not in mapping:
        raise ConfigurationError(f"No causal language model is known for a {type(text).__name__}.")
    with torch.device("meta"):  # and not `from_config`, which would shard under ZeRO-3
        model: Any = mapping[type(text)](text)
    decoder = model.base_model
    layers = decoder.layers
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    blocks = sum(p.numel() for p in layers.parameters())
    sizes = {"embedding": embedding.numel(), "blocks": blocks, "head": 0 if head is embedding else head.numel()}
    counts: dict[tuple[str, int, int], int] = {}
    for name, module in layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            kind = (name.rsplit(".", 1)[-1], module.in_features, module.out_features)
            counts[kind] = counts.get(kind, 0) + 1
    first = {name: p for name, p in layers[0].named_parameters() if p.dim() == 1 and "norm" in name}
    heads = text.num_attention_heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Architecture(
        **sizes,
        rest=sum(p.numel() for p in model.parameters()) - sum(sizes.values()),
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=_active_intermediate(text),
        query_width=heads * head_dim,
        key_value_width=key_value_heads * head_dim,
        heads=heads,
        key_value_heads=key_value_heads,
        vocabulary=head.shape[0],
        norms=sum(p.numel() == text.hidden_size for name, p in first.items() if "q_norm" not in name),
        head_norms=any("q_norm" in name for name in first),
        wide_norms=text.model_type.startswith(_WIDE_NORMS),
        tensors=sum(1 for _ in model.parameters()),
        linears=tuple(Linear(*kind, count / len(layers)) for kind, count in counts.items()),
    )


def _active_intermediate(text: PretrainedConfig) -> int:
    """Width of the MLP that one token passes through: the chosen experts of a mixture, the whole MLP otherwise."""
    experts = getattr(text, "num_experts_per_tok", None)
    width = getattr(text, "moe_intermediate_size", None)
    if not experts or not width:
        return int(text.intermediate_size)
    shared = getattr(text, "shared_expert_intermediate_size", None) or width * getattr(text, "n_shared_experts", 0)
    return int(experts * width + shared)


def element_bytes(dtype: torch.dtype | str) -> int:
    """Bytes of one element of a floating-point type, given as torch's or by name."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPE_BYTES:
        raise unknown("dtype", name, _DTYPE_BYTES)
    return _DTYPE_BYTES[name]


def layer_activation_bytes(
    architecture: Architecture, *, dtype: torch.dtype | str, autocast: bool = False, adapter: Adapter | None = None
) -> int:
    """Bytes that one packed token leaves in one decoder layer for the backward pass, without checkpointing.

    Per norm of width h: its input in float32, the normalised value, and its output as the input of the linear layers
    behind it, once if it already has the type they compute in and once per linear layer if autocast converts it.
    Attention keeps queries, keys, values, its output and a float32 log-sum-exp per head; rotary embeddings keep nothing.
    A gated MLP keeps four tensors of its width. Under LoRA the frozen layers keep no input, each adapter its own.

    Args:
        architecture ([`Architecture`]): Sizes.
        dtype (`torch.dtype` or `str`): Type of the weights, and so of the residual stream.
        autocast (`bool`, defaults to `False`): Whether the linear layers compute in half precision regardless.
        adapter ([`Adapter`], *optional*): LoRA.

    Returns:
        `int`: Bytes per token and layer.
    """
    a = architecture
    element = element_bytes(dtype)
    compute = 2 if autocast else element
    normed = 4 if a.wide_norms else element
    converted = autocast and element == 4
    # Linear layers behind the norms: q, k, v and gate, up read what a norm wrote; the norms after them (Gemma) do not.
    readers = 5 if converted else 2
    head_width = a.query_width + a.key_value_width if a.head_norms else 0
    if adapter is not None:
        size = 4 * a.norms * a.hidden + 4 * head_width
        inputs = sum(kind.inputs * kind.per_layer for kind in adapter.linears(a))
        adapter_element = 2 if autocast else 4  # PEFT holds adapters in float32 and converts what they read
        size += round(inputs * adapter_element) + 3 * compute * a.intermediate
    else:
        size = a.norms * (4 + normed) * a.hidden + readers * compute * a.hidden
        size += (4 + (normed if a.wide_norms else compute)) * head_width
        size += 4 * compute * a.intermediate
    size += 2 * compute * (a.query_width + a.key_value_width) + 4 * a.heads
    return size + 4 * a.norms + (4 * (a.heads + a.key_value_heads) if a.head_norms else 0)
