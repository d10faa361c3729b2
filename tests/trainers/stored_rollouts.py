"""Trainers whose rollouts are given: prompts, completions and the engine's log-probabilities, so that steps can be compared."""

import torch
from transformers import TrainerCallback


def stored_rollout(rows, vocabulary=250, longest=14, seed=0, eos=256):
    """Ragged prompts and completions, every other one ended by EOS, with rewards that differ and log-probabilities near the truth of a random model."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    prompts = [torch.randint(0, vocabulary, (draw(3, 9),), generator=generator).tolist() for _ in range(rows)]
    lengths = [longest, *(draw(1, longest) for _ in range(rows - 1))]
    completions = [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    for ids in completions[1::2]:
        ids[-1] = eos
    logps = [(-5.5 + 0.3 * torch.randn(length, generator=generator)).tolist() for length in lengths]
    return prompts, completions, logps


def replayed(trainer_class, rollout):
    """A subclass of a trainer whose `_generate` returns this rank's share of a stored rollout."""

    class Replayed(trainer_class):
        def _generate(self, prompts):
            rank, count = self.accelerator.process_index, len(prompts)
            share = slice(rank * count, (rank + 1) * count)
            prompt_ids, completion_ids, logps = (part[share] for part in rollout)
            self.truncated = [ids[-1] not in self.eos_token_ids for ids in completion_ids]
            texts = ["x" * len(ids) for ids in completion_ids]
            return prompt_ids, completion_ids, None, texts, logps, {}, None, None

    return Replayed


class Gradients(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None})


def assert_same(ours, stock):
    """Equal to 1e-5 of the largest element; the second step starts from weights that Adam has already made differ.

    By how much depends on the processor: Adam's first update is a whole step of the learning rate in the direction of each
    element's sign, and an element that is all rounding has any. 2e-4 was seen.
    """
    for our_step, stock_step, rtol in zip(ours, stock, (1e-5, 5e-4), strict=False):
        assert our_step.keys() == stock_step.keys()
        scale = max(float(g.abs().max()) for g in stock_step.values())
        assert scale > 0
        for name, expected in stock_step.items():
            torch.testing.assert_close(
                our_step[name], expected, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
            )
