"""In which order? The bodies of the stages; imported lazily, so that `trl-r1 --help` loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_r1.pipeline.arguments import R1ZeroArguments, ReasoningRLArguments, parse_r1_zero, parse_reasoning_rl
    from trl_r1.pipeline.stages import r1_zero, reasoning_rl

# Public name -> the module that defines it.
_HOME = {
    "R1ZeroArguments": "arguments",
    "ReasoningRLArguments": "arguments",
    "parse_r1_zero": "arguments",
    "parse_reasoning_rl": "arguments",
    "r1_zero": "stages",
    "reasoning_rl": "stages",
}

__all__ = ["R1ZeroArguments", "ReasoningRLArguments", "parse_r1_zero", "parse_reasoning_rl", "r1_zero", "reasoning_rl"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
