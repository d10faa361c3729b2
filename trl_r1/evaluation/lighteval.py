"""An adapter for lighteval: its tasks, asked by our samplers and our protocol, for scores that stand beside public ones.

    TRL_R1_SAMPLER='{"model_name_or_path": "my/model", "protocol": "r1"}' \
        lighteval custom my/model $(python -m trl_r1.evaluation.lighteval) "aime24|0"

lighteval builds the model from the file alone, so the settings come in the environment variable `TRL_R1_SAMPLER`: JSON with
the fields of [`~trl_r1.generation.config.SamplerConfig`] and `protocol`; temperature, top-p and length default to R1's. lighteval
0.10 and later pin a version of latex2sympy2_extended that excludes math-verify 0.8 and later, which trl-r1 needs: give lighteval an
environment of its own, `pip install lighteval` and then `pip install --no-deps trl-r1` (this adapter verifies nothing, and so
never loads math-verify). Tasks scored by log-probabilities of choices are refused: a reasoning model has to write first.
"""

from __future__ import annotations

import json
import os
from typing import Any

from trl_r1.evaluation.protocol import MAX_TOKENS, TEMPERATURE, TOP_P, template_for
from trl_r1.exceptions import ConfigurationError, TrlR1Error
from trl_r1.generation.base import Sampler, SampleRequest
from trl_r1.generation.checkpoint import Checkpoint
from trl_r1.generation.config import SamplerConfig, open_sampler


class LightevalMissingError(TrlR1Error, ImportError):
    """lighteval is not installed here."""


try:
    from lighteval.models.abstract_model import LightevalModel
    from lighteval.models.model_output import ModelResponse
except ImportError as error:
    raise LightevalMissingError(
        "lighteval 0.10 or later is not installed. It cannot share an environment with math-verify 0.8, which trl-r1 needs: in "
        "a new one, run `pip install lighteval` and then `pip install --no-deps trl-r1`."
    ) from error

SETTINGS = "TRL_R1_SAMPLER"
_DEFAULTS = {"temperature": TEMPERATURE, "top_p": TOP_P, "max_tokens": MAX_TOKENS}


class TrlR1Model(LightevalModel):
    """A model of lighteval that samples with trl_r1.

    Args:
        config (`CustomModelConfig`): lighteval's; its `model_name` is the model where the settings name none.
        sampler ([`~trl_r1.generation.base.Sampler`], *optional*): An open one, instead of one by the settings.

    Raises:
        [`ConfigurationError`]: For settings that are no JSON object or cannot work.
    """

    def __init__(self, config: Any, sampler: Sampler | None = None) -> None:
        self.config = config
        self._settings = read_settings(str(config.model_name))
        protocol = self._settings.pop("protocol", "auto")
        self._sampling = SamplerConfig.parse(self._settings)
        if sampler is None:
            tokenizer = Checkpoint.of(self._sampling).tokenizer()
            sampler = open_sampler(self._sampling, tokenizer=tokenizer, template=template_for(tokenizer, protocol))
        self._sampler = sampler

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._sampler.tokenizer

    @property
    def add_special_tokens(self) -> bool:
        """Whether lighteval should add BOS: the template does."""
        return False

    @property
    def max_length(self) -> int:
        """Longest completion, in tokens."""
        return self._sampling.max_tokens

    def cleanup(self) -> None:
        """Close the sampler."""
        self._sampler.close()

    def greedy_until(self, docs: list[Any]) -> list[Any]:
        """Sample the completions that lighteval's generative tasks ask for.

        Args:
            docs (`list[Doc]`): Queries with `num_samples`, `generation_size` and `stop_sequences`. The task's own cap of
                tokens, made for terse answers, does not cut off thinking: the settings' counts.

        Returns:
            `list[ModelResponse]`: In order. `text` begins with what the template opened, so that lighteval's
            `--reasoning-tags` find both tags; it removes the thinking before it scores.
        """
        found: list[dict[int, Any]] = [{} for _ in docs]
        requests = [
            SampleRequest(str(index), self._messages(doc), max(1, int(getattr(doc, "num_samples", 1) or 1)))
            for index, doc in enumerate(docs)
        ]
        for sample in self._sampler.stream(requests, self._sampling.settings()):
            found[int(sample.key)][sample.index] = sample.completion
        responses = []
        for request, group in zip(requests, found, strict=True):
            completions = [group[index] for index in sorted(group)]
            responses.append(
                ModelResponse(
                    input=request.prompt,
                    text=[completion.prefill + completion.text for completion in completions],
                    output_tokens=[list(completion.token_ids) for completion in completions],
                )
            )
        return responses

    def loglikelihood(self, docs: list[Any]) -> list[Any]:
        """Refuse: see the module's docstring."""
        raise ConfigurationError(
            "This task scores log-probabilities of given answers; a reasoning model writes first. Choose a generative task "
            "(such as aime24, math_500, gpqa:diamond, gsm8k)."
        )

    def loglikelihood_rolling(self, docs: list[Any]) -> list[Any]:
        """Refuse: see the module's docstring."""
        return self.loglikelihood(docs)

    def _messages(self, doc: Any) -> list[dict[str, str]]:
        """The query with its worked examples as earlier turns; never a system prompt (README of R1)."""
        turns: list[dict[str, str]] = []
        for shown in getattr(doc, "fewshot_samples", None) or []:
            turns.append({"role": "user", "content": str(shown.query)})
            turns.append({"role": "assistant", "content": str(shown.get_golds()[0])})
        instruction = f"{doc.instruction.strip()}\n\n" if getattr(doc, "instruction", None) else ""
        query = str(doc.query).removeprefix(getattr(doc, "instruction", None) or "")
        return [*turns, {"role": "user", "content": instruction + query.strip()}]


def read_settings(model_name: str) -> dict[str, Any]:
    """Read the sampler's settings from the environment; R1's evaluation where they say nothing.

    Args:
        model_name (`str`): The model, where they name none.

    Raises:
        [`ConfigurationError`]: If they are no JSON object.
    """
    text = os.environ.get(SETTINGS, "") or "{}"
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{SETTINGS} is no JSON: {text!r} ({error}).") from None
    if not isinstance(given, dict):
        raise ConfigurationError(f'{SETTINGS} must be a JSON object such as {{"protocol": "r1"}}. Got {text!r}.')
    return {**_DEFAULTS, "model_name_or_path": model_name, **given}


if __name__ == "__main__":
    print(__file__)
