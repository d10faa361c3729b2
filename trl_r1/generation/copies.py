"""The hand-over of whole weights as one batched copy.

vLLM's `load_weights` walks its model in Python for every tensor, which takes many times as long as copying the weights of a
small model; so does asking the policy for its parameters by name. Where `load_weights` does nothing but copy (views of) the
given tensors into (views of) its own, those copies are written down the first time and repeated together ever after, as
long as the policy's tensors stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trl_r1.generation.weights import Weight


class _Watch(TorchDispatchMode):
    """Write down which copies are made while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.copies.append((args[0].detach(), args[1].detach()))
        return func(*args, **(kwargs or {}))


class CopyPlan:
    """Repeats what `load_weights` copied.

    Args:
        policy (`torch.nn.Module`): The model whose tensors are copied.
        copies (`list[tuple[torch.Tensor, str, tuple]]`):
            Target, name of the weight, and which part of it is copied: its shape, strides and offset.
    """

    def __init__(self, policy: nn.Module, copies: list[tuple[torch.Tensor, str, tuple[Any, Any, int]]]) -> None:
        self._copies = copies
        # Where each parameter hangs: read from there, a parameter that was replaced is noticed too.
        self._places = [
            (module._parameters, name)
            for module in policy.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._addresses: list[int] = []
        self._sources: list[torch.Tensor] = []

    @classmethod
    def record(cls, policy: nn.Module, engine_model: Any, weights: Iterable[Weight]) -> CopyPlan | None:
        """Load weights with `load_weights`, and learn from it.

        Args:
            policy (`torch.nn.Module`): The model whose weights these are.
            engine_model (`torch.nn.Module`): vLLM's model.
            weights (`Iterable`): Names and tensors of the whole policy. The tensors must live until this returns.

        Returns:
            [`CopyPlan`], or `None` where something else than copying every element once happened.
        """
        given = dict(weights)
        owners = {tensor.untyped_storage().data_ptr(): name for name, tensor in given.items()}
        with _Watch() as watch:
            engine_model.load_weights(iter(given.items()))
        copies, copied = [], dict.fromkeys(given, 0)
        for target, source in watch.copies:
            name = owners.get(source.untyped_storage().data_ptr())
            if name is None or target.shape != source.shape or source.dtype != given[name].dtype:
                return None
            offset = source.storage_offset() - given[name].storage_offset()
            copies.append((target.as_subclass(torch.Tensor), name, (source.shape, source.stride(), offset)))
            copied[name] += source.numel()
        whole = all(copied[name] == tensor.numel() for name, tensor in given.items())
        return cls(policy, copies) if whole and len(owners) == len(given) else None

    def repeat(self) -> bool:
        """Copy the weights as they are now, if every tensor of the policy is where it was at the last call.

        Returns:
            `bool`: Whether it was; where not, call the plan with the weights.
        """
        if not self._sources or self._where() != self._addresses:
            return False
        torch._foreach_copy_([target for target, _, _ in self._copies], self._sources)
        return True

    def __call__(self, weights: Iterable[Weight]) -> None:
        """Copy the weights as they are now, from wherever they lie.

        Args:
            weights (`Iterable`): The same names, with tensors of the same layout.
        """
        given = dict(weights)
        self._addresses = self._where()
        self._sources = [
            given[name].as_strided(shape, stride, given[name].storage_offset() + offset)
            for _, name, (shape, stride, offset) in self._copies
        ]
        torch._foreach_copy_([target for target, _, _ in self._copies], self._sources)

    def _where(self) -> list[int]:
        return [
            0 if (tensor := parameters.get(name)) is None else tensor.data_ptr() for parameters, name in self._places
        ]
