"""The body of distillation: a teacher's traces, sampled here or ready, and SFT of a student on them."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from accelerate import PartialState

from trl_r1.data.rejection import RejectionSampler
from trl_r1.data.rejection_store import DATASET_FILE
from trl_r1.data.sources import load_rows
from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.config import SamplerConfig, open_sampler
from trl_r1.pipeline import artifacts
from trl_r1.pipeline.files import write_json
from trl_r1.pipeline.lineage import lineage
from trl_r1.pipeline.preflight import resolve_model
from trl_r1.pipeline.rejection_sampling import clear_samples
from trl_r1.pipeline.resuming import starting_point
from trl_r1.pipeline.sft import sft
from trl_r1.pipeline.sft_arguments import SFTArguments, parse_stage
from trl_r1.pipeline.sft_preflight import prepare_sft
from trl_r1.rows import Row
from trl_r1.trainers.targets import check_tags, tokenize

if TYPE_CHECKING:
    from trl import ModelConfig

    from trl_r1.trainers.sft_config import R1SFTConfig

logger = logging.getLogger(__name__)

TEACHER_FOLDER = "teacher"
# Traces that are always here; several, so that not all of them ask a held-out question.
_STAND_IN, _STAND_INS = "nano:countdown", 16


@dataclass
class DistillArguments(SFTArguments):
    """What distillation needs to know; see [`SFTArguments`]. Either `traces` are ready, or a `teacher` writes them.

    Args:
        teacher (`dict` or `str`, *optional*):
            The model that writes the traces, or the fields of [`~trl_r1.generation.config.SamplerConfig`] with its `n`
            samples per question. Its questions are the training part of `dataset`; the held-out part is never asked.
        max_accepted (`int`, defaults to 4): Right answers kept per question. The paper gives no number. [?]
        stage_name (`str`, defaults to `"Distillation"`): What the report and the model card call the stage.
    """

    stage: ClassVar[str] = "distill"

    teacher: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Model that writes the traces, or the settings of a sampler."}
    )
    max_accepted: int = field(default=4, metadata={"help": "Right answers kept per question."})
    stage_name: str = field(default="Distillation", metadata={"help": "What report and model card call the stage."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.teacher) == bool(self.traces):
            raise ConfigurationError(
                f"teacher={self.teacher!r} and traces={self.traces!r}: give one of them, a model that writes the traces or a "
                "data set of them."
            )
        if self.teacher and self.dataset is None:
            raise ConfigurationError("A teacher needs questions: name a `dataset`.")
        if self.preview and self.teacher:
            raise ConfigurationError(
                "A preview shows traces, and the teacher has written none yet. Leave --preview out."
            )
        if self.max_accepted < 1:
            raise ConfigurationError(f"max_accepted={self.max_accepted} must be at least 1.")

    @property
    def served(self) -> bool:
        """Whether the teacher is a server's, whose files are not here."""
        return bool(SamplerConfig.parse(self.teacher or {}).server_urls)


def run_distill(args: list[str]) -> None:
    """Run distillation from command-line arguments."""
    distill(*parse_distill(args))


def parse_distill(args: list[str]) -> tuple[DistillArguments, R1SFTConfig, ModelConfig]:
    """Read the stage's settings, as [`~trl_r1.pipeline.sft_arguments.parse_sft`] does."""
    return parse_stage(DistillArguments, args)


def distill(
    script_args: DistillArguments, training_args: R1SFTConfig, model_args: ModelConfig
) -> dict[str, Any] | None:
    """Distillation: SFT of a student on a reasoning model's traces (arXiv 2501.12948v1 §2.4, v2 B.4.3).

    With a `teacher`, its samples are verified and filtered as in rejection sampling, in `output_dir/teacher`; a second start
    goes on where the first was stopped, and `overwrite` has the teacher asked anew. The student is looked at before the
    teacher is opened. The paper distills by SFT alone, on the data of its third stage.

    Args:
        script_args ([`DistillArguments`]): Teacher or traces, template, evaluation.
        training_args ([`R1DistillConfig`]): The training.
        model_args ([`~trl.ModelConfig`]): The student.

    Returns:
        `dict` or `None`: As [`~trl_r1.pipeline.sft.sft`].

    Raises:
        [`ConfigurationError`], [`DataError`] or [`EngineError`]: See there, and for a teacher that cannot be opened or answers
            nothing right.
    """
    if not script_args.teacher:
        return sft(script_args, training_args, model_args)
    folder = artifacts.run_folder(training_args)
    check_student(script_args, training_args, model_args)
    path = teach(script_args, folder / TEACHER_FOLDER)
    # The student may be of another family: the teacher's text is put after the student's own prompt.
    report = sft(replace(script_args, teacher=None, traces=str(path)), training_args, model_args)
    if report and training_args.process_index == 0:
        name = SamplerConfig.parse(script_args.teacher).model_name_or_path
        report["teacher"] = {"model": name} if script_args.served else lineage(str(_resolved(name)), name)
        write_json(folder / artifacts.REPORT_FILE, report)
    return report


def check_student(script_args: DistillArguments, training_args: R1SFTConfig, model_args: ModelConfig) -> None:
    """Find out what is wrong with the student's training before a teacher samples for hours; every rank calls it.

    A few of nano's traces stand in for those that the teacher has not written. With `overwrite`, and no checkpoint to resume
    from, what an earlier teacher wrote is removed.

    Args:
        script_args ([`DistillArguments`]): Teacher, questions, template, evaluation.
        training_args ([`R1DistillConfig`]): The training.
        model_args ([`~trl.ModelConfig`]): The student.

    Raises:
        [`ConfigurationError`] or [`DataError`]: As [`~trl_r1.pipeline.sft.sft`] before a weight is loaded, as far as it does
            not depend on the traces.
    """
    standing_in = replace(script_args, teacher=None, traces=_STAND_IN, max_traces=_STAND_INS, draw="all")
    try:
        prepared = prepare_sft(standing_in, training_args, model_args)
    except OSError as error:  # transformers', which does not always name the model
        raise ConfigurationError(
            f"The student model_name_or_path={model_args.model_name_or_path!r} cannot be read: {error} Give a Hub id, a folder, or "
            "nano."
        ) from error
    check_tags(prepared.tokenizer)
    tokenize(prepared.traces[0], prepared.tokenizer, prepared.template)
    checkpoint = starting_point(script_args, training_args, measured=prepared.held_out is not None)
    if script_args.overwrite and checkpoint is None and training_args.process_index == 0:
        clear_samples(artifacts.run_folder(training_args) / TEACHER_FOLDER)
    PartialState().wait_for_everyone()


def teach(script_args: DistillArguments, folder: Path) -> Path:
    """Sample the teacher on the training questions and keep what is right; every rank takes its share.

    Args:
        script_args ([`DistillArguments`]): Teacher and questions.
        folder (`Path`): Where samples, data set and report go.

    Returns:
        `Path`: The data set, for [`~trl_r1.data.traces.load_traces`].
    """
    state = PartialState()
    path = folder / DATASET_FILE
    config = SamplerConfig.parse(script_args.teacher or {})
    config = replace(config, model_name_or_path=_resolved(config.model_name_or_path))
    splits = load_rows(script_args)
    rows = [Row.from_columns(columns) for columns in splits["train"]]
    with closing(open_sampler(config)) as sampler:
        rejection = RejectionSampler(
            sampler,
            samples=config.n,
            max_accepted=min(script_args.max_accepted, config.n),
            settings=config.settings(),
            max_unverifiable=script_args.max_unverifiable,
        )
        rejection.sample(rows, folder)
        state.wait_for_everyone()
        if state.is_main_process:
            found = rejection.gather(rows, folder).report["total"]
            logger.info("The teacher answered; accepted: %s.", found)
        state.wait_for_everyone()
    return path


def _resolved(name: str | None) -> str | None:
    return None if name is None else resolve_model(name)
