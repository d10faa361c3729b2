"""Running out of memory in a forward or backward pass: the error names the setting to try next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from trl_r1.modeling.memory import next_budget

# Passes without gradient keep no activations, so their rows may be this many times longer than the budget.
NO_GRADIENT_BUDGET = 4
_LAST_RESORT = "a lower max_completion_length, LoRA (use_peft: true), or more devices"


@contextmanager
def explained(message: Callable[[], str]) -> Iterator[None]:
    """Raise a `torch.OutOfMemoryError` from inside again, with a message made only then.

    Args:
        message (`Callable`): Returns what to say.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(message()) from error


def out_of_memory_message(tokens: int, *, checkpointing: bool, longest: int = 0) -> str:
    """Say what to try after running out of memory in a training step.

    Args:
        tokens (`int`): The budget, `max_tokens_per_microbatch`.
        checkpointing (`bool`): Whether layers are recomputed already.
        longest (`int`, defaults to 0): Tokens of the longest sequence, which no budget can make shorter.

    Returns:
        `str`: A message that names the budget to try next.
    """
    smaller = next_budget(tokens)
    advice = []
    if smaller is not None and longest <= smaller:
        advice.append(f"max_tokens_per_microbatch: {smaller}")
    if not checkpointing:
        advice.append("gradient_checkpointing: true")
    if not advice:
        advice.append(_LAST_RESORT)
    bound = f" (one sequence alone has {longest})" if smaller is None or longest > smaller else ""
    return f"Out of memory with max_tokens_per_microbatch={tokens}{bound}. Try {' or '.join(advice)}."


def scoring_out_of_memory_message(
    lengths: Sequence[int], rows: int, *, packs: bool, budget: int | None, rows_setting: str
) -> str:
    """Say what to try after running out of memory in a pass without gradient: old policy, reference, evaluation.

    Args:
        lengths (`list[int]`): Tokens of each sequence that was to be scored.
        rows (`int`): Sequences in a pass, at most; bounds the pass where no budget does.
        packs (`bool`): Whether sequences share a row, so that a budget says how many.
        budget (`int`, *optional*): `max_tokens_per_microbatch`; such a pass takes [`NO_GRADIENT_BUDGET`] times as much.
        rows_setting (`str`): The setting that `rows` comes from, for passes that no budget bounds.

    Returns:
        `str`: A message that names the setting to try next.
    """
    longest = max(lengths, default=0)
    where = "Out of memory in a pass for log-probabilities without gradient"
    if not packs:
        advice = f"{rows_setting}: {rows // 2}" if rows > 1 else _LAST_RESORT
        return f"{where}, {rows} sequences of up to {longest} tokens ({rows_setting}={rows}). Try {advice}."
    tokens = budget or -(-rows * longest // NO_GRADIENT_BUDGET)
    smaller = next_budget(tokens)
    fits = smaller is not None and longest <= smaller * NO_GRADIENT_BUDGET
    held = max(tokens * NO_GRADIENT_BUDGET, longest)
    bound = "" if fits else f"; one sequence alone has {longest}"
    advice = f"max_tokens_per_microbatch: {smaller}" if fits else _LAST_RESORT
    asked = "null" if budget is None else budget
    return f"{where}, up to {held} tokens with max_tokens_per_microbatch={asked}{bound}. Try {advice}."
