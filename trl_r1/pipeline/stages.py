"""The bodies of the stages. A recipe parses its settings and calls one of these functions; so does the CLI."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from trl import get_peft_config, get_quantization_config

from trl_r1.pipeline import artifacts
from trl_r1.pipeline.arguments import (
    R1ZeroArguments,
    ReasoningRLArguments,
    RLArguments,
    parse_r1_zero,
    parse_reasoning_rl,
)
from trl_r1.pipeline.files import write_json
from trl_r1.pipeline.heldout import HeldOutCallback
from trl_r1.pipeline.plan import plan_r1_zero
from trl_r1.pipeline.plan_text import render_plan
from trl_r1.pipeline.preflight import Prepared, load_settings, prepare, render_preview
from trl_r1.pipeline.report import write_report_page
from trl_r1.pipeline.resuming import AFTER_FILE, BEFORE_FILE, raise_if_stopped, show_choices, starting_point
from trl_r1.pipeline.reward_workers import open_workers, workers_for
from trl_r1.rewards import RewardFunction, RewardPool, RewardRouter
from trl_r1.trainers import R1GRPOTrainer
from trl_r1.workers import WorkerPool

if TYPE_CHECKING:
    from trl import ModelConfig

    from trl_r1.trainers import R1GRPOConfig


def r1_zero(
    script_args: R1ZeroArguments, training_args: R1GRPOConfig, model_args: ModelConfig
) -> dict[str, Any] | None:
    """R1-Zero: reinforcement learning by rule rewards alone, from a base model (arXiv 2501.12948).

    Args:
        script_args ([`R1ZeroArguments`]): Data, rewards, template, evaluation.
        training_args ([`R1GRPOConfig`]): The algorithm.
        model_args ([`~trl.ModelConfig`]): Starting checkpoint, LoRA, quantisation.

    Returns:
        `dict` or `None`: As [`reinforce`], which see.
    """
    return reinforce(script_args, training_args, model_args)


def reasoning_rl(
    script_args: ReasoningRLArguments, training_args: R1GRPOConfig, model_args: ModelConfig
) -> dict[str, Any] | None:
    """Reasoning RL, R1's second stage: rule rewards on maths, code, choice and logic, and the language reward.

    The same body as R1-Zero's with other defaults ([`ReasoningRLArguments`]), from any SFT or Zero checkpoint
    (v1 §2.3.2; v2 §3.2.1).

    Args:
        script_args ([`ReasoningRLArguments`]): Data, rewards, template, evaluation.
        training_args ([`R1GRPOConfig`]): The algorithm.
        model_args ([`~trl.ModelConfig`]): Starting checkpoint, LoRA, quantisation.

    Returns:
        `dict` or `None`: As [`reinforce`], which see.
    """
    return reinforce(script_args, training_args, model_args)


def run_r1_zero(args: list[str]) -> None:
    """Run R1-Zero from command-line arguments."""
    r1_zero(*parse_r1_zero(args))


def run_reasoning_rl(args: list[str]) -> None:
    """Run reasoning RL from command-line arguments."""
    reasoning_rl(*parse_reasoning_rl(args))


def reinforce(script_args: RLArguments, training_args: R1GRPOConfig, model_args: ModelConfig) -> dict[str, Any] | None:
    """Reinforcement learning by rule rewards: the body of R1-Zero and of reasoning RL.

    Every process of the launch calls it. It leaves in `output_dir`: the model, its tokenizer and generation config,
    `report.json`, `report.html`, `curves.png`, the held-out scores, a model card, and the checkpoints.

    Args:
        script_args ([`RLArguments`]): Data, rewards, template, evaluation.
        training_args ([`R1GRPOConfig`]): The algorithm. `resume_from_checkpoint: auto` continues from the last complete
            checkpoint in `output_dir`, if there is one.
        model_args ([`~trl.ModelConfig`]): Starting checkpoint, LoRA, quantisation.

    Returns:
        `dict` or `None`: The content of `report.json`; `None` for a preview or a plan.

    Raises:
        [`ConfigurationError`], [`DataError`], [`MissingExtraError`] or [`EngineError`]: For input that cannot work,
            before any weight is loaded.
        `KeyboardInterrupt`: When the run was stopped; it can be resumed, and the message says how.
    """
    started = time.time()
    if training_args.process_index == 0:
        show_choices()
    if script_args.plan:
        _print_plan(script_args, training_args, model_args)
        return None
    prepared = prepare(script_args, training_args, model_args)
    workers = workers_for(script_args.reward_workers, [*prepared.train, *prepared.held_out.rows])
    if script_args.preview:
        if training_args.process_index == 0:
            print(render_preview(prepared))
        return None
    checkpoint = starting_point(script_args, training_args)
    folder = artifacts.run_folder(training_args)
    with _workers(workers, prepared) as pool:
        held_out = HeldOutCallback.of(script_args, replace(prepared.held_out, workers=pool), folder / BEFORE_FILE)
        trainer = _trainer(held_out, training_args, model_args, prepared, _pooled(prepared.rewards, pool))
        training_started = time.time()
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            _draw_curves(trainer, script_args)
        raise_if_stopped(trainer)
        train_seconds = time.time() - training_started
        before, after = held_out.before, held_out.measure_end()
    assert before is not None
    _draw_curves(trainer, script_args)
    artifacts.save_model(trainer)
    report: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        write_json(folder / AFTER_FILE, after.asdict())
        report = artifacts.write_report(
            trainer, script_args, model_args, before=before, after=after,
            seconds=time.time() - started, train_seconds=train_seconds,
        )  # fmt: skip
        card = artifacts.card_facts(trainer, script_args, model_args, prepared, report)
        artifacts.write_model_card(card, folder)
        write_report_page([str(folder)])
        print(f"\n{artifacts.table(report)}\n\nWritten to {folder}: report.html, report.json, curves.png, README.md")
    if training_args.push_to_hub:
        artifacts.push(trainer, script_args)
    return report


def _print_plan(script_args: RLArguments, training_args: R1GRPOConfig, model_args: ModelConfig) -> None:
    # As for a preview, the engine is not checked: a plan is there to say what this machine cannot do.
    prepared = prepare(replace(script_args, preview=True), training_args, model_args)
    if training_args.process_index == 0:
        print(render_plan(plan_r1_zero(script_args, training_args, model_args, prepared)))


@contextmanager
def _workers(workers: int, prepared: Prepared) -> Iterator[WorkerPool | None]:
    """The processes that rewards and held-out evaluation share, if there are to be any."""
    if not workers:
        yield None
        return
    with open_workers(workers, [*prepared.train, *prepared.held_out.rows]) as pool:
        yield pool


def _pooled(rewards: list[RewardFunction], pool: WorkerPool | None) -> list[RewardFunction]:
    if pool is None:
        return list(rewards)
    # What a router's rewards need of the token ids, it does not tell.
    return [RewardPool(one, pool, completion_ids=isinstance(one, RewardRouter) or None) for one in rewards]


def _trainer(
    held_out: HeldOutCallback,
    training_args: R1GRPOConfig,
    model_args: ModelConfig,
    prepared: Prepared,
    rewards: list[RewardFunction],
) -> R1GRPOTrainer:
    """Load the weights and put the trainer together."""
    own = cast("dict[str, Any]", training_args.model_init_kwargs or {})
    training_args.model_init_kwargs = load_settings(prepared, model_args) | own
    if prepared.template.chat_template_kwargs:
        given = cast("dict[str, Any]", training_args.chat_template_kwargs or {})
        training_args.chat_template_kwargs = {**prepared.template.chat_template_kwargs, **given}
    trainer = R1GRPOTrainer(
        model=prepared.model_path,
        reward_funcs=rewards,
        args=training_args,
        train_dataset=prepared.train_dataset,
        processing_class=prepared.tokenizer,
        callbacks=[held_out],
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    held_out.trainer = trainer
    return trainer


def _draw_curves(trainer: R1GRPOTrainer, script_args: RLArguments) -> None:
    if trainer.is_world_process_zero():
        artifacts.draw_curves(trainer, script_args)
