"""How the processes of a launch put their scores together: through files, so that a slow one runs into no deadline.

A collective would have to wait for the slowest process's verification, and dies after half an hour of it (trap 30). The samples
are in a shared folder anyway.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl_r1.evaluation.metrics import ProblemScore
from trl_r1.evaluation.run import Counts, sample_key
from trl_r1.generation.shards import write_whole
from trl_r1.rows import Row

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.5  # seconds
_SAY_EVERY = 60.0


@dataclass
class Scores:
    """The scores of some questions.

    Args:
        problems (`list[ProblemScore]`): Without a budget.
        budgets (`dict[int, list[tuple[ProblemScore, float]]]`): By thinking budget, with the share of thinkings ended.
    """

    problems: list[ProblemScore]
    budgets: dict[int, list[tuple[ProblemScore, float]]] = field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        budgets = {
            str(budget): [[asdict(score), share] for score, share in scored] for budget, scored in self.budgets.items()
        }
        return {"problems": [asdict(score) for score in self.problems], "budgets": budgets}

    def add(self, data: dict[str, Any]) -> None:
        """Add what another process wrote."""
        self.problems += [ProblemScore(**score) for score in data["problems"]]
        for budget, scored in data["budgets"].items():
            self.budgets.setdefault(int(budget), []).extend((ProblemScore(**score), share) for score, share in scored)


def collect(
    mine: Scores, rows: Sequence[Row], counts: Counts, folder: Path, rank: int, world_size: int
) -> Scores | None:
    """Hand one's scores over, and on the first process wait for all others'.

    Args:
        mine ([`Scores`]): This process'.
        rows (`Sequence[Row]`): All questions, in their order.
        counts ([`Counts`]): Scores made for others are not taken.
        folder (`Path`): Where the files meet.
        rank (`int`): This process.
        world_size (`int`): Processes of the launch.

    Returns:
        [`Scores`] or `None`: Everything in the order of the questions on the first process, `None` on others.
    """
    if rank > 0:
        write_whole(_file(folder, rank, rows, counts, mine, world_size), json.dumps(mine.asdict()))
        return None
    for other in range(1, world_size):
        path = _file(folder, other, rows, counts, mine, world_size)
        mine.add(json.loads(_wait_for(path).read_text(encoding="utf-8")))
        path.unlink()
    place = {str(row.id): index for index, row in enumerate(rows)}
    mine.problems.sort(key=lambda score: place[score.id])
    for scored in mine.budgets.values():
        scored.sort(key=lambda one: place[one[0].id])
    return mine


def _file(folder: Path, rank: int, rows: Sequence[Row], counts: Counts, mine: Scores, world_size: int) -> Path:
    """Name a file by all that its content depends on, so that one left by a killed launch is as good as a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    content = [version("trl-r1"), *map(sample_key, rows), asdict(counts), sorted(mine.budgets), world_size]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return folder / f"{digest}-{rank}.json"


def _wait_for(path: Path) -> Path:
    started = said = time.monotonic()
    while not path.is_file():
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            logger.info("Waiting for the scores of another process (%s) for %d s.", path.name, said - started)
        time.sleep(_LOOK_EVERY)
    return path
