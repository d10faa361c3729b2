"""What is read back from vLLM: the sampled tokens' log-probabilities and why each completion ended.

They come as one array per completion from `trl_r1.generation.sampled`, or as vLLM's flat or nested lists where the caller
asked vLLM for more than the sampled token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from trl_r1.exceptions import EngineError

if TYPE_CHECKING:
    from vllm import RequestOutput


class OnePerToken(Sequence[tuple[Any]]):
    """A flat list seen as TRL wants it: one row per token that holds the sampled token's value only.

    TRL reads `[row[0] for row in sequence]`; iterating is `zip` over the flat list, which makes no object per token.

    Args:
        values (`list`): One value per token.
    """

    __slots__ = ("values",)

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[tuple[Any]]:
        return zip(self.values, strict=False)

    @overload
    def __getitem__(self, index: int) -> tuple[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> OnePerToken: ...

    def __getitem__(self, index: int | slice) -> tuple[Any] | OnePerToken:
        return OnePerToken(self.values[index]) if isinstance(index, slice) else (self.values[index],)


def sampled_logprobs(logprobs: Any) -> list[float]:
    """Return the log-probability of each sampled token of one sequence.

    Args:
        logprobs (`np.ndarray`, `vllm.logprobs.FlatLogprobs` or `list[dict]`):
            What is attached to a completion, or to a prompt without its first token. At each position the sampled
            token comes first, whatever its rank.

    Returns:
        `list[float]`: Natural logarithms, one per token. NaN where vLLM had none (TRL masks those).
    """
    if isinstance(logprobs, np.ndarray):
        return logprobs.tolist()
    starts = getattr(logprobs, "start_indices", None)
    if starts is None:  # flat log-probabilities were turned off in `generation_kwargs`
        return [next(iter(position.values())).logprob for position in logprobs]
    if len(logprobs.logprobs) == len(starts):
        return logprobs.logprobs
    return [logprobs.logprobs[start] for start in starts]


def extract_logprobs(
    outputs: Sequence[RequestOutput],
) -> tuple[list[OnePerToken], list[OnePerToken]]:
    """Stand in for `trl.generation.vllm_generation.extract_logprobs`, for the sampled token only.

    Args:
        outputs (`list[RequestOutput]`): What `LLM.generate` returned.

    Returns:
        Log-probabilities and token ids, each indexed `[sequence][token][0]`. NaN for completions that were sampled
        without log-probabilities: TRL reads them in any case, takes NaN for "not known", and leaves such tokens alone.
    """
    completions = [completion for output in outputs for completion in output.outputs]
    return [_row(completion) for completion in completions], [
        OnePerToken(list(completion.token_ids)) for completion in completions
    ]


def _row(completion: Any) -> OnePerToken:
    tokens = len(completion.token_ids)
    if completion.logprobs is None:
        return OnePerToken([math.nan] * tokens)
    values = sampled_logprobs(completion.logprobs)
    if len(values) != tokens:  # TRL would fill up with zeros and take them for certainty
        raise EngineError(f"The engine gave {len(values)} log-probabilities for a completion of {tokens} tokens.")
    return OnePerToken(values)


def finish_reason(reason: str | None) -> str:
    """Reduce vLLM's finish reason to the two that matter: `"stop"` (ended by itself) or `"length"` (was cut off)."""
    return "stop" if reason == "stop" else "length"
