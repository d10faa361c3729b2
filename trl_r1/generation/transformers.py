"""Sampling with transformers, for where vLLM is not installed: the same interface, much slower."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from trl.models import unwrap_model_for_generation

from trl_r1.generation.base import Sample, SampledIds, SampleRequest, SamplingSettings
from trl_r1.generation.checkpoint import Checkpoint
from trl_r1.generation.codec import PromptCodec
from trl_r1.generation.config import SamplerConfig
from trl_r1.generation.requests import process_place, sample_seed, wanted_indices
from trl_r1.prompts import PromptTemplate

logger = logging.getLogger(__name__)

_SEQUENCES_PER_BATCH = 256
# `generate` takes what a config leaves open from the model's own, and Instruct models bring penalties and cut-offs. Their
# neutral values, so that every backend samples the same distribution.
_NEUTRAL = {
    "num_beams": 1, "min_length": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "guidance_scale": 1.0,
}  # fmt: skip
# Batches' worth of completions that are looked at together, so that prompts of like length meet.
_BATCHES_AHEAD = 4


@torch.no_grad()
def sample_with_transformers(
    model: nn.Module,
    accelerator: Accelerator,
    prompt_ids: list[list[int]],
    n: int,
    *,
    eos_token_ids: list[int],
    pad_token_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int | None = None,
    seed: int | None = None,
) -> list[list[SampledIds]]:
    """Sample `n` completions for each prompt.

    Args:
        model (`nn.Module`): The policy, possibly wrapped for distributed training.
        accelerator ([`~accelerate.Accelerator`]): The trainer's.
        prompt_ids (`list[list[int]]`): Token ids of this rank's prompts.
        n (`int`): Completions per prompt.
        eos_token_ids (`list[int]`): Every id that ends a completion.
        pad_token_id (`int`): Padding, never read.
        temperature (`float`, defaults to 1.0): Sampling temperature.
        top_p (`float`, defaults to 1.0): Nucleus.
        max_tokens (`int`, *optional*): Cap in tokens; 1,024 when not given.
        seed (`int`, *optional*): Seeds the global generator when given.

    Returns:
        `list[list[SampledIds]]`: In the order of the prompts.
    """
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        max_new_tokens=max_tokens or 1024,
        eos_token_id=eos_token_ids,
        pad_token_id=pad_token_id,
        disable_compile=True,
        **_NEUTRAL,
    )
    if seed is not None:
        torch.manual_seed(seed)
    prompts_per_batch = max(1, _SEQUENCES_PER_BATCH // n)
    samples: list[list[SampledIds]] = []
    training = model.training
    with unwrap_model_for_generation(model, accelerator) as unwrapped:
        unwrapped.eval()
        for start in range(0, len(prompt_ids), prompts_per_batch):
            batch = prompt_ids[start : start + prompts_per_batch]
            samples += _sample_batch(unwrapped, batch, n, config, accelerator.device)
        unwrapped.train(training)
    return samples


def _sample_batch(
    model: Any, batch: list[list[int]], n: int, config: GenerationConfig, device: torch.device
) -> list[list[SampledIds]]:
    width = max(len(ids) for ids in batch)
    input_ids = torch.full((len(batch), width), config.pad_token_id, device=device)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(batch):
        input_ids[row, width - len(ids) :] = torch.tensor(ids, device=device)
        mask[row, width - len(ids) :] = 1
    input_ids, mask = input_ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    output = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    eos = set(config.eos_token_id)
    completions = [_cut(ids, eos) for ids in output]
    return [completions[i : i + n] for i in range(0, len(completions), n)]


def _cut(ids: list[int], eos: set[int]) -> SampledIds:
    """Keep what comes up to the first end, whose place tells truncation apart from padding that equals EOS."""
    end = next((position for position, token in enumerate(ids) if token in eos), None)
    return SampledIds(ids, "length") if end is None else SampledIds(ids[: end + 1], "stop")


@dataclass(frozen=True)
class _Wanted:
    """One completion to be sampled."""

    key: str
    index: int
    prompt_ids: list[int]


class TransformersSampler:
    """A [`~trl_r1.generation.base.Sampler`] on plain transformers: batches of like prompt length, no engine.

    Each completion has random numbers of its own, so with a seed it does not depend on what else is in its batch, up to
    what padding changes in the last bits of the logits.

    Args:
        model (`PreTrainedModel`): The model, on its device, in `eval` mode for sampling.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        template ([`~trl_r1.prompts.PromptTemplate`]): How a question becomes text.
        eos_token_ids (`Sequence[int]`): Every id that ends a completion.
        name (`str`): The model, as cards and manifests call it.
        max_num_seqs (`int`, defaults to 256): Completions per batch.
        fingerprint (`str`, *optional*): Of the model's files; by default its name.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: PromptTemplate,
        *,
        eos_token_ids: Sequence[int],
        name: str,
        max_num_seqs: int = _SEQUENCES_PER_BATCH,
        fingerprint: str | None = None,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.template = template
        self.name = name
        self.fingerprint = fingerprint or name
        self._codec = PromptCodec(template, tokenizer, eos_token_ids)
        self._max_num_seqs = max_num_seqs
        self._cancelled: set[str] = set()

    @classmethod
    def from_config(
        cls,
        config: SamplerConfig,
        *,
        tokenizer: Any = None,
        template: PromptTemplate | None = None,
        model: Any = None,
    ) -> TransformersSampler:
        """Load what a configuration names. See [`~trl_r1.generation.config.open_sampler`]."""
        checkpoint = Checkpoint.of(config)
        tokenizer = tokenizer or checkpoint.tokenizer()
        template = template or checkpoint.template(config, tokenizer)
        return cls(
            model if model is not None else _load(checkpoint, config.dtype),
            tokenizer,
            template,
            eos_token_ids=checkpoint.eos_token_ids(tokenizer),
            name=checkpoint.name,
            max_num_seqs=config.max_num_seqs,
            fingerprint=checkpoint.fingerprint(),
        )

    def stream(self, requests: Iterable[SampleRequest], settings: SamplingSettings) -> Iterator[Sample]:
        """Yield completions batch by batch. See [`~trl_r1.generation.base.Sampler`]."""
        self._cancelled.clear()
        ahead = _BATCHES_AHEAD * self._max_num_seqs
        wanted = self._wanted(requests)
        waiting: list[_Wanted] = []
        while True:
            waiting = [one for one in waiting if one.key not in self._cancelled]
            waiting += islice(wanted, max(0, ahead - len(waiting)))
            if not waiting:
                return
            # Only the first can starve, so the batch is built around it: the completions nearest to it in prompt length.
            first = len(waiting[0].prompt_ids)
            order = sorted(range(len(waiting)), key=lambda place: abs(len(waiting[place].prompt_ids) - first))
            chosen = set(order[: self._max_num_seqs])
            batch = [one for place, one in enumerate(waiting) if place in chosen]
            waiting = [one for place, one in enumerate(waiting) if place not in chosen]
            for one, sampled in zip(batch, self._sample(batch, settings), strict=True):
                if one.key not in self._cancelled:
                    completion = self._codec.completion(sampled.token_ids, sampled.finish_reason, settings.stop)
                    yield Sample(one.key, one.index, completion)

    def cancel(self, key: str) -> None:
        """End a request of the running stream. What its batch has not finished is computed, but not yielded."""
        self._cancelled.add(key)

    def close(self) -> None:
        """Let go of the model."""
        self.model = None

    def _wanted(self, requests: Iterable[SampleRequest]) -> Iterator[_Wanted]:
        for request in requests:
            ids = self._codec.encode(request.prompt)
            for index in wanted_indices(request):
                if request.key not in self._cancelled:
                    yield _Wanted(request.key, index, ids)

    @torch.no_grad()
    def _sample(self, batch: list[_Wanted], settings: SamplingSettings) -> list[SampledIds]:
        model, device = self.model, self.model.device
        width = max(len(one.prompt_ids) for one in batch)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self._codec.eos_token_ids[0]
        input_ids = torch.full((len(batch), width), pad)
        mask = torch.zeros_like(input_ids)
        for row, one in enumerate(batch):
            input_ids[row, width - len(one.prompt_ids) :] = torch.tensor(one.prompt_ids)
            mask[row, width - len(one.prompt_ids) :] = 1
        config = GenerationConfig(
            do_sample=False,  # what is drawn, is drawn by the processors
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            max_new_tokens=settings.max_tokens,
            eos_token_id=list(self._codec.eos_token_ids),
            pad_token_id=pad,
            disable_compile=True,
            **_NEUTRAL,
        )
        seeds = [sample_seed(settings.seed, one.key, one.index) for one in batch]
        stops = [StopStringCriteria(self.tokenizer, list(settings.stop))] if settings.stop else []
        training = model.training
        model.eval()
        try:
            output = model.generate(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                logits_processor=_draws(settings, seeds, width, device),
                stopping_criteria=StoppingCriteriaList(stops),
            )
        finally:
            model.train(training)
        return [self._ended(ids, settings) for ids in output[:, width:].tolist()]

    def _ended(self, ids: list[int], settings: SamplingSettings) -> SampledIds:
        """Tell how a row of a batch ended: what follows its end is padding."""
        sampled = _cut(ids, set(self._codec.eos_token_ids))
        if settings.stop and any(stop in self._codec.decode(sampled.token_ids) for stop in settings.stop):
            return SampledIds(self._through_stop(sampled.token_ids, settings.stop), "stop")
        return sampled

    def _through_stop(self, ids: list[int], stop: Sequence[str]) -> list[int]:
        """Keep the ids up to the one that completes a stop text."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            if any(one in self._codec.decode(ids[:middle]) for one in stop):
                high = middle
            else:
                low = middle + 1
        return ids[:low]


class _OwnDraws(LogitsProcessor):
    """Draws each row's next token with the row's own random numbers, and leaves it as the only possible one.

    Args:
        uniforms (`torch.Tensor` of shape `(rows, tokens)`, float64): One number in [0, 1) per row and token.
        width (`int`): Length of the padded prompts.
    """

    def __init__(self, uniforms: torch.Tensor, width: int) -> None:
        self._uniforms = uniforms
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulated = scores.double().softmax(-1).cumsum(-1)
        place = self._uniforms[:, input_ids.shape[1] - self._width, None] * cumulated[:, -1:]
        chosen = torch.searchsorted(cumulated, place, right=True).clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _draws(
    settings: SamplingSettings, seeds: Sequence[int | None], width: int, device: torch.device
) -> LogitsProcessorList:
    """Return what turns logits into a draw: transformers' warpers in its own order, then the draw itself."""
    processors = LogitsProcessorList()
    if settings.temperature == 0:
        return processors
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    rows = []
    for seed in seeds:
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        rows.append(torch.rand(settings.max_tokens, generator=generator, dtype=torch.float64))
    processors.append(_OwnDraws(torch.stack(rows).to(device), width))
    return processors


def _load(checkpoint: Checkpoint, dtype: str) -> Any:
    """Load the model onto this process' device."""
    local = process_place()[0] % max(1, torch.cuda.device_count())
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"  # half precision is slower there, and coarser
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.base, revision=checkpoint.revision, dtype=dtype)
    if checkpoint.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, checkpoint.adapter)
    return model.to(device).eval()
