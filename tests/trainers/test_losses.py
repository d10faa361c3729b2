"""The paper's loss against an independent reference, sequence by sequence in float64."""

import math

import pytest
import torch

from trl_r1.trainers.losses import r1_sequence_loss


def reference(logps, old, ref, mask, advantages, low, high, beta):
    """Eq. 1-2 of arXiv 2501.12948v1, written with plain floats."""
    losses = []
    for i in range(len(advantages)):
        chosen = [t for t in range(len(mask[i])) if mask[i][t]]
        p, p_old, p_ref = (math.exp(sum(x[i][t] for t in chosen)) for x in (logps, old, ref))
        ratio = p / p_old
        clipped = min(max(ratio, 1 - low), 1 + high)
        kl = p_ref / p - math.log(p_ref / p) - 1
        losses.append(-min(ratio * advantages[i], clipped * advantages[i]) + beta * kl)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("epsilon", [0.2, 10.0])
@pytest.mark.parametrize("beta", [0.0, 0.001, 0.5])
def test_agrees_with_the_printed_formula(epsilon, beta):
    generator = torch.Generator().manual_seed(0)
    logps = -torch.rand(6, 9, generator=generator, dtype=torch.float64)
    old = logps + 0.3 * torch.randn(6, 9, generator=generator, dtype=torch.float64)
    ref = logps + 0.3 * torch.randn(6, 9, generator=generator, dtype=torch.float64)
    mask = (torch.arange(9)[None] < torch.tensor([9, 1, 5, 7, 3, 2])[:, None]).double()
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    policy, kl, _ = r1_sequence_loss(
        logps, old, ref, mask, advantages, epsilon_low=epsilon, epsilon_high=epsilon, beta=beta
    )
    expected = reference(*(x.tolist() for x in (logps, old, ref, mask, advantages)), epsilon, epsilon, beta)
    assert (policy + beta * kl).mean().item() == pytest.approx(expected, rel=1e-9)


def test_gradient_has_no_length_normalisation():
    """A token of a long sequence weighs as much as one of a short sequence: there is no 1/|o|."""
    logps = torch.zeros(2, 8, requires_grad=True)
    mask = torch.tensor([[1.0] * 8, [1.0] * 2 + [0.0] * 6])
    policy, _, _ = r1_sequence_loss(
        logps, logps.detach(), None, mask, torch.ones(2), epsilon_low=0.2, epsilon_high=0.2, beta=0.0
    )
    policy.sum().backward()
    assert torch.equal(logps.grad, -mask)


def test_trainer_uses_it_and_deepseekmaths_mean_differs(build_trainer):
    losses = {}
    for loss_type in ("r1", "grpo"):
        trainer = build_trainer(loss_type=loss_type, max_steps=2, beta=0.1)
        trainer.train()
        losses[loss_type] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses["r1"][0] == pytest.approx(losses["grpo"][0], abs=0.2)
    assert losses["r1"][1] != losses["grpo"][1]
