"""Dynamic sampling (DAPO, arXiv 2503.14476 §3.2): groups without spread teach nothing, so ask other questions instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from trl_r1.exceptions import ConfigurationError

if TYPE_CHECKING:
    from trl_r1.trainers.grpo import R1GRPOTrainer

Output = tuple[Any, ...]

# Positions in what TRL's `_generate` returns that hold one entry per completion; the others must be unused.
_PER_COMPLETION = {"prompt_ids": 0, "completion_ids": 1, "completions": 3, "logprobs": 4}
_UNSUPPORTED = {"tool_mask": 2, "extra_fields": 5, "images": 6}


def group_spread(rewards: torch.Tensor, weights: torch.Tensor, group_size: int) -> torch.Tensor:
    """Standard deviation of the weighted rewards in each group.

    Args:
        rewards (`torch.Tensor` of shape `(B * G, F)`): One column per reward; NaN where a row cannot be scored.
        weights (`torch.Tensor` of shape `(F,)`): Weights of the rewards.
        group_size (`int`): G.

    Returns:
        `torch.Tensor` of shape `(B,)`: Population deviation over the rows that can be scored, 0 where there is none.
    """
    total = (rewards * weights).sum(dim=1).view(-1, group_size)
    known = ~torch.isnan(total)
    count = known.sum(dim=1).clamp(min=1)
    filled = torch.nan_to_num(total)
    mean = filled.sum(dim=1) / count
    variance = ((filled - mean[:, None]) ** 2 * known).sum(dim=1) / count
    return variance.sqrt()


class GroupResampler:
    """Replaces groups without spread by fresh questions, in lockstep over ranks, at most `max_rounds` times.

    Every rank generates as many groups in a round as the rank with the most groups to replace, because TRL's generation
    holds collectives; what a rank does not need it drops. Rows and prompts are edited in place, so that TRL scores and
    learns from the new questions. Rewards are computed once per completion and kept for TRL.
    """

    def __init__(self, trainer: R1GRPOTrainer, max_rounds: int) -> None:
        self.trainer = trainer
        self.max_rounds = max_rounds
        self.replaced_groups = 0

    def __call__(self, rows: list[dict[str, Any]], prompts: list[Any], output: Output) -> tuple[Output, torch.Tensor]:
        """Resample.

        Args:
            rows (`list[dict]`): This rank's data set rows, one per completion; edited in place.
            prompts (`list`): Their prompts; edited in place.
            output (`tuple`): What TRL's `_generate` returned for them.

        Returns:
            `tuple`: The output with groups replaced, and the rewards of shape `(B * G * ranks, F)` of all ranks.
        """
        for name, position in _UNSUPPORTED.items():
            if output[position]:
                raise ConfigurationError(
                    f"dynamic_sampling cannot replace groups that carry {name} (tools, environments, images). Set "
                    "dynamic_sampling: false."
                )
        fields: dict[str, list[Any]] = {}
        for name, position in _PER_COMPLETION.items():
            if output[position] is not None:
                fields[name] = list(output[position])
        fields["truncated"] = list(self.trainer.truncated)
        fields["rows"], fields["prompts"] = rows, prompts
        rewards, extras = self._score(fields)
        self.replaced_groups = 0
        for round_number in range(self.max_rounds):
            flat = self._groups_without_spread(rewards)
            most = max(gather_object([len(flat)]))
            if most == 0:
                break
            new, new_rewards, new_extras = self._generate(most, round_number)
            self._replace(flat, fields, new)
            for column, values in new_extras.items():
                self._replace(flat, {column: extras.setdefault(column, [None] * len(rows))}, {column: values})
            self._replace_rewards(flat, rewards, new_rewards)
            self.replaced_groups += len(flat)
        self.trainer.truncated = fields["truncated"]
        self.trainer._pending_extra_logs.update(extras)
        merged = list(output)
        for name, position in _PER_COMPLETION.items():
            if name in fields:
                merged[position] = fields[name]
        return tuple(merged), self._gather(rewards)

    @property
    def _group(self) -> int:
        return self.trainer.num_generations

    def _score(self, fields: dict[str, list[Any]]) -> tuple[torch.Tensor, dict[str, list[Any]]]:
        """This rank's rewards `(rows, F)`, and the table columns that the reward functions logged."""
        trainer = self.trainer
        gathered = trainer.compute_rewards(
            fields["rows"], fields["prompts"], fields["completions"], fields["completion_ids"]
        )
        extras = dict(trainer._pending_extra_logs)
        trainer._pending_extra_logs.clear()
        local = len(fields["rows"])
        start = trainer.accelerator.process_index * local
        return gathered[start : start + local], extras

    def _groups_without_spread(self, rewards: torch.Tensor) -> list[int]:
        spread = group_spread(rewards, self.trainer.reward_weights.to(rewards.device), self._group)
        return (spread <= self.trainer.args.zero_spread_tolerance).nonzero().flatten().tolist()

    def _generate(
        self, groups: int, round_number: int
    ) -> tuple[dict[str, list[Any]], torch.Tensor, dict[str, list[Any]]]:
        """Answer `groups` fresh questions, drawn reproducibly from (seed, step, round, rank)."""
        trainer = self.trainer
        dataset = trainer.train_dataset
        generator = torch.Generator().manual_seed(
            hash((trainer.args.seed, trainer.state.global_step, round_number, trainer.accelerator.process_index))
            % 2**63
        )
        picks = torch.randint(len(dataset), (groups,), generator=generator).tolist()
        rows = [dict(dataset[pick]) for pick in picks for _ in range(self._group)]
        prompts = [row["prompt"] for row in rows]
        output = trainer.generate_group_batch(prompts)
        fields: dict[str, list[Any]] = {
            name: list(output[position]) for name, position in _PER_COMPLETION.items() if output[position] is not None
        }
        fields |= {"truncated": list(trainer.truncated), "rows": rows, "prompts": prompts}
        rewards, extras = self._score(fields)
        return fields, rewards, extras

    def _replace(self, groups: list[int], fields: dict[str, list[Any]], new: dict[str, list[Any]]) -> None:
        size = self._group
        for source, target in enumerate(groups):
            for name, values in fields.items():
                values[target * size : (target + 1) * size] = new[name][source * size : (source + 1) * size]

    def _replace_rewards(self, groups: list[int], rewards: torch.Tensor, new: torch.Tensor) -> None:
        size = self._group
        for source, target in enumerate(groups):
            rewards[target * size : (target + 1) * size] = new[source * size : (source + 1) * size]

    def _gather(self, rewards: torch.Tensor) -> torch.Tensor:
        return self.trainer.accelerator.gather(rewards)
