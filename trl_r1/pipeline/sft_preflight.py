"""Everything that can be known of an SFT run before a weight is loaded: traces, questions, template — and their errors."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trl_r1.data.rejection_collator import MAX_LENGTH, RejectionSamplingCollator
from trl_r1.data.sources import load_rows
from trl_r1.data.traces import licenses, load_candidates, load_traces, without_questions
from trl_r1.evaluation import check_k
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.pipeline.heldout import HeldOut
from trl_r1.pipeline.lineage import check_parent, file_hash, lineage, rows_hash
from trl_r1.pipeline.preflight import check_model, resolve_model
from trl_r1.pipeline.sft_arguments import SFTArguments
from trl_r1.prompts import PromptTemplate, select_template
from trl_r1.rows import Row
from trl_r1.trainers.targets import tokenize

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from trl_r1.trainers.sft_config import R1SFTConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedSFT:
    """What an SFT run is made of, weights apart.

    Args:
        model_path (`str`): Hub id or folder of the starting checkpoint.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, with the chat template that is used.
        template ([`PromptTemplate`]): How questions are rendered.
        traces (`datasets.Dataset`): What is trained on: prompts and completions, or rows with candidates.
        collator (`Callable`, *optional*): Draws and packs the candidates, where rows hold several.
        held_out ([`HeldOut`], *optional*): Questions kept out, and how they are sampled.
        parent (`dict`): Where the starting checkpoint comes from ([`~trl_r1.pipeline.lineage.lineage`]).
        data (`dict`): What the report says of the traces: hash, rows, licences, rows dropped as held-out questions.
    """

    model_path: str
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    traces: Dataset
    collator: Any
    held_out: HeldOut | None
    parent: dict[str, Any]
    data: dict[str, Any]


def prepare_sft(script_args: SFTArguments, training_args: R1SFTConfig, model_args: ModelConfig) -> PreparedSFT:
    """Load traces, questions and tokenizer, choose the template, and check all of it together.

    Args:
        script_args ([`SFTArguments`]): Traces, template, evaluation.
        training_args ([`R1SFTConfig`]): The training.
        model_args ([`~trl.ModelConfig`]): The starting checkpoint.

    Returns:
        [`PreparedSFT`]: Ready for a trainer.

    Raises:
        [`ConfigurationError`]: Settings that exclude each other, a parent that another stage made than expected.
        [`DataError`]: Traces that cannot be read or do not think, no questions held out.
    """
    check_k(script_args.heldout_samples, script_args.heldout_cons_k, script_args.heldout_pass_k)
    if (model_args.load_in_4bit or model_args.load_in_8bit) and not model_args.use_peft:
        raise ConfigurationError("Quantised weights are not trained without an adapter. Set use_peft: true as well.")
    model_path = resolve_model(model_args.model_name_or_path)
    revision = None if Path(model_path).is_dir() else model_args.model_revision
    check_model(model_path, revision)
    parent = lineage(model_path, model_args.model_name_or_path or "nano", revision)
    check_parent(parent, script_args.parent_stage)
    # One process fills the caches first, the others read them.
    with training_args.main_process_first(desc="loading traces and tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(model_path, revision=revision)
        template = select_template(
            tokenizer,
            script_args.template,
            form=script_args.answer_form,
            prefill_think=script_args.prefill_think,
            instruction=script_args.instruction,
        )
        held_out = _held_out(script_args, template)
        traces, collator = _traces(script_args, training_args, tokenizer, template)
        questions = [row.prompt for row in held_out.rows] if held_out is not None else []
        traces, asked = without_questions(traces, questions)
    if asked:
        logger.warning("%d traces answer a held-out question and are dropped.", asked)
    if not len(traces):
        raise DataError("Every trace answers a held-out question. Hold out fewer, or bring other traces.")
    data = {
        "traces": script_args.traces,
        "hash": file_hash(script_args.traces) or rows_hash(traces),
        "rows": len(traces),
        "draw": script_args.draw,
        "dropped_held_out_questions": asked,
        "licenses": licenses(traces),
    }
    return PreparedSFT(model_path, tokenizer, template, traces, collator, held_out, parent, data)


def _traces(
    script_args: SFTArguments, training_args: R1SFTConfig, tokenizer: Any, template: PromptTemplate
) -> tuple[Dataset, Any]:
    """The traces, and what draws from their candidates, if asked for."""
    if script_args.draw == "all":
        return load_traces(script_args, script_args.answer_form), None
    rows = load_candidates(script_args)
    limit = training_args.max_length or MAX_LENGTH
    lost = training_args.max_truncated_targets
    options: dict[str, Any] = {
        "draw": script_args.draw,
        "max_length": limit,
        "max_lost": lost,
        "seed": training_args.seed,
    }
    return rows, RejectionSamplingCollator(tokenizer, template, **options)


def _held_out(script_args: SFTArguments, template: PromptTemplate) -> HeldOut | None:
    if script_args.dataset is None:
        return None
    # Training questions are not asked here: as few as the loader allows.
    rows = load_rows(replace(script_args, max_rows=1))["test"]
    test = [Row.from_columns(columns) for columns in rows]
    return HeldOut.of(script_args, template, test)


def render_sft_preview(prepared: PreparedSFT, rows: int = 3) -> str:
    """Show some rows as the model would see them: prompt and target, with their lengths in tokens.

    Args:
        prepared ([`PreparedSFT`]): The run.
        rows (`int`, defaults to 3): How many.

    Returns:
        `str`: Text for a terminal.
    """
    blocks = []
    for number, row in enumerate(prepared.traces.select(range(min(rows, len(prepared.traces)))), start=1):
        if "completion" not in row:
            blocks.append(f"── row {number} ── {len(row['candidates'])} candidates of {str(row['prompt'])[:200]!r}")
            continue
        made = tokenize(row, prepared.tokenizer, prepared.template)
        cut = sum(label == -100 for label in made["labels"])
        prompt, target = (prepared.tokenizer.decode(made["input_ids"][part]) for part in (slice(cut), slice(cut, None)))
        blocks.append(
            f"── row {number} "
            + "─" * 60
            + f"\n{prompt}\n·· target, {len(made['labels']) - cut} tokens after {cut} ··\n{target}"
        )
    held_out = prepared.held_out
    asked = f"{len(held_out.rows)} held out × {held_out.samples} samples" if held_out else "no questions held out"
    blocks.append(
        f"{len(prepared.traces)} traces to train on; {asked}; template {prepared.template.name!r}; parent "
        f"{prepared.parent['model']!r} ({prepared.parent['stage']}); no weights were loaded."
    )
    return "\n\n".join(blocks)
