"""Pretraining of the nano base: the tokenizer and the checkpoint of a world, rebuilt from a seed.

Documents are drawn and packed by worker processes while the model trains, so nothing is stored. A row of tokens holds
whole documents; on a GPU 70M tokens take about two minutes, on two CPU cores about ninety.
"""

from __future__ import annotations

import copy
import logging
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_r1.nano import NanoWorld
from trl_r1.nano.model import build_model
from trl_r1.nano.tokenizer import build_tokenizer, encode

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

logger = logging.getLogger(__name__)

# Documents per worker job; the order of jobs is fixed, so the stream does not depend on the number of workers.
JOB_DOCUMENTS = 4000
Rows = np.ndarray[Any, np.dtype[np.int16]]


@dataclass
class PretrainArguments:
    """Settings of a nano pretraining.

    Args:
        size (`str`, defaults to `"default"`): `"default"` (2.7M parameters) or `"small"` (1.1M).
        tokens (`int`, defaults to 70,000,000): Tokens to train on, each seen once.
        row_tokens (`int`, defaults to 512): Length of a packed row.
        rows_per_step (`int`, defaults to 48): Rows in a batch.
        learning_rate (`float`, defaults to 3e-3): Peak; cosine to a tenth after a short warm-up. Ours, for 2.7M parameters.
        weight_decay (`float`, defaults to 0.1): On matrices only.
        warmup_steps (`int`, defaults to 100): Steps of linear warm-up.
        seed (`int`, defaults to 0): Seed of the weights and of the documents.
        workers (`int`, defaults to 2): Processes that draw documents.
        device (`str`, *optional*): `"cuda"` where there is one, else `"cpu"`.
        log_every (`int`, defaults to 100): Steps between log lines.
    """

    size: str = "default"
    tokens: int = 70_000_000
    row_tokens: int = 512
    rows_per_step: int = 48
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    seed: int = 0
    workers: int = 2
    device: str | None = None
    log_every: int = 100

    @property
    def steps(self) -> int:
        """Optimizer steps in the run."""
        return max(1, self.tokens // (self.row_tokens * self.rows_per_step))


_worker: tuple[NanoWorld, PreTrainedTokenizerFast, int]


def _start_worker(world: NanoWorld, tokenizer: PreTrainedTokenizerFast, row_tokens: int) -> None:
    global _worker
    _worker = (world, tokenizer, row_tokens)


def _pack_job(seed: int) -> Rows:
    world, tokenizer, row_tokens = _worker
    return pack(world, tokenizer, JOB_DOCUMENTS, seed, row_tokens)


def pack(world: NanoWorld, tokenizer: PreTrainedTokenizerFast, documents: int, seed: int, row_tokens: int) -> Rows:
    """Draw documents and lay them in rows. No document is cut, so every row begins with one, as prompts do.

    Args:
        world (`NanoWorld`): The world to draw from.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The nano tokenizer.
        documents (`int`): How many documents.
        seed (`int`): Seed of the documents.
        row_tokens (`int`): Length of a row; longer documents are left out.

    Returns:
        `np.ndarray`: Token ids, shape `(rows, row_tokens)`, padded with the pad token.
    """
    pad = int(tokenizer.pad_token_id)
    rows: list[list[int]] = [[]]
    for ids in encode(tokenizer, (document.text for document in world.documents(documents, seed))):
        if len(ids) > row_tokens:
            continue
        if len(rows[-1]) + len(ids) > row_tokens:
            rows.append([])
        rows[-1].extend(ids)
    return np.array([row + [pad] * (row_tokens - len(row)) for row in rows], dtype=np.int16)


def batches(world: NanoWorld, tokenizer: PreTrainedTokenizerFast, arguments: PretrainArguments) -> Iterator[Rows]:
    """Yield the batches of a run, shape `(rows_per_step, row_tokens)`, packed ahead by worker processes."""
    jobs = range(arguments.seed * 1_000_000, (arguments.seed + 1) * 1_000_000)
    left = np.zeros((0, arguments.row_tokens), dtype=np.int16)
    # Spawned, not forked: the parent holds torch's threads and perhaps a CUDA context.
    context = multiprocessing.get_context("spawn")
    start = (world, tokenizer, arguments.row_tokens)
    with context.Pool(arguments.workers, _start_worker, start) as pool:
        done, ahead = 0, [pool.apply_async(_pack_job, (job,)) for job in jobs[: 4 * arguments.workers]]
        upcoming = iter(jobs[4 * arguments.workers :])
        while done < arguments.steps:
            left = np.concatenate([left, ahead.pop(0).get()])
            ahead.append(pool.apply_async(_pack_job, (next(upcoming),)))
            while len(left) >= arguments.rows_per_step and done < arguments.steps:
                yield left[: arguments.rows_per_step]
                left = left[arguments.rows_per_step :]
                done += 1


def _rate(step: int, arguments: PretrainArguments) -> float:
    """Learning rate as a share of its peak: linear warm-up, then cosine to a tenth."""
    warmup = min(arguments.warmup_steps, arguments.steps // 5 + 1)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, arguments.steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def train(
    world: NanoWorld, arguments: PretrainArguments
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """Build the tokenizer and train a model on a world's documents.

    Args:
        world (`NanoWorld`): The world, with its dials.
        arguments ([`PretrainArguments`]): Sizes and rates.

    Returns:
        `tuple`: The model in float32, its tokenizer, and the logged losses (nats per token).
    """
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer(world.seed)
    model: Any = build_model(tokenizer, arguments.seed, arguments.size)
    model.to(device)
    model.train()
    optimizer = _optimizer(model, arguments, fused=device != "cpu")
    losses: list[float] = []
    began = time.perf_counter()
    for step, batch in enumerate(batches(world, tokenizer, arguments)):
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * _rate(step, arguments)
        ids = torch.from_numpy(batch.astype(np.int64)).to(device, non_blocking=True)
        # No attention mask: padding lies behind the documents, where causal attention never looks from.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % arguments.log_every == 0 or step == arguments.steps - 1:
            losses.append(loss.item())
            seconds = time.perf_counter() - began
            logger.info("step %d of %d, loss %.4f, %.0f s", step, arguments.steps, losses[-1], seconds)
    return model.eval(), tokenizer, losses


def _optimizer(model: Qwen3ForCausalLM, arguments: PretrainArguments, *, fused: bool) -> torch.optim.Optimizer:
    import torch

    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": arguments.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95), fused=fused)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path | str) -> Path:
    """Save a checkpoint in bfloat16 (5.5 MB; 2.3 MB when small) with its tokenizer and generation config.

    Args:
        model ([`~transformers.Qwen3ForCausalLM`]): The trained model.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): Its tokenizer.
        folder (`Path` or `str`): Where to.

    Returns:
        `Path`: The folder.
    """
    import torch

    halved: Any = copy.deepcopy(model)
    halved.to(dtype=torch.bfloat16, device="cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def measure(
    folder: Path | str, questions: int = 256, samples: int = 64, max_tokens: int = 160, seed: int = 0
) -> dict[str, Any]:
    """Measure a base on held-out countdown questions with three numbers: what RL has to start from.

    Args:
        folder (`Path` or `str`): A checkpoint.
        questions (`int`, defaults to 256): Held-out questions.
        samples (`int`, defaults to 64): Samples of each, at temperature 1; 64 or more for pass@64.
        max_tokens (`int`, defaults to 160): Cap of a completion.
        seed (`int`, defaults to 0): Seed of the sampling.

    Returns:
        `dict`: [`trl_r1.evaluation.Evaluation.summary`] with pass@k and the share and accuracy of every mode, and
        `groups_without_spread`: the share of groups of 16 samples that are all right or all wrong.
    """
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_r1.evaluation import score
    from trl_r1.generation.transformers import sample_with_transformers
    from trl_r1.prompts import PromptTemplate
    from trl_r1.rows import Completion

    accelerator = Accelerator()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(accelerator.device)
    rows = NanoWorld().rows("test", questions, tasks=["countdown"], depth=3)
    prompts = [tokenizer(PromptTemplate("base").render(row.prompt)).input_ids for row in rows]
    ends = {"eos_token_ids": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}
    sampled = sample_with_transformers(model, accelerator, prompts, samples, max_tokens=max_tokens, seed=seed, **ends)
    completions = [
        [
            Completion(
                str(tokenizer.decode(s.token_ids, skip_special_tokens=True)), tuple(s.token_ids), s.finish_reason
            )
            for s in group
        ]
        for group in sampled
    ]
    evaluation = score(rows, completions, pass_k=[k for k in (4, 16, 64) if k <= samples])
    return {**evaluation.summary(), "groups_without_spread": _without_spread(evaluation.problems, samples)}


def _without_spread(problems: Sequence[Any], samples: int, group: int = 16) -> float | None:
    """Chance that `group` of a question's samples are all right or all wrong, over questions."""
    if samples < group:
        return None
    ways = math.comb(samples, group)
    chances = [(math.comb(p.correct, group) + math.comb(samples - p.correct, group)) / ways for p in problems]
    return sum(chances) / len(chances)
