"""What TRL forgets in a checkpoint: whether it is whole, and the reference model after a reset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trl_r1.generation.weights import plain

REFERENCE_FILE = "reference.safetensors"
REFERENCE_ADAPTER = "ref"  # the name TRL looks for when it computes the reference log-probabilities
_STATE_FILE = "trainer_state.json"
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end: the trainer's state is written last and parses."""
    try:
        json.loads((Path(checkpoint) / _STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Find the newest checkpoint that was written to its end; a kill may have left a newer, half-written one.

    Args:
        output_dir (`str` or `Path`): Folder of the run.

    Returns:
        `str` or `None`: Path of the checkpoint, or `None` when there is none to resume from.
    """
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    folder = Path(output_dir)
    steps = sorted(
        (
            int(match[1])
            for path in (folder.iterdir() if folder.is_dir() else ())
            if (match := pattern.fullmatch(path.name))
        ),
        reverse=True,
    )
    candidates = (folder / f"{PREFIX_CHECKPOINT_DIR}-{step}" for step in steps)
    return next((str(path) for path in candidates if is_complete(path)), None)


def adapter_parameters(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """Parameters of one adapter, under names from which the adapter's own is taken out."""
    marker = f".{adapter}."
    return {name.replace(marker, "."): p for name, p in model.named_parameters() if marker in name}


@torch.no_grad()
def add_reference_adapter(model: PeftModel, source: str = "default") -> None:
    """Add a frozen copy of an adapter, from which the reference log-probabilities are computed.

    A new LoRA adapter adds nothing (B = 0), so the copy begins as the base model itself.
    """
    if REFERENCE_ADAPTER not in model.peft_config:
        model.add_adapter(REFERENCE_ADAPTER, model.peft_config[source])
    model.set_adapter(source)
    snapshot_adapter(model, source)


@torch.no_grad()
def snapshot_adapter(model: nn.Module, source: str = "default", alpha: float = 1.0) -> None:
    """Make the reference adapter equal to the policy's, which is R1's reset of the reference under PEFT.

    Args:
        model (`nn.Module`): The PEFT model with both adapters.
        source (`str`, defaults to `"default"`): The policy's adapter.
        alpha (`float`, defaults to 1.0): Share of the policy's weights in the new reference's; TRL's
            `ref_model_mixup_alpha`, here of the adapter's factors.
    """
    reference = adapter_parameters(model, REFERENCE_ADAPTER)
    for name, parameter in adapter_parameters(model, source).items():
        if alpha == 1.0:
            reference[name].data.copy_(parameter.data)
        else:
            reference[name].data.mul_(1.0 - alpha).add_(parameter.data, alpha=alpha)
        reference[name].requires_grad_(False)


def without_reference(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the reference adapter's tensors from a PEFT model's state."""
    return {name: tensor for name, tensor in state.items() if f".{REFERENCE_ADAPTER}." not in name}


@contextmanager
def without_reference_adapter(model: nn.Module) -> Iterator[bool]:
    """Hide the reference adapter while the model is saved: it is the run's own state, not part of what users load.

    Yields:
        `bool`: Whether there was one to hide.
    """
    configs: dict[str, Any] = cast(Any, model).peft_config if isinstance(model, PeftModel) else {}
    config = configs.pop(REFERENCE_ADAPTER, None)
    try:
        yield config is not None
    finally:
        if config is not None:
            configs[REFERENCE_ADAPTER] = config


def save_reference(reference: nn.Module, folder: str | Path, *, is_main: bool) -> None:
    """Write the reference's weights; every rank takes part, the main one writes.

    Args:
        reference (`nn.Module`): The reference model, or a PEFT model with a reference adapter.
        folder (`str` or `Path`): The checkpoint.
        is_main (`bool`): Whether this rank writes.
    """
    if isinstance(reference, PeftModel):
        adapter = adapter_parameters(reference, REFERENCE_ADAPTER)
        state = {name: plain(parameter).detach().cpu() for name, parameter in adapter.items()}  # gathered where sharded
    else:
        state = cast(dict[str, torch.Tensor], get_model_state_dict(reference, options=_FULL))
        if _is_tied(reference):
            state.pop("lm_head.weight", None)
    if is_main:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(folder) / REFERENCE_FILE)


@torch.no_grad()
def load_reference(reference: nn.Module, folder: str | Path) -> bool:
    """Restore the reference's weights from a checkpoint, if it has any.

    Returns:
        `bool`: `False` when the checkpoint was written before the first reset, so the initial reference still holds.
    """
    path = Path(folder) / REFERENCE_FILE
    if not path.exists():
        return False
    state = load_file(path)
    if isinstance(reference, PeftModel):
        for name, parameter in adapter_parameters(reference, REFERENCE_ADAPTER).items():
            value = state[name]
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.data.copy_(value)
    else:
        strict = not _is_tied(reference)
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(reference, cast(dict[str, Any], state), options=options)
    return True


def _is_tied(model: nn.Module) -> bool:
    config = getattr(getattr(model, "module", model), "config", None)
    return bool(getattr(config, "tie_word_embeddings", False))
