"""The body of the SFT stage: cold start, rejection-sampling SFT and, with other data, distillation."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl import get_peft_config, get_quantization_config

from trl_r1.evaluation import Evaluation, ProblemScore, score
from trl_r1.generation.base import sample_all
from trl_r1.generation.config import SamplerConfig, open_sampler
from trl_r1.pipeline import artifacts
from trl_r1.pipeline.files import read_json, write_json
from trl_r1.pipeline.heldout import HeldOut, HeldOutCallback, log_evaluation
from trl_r1.pipeline.preflight import load_settings
from trl_r1.pipeline.resuming import AFTER_FILE, BEFORE_FILE, raise_if_stopped, show_choices, starting_point
from trl_r1.pipeline.sft_arguments import SFTArguments, parse_sft
from trl_r1.pipeline.sft_preflight import PreparedSFT, prepare_sft, render_sft_preview
from trl_r1.pipeline.sft_report import draw_sft_curves, save_sft_model, sft_card, table, write_sft_report
from trl_r1.trainers.sft import R1SFTTrainer

if TYPE_CHECKING:
    from trl import ModelConfig

    from trl_r1.trainers.sft_config import R1SFTConfig


class StepClock(TrainerCallback):
    """Adds up the seconds of the optimizer steps alone, without evaluations and checkpoints."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.seconds += time.perf_counter() - self._began


def run_sft(args: list[str]) -> None:
    """Run the SFT stage from command-line arguments."""
    sft(*parse_sft(args))


def sft(script_args: SFTArguments, training_args: R1SFTConfig, model_args: ModelConfig) -> dict[str, Any] | None:
    """Supervised fine-tuning on traces with thinking (arXiv 2501.12948v1 §2.3.1, §2.3.3, §2.4).

    Every process of the launch calls it. It leaves in `output_dir`: the model, its tokenizer and generation config,
    `report.json` (with the parent's hash and stage), `curves.png`, the held-out scores, a model card, and the checkpoints.

    Args:
        script_args ([`SFTArguments`]): Traces, template, evaluation.
        training_args ([`R1SFTConfig`]): The training. `resume_from_checkpoint: auto` continues from the last complete
            checkpoint in `output_dir`, if there is one.
        model_args ([`~trl.ModelConfig`]): Starting checkpoint, LoRA, quantisation.

    Returns:
        `dict` or `None`: The content of `report.json`; `None` for a preview.

    Raises:
        [`ConfigurationError`] or [`DataError`]: For input that cannot work, before any weight is loaded.
        `KeyboardInterrupt`: When the run was stopped; it can be resumed, and the message says how.
    """
    started = time.time()
    if training_args.process_index == 0:
        show_choices()
    prepared = prepare_sft(script_args, training_args, model_args)
    if script_args.preview:
        if training_args.process_index == 0:
            print(render_sft_preview(prepared))
        return None
    checkpoint = starting_point(script_args, training_args, measured=prepared.held_out is not None)
    folder = artifacts.run_folder(training_args)
    before = _measure_start(script_args, prepared, folder) if script_args.heldout_sampler is not None else None
    trainer, held_out = _trainer(script_args, training_args, model_args, prepared)
    clock = StepClock()
    trainer.add_callback(clock)
    training_started = time.time()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        draw_sft_curves(trainer, script_args)
    raise_if_stopped(trainer)
    train_seconds = time.time() - training_started
    save_sft_model(trainer)
    after = None
    if held_out is not None:
        before, after = held_out.before, held_out.measure_end()
    elif prepared.held_out is not None:
        after = measure_checkpoint(script_args, prepared, str(folder))
        log_evaluation(cast(Any, trainer), after)
    if after is not None:
        draw_sft_curves(trainer, script_args)
    report: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        if after is not None:
            write_json(folder / AFTER_FILE, after.asdict())
        report = write_sft_report(
            trainer, script_args, prepared, before=before, after=after,
            seconds=time.time() - started, train_seconds=train_seconds, step_seconds=clock.seconds,
        )  # fmt: skip
        artifacts.write_model_card(sft_card(trainer, script_args, model_args, prepared, report), folder)
        print(f"\n{table(report)}\n\nWritten to {folder}: report.json, curves.png, README.md")
    if training_args.push_to_hub:
        artifacts.push(cast(Any, trainer), cast(Any, script_args))
    return report


def measure_checkpoint(script_args: SFTArguments, prepared: PreparedSFT, model: str) -> Evaluation:
    """Ask a checkpoint the held-out questions through `heldout_sampler`; every rank must call it.

    Args:
        script_args ([`SFTArguments`]): How they are sampled.
        prepared ([`PreparedSFT`]): The questions and the template.
        model (`str`): Hub id or folder.

    Returns:
        [`Evaluation`]: Over all questions, in their order.
    """
    held_out = cast("HeldOut", prepared.held_out)
    config = replace(SamplerConfig.parse(script_args.heldout_sampler or {}), model_name_or_path=model)
    settings = config.settings(
        temperature=held_out.temperature,
        top_p=held_out.top_p,
        max_tokens=script_args.heldout_max_tokens,
        seed=held_out.seed,
    )
    from accelerate import PartialState

    state = PartialState()
    mine = list(range(state.process_index, len(held_out.rows), state.num_processes))
    rows = [held_out.rows[index] for index in mine]
    with closing(open_sampler(config, template=prepared.template)) as sampler:
        samples = sample_all(sampler, [row.prompt for row in rows], held_out.samples, settings)
    local = score(rows, samples, cons_k=held_out.cons_k or held_out.samples, pass_k=held_out.pass_k)
    scored: list[tuple[int, ProblemScore]] = list(zip(mine, local.problems, strict=True))
    by_index = dict(gather_object(scored) if state.num_processes > 1 else scored)
    return Evaluation([by_index[index] for index in range(len(held_out.rows))], local.cons_k, held_out.pass_k)


def _measure_start(script_args: SFTArguments, prepared: PreparedSFT, folder: Path) -> Evaluation | None:
    """Measure the starting checkpoint, or read what was measured before the run was interrupted."""
    if prepared.held_out is None:
        return None
    stored = read_json(folder / BEFORE_FILE)
    if stored is not None:
        return Evaluation.from_dict(stored)
    before = measure_checkpoint(script_args, prepared, prepared.model_path)
    write_json(folder / BEFORE_FILE, before.asdict())
    return before


def _trainer(
    script_args: SFTArguments, training_args: R1SFTConfig, model_args: ModelConfig, prepared: PreparedSFT
) -> tuple[R1SFTTrainer, HeldOutCallback | None]:
    """Load the weights and put the trainer together."""
    own = cast("dict[str, Any]", training_args.model_init_kwargs or {})
    training_args.model_init_kwargs = load_settings(cast(Any, prepared), model_args) | own
    held_out = None
    if prepared.held_out is not None and script_args.heldout_sampler is None:
        held_out = HeldOutCallback.of(script_args, prepared.held_out, artifacts.run_folder(training_args) / BEFORE_FILE)
    trainer = R1SFTTrainer(
        model=prepared.model_path,
        args=training_args,
        template=prepared.template,
        train_dataset=prepared.traces,
        data_collator=prepared.collator,
        processing_class=prepared.tokenizer,
        callbacks=[held_out] if held_out is not None else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if held_out is not None:
        held_out.trainer = cast(Any, trainer)
    return trainer, held_out
