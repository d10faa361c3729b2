"""A sampler whose completions are known, so that every figure of an evaluation can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from trl_r1.evaluation.protocol import template_for
from trl_r1.generation.base import Sample, SampleRequest, SamplingSettings
from trl_r1.generation.codec import PromptCodec
from trl_r1.generation.requests import wanted_indices


class ScriptedSampler:
    """Writes what a function of the rendered prompt and the index says; `fail_after` completions it breaks down."""

    def __init__(
        self, tokenizer: Any, write: Callable[[str, int], str], protocol: str = "r1", fail_after: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template_for(tokenizer, protocol)
        self.name = "scripted"
        self.write = write
        self.fail_after = fail_after
        self.prompts: list[str] = []
        self._codec = PromptCodec(self.template, tokenizer, [tokenizer.eos_token_id])

    def stream(self, requests: Iterable[SampleRequest], settings: SamplingSettings) -> Iterator[Sample]:
        for request in requests:
            text = self.template.render(request.prompt, self.tokenizer)
            for index in wanted_indices(request):
                if self.fail_after is not None and len(self.prompts) >= self.fail_after:
                    raise KeyboardInterrupt
                self.prompts.append(text)
                ids = self.tokenizer(self.write(text, index), add_special_tokens=False)["input_ids"]
                cut = len(ids) > settings.max_tokens
                ids = ids[: settings.max_tokens] if cut else [*ids, self.tokenizer.eos_token_id]
                yield Sample(request.key, index, self._codec.completion(ids, "length" if cut else "stop"))

    def cancel(self, key: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""
