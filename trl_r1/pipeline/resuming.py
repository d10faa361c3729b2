"""How a training stage begins and ends in its folder: anew, from its last checkpoint, or stopped in between."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline import artifacts
from trl_r1.pipeline.files import read_json
from trl_r1.trainers.checkpoints import last_complete_checkpoint

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from trl_r1.pipeline.arguments import RLArguments
    from trl_r1.pipeline.sft_arguments import SFTArguments

logger = logging.getLogger(__name__)

BEFORE_FILE = "heldout_before.json"
AFTER_FILE = "heldout_after.json"


def show_choices() -> None:
    """Let what the library decides for the user be read, unless the program has a log of its own."""
    package = logging.getLogger("trl_r1")
    if not package.hasHandlers():
        package.addHandler(logging.StreamHandler())
        package.setLevel(logging.INFO)


def starting_point(
    script_args: RLArguments | SFTArguments, training_args: TrainingArguments, *, measured: bool = True
) -> str | None:
    """Find the checkpoint to continue from, and refuse to mix two runs in one folder.

    Every process of the launch calls it. A run that starts anew has its folder cleared of what an earlier run left.

    Args:
        script_args ([`RLArguments`] or [`SFTArguments`]): Whether an earlier run may be cleared.
        training_args ([`~transformers.TrainingArguments`]): Its folder and `resume_from_checkpoint`: `auto`, a folder, or
            none.
        measured (`bool`, defaults to `True`): Whether the run's start is measured on held-out questions, so that a resumed
            one needs those figures.

    Returns:
        `str` or `None`: The checkpoint; `None` to start anew.

    Raises:
        [`ConfigurationError`]: The folder holds another run, or a resumed run lacks the figures of its start.
    """
    asked, folder = training_args.resume_from_checkpoint, artifacts.run_folder(training_args)
    found = last_complete_checkpoint(folder)
    if asked is not None and str(asked).lower() not in ("false", "no", "0"):
        if str(asked).lower() not in ("auto", "true", "yes", "1"):
            found = str(asked)
        if found is None:
            logger.warning("No complete checkpoint in %s: starting anew.", folder)
        elif measured and read_json(folder / BEFORE_FILE) is None:
            raise ConfigurationError(
                f"{BEFORE_FILE} is missing in output_dir {str(folder)!r} or damaged, so the resumed run could not be compared "
                "with its start. Start anew with --overwrite true, or put the file back."
            )
        return found
    if found is not None and not script_args.overwrite:
        raise ConfigurationError(
            f"output_dir {str(folder)!r} already holds {Path(found).name} of an earlier run. Continue it with "
            "--resume_from_checkpoint auto, start anew with --overwrite true, or give another --output_dir."
        )
    with training_args.main_process_first(desc="clearing the output folder"):
        if training_args.process_index == 0:
            artifacts.clear_run(folder)
    return None


def raise_if_stopped(trainer: Trainer) -> None:
    """Say how to continue when training ended before its last step (Ctrl-C, SIGTERM).

    Raises:
        `KeyboardInterrupt`: It did.
    """
    if trainer.state.global_step >= trainer.state.max_steps:
        return
    raise KeyboardInterrupt(
        f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}. Continue with the same command and "
        "--resume_from_checkpoint auto."
    )
