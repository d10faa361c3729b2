"""Trimming covers every token, and the trainer's log-probabilities do not change by it."""

import pytest
import torch

from trl_r1.modeling.trimming import trimmed_chunks


def ragged(rows=13, prompt=9, completion=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, prompt + 1, (rows, 1), generator=generator)
    completions = torch.randint(0, completion + 1, (rows, 1), generator=generator)
    left = torch.arange(prompt).flip(0)[None] < prompts
    right = torch.arange(completion)[None] < completions
    return torch.cat([left, right], dim=1).long()


@pytest.mark.parametrize("rows_per_chunk", [1, 4, 100])
@pytest.mark.parametrize("seed", range(5))
def test_chunks_cover_every_token_once(rows_per_chunk, seed):
    mask = ragged(seed=seed)
    seen = torch.zeros_like(mask)
    for chunk in trimmed_chunks(mask, 14, rows_per_chunk):
        assert len(chunk.rows) <= rows_per_chunk
        assert chunk.start < 9 < chunk.stop  # a prompt token to predict from, and a completion column
        seen[chunk.rows, chunk.start : chunk.stop] += 1
    assert seen.max() == 1
    assert (seen >= mask).all()


def test_chunks_of_sorted_rows_are_narrower():
    mask = ragged(rows=64)
    area = sum(len(chunk.rows) * (chunk.stop - chunk.start) for chunk in trimmed_chunks(mask, 14, 8))
    assert area < 0.85 * mask.numel()


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_trainer_log_probabilities_and_gradients_are_unchanged(build_trainer, rows):
    trainer = build_trainer(trim_rows=rows)
    stock = super(type(trainer), trainer)._get_per_token_logps_and_entropies
    mask = ragged()
    ids = torch.randint(0, 250, mask.shape, generator=torch.Generator().manual_seed(1))
    counted = mask[:, -14:].bool()
    results = []
    for function in (stock, trainer._get_per_token_logps_and_entropies):
        trainer.model.zero_grad()
        logps, entropies, _ = function(trainer.model, ids, mask, 14, compute_entropy=True)
        logps[counted].sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        results.append((logps.detach()[counted], entropies.detach()[counted], gradient))
    assert logps.shape == (13, 14)
    for stock_value, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock_value, rtol=1e-5, atol=1e-5)
