"""Traces of the embedded world: its right answers, to learn from offline, and its answers as pretraining holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from random import Random
from typing import Any, cast

from trl_r1.exceptions import unknown
from trl_r1.nano import NanoWorld
from trl_r1.nano.documents import DONE, MALFORMED, well_formed
from trl_r1.nano.question import Dials, Question, Solution
from trl_r1.nano.world import DEPTH_WEIGHTS, TASKS
from trl_r1.responses import parse
from trl_r1.verifiers import verify

DEFAULT_TASKS = ("countdown",)
DEFAULT_COUNT = 1000
LICENSE = "apache-2.0"


def nano_traces(
    tasks: Sequence[str] = DEFAULT_TASKS,
    count: int = DEFAULT_COUNT,
    *,
    depth: int | None = None,
    language: str | None = None,
    seed: int = 0,
    as_pretrained: bool = False,
    dials: Mapping[str, float] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield traces for questions of the split `"train"`, which neither pretraining nor evaluation holds.

    Args:
        tasks (`Sequence[str]`): Tasks of [`~trl_r1.nano.NanoWorld`], drawn evenly.
        count (`int`, defaults to 1000): How many.
        depth (`int`, *optional*): Depth of the questions; drawn as in pretraining by default.
        language (`str`, *optional*): `"en"` or `"zh"`; both by default.
        seed (`int`, defaults to 0): Seed of the questions and the answers.
        as_pretrained (`bool`, defaults to `False`):
            Answers as the pretraining documents hold them, wrong and malformed ones among them: the control for a data
            set of the same size. By default only right, well-formed ones.
        dials (`Mapping[str, float]`, *optional*): Dials of the world that writes the answers, such as `{"scan": 1.0}`.

    Returns:
        `Iterator[dict]`: Rows for [`~trl_r1.data.traces.read_traces`].

    Raises:
        [`ConfigurationError`]: An unknown task or dial.
    """
    for task in tasks:
        if task not in TASKS:
            raise unknown("nano task", task, TASKS)
    world, rng = _world(dials or {}), Random(f"traces/{seed}")
    made = 0
    while made < count:
        name = rng.choice(list(tasks))
        levels = TASKS[name].depths
        level = depth if depth is not None else rng.choices(levels, DEPTH_WEIGHTS.get(name, (1,) * len(levels)))[0]
        question = TASKS[name].ask(rng, language or ("zh" if rng.random() < world.chinese else "en"), level)
        if question.split != "train":
            continue
        solution = TASKS[name].solve(rng, question, world.dials)
        text = _pretrained(rng, question, solution, world.malformed) if as_pretrained else well_formed(solution)
        if not as_pretrained and not _right(text, question):
            continue
        made += 1
        row = question.row()
        yield {
            "prompt": row.prompt, "completion": text, "id": row.id, "domain": row.domain, "language": row.language,
            "license": LICENSE, "source": "nano",
        }  # fmt: skip


def _world(dials: Mapping[str, float]) -> NanoWorld:
    names = [field.name for field in fields(Dials)]
    for name in dials:
        if name not in names:
            raise unknown("dial of the nano world", name, names)
    return NanoWorld(**cast("dict[str, Any]", dict(dials)))


def _right(text: str, question: Question) -> bool:
    response = parse(text)
    # A general question has no rule, so nothing speaks against its answer.
    return response.well_formed and verify(response.answer, question.row()).correct is not False


def _pretrained(rng: Random, question: Question, solution: Solution, malformed: float) -> str:
    if rng.random() >= malformed:
        return well_formed(solution)
    done = DONE[question.language]
    return rng.choice(MALFORMED).format(thought=solution.thought, answer=solution.answer, done=done)
