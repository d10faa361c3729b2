"""What is read back from vLLM: the sampled tokens' log-probabilities and why each completion ended.

vLLM can keep the log-probabilities of a sequence as flat lists (`SamplingParams(flat_logprobs=True)`). They are then
used as they are: no dictionary, no sort and no `Logprob` object per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

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
        logprobs (`vllm.logprobs.FlatLogprobs` or `list[dict]`):
            What vLLM attached to a completion, or to a prompt without its first token. At each position the sampled
            token comes first, whatever its rank.

    Returns:
        `list[float]`: Natural logarithms, one per token. NaN where vLLM had none (TRL masks those).
    """
    starts = getattr(logprobs, "start_indices", None)
    if starts is None:  # flat log-probabilities were turned off in `generation_kwargs`
        return [next(iter(position.values())).logprob for position in logprobs]
    if len(logprobs.logprobs) == len(starts):
        return logprobs.logprobs
    return [logprobs.logprobs[start] for start in starts]


def extract_logprobs(
    outputs: Sequence[RequestOutput],
) -> tuple[list[OnePerToken] | None, list[OnePerToken] | None]:
    """Stand in for `trl.generation.vllm_generation.extract_logprobs`, for the sampled token only.

    Args:
        outputs (`list[RequestOutput]`): What `LLM.generate` returned.

    Returns:
        Log-probabilities and token ids, each indexed `[sequence][token][0]`; a pair of `None` without log-probabilities.
    """
    completions = [completion for output in outputs for completion in output.outputs]
    if any(completion.logprobs is None for completion in completions):
        return None, None
    logprobs = [OnePerToken(sampled_logprobs(completion.logprobs)) for completion in completions]
    return logprobs, [OnePerToken(list(completion.token_ids)) for completion in completions]


def finish_reason(reason: str | None) -> str:
    """Reduce vLLM's finish reason to the two that matter: `"stop"` (ended by itself) or `"length"` (was cut off)."""
    return "stop" if reason == "stop" else "length"
