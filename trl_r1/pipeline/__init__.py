"""In which order? The bodies of the stages; imported lazily, so that `trl-r1 --help` loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_r1.pipeline.arguments import R1ZeroArguments, parse_r1_zero
    from trl_r1.pipeline.stages import r1_zero

__all__ = ["R1ZeroArguments", "parse_r1_zero", "r1_zero"]

_HOME = {"R1ZeroArguments": "arguments", "parse_r1_zero": "arguments", "r1_zero": "stages"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
