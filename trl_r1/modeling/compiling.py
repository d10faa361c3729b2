"""Compiling a model layer by layer."""

from __future__ import annotations

from torch import nn


def compile_layers(model: nn.Module) -> None:
    """Compile every decoder layer in place, once for all lengths; names and checkpoints stay as they are.

    Args:
        model (`PreTrainedModel`): The model, without PEFT's wrapper.
    """
    layers = [
        module
        for name, module in model.named_modules()
        if name.endswith("layers") and isinstance(module, nn.ModuleList)
    ]
    for stack in layers:
        for layer in stack:
            layer.compile(dynamic=True)
