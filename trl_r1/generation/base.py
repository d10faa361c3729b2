"""What every generation backend returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SampledIds:
    """One sampled completion in token ids.

    Args:
        token_ids (`list[int]`): The completion, EOS included when one was sampled.
        finish_reason (`str`): `"stop"` or `"length"`.
        logprobs (`list[float]`, *optional*): Log-probability of every sampled token, where the backend gives it.
    """

    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None = None
