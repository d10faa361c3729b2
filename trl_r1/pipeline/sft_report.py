"""What an SFT run leaves behind: model, generation config, report with lineage, curves, card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from trl_r1.cards import CardFacts
from trl_r1.evaluation import Evaluation
from trl_r1.evaluation.plots import before_after_table, plot_curves
from trl_r1.pipeline.artifacts import CURVES_FILE, REPORT_FILE, device_name, run_folder, versions
from trl_r1.pipeline.files import write_json
from trl_r1.statistics import paired_difference

if TYPE_CHECKING:
    from trl import ModelConfig

    from trl_r1.pipeline.sft_arguments import SFTArguments
    from trl_r1.pipeline.sft_preflight import PreparedSFT
    from trl_r1.trainers.sft import R1SFTTrainer

METRICS = ("pass@1", "cons", "pass@1_lenient", "well_formed", "truncated")
_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "num_train_epochs", "max_steps", "rows_per_step",
    "max_length", "packing", "max_truncated_targets", "new_tokens", "loss_type", "weight_decay", "bf16", "seed",
)  # fmt: skip


def save_sft_model(trainer: R1SFTTrainer) -> None:
    """Save model, tokenizer, and a generation config that names every id on which generation stops (trap 19).

    Every rank must call it, since sharded weights are gathered.
    """
    trainer.save_model(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        tokenizer: Any = trainer.processing_class
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=trainer.eos_token_ids,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=True,
            temperature=1.0,
        ).save_pretrained(str(trainer.args.output_dir))


def draw_sft_curves(trainer: R1SFTTrainer, script_args: SFTArguments) -> None:
    """Draw loss, token accuracy and held-out accuracy beside the model; rank 0 does."""
    if trainer.is_world_process_zero():
        title = f"{script_args.stage_name} on {script_args.traces}"
        plot_curves(trainer.state.log_history, run_folder(trainer.args) / CURVES_FILE, title=title)


def write_sft_report(
    trainer: R1SFTTrainer,
    script_args: SFTArguments,
    prepared: PreparedSFT,
    *,
    before: Evaluation | None,
    after: Evaluation | None,
    seconds: float,
    train_seconds: float,
    step_seconds: float,
) -> dict[str, Any]:
    """Write `report.json`: where the model comes from, what it was trained on, the figures before and after.

    Args:
        trainer ([`R1SFTTrainer`]): After training.
        script_args ([`SFTArguments`]): The stage's settings.
        prepared ([`PreparedSFT`]): Lineage and data.
        before ([`Evaluation`], *optional*): The starting model.
        after ([`Evaluation`], *optional*): The trained model, on the same questions.
        seconds (`float`): Wall time of the whole stage.
        train_seconds (`float`): Wall time of training, evaluations within it included.
        step_seconds (`float`): Wall time of this start's optimizer steps alone.

    Returns:
        `dict`: What was written.
    """
    args = trainer.args
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report: dict[str, Any] = {
        "stage": script_args.stage_name,
        "model": prepared.parent["model"],
        "dataset": script_args.traces,
        "parent": prepared.parent,
        "data": prepared.data,
        "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(seconds, 1),
        "train_seconds": round(train_seconds, 1),
        "step_seconds": round(step_seconds, 1),
        "seed": args.seed,
        "world_size": trainer.accelerator.num_processes,
        "device": device_name(),
        "settings": {name: plain(getattr(args, name)) for name in _SETTINGS},
        "versions": versions(),
    }
    if before is not None and after is not None and prepared.held_out is not None:
        report |= _measured(script_args, before, after)
    write_json(run_folder(args) / REPORT_FILE, report)
    return report


def _measured(script_args: SFTArguments, before: Evaluation, after: Evaluation) -> dict[str, Any]:
    contrasts = {name: paired_difference(before.per_problem(name), after.per_problem(name)) for name in METRICS}
    return {
        "before": before.summary(),
        "after": after.summary(),
        "change": {
            (f"cons@{after.cons_k}" if name == "cons" else name): [one.value, one.low, one.high]
            for name, one in contrasts.items()
        },
        "held_out": {
            "dataset": script_args.dataset,
            "questions": len(after.problems),
            "samples": script_args.heldout_samples,
            "temperature": script_args.heldout_temperature,
            "top_p": script_args.heldout_top_p,
            "max_tokens": script_args.heldout_max_tokens,
        },
    }


def sft_card(
    trainer: R1SFTTrainer,
    script_args: SFTArguments,
    model_args: ModelConfig,
    prepared: PreparedSFT,
    report: Mapping[str, Any],
) -> CardFacts:
    """Collect what the model card states, see [`~trl_r1.cards.CardFacts`]."""
    folder = run_folder(trainer.args)
    held_out = report.get("held_out", {})
    kinds = ", ".join(f"{name} ({count} rows)" for name, count in prepared.data["licenses"].items())
    return CardFacts(
        name=(trainer.args.hub_model_id or folder.resolve().name).split("/")[-1],
        stage=script_args.stage_name,
        method="SFT",
        base_model=report["model"],
        dataset=script_args.traces,
        measured_on=str(held_out.get("dataset", "")) or None,
        rewards=(),
        summary=report.get("after", {}),
        table=table(report),
        protocol=(
            f"Measured on {held_out['questions']} held-out questions of `{held_out['dataset']}` × {held_out['samples']} samples "
            f"at temperature {held_out['temperature']:g}, top-p {held_out['top_p']:g}, at most {held_out['max_tokens']} tokens."
        )
        if held_out
        else "",
        training=(
            f"Supervised fine-tuning on {prepared.data['rows']} traces; the loss is on the completions only, thinking "
            f"included. It starts from a model of the stage `{prepared.parent['stage']}` (`{prepared.parent['hash'][:23]}…`). "
            f"Licences of the traces: {kinds}."
        ),
        settings=report["settings"],
        versions=report["versions"],
        steps=report["steps"],
        prompt=prepared.template.render("{your question}", prepared.tokenizer),
        prefill=prepared.template.prefill,
        curves=CURVES_FILE if (folder / CURVES_FILE).exists() else None,
        peft=bool(model_args.use_peft),
        languages=_languages(prepared),
    )


def table(report: Mapping[str, Any]) -> str:
    """The before/after table of a report, as text; empty where nothing was measured."""
    return before_after_table(report["before"], report["after"], report["change"]) if "after" in report else ""


def plain(value: Any) -> Any:
    """A setting as JSON has it: an enumeration by its value."""
    return getattr(value, "value", value)


def _languages(prepared: PreparedSFT) -> list[str]:
    if "language" not in prepared.traces.column_names:
        return []
    return sorted({language for language in prepared.traces["language"] if language})
