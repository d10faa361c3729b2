"""reasoning-gym tasks as rows with worked solutions, split by template.

gsm_symbolic brings its own solutions (`answer_cot`); the other tasks here get theirs written from the entry's metadata.
A *template* is what a generator fills with names and numbers: some templates are held out as a whole, so that a model can
be measured on new instances of what it saw and on what it never saw. gsm_symbolic's templates derive from GSM8K's *test*
set: never report GSM8K for a model trained on them. Needs `pip install 'trl-r1[reasoning-gym]'`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from trl_r1.data.worked import WorkedSolution
from trl_r1.exceptions import ConfigurationError, DataError, MissingExtraError, unknown
from trl_r1.rows import Row

# A fifth of the templates is never trained on. Ours: 17 of gsm_symbolic's 85.
UNSEEN_SHARE = 0.2
# Share of the instances of seen templates that is held out.
HELD_OUT_SHARE = 0.25
_CHUNK = 512
# Chunks without a single new question, after which a task is taken for exhausted.
_PATIENCE = 8


@dataclass(frozen=True)
class GymSplits:
    """What [`gym_splits`] draws.

    Args:
        train (`list[WorkedSolution]`): To learn from.
        seen (`list[WorkedSolution]`): Held-out instances of the templates that `train` has.
        unseen (`list[WorkedSolution]`): Instances of templates that `train` does not have.
    """

    train: list[WorkedSolution]
    seen: list[WorkedSolution]
    unseen: list[WorkedSolution]


def gym_splits(
    task: str, train: int, held_out: int, seed: int = 0, unseen_share: float = UNSEEN_SHARE, **settings: Any
) -> GymSplits:
    """Draw traces of a task: to train on, held out from the same templates, and from templates never trained on.

    The split is decided by hashes of the template and of the question, so that no question is in two of them and more rows
    of the same task keep the split. A solution that ends in another answer than the entry's is left out.

    Args:
        task (`str`): One of [`TASKS`].
        train (`int`): Training traces.
        held_out (`int`): Traces in each of the held-out splits; 0 for none.
        seed (`int`, defaults to 0): Seed of the instances.
        unseen_share (`float`, defaults to 0.2): Share of the templates that is never trained on.
        settings: Of the task's configuration.

    Returns:
        [`GymSplits`]

    Raises:
        [`ConfigurationError`]: For a task without worked solutions, or a share outside [0, 1).
        [`DataError`]: The task has too few different questions.
        [`MissingExtraError`]: Without reasoning-gym.
    """
    if not 0 <= unseen_share < 1:
        raise ConfigurationError(f"unseen_share={unseen_share} must be at least 0 and below 1.")
    wanted = {"train": train, "seen": held_out, "unseen": held_out if unseen_share else 0}
    found: dict[str, list[WorkedSolution]] = {name: [] for name in wanted}
    questions: set[str] = set()
    fruitless = 0
    for start in count(0, _CHUNK):
        before = len(questions)
        for trace in _traces(task, start, seed, settings):
            question = str(trace.row.prompt)
            if question in questions:
                continue
            questions.add(question)
            if _place(f"{task}/{trace.group}") < unseen_share:
                split = "unseen"
            else:
                split = "seen" if _place(question) < HELD_OUT_SHARE else "train"
            if len(found[split]) < wanted[split]:
                found[split].append(trace)
        if all(len(found[name]) >= wanted[name] for name in wanted):
            return GymSplits(**found)
        fruitless = fruitless + 1 if len(questions) == before else 0
        if fruitless == _PATIENCE:
            break
    drawn = ", ".join(f"{len(found[name])} of {wanted[name]} {name}" for name in wanted)
    raise DataError(
        f"reasoning-gym's {task!r} has hardly more than {len(questions)} different questions: drawn {drawn}. Ask for fewer."
    )


def _traces(task: str, start: int, seed: int, settings: dict[str, Any]) -> Iterator[WorkedSolution]:
    """Make the traces of one chunk of a task's endless sequence."""
    if task not in TASKS:
        raise unknown("reasoning-gym task with worked solutions", task, TASKS)
    # Chunks have seeds of their own: an instance is drawn from its data set's seed + its index.
    chunk_seed = seed * 1_000_003 + start
    data = _dataset(task, chunk_seed, settings)
    for index in range(_CHUNK):
        entry = data[index]
        template, reasoning = TASKS[task](entry)
        if task == "gsm_symbolic":
            template = f"t{data.task_indices[index]:02d}"
        if reasoning is not None:
            answer = str(entry["answer"]).strip()
            yield WorkedSolution(_row(task, entry, f"{chunk_seed}/{index}"), reasoning, answer, group=template)


def _dataset(task: str, seed: int, settings: dict[str, Any]) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingExtraError("reasoning-gym, which makes these rows,", "reasoning-gym") from error
    try:
        return reasoning_gym.create_dataset(task, size=_CHUNK, seed=seed, **settings)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigurationError(f"reasoning-gym's {task!r} does not take the settings {settings}: {error}.") from None


def _row(task: str, entry: dict[str, Any], place: str) -> Row:
    """The question, verified by the task's scorer. These scorers read the answer alone: the rest would give it away."""
    reference = {"question": entry["question"], "answer": entry["answer"], "metadata": {"source_dataset": task}}
    return Row(
        prompt=entry["question"],
        reference=json.dumps(reference, ensure_ascii=False),
        domain="logic",
        language="en",
        id=f"gym/{task}/{place}",
        verifier="gym",
    )


def _gsm_symbolic(entry: dict[str, Any]) -> tuple[str, str | None]:
    """Return the generator's own solution without its last line, `None` where it ends in another answer."""
    solution, mark, final = str(entry["metadata"]["answer_cot"]).rpartition("####")
    try:
        agrees = bool(mark) and float(final.replace(",", "")) == float(entry["answer"])
    except ValueError:
        agrees = False
    # `14.0` eggs are 14 eggs.
    text = re.sub(r"(?<![0-9.])([0-9]+)\.0(?![0-9])", r"\1", solution).strip()
    return "", text if agrees else None


def _chain_sum(entry: dict[str, Any]) -> tuple[str, str | None]:
    """Write the running sums: `4 - 1 = 3`, `3 - 7 = -4`."""
    first, *rest = re.findall(r"[-+]|[0-9]+", entry["metadata"]["expression"])
    total, steps = int(first), []
    for operator, number in zip(rest[::2], rest[1::2], strict=True):
        value = total + int(number) if operator == "+" else total - int(number)
        steps.append(f"{total} {operator} {number} = {value}")
        total = value
    terms, digits = entry["metadata"]["num_terms"], entry["metadata"]["num_digits"]
    text = "I add from left to right.\n" + "\n".join(steps)
    return f"{terms}x{digits}", text if str(total) == str(entry["answer"]) else None


def _leg_counting(entry: dict[str, Any]) -> tuple[str, str | None]:
    """Write legs per kind of animal, then the sum. The template is how many kinds there are."""
    import reasoning_gym.arithmetic.leg_counting as task

    animals: dict[str, int] = entry["metadata"]["animals"]
    legs = {name: task.ANIMALS[name] for name in animals}
    products = [number * legs[name] for name, number in animals.items()]
    lines = [
        f"{number} {name} with {legs[name]} legs each: {number} * {legs[name]} = {product}"
        for (name, number), product in zip(animals.items(), products, strict=True)
    ]
    if len(products) > 1:
        lines.append(f"Together: {' + '.join(map(str, products))} = {sum(products)}")
    return str(len(animals)), "\n".join(lines) if str(sum(products)) == str(entry["answer"]) else None


# From an entry to its template and its solution.
TASKS: dict[str, Callable[[dict[str, Any]], tuple[str, str | None]]] = {
    "gsm_symbolic": _gsm_symbolic,
    "chain_sum": _chain_sum,
    "leg_counting": _leg_counting,
}


def _place(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
