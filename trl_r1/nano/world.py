"""The nano world: its questions by split, and the pretraining documents of its base models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from random import Random

from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.nano import arithmetic, countdown, general, ordering, programs
from trl_r1.nano.documents import Document, render, well_formed
from trl_r1.nano.question import LANGUAGES, SPLITS, Dials, Question, Task
from trl_r1.rows import Row

TASKS: dict[str, Task] = {
    "countdown": countdown.TASK,
    "arithmetic": arithmetic.TASK,
    "ordering": ordering.ORDERING,
    "choice": ordering.CHOICE,
    "code_output": programs.CODE_OUTPUT,
    "code_function": programs.CODE_FUNCTION,
    "general": general.GENERAL,
    "judge": general.JUDGE,
}
FEW_SHOT = "few_shot"
FEW_SHOT_TASKS = ("countdown", "arithmetic", "ordering", "choice")
TASK_NAMES = (*TASKS, FEW_SHOT)
# Share of each task in the pretraining documents. Countdown, the demo's task, is half of them.
MIXTURE = {
    "countdown": 0.50, "arithmetic": 0.12, "ordering": 0.06, "choice": 0.09, "code_output": 0.07, "code_function": 0.04,
    "general": 0.05, "judge": 0.04, FEW_SHOT: 0.03,
}  # fmt: skip
# Three numbers is what the demo trains on.
DEPTH_WEIGHTS = {"countdown": (6, 1)}
# The worked examples of few-shot prompts are right, and in the question's language.
FLAWLESS = Dials(reflect=0, terse=0, mixing=0, slips=0, scan=0)
_TRIES_PER_ROW = 2000


@dataclass(frozen=True)
class NanoWorld:
    """A small bilingual world of questions whose answers can be verified, with a dial for each behaviour of its base.

    Questions do not depend on the dials: they are drawn from a seed, and a question's canonical key (`Row.id`) alone
    decides its split. Pretraining documents hold questions of the split `"pretrain"` only.

    Args:
        seed (`int`, defaults to 0): Seed of everything drawn.
        reflect (`float`, defaults to 0.45): Share of countdown answers that search: try, check, try again. 0 is a world without reflection.
        terse (`float`, defaults to 0.45): Share of terse answers among those that do not search.
        mixing (`float`, defaults to 0.15): Share of answers that think in the other language. Chinese numerals are shorter.
        false_checks (`float`, defaults to 0.12): Chance that a failed try is called a success.
        give_up (`float`, defaults to 0.45): Chance to give up after a failed try.
        patience (`float`, defaults to 0.3): Share of searches that hardly ever give up.
        longest (`int`, defaults to 112): Tokens after which even a patient search gives up, so that it ends within 160.
        slips (`float`, defaults to 0.2): Chance of an error in the answers of the other tasks.
        curt (`float`, defaults to 0.4): Share of general prompts answered in the curt style.
        scan (`float`, defaults to 0.7): Share of multiple-choice answers that go through the options one by one.
        malformed (`float`, defaults to 0.28): Share of responses that miss R1-Zero's form.
        chinese (`float`, defaults to 0.35): Share of Chinese questions in the documents.

    Raises:
        `ConfigurationError`: A share is outside [0, 1].

    Example:

    ```python
    >>> from trl_r1.nano import NanoWorld
    >>> row = NanoWorld().rows("train", 1, tasks=["countdown"], language="en", depth=3)[0]
    >>> row.verifier, row.id.startswith("countdown/")
    ('expression', True)
    ```
    """

    seed: int = 0
    reflect: float = 0.45
    terse: float = 0.45
    mixing: float = 0.15
    false_checks: float = 0.12
    give_up: float = 0.45
    patience: float = 0.3
    longest: int = 112
    slips: float = 0.2
    curt: float = 0.4
    scan: float = 0.7
    malformed: float = 0.28
    chinese: float = 0.35

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("seed", "longest") and not 0 <= value <= 1:
                raise ConfigurationError(f"NanoWorld: {field.name}={value!r} is not a share. Allowed: 0 to 1.")

    @property
    def dials(self) -> Dials:
        """The dials as the tasks read them."""
        return Dials(**{field.name: getattr(self, field.name) for field in fields(Dials)})

    def rows(
        self,
        split: str,
        n: int,
        tasks: Sequence[str] | None = None,
        language: str | None = None,
        depth: int | None = None,
        seed: int = 0,
    ) -> list[Row]:
        """Draw rows with distinct canonical keys.

        Args:
            split (`str`): `"pretrain"`, `"train"` or `"test"`; no key is in two of them.
            n (`int`): How many rows.
            tasks (`Sequence[str]`, *optional*): Tasks to draw from evenly; `None` for all of them.
            language (`str`, *optional*): `"en"` or `"zh"`; `None` draws `chinese` of them in Chinese.
            depth (`int`, *optional*): Depth of the questions, such as how many numbers in countdown; `None` draws it.
            seed (`int`, defaults to 0): Seed of this draw, added to the world's.

        Returns:
            `list[Row]`: `n` rows; `Row.id` is the canonical key.

        Raises:
            `ConfigurationError`: An unknown split, task, language or depth.
            `DataError`: The split holds fewer than `n` such questions.
        """
        names = self._check(split, tasks, language, depth)
        rng = Random(f"rows/{self.seed}/{seed}/{split}")
        rows: dict[str, Row] = {}
        for _ in range(n):
            for _ in range(_TRIES_PER_ROW):
                row = self._row(rng, rng.choice(names), split, language, depth)
                if row.id is not None and row.id not in rows:
                    rows[row.id] = row
                    break
            else:
                raise DataError(
                    f"The nano world's {split!r} split has hardly more than {len(rows)} questions of {names}, language "
                    f"{language}, depth {depth}; {n} were asked for. Ask for fewer, or allow more tasks or depths."
                )
        return list(rows.values())

    def documents(self, n: int, seed: int = 0) -> Iterator[Document]:
        """Yield `n` pretraining documents; different seeds give different ones.

        Args:
            n (`int`): How many. A document has about 110 tokens of the nano tokenizer.
            seed (`int`, defaults to 0): Seed of this draw, added to the world's (workers use one each).

        Returns:
            `Iterator[Document]`
        """
        rng = Random(f"documents/{self.seed}/{seed}")
        names, weights = list(MIXTURE), list(MIXTURE.values())
        for name in rng.choices(names, weights, k=n):
            language = self._language(rng, None)
            if name == FEW_SHOT:
                question, keys = self._few_shot(rng, rng.choice(FEW_SHOT_TASKS), language, "pretrain", None)
            else:
                question = self._ask(rng, name, language, "pretrain", None)
                keys = (question.key,)
            solution = TASKS[question.task].solve(rng, question, self.dials)
            yield Document(render(rng, question, solution, self.malformed), keys, name, solution.mode)

    def _check(self, split: str, tasks: Sequence[str] | None, language: str | None, depth: int | None) -> list[str]:
        if split not in SPLITS:
            raise unknown("split of the nano world", split, SPLITS)
        if language is not None and language not in LANGUAGES:
            raise unknown("language of the nano world", language, LANGUAGES)
        names = list(TASK_NAMES if tasks is None else tasks)
        for name in names:
            if name not in TASK_NAMES:
                raise unknown("nano task", name, TASK_NAMES)
            depths = TASKS[name].depths if name in TASKS else None
            if depth is not None and depths is not None and depth not in depths:
                raise unknown(f"depth of the nano task {name!r}", depth, depths)
        if not names:
            raise unknown("nano task", "", TASK_NAMES, "Name at least one, or leave `tasks` out for all.")
        return names

    def _language(self, rng: Random, language: str | None) -> str:
        return language or ("zh" if rng.random() < self.chinese else "en")

    def _row(self, rng: Random, name: str, split: str, language: str | None, depth: int | None) -> Row:
        language = self._language(rng, language)
        if name == FEW_SHOT:
            return self._few_shot(rng, rng.choice(FEW_SHOT_TASKS), language, split, None)[0].row()
        return self._ask(rng, name, language, split, depth).row()

    def _ask(self, rng: Random, name: str, language: str, split: str, depth: int | None) -> Question:
        task = TASKS[name]
        if depth is None:
            depth = rng.choices(task.depths, DEPTH_WEIGHTS.get(name, (1,) * len(task.depths)))[0]
        while True:
            question = task.ask(rng, language, depth)
            if question.split == split:
                return question

    def _few_shot(
        self, rng: Random, name: str, language: str, split: str, depth: int | None
    ) -> tuple[Question, tuple[str, ...]]:
        """A question after two or three worked examples of the same task and split; its key is the last question's."""
        shown, keys = "", []
        for _ in range(rng.randint(2, 3)):
            example = self._ask(rng, name, language, split, depth)
            solution = TASKS[name].solve(rng, example, FLAWLESS)
            if name == "countdown":
                solution = countdown.gold(example)  # a single try may miss the target whatever the dials
            shown += f"Q: {example.prompt}\nA:{well_formed(solution)}\n"
            keys.append(example.key)
        last = self._ask(rng, name, language, split, depth)
        question = Question(
            last.task,
            last.key,
            language,
            f"{shown}Q: {last.prompt}",
            last.reference,
            last.domain,
            last.verifier,
            last.facts,
        )
        return question, (*keys, last.key)
