"""Sampling with transformers, for where vLLM is not installed: the same interface, much slower."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import GenerationConfig
from trl.models import unwrap_model_for_generation

from trl_r1.generation.base import SampledIds

_SEQUENCES_PER_BATCH = 256


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
