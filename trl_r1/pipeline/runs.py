"""A finished (or running) run, read back from its folder: figures, curves, held-out scores, rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_r1.data.rollouts import FOLDER, Rollout, read_rollouts
from trl_r1.evaluation import Evaluation
from trl_r1.exceptions import DataError
from trl_r1.pipeline.files import read_json

BEFORE, AFTER, REPORT = "heldout_before.json", "heldout_after.json", "report.json"


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Args:
        folder (`Path`): The folder.
        name (`str`): How the run is called among others.
        report (`dict`): Content of `report.json`; empty while the run goes on.
        before (`Evaluation`, *optional*): Held-out scores of the starting model.
        after (`Evaluation`, *optional*): Held-out scores of the trained model.
        log (`list[dict]`): The trainer's log.
    """

    folder: Path
    name: str
    report: Mapping[str, Any] = field(default_factory=dict)
    before: Evaluation | None = None
    after: Evaluation | None = None
    log: Sequence[Mapping[str, Any]] = ()

    @property
    def has_rollouts(self) -> bool:
        """Whether the completions of training were kept."""
        return any((self.folder / FOLDER).glob("step_*.parquet"))

    def rollouts(self) -> list[Rollout]:
        """The completions of training, as far as the run's log goes."""
        last = max((int(entry["step"]) for entry in self.log if "step" in entry), default=None)
        return read_rollouts(self.folder, last_step=last)


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read a run.

    Args:
        folder (`str` or `Path`): `output_dir` of a training stage.
        name (`str`, *optional*): What to call it; the folder's name by default.

    Returns:
        [`Run`]

    Raises:
        [`DataError`]: If the folder is not one of a run.
    """
    path = Path(folder)
    report, log = read_json(path / REPORT) or {}, _log(path)
    before, after = (_evaluation(path / file) for file in (BEFORE, AFTER))
    if not report and not log and before is None and after is None:
        raise DataError(
            f"{str(path)!r} is no run: it has no {REPORT}, no checkpoint and no held-out scores. Give the output_dir of a "
            "training stage."
        )
    return Run(path, name or path.name, report, before, after, log)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read several runs, with names that tell them apart."""
    paths = [Path(folder) for folder in folders]
    short = [path.name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def read_evaluation(source: str | Path) -> Evaluation:
    """Read held-out scores: a file with them, or a run's folder (then those after training).

    Raises:
        [`DataError`]: If there are none.
    """
    path = Path(source)
    found = _evaluation(path if path.is_file() else path / AFTER)
    if found is None:
        raise DataError(
            f"{str(path)!r} holds no scores. Give the folder of a finished run ({AFTER} lies in it) or a file of scores such "
            f"as {BEFORE}."
        )
    return found


def _evaluation(path: Path) -> Evaluation | None:
    data = read_json(path)
    if not isinstance(data, dict) or "problems" not in data:
        return None
    return Evaluation.from_dict(data)


def _log(folder: Path) -> list[Mapping[str, Any]]:
    """The trainer's log: of the finished run, else of the latest checkpoint."""
    states = [folder / "trainer_state.json"]
    states += sorted(
        folder.glob("checkpoint-*/trainer_state.json"), key=lambda file: -int(file.parent.name.rpartition("-")[2])
    )
    for file in states:
        if isinstance(state := read_json(file), dict):
            return list(state.get("log_history", []))
    return []
