"""The embedded default: a small bilingual world of verifiable questions, its tokenizer and its base checkpoints.

Nothing here loads torch: the world is plain Python, and checkpoints are folders to hand to `from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from trl_r1.exceptions import unknown
from trl_r1.nano.countdown import chains
from trl_r1.nano.documents import Document
from trl_r1.nano.question import split_of
from trl_r1.nano.traces import Trace, checks, read_trace
from trl_r1.nano.world import TASK_NAMES, NanoWorld

VARIANTS = ("default", "no_reflection", "small")
# What each shipped base was pretrained on.
VARIANT_WORLDS = {"default": NanoWorld(), "no_reflection": NanoWorld(reflect=0.0), "small": NanoWorld()}

__all__ = [
    "TASK_NAMES",
    "VARIANTS",
    "VARIANT_WORLDS",
    "Document",
    "NanoWorld",
    "Trace",
    "chains",
    "checkpoint_path",
    "checks",
    "read_trace",
    "split_of",
]


def checkpoint_path(variant: str = "default") -> Path:
    """Return the folder of a shipped base model, with its tokenizer, for `from_pretrained` and vLLM.

    Args:
        variant (`str`, defaults to `"default"`): `"default"`; `"no_reflection"`, whose pretraining held no search; or `"small"`,
            with 40 % of the parameters, the student of distillation.

    Returns:
        `Path`: The folder inside the installed package.

    Raises:
        `ConfigurationError`: There is no such variant.
    """
    if variant not in VARIANTS:
        raise unknown("nano checkpoint", variant, VARIANTS)
    return Path(__file__).parent / "checkpoints" / variant
