"""Every training completion on disk: what the policy wrote, for which question, and what each reward paid.

A run's `_rollouts/` holds one Parquet file per rollout and process, written whole or not at all. A resumed run overwrites
the files of the steps it takes again, so nothing is counted twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_r1.exceptions import DataError
from trl_r1.responses import completion_text
from trl_r1.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa

# transformers leaves folders with a leading underscore out of what it pushes to the Hub: at R1's sizes this one holds
# gigabytes, and the questions may not be the user's to publish.
FOLDER = "_rollouts"
# What a row is asked by; the rest of its columns say how it is verified.
_ROW_FIELDS = tuple(name for name in Row.__dataclass_fields__ if name != "prompt")
_REWARD = "reward/"


@dataclass(frozen=True)
class Rollout:
    """One completion of training, as it was logged.

    Args:
        step (`int`): Optimizer steps taken before it was sampled.
        row ([`Row`]): The question, its prompt as the trainer saw it (rendered text or messages).
        completion (`str`): What the policy wrote.
        tokens (`int`): Its length in tokens.
        truncated (`bool`): Whether it was cut off.
        prefill (`str`): What the template had opened.
        rewards (`dict[str, float | None]`): By name; `None` where the reward did not apply.
    """

    step: int
    row: Row
    completion: str
    tokens: int
    truncated: bool
    prefill: str
    rewards: dict[str, float | None]

    @property
    def group(self) -> tuple[int, str]:
        """The same for all answers to one question in one rollout, on whatever process they were sampled."""
        return self.step, self.row.id or str(self.row.prompt)


class RolloutLog:
    """Writes the rollouts of one process.

    Args:
        run (`str` or `Path`): The run's folder.
        rank (`int`, defaults to 0): This process.
    """

    def __init__(self, run: str | Path, rank: int = 0) -> None:
        self.folder = Path(run) / FOLDER
        self.rank = rank

    def write(
        self,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        lengths: Sequence[int],
        truncated: Sequence[bool],
        rewards: Mapping[str, Sequence[float]],
    ) -> Path:
        """Write one rollout of this process.

        Args:
            step (`int`): Optimizer steps taken so far; names the file.
            rows (`list[dict]`): The data set's rows, one per completion.
            prompts (`list`): Text or messages, as sampled.
            completions (`list`): Text or messages.
            lengths (`list[int]`): Tokens of each completion.
            truncated (`list[bool]`): Which were cut off.
            rewards (`dict[str, list[float]]`): By name, NaN where a reward did not apply.

        Returns:
            `Path`: The file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = {
            "step": [step] * len(prompts),
            "prompt": [p if isinstance(p, str) else json.dumps(p, ensure_ascii=False) for p in prompts],
            "messages": [not isinstance(p, str) for p in prompts],
            "prefill": [str(row.get("prefill") or "") for row in rows],
            "completion": [completion_text(one) for one in completions],
            "tokens": [int(length) for length in lengths],
            "truncated": [bool(cut) for cut in truncated],
        }
        columns |= {name: [_text(row.get(name)) for row in rows] for name in _ROW_FIELDS}
        columns |= {_REWARD + name: [_known(v) for v in values] for name, values in rewards.items()}
        table = pa.table(columns, schema=_schema(columns))
        target = self.folder / f"step_{step:06d}_rank_{self.rank}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.tmp")
        pq.write_table(table, partial, compression="zstd")
        partial.replace(target)
        return target


def read_rollouts(run: str | Path, *, last_step: int | None = None) -> list[Rollout]:
    """Read what a run's policy wrote, in the order of training.

    Args:
        run (`str` or `Path`): The run's folder (or its `rollouts/`).
        last_step (`int`, *optional*): Leave out what came later: a run that was resumed from an earlier checkpoint and
            ended earlier may hold files of steps that it did not take again.

    Returns:
        `list[Rollout]`: By step, then process, then place in the rollout.

    Raises:
        [`DataError`]: If the folder holds no rollouts, or a file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(run)
    folder = folder if folder.name == FOLDER else folder / FOLDER
    files = sorted(folder.glob("step_*.parquet"), key=_order)
    if not files:
        raise DataError(
            f"{str(folder)!r} holds no rollouts. They are written by training runs with log_rollouts: true, the default; "
            "give the output_dir of such a run."
        )
    found: list[Rollout] = []
    for file in files:
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{str(file)!r} cannot be read as Parquet: {error}. Remove it to go on without it."
            ) from error
        found += [
            _rollout(columns) for columns in table.to_pylist() if last_step is None or columns["step"] <= last_step
        ]
    return found


def groups(rollouts: Sequence[Rollout]) -> dict[tuple[int, str], list[Rollout]]:
    """Rollouts by the question that they answer, in order."""
    found: dict[tuple[int, str], list[Rollout]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.group, []).append(rollout)
    return found


def reward_names(rollouts: Sequence[Rollout]) -> list[str]:
    """Names of the rewards that paid, in the order they were logged."""
    return list(dict.fromkeys(name for rollout in rollouts for name in rollout.rewards))


def _rollout(columns: Mapping[str, Any]) -> Rollout:
    prompt = json.loads(columns["prompt"]) if columns["messages"] else columns["prompt"]
    return Rollout(
        step=columns["step"],
        row=Row.from_columns({"prompt": prompt} | {name: columns[name] for name in _ROW_FIELDS} | _needed(columns)),
        completion=columns["completion"],
        tokens=columns["tokens"],
        truncated=columns["truncated"],
        prefill=columns["prefill"],
        rewards={name[len(_REWARD) :]: value for name, value in columns.items() if name.startswith(_REWARD)},
    )


def _needed(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A data set that is not made of our rows may lack a reference, which `Row` requires."""
    return {} if columns.get("reference") is not None else {"reference": ""}


def _order(file: Path) -> tuple[int, int]:
    _, step, _, rank = file.stem.split("_")
    return int(step), int(rank)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _schema(columns: Mapping[str, Any]) -> pa.Schema:
    """One type per column, also where every value is missing: files of one run must agree."""
    import pyarrow as pa

    kinds = {"step": pa.int64(), "tokens": pa.int64(), "truncated": pa.bool_(), "messages": pa.bool_()}
    return pa.schema(
        [(name, pa.float64() if name.startswith(_REWARD) else kinds.get(name, pa.string())) for name in columns]
    )
