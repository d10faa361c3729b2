"""What every generation backend takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trl_r1.exceptions import ConfigurationError
from trl_r1.prompts import PromptTemplate
from trl_r1.rows import Completion, Prompt


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


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn. The defaults are R1's rollout: temperature 1, nothing cut off the distribution.

    Args:
        temperature (`float`, defaults to 1.0): R1 samples at 1.0 for training and cold start, evaluates at 0.6.
        top_p (`float`, defaults to 1.0): Nucleus; R1 is evaluated at 0.95.
        top_k (`int`, defaults to 0): Keep the k likeliest tokens; 0 keeps all.
        max_tokens (`int`, defaults to 1024): Cap of a completion, in tokens.
        stop (`tuple[str, ...]`, defaults to none): Texts that end a completion; they are kept in it.
        seed (`int`, *optional*): Equal seeds give equal samples where the backend can promise it.

    Raises:
        [`ConfigurationError`]: For a value outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigurationError(f"temperature={self.temperature} must not be negative; 0 is greedy.")
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p={self.top_p} must be in (0, 1].")
        if self.top_k < 0:
            raise ConfigurationError(f"top_k={self.top_k} must be 0 (all tokens) or a number of tokens.")
        if self.max_tokens < 1:
            raise ConfigurationError(f"max_tokens={self.max_tokens} must be at least 1.")


@dataclass(frozen=True)
class SampleRequest:
    """A question that a sampler is asked.

    Args:
        key (`str`): Names the request in its samples; unique among the requests of one stream.
        prompt (`str` or `list[dict]`): The question, before any template.
        n (`int`, defaults to 1): Completions wanted.
    """

    key: str
    prompt: Prompt
    n: int = 1


@dataclass(frozen=True)
class Sample:
    """One finished completion of a stream.

    Args:
        key (`str`): Of the request.
        index (`int`): Which of its n completions: the order in which they were *asked*, not in which they finished.
        completion ([`Completion`]): With token ids where the backend knows them, and the template's prefill.
    """

    key: str
    index: int
    completion: Completion


class Sampler(Protocol):
    """Who writes completions outside a trainer's rollout: an engine here, transformers, or a server elsewhere.

    All of them render prompts by the one `template`, so that a question is asked the same way everywhere.

    Attributes:
        template ([`PromptTemplate`]): How a question becomes the text that the model sees.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's; missing where only a server knows it.
        name (`str`): The model, as cards and manifests call it.
    """

    template: PromptTemplate
    tokenizer: Any
    name: str

    def stream(self, requests: Iterable[SampleRequest], settings: SamplingSettings) -> Iterator[Sample]:
        """Yield completions as they finish, in any order. Requests are drawn from the iterable as room appears."""
        ...

    def cancel(self, key: str) -> None:
        """End what is still unfinished of a request of the running stream; its samples do not appear any more."""
        ...

    def close(self) -> None:
        """Free what the sampler holds (engine, connections). Safe to call twice."""
        ...


def sample_all(
    sampler: Sampler, prompts: Sequence[Prompt], n: int, settings: SamplingSettings
) -> list[list[Completion]]:
    """Sample `n` completions of every prompt and wait for all of them.

    Args:
        sampler ([`Sampler`]): Who writes.
        prompts (`Sequence[Prompt]`): Questions, before any template.
        n (`int`): Completions per prompt.
        settings ([`SamplingSettings`]): How they are drawn.

    Returns:
        `list[list[Completion]]`: In the order of the prompts, each group in sample order.
    """
    requests = [SampleRequest(str(index), prompt, n) for index, prompt in enumerate(prompts)]
    found: list[dict[int, Completion]] = [{} for _ in prompts]
    for sample in sampler.stream(requests, settings):
        found[int(sample.key)][sample.index] = sample.completion
    return [[group[index] for index in sorted(group)] for group in found]
