"""Hand-over of a LoRA adapter alone: vLLM computes with the base it holds plus the adapter, as the trainer does.

The base goes over once. After that each update moves the adapter's two factors per layer, in memory, into vLLM's own LoRA
buffers: nothing is merged, nothing is rounded into the base, and a 4-bit base never has to be dequantised again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trl_r1.exceptions import ConfigurationError, EngineError, unknown
from trl_r1.generation.options import on_cpu
from trl_r1.generation.weights import is_4bit, plain, without_adapters

logger = logging.getLogger(__name__)

HAND_OVERS = ("auto", "adapter", "merged")
# What vLLM takes for `max_lora_rank`.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_NAME, _ID = "policy", 1


def why_not(model: Any) -> str | None:
    """Say why vLLM's LoRA cannot compute what this adapter computes, or `None` if it can.

    Args:
        model (`PeftModel` or `PreTrainedModel`): The policy. Only its active adapter counts.
    """
    from peft.tuners.lora.layer import Linear, LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if not hasattr(model, "get_base_model"):
        return "the policy has no adapter"
    base: Any = without_adapters(model)
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    found = 0
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper | TrainableTokensWrapper):
            return f"{name} is trained as a whole (modules_to_save or trainable tokens)"
        if not isinstance(module, BaseTunerLayer):
            continue
        active = module.active_adapters
        if not isinstance(module, LoraLayer) or any(module is end for end in ends):
            return f"{name} is a {type(module).__name__}, not LoRA on a linear layer inside the model"
        if len(active) != 1:
            return f"{len(active)} adapters are active together"
        if reason := _why_not_layer(module, active[0], is_linear=isinstance(module, Linear)):
            return f"{name} {reason}"
        found += 1
    return None if found else "no layer carries LoRA"


def _why_not_layer(module: Any, adapter: str, *, is_linear: bool) -> str | None:
    if adapter not in module.lora_A:
        return None
    weight = module.get_base_layer().weight
    if not is_linear and getattr(weight, "quant_state", None) is None:
        return f"is a {type(module).__name__}"
    if adapter in getattr(module, "lora_variant", {}):
        return "uses a variant of LoRA (such as DoRA)"
    if module.lora_B[adapter].bias is not None:
        return "has a LoRA bias"
    if getattr(module, "fan_in_fan_out", False):
        return "is stored transposed"
    if module.r[adapter] > _RANKS[-1]:
        return f"has rank {module.r[adapter]}, above vLLM's {_RANKS[-1]}"
    return None


def choose_hand_over(model: Any, asked: str, dtype: str | None = None) -> str:
    """Decide what is handed over after an update.

    Args:
        model (`PeftModel` or `PreTrainedModel`): The policy.
        asked (`str`): `"auto"`, `"adapter"` or `"merged"`.
        dtype (`str`, *optional*): What the engine computes in.

    Returns:
        `str`: `"adapter"` or `"merged"`; the latter for a policy without an adapter, too.

    Raises:
        [`ConfigurationError`]: `"adapter"` was asked for, but vLLM cannot take this one.
    """
    if asked not in HAND_OVERS:
        raise unknown("lora_hand_over", asked, HAND_OVERS)
    if asked == "merged" or not hasattr(model, "get_base_model"):
        return "merged"
    reason = why_not(model) or _why_not_engine(model)
    if str(dtype).removeprefix("torch.") == "float32" and not on_cpu():
        reason = reason or "vLLM's LoRA kernels take 16-bit activations only, and the engine computes in float32"
    if asked == "auto" and reason is None and on_cpu():
        reason = "a CPU pays more for LoRA in every step (1.4 times the step of a nano model) than for merging once"
    if reason and asked == "adapter":
        raise ConfigurationError(f"lora_hand_over='adapter' is not possible: {reason}. Set it to 'merged' or 'auto'.")
    if reason:
        logger.info("The adapter is handed over merged into the weights, since %s.", reason)
    return "merged" if reason else "adapter"


def _why_not_engine(model: Any) -> str | None:
    """Say why vLLM's class of this model takes no LoRA."""
    from vllm.model_executor.models import ModelRegistry, supports_lora

    name = type(without_adapters(model)).__name__
    registered = ModelRegistry.models.get(name)
    try:
        known = registered is not None and supports_lora(registered.load_model_cls())
    except ImportError:
        known = False
    return None if known else f"vLLM has no LoRA for {name}"


def engine_options(model: Any) -> dict[str, Any]:
    """Return the engine options for handing over this policy's adapter."""
    layers = list(_adapted(model))
    rank = max(module.r[adapter] for _, module, adapter in layers)
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next(allowed for allowed in _RANKS if allowed >= rank),
        "lora_target_modules": sorted({name.rpartition(".")[2] for name, _, _ in layers}),
    }


def check_engine_4bit(model: Any) -> None:
    """Refuse a bitsandbytes engine that would quantise the base otherwise than the trainer did.

    Raises:
        [`ConfigurationError`]: vLLM quantises on loading with `nf4` and double quantisation, nothing else.
    """
    config: Any = getattr(model.config, "quantization_config", None)
    kind = getattr(config, "bnb_4bit_quant_type", None)
    double = getattr(config, "bnb_4bit_use_double_quant", None)
    if not is_4bit(model) or kind != "nf4" or not double:
        raise ConfigurationError(
            "Engine option quantization='bitsandbytes' needs the policy in the same 4 bits: load_in_4bit with "
            f"bnb_4bit_quant_type='nf4' and bnb_4bit_use_double_quant=True (here: {kind!r}, {double}). Set those, or "
            "leave the option out: the engine then holds the dequantised base."
        )


def _adapted(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield `(name, layer, active adapter)` of every adapted layer."""
    from peft.tuners.lora.layer import LoraLayer

    for name, module in without_adapters(model).named_modules():
        if isinstance(module, LoraLayer) and module.active_adapters[0] in module.lora_A:
            yield name.replace("_checkpoint_wrapped_module.", ""), module, module.active_adapters[0]


def adapter_tensors(model: Any, gather: Any) -> dict[str, torch.Tensor] | None:
    """Copy the active adapter's factors, named as in a PEFT checkpoint, the scaling folded into the second.

    Args:
        model (`PeftModel`): The policy.
        gather (`Callable[[list[Parameter]], ContextManager]`): Gathers sharded parameters (DeepSpeed ZeRO-3).

    Returns:
        `dict[str, torch.Tensor]` in float32, or `None` while adapters are switched off.
    """
    tensors = {}
    for name, module, adapter in _adapted(model):
        if module.merged:
            raise EngineError(f"{name} has its adapter merged into the base. Call `unmerge_adapter()` before sampling.")
        if module.disable_adapters:
            return None
        first, second = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        with gather([first, second]), torch.no_grad():
            tensors[f"base_model.model.{name}.lora_A.weight"] = plain(first).to(torch.float32, copy=True)
            tensors[f"base_model.model.{name}.lora_B.weight"] = plain(second).float() * module.scaling[adapter]
    return tensors


class AdapterHandOver:
    """Puts an adapter into an engine that was built with [`engine_options`].

    Args:
        llm (`RolloutLLM`): The engine, in this process.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        manager: Any = llm.llm_engine.model_executor.driver_worker.model_runner.lora_manager
        self._manager = manager
        self._tensors: dict[str, torch.Tensor] = {}
        manager._load_adapter = self._build  # vLLM would read a folder

    def __call__(self, tensors: dict[str, torch.Tensor] | None) -> None:
        """Replace the adapter; `None` takes it away.

        Args:
            tensors (`dict[str, torch.Tensor]`, *optional*): What [`adapter_tensors`] returned.

        Raises:
            [`EngineError`]: If vLLM has no place for some of the adapter's layers.
        """
        from vllm.lora.request import LoRARequest

        if tensors is None:
            self.llm.lora_request = None
            return
        self._tensors = tensors
        try:
            self.llm.llm_engine.add_lora(LoRARequest(_NAME, _ID, "in memory", load_inplace=True))
        finally:
            self._tensors = {}
        self.llm.lora_request = LoRARequest(_NAME, _ID, "in memory")  # equal, but not loaded again at every step

    def _build(self, request: Any) -> Any:
        """Stand in for `WorkerLoRAManager._load_adapter`: the adapter from memory instead of from a folder."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        manager = self._manager
        engine_model = manager._adapter_manager.model
        rank = max(tensor.shape[0] for name, tensor in self._tensors.items() if ".lora_A." in name)
        lora = LoRAModel.from_lora_tensors(
            request.lora_int_id,
            self._tensors,
            PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),  # a scaling of 1: it is in the tensors
            device=str(manager.device),
            dtype=manager.lora_config.lora_dtype,
            model_vocab_size=manager.vocab_size,
            weights_mapper=_renaming(getattr(engine_model, "hf_to_vllm_mapper", None)),
            skip_prefixes=getattr(engine_model, "lora_skip_prefixes", None),
        )
        self._check_places(lora)
        return lora

    def _check_places(self, lora: Any) -> None:
        """Refuse layers that vLLM would drop without a word."""
        known: Any = self._manager._adapter_manager
        places = set(known.modules)
        for packed, parts in known.packed_modules.items():
            if packed in places:
                places |= set(parts)
        missing = sorted(set(lora.loras) - places)
        if missing:
            raise EngineError(
                f"vLLM has no LoRA for {len(missing)} adapted layers, such as {missing[0]}. Set "
                "`lora_hand_over: merged`."
            )


def _renaming(mapper: Any) -> Any:
    """Return a name mapper that leaves q, k and v apart, under the name it has in this vLLM."""
    for name in ("get_rename_mapper", "get_unstacked_mapper"):  # vLLM 0.31, 0.26
        if hasattr(mapper, name):
            return getattr(mapper, name)()
    return mapper


@contextmanager
def base_layers_only(engine_model: nn.Module) -> Iterator[None]:
    """Take vLLM's LoRA wrappers out of a model, so that weights find their parameters under the usual names."""
    from vllm.lora.layers import BaseLayerWithLoRA

    taken = [
        (parent, name, child)
        for parent in engine_model.modules()
        if not isinstance(parent, BaseLayerWithLoRA)
        for name, child in parent.named_children()
        if isinstance(child, BaseLayerWithLoRA)
    ]
    for parent, name, child in taken:
        setattr(parent, name, child.base_layer)
    try:
        yield
    finally:
        for parent, name, child in taken:
            setattr(parent, name, child)
