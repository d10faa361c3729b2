"""The general part of R1's second SFT: writing, factual questions, self-cognition, translation, greetings.

R1 takes about 200k such samples, reuses existing data, and lets a model draft a thinking for some of them; "for simpler
queries, such as 'hello' we do not provide a CoT in response" (arXiv 2501.12948v1 §2.3.3; v2 B.3.3). Which get one, how long
it is and the prompts (`general_answer.jinja`, `general_thinking.jinja`) are ours.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from jinja2 import Template

from trl_r1.data.general_prompts import SELF_QUESTIONS, is_simple
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.generation.base import Sampler, SampleRequest, SamplingSettings
from trl_r1.language import SCRIPT_LANGUAGES, detect_language, language_share
from trl_r1.prompts import FORMS, THINK_OPEN, language_name, r1_completion, template_source
from trl_r1.responses import THINK_CLOSE, parse
from trl_r1.rows import Completion, Row

logger = logging.getLogger(__name__)

GREETING, TRANSLATION = "greeting", "translation"
KINDS = ("writing", "factual_qa", "self_cognition", TRANSLATION, GREETING)
UNKNOWN = "unknown"

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class GeneralTask:
    """One general prompt, with or without an answer.

    Args:
        key (`str`): Names it; unique.
        kind (`str`): One of [`KINDS`].
        prompt (`str`): What the user says; for a translation the text to translate.
        language (`str`): Language of the answer: of a translation the one to translate into.
        answer (`str`, *optional*): From an existing data set; sampled when not given.
        license (`str`, defaults to `"unknown"`): Hub licence id of prompt and answer.
        source (`str`, defaults to `"general"`): Where it comes from.
    """

    key: str
    kind: str
    prompt: str
    language: str
    answer: str | None = None
    license: str = UNKNOWN
    source: str = "general"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of general row", self.kind, KINDS)
        if not self.prompt.strip():
            raise DataError(f"General row {self.key!r} has an empty prompt. Leave such rows out.")

    @property
    def question(self) -> str:
        """What the user says in the row made of it."""
        if self.kind != TRANSLATION:
            return self.prompt
        return _TRANSLATE.get(self.language, "Translate into {language}:\n{text}").format(
            language=language_name(self.language), text=self.prompt
        )


_TRANSLATE = {"zh": "把下面的内容翻译成中文:\n{text}", "en": "Translate into English:\n{text}"}


@dataclass(frozen=True)
class GeneralConfig:
    """How general rows are made.

    Args:
        thinking (`float`, defaults to 0.5): Share of the rows for which a thinking is drafted; greetings never get one.
            R1 says "certain tasks": the share is ours.
        sentences (`int`, defaults to 6): Most sentences of a thinking.
        name (`str`, defaults to `"an assistant"`): Who the model is in self-cognition rows.
        developer (`str`, defaults to `"its developers"`): Who made it.
        instruct (`bool`, defaults to `True`):
            Ask for the answer by `general_answer.jinja`; `False` asks the question as it is, for a model that needs no more.
        tries (`int`, defaults to 3): Samples of an answer or a thinking; the first good one is taken.
        min_language_share (`float`, defaults to 0.8): Least share of words of the row's language.
        max_characters (`int`, defaults to 20,000): Longest answer.
        answer_form (`str`, defaults to `"boxed"`): Form of rows with a thinking: `"boxed"` (R1's thinking, then what the
            user reads) or `"answer"` (R1-Zero's tags). Rows without one are the answer alone in both.
        empty_thinking (`bool`, defaults to `False`):
            Write an empty `<think>` before answers without one, as R1's own templates show them. By default such a row is
            the answer alone.
        seed (`int`, defaults to 0): Of the choice which rows get a thinking.
    """

    thinking: float = 0.5
    sentences: int = 6
    name: str = "an assistant"
    developer: str = "its developers"
    instruct: bool = True
    tries: int = 3
    min_language_share: float = 0.8
    max_characters: int = 20_000
    answer_form: str = "boxed"
    empty_thinking: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.answer_form not in FORMS:
            raise unknown("answer form", self.answer_form, FORMS)
        for label, value in (("thinking", self.thinking), ("min_language_share", self.min_language_share)):
            if not 0 <= value <= 1:
                raise ConfigurationError(f"{label}={value} must be a share in [0, 1].")
        if self.tries < 1 or self.sentences < 1:
            raise ConfigurationError(f"tries={self.tries} and sentences={self.sentences} must be at least 1.")


@dataclass
class GeneralReport:
    """What a [`GeneralBuilder`] made.

    Args:
        rows (`Counter`): Rows by kind.
        with_thinking (`Counter`): Those with a thinking, by kind.
        dropped (`Counter`): Prompts without a row, by reason.
        without_draft (`Counter`): Rows whose thinking could not be drafted, by reason; they have the answer alone.
    """

    rows: Counter[str] = field(default_factory=Counter)
    with_thinking: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    without_draft: Counter[str] = field(default_factory=Counter)

    def asdict(self) -> dict[str, dict[str, int]]:
        """Return the counts as plain dictionaries."""
        return {name: dict(sorted(value.items())) for name, value in vars(self).items()}


class GeneralBuilder:
    """Makes general rows: answers from data or from a sampler, a short thinking before some of them.

    Args:
        sampler ([`~trl_r1.generation.base.Sampler`], *optional*):
            Who answers and drafts. Without one every task needs an answer, and no thinking is drafted.
        settings ([`~trl_r1.generation.base.SamplingSettings`], *optional*): How it samples.
        config ([`GeneralConfig`], *optional*): The rest.
        batch (`int`, defaults to 256): Tasks in hand at once.

    Attributes:
        report ([`GeneralReport`]): Counts so far.

    Example:

    ```python
    builder = GeneralBuilder(sampler, config=GeneralConfig(name="Nano", developer="us"))
    rows = list(builder.build(self_cognition_tasks("en")))
    ```
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        settings: SamplingSettings | None = None,
        config: GeneralConfig | None = None,
        batch: int = 256,
    ) -> None:
        self.sampler = sampler
        self.settings = settings or SamplingSettings()
        self.config = config or GeneralConfig()
        self.batch = batch
        self.report = GeneralReport()

    def build(self, tasks: Iterable[GeneralTask]) -> Iterator[dict[str, Any]]:
        """Yield rows in the order of their tasks; tasks without a usable answer are left out and counted.

        Args:
            tasks (`Iterable[GeneralTask]`): The prompts; read as they are needed.

        Returns:
            `Iterator[dict]`: `id`, `prompt`, `completion` (thinking and answer, or the answer alone), `domain` ("general"),
            `language`, `license`, `source`, `kind`.

        Raises:
            [`ConfigurationError`]: A task without an answer, and no sampler.
        """
        seen: set[bytes] = set()
        part: list[GeneralTask] = []
        for task in tasks:
            digest = hashlib.blake2b(task.key.encode(), digest_size=8).digest()
            if digest in seen:
                raise DataError(f"Two general rows have the key {task.key!r}. Give each its own.")
            seen.add(digest)
            part.append(task)
            if len(part) == self.batch:
                yield from self._built(part)
                part = []
        if part:
            yield from self._built(part)

    def wants_thinking(self, task: GeneralTask) -> bool:
        """Whether a thinking is drafted for a task: never for a greeting, else by a hash of its key and the seed."""
        if task.kind == GREETING or is_simple(task.prompt):
            return False
        return Random(f"{self.config.seed}/{task.key}").random() < self.config.thinking

    def _built(self, tasks: Sequence[GeneralTask]) -> Iterator[dict[str, Any]]:
        answers = {task.key: task.answer for task in tasks if task.answer is not None}
        open_tasks = [task for task in tasks if task.answer is None]
        if open_tasks:
            asked = {task.key: self._answer_prompt(task) for task in open_tasks}
            answers |= self._sampled(open_tasks, asked, self.report.dropped, self.config.max_characters)
        drafted = [task for task in tasks if task.key in answers and self.sampler and self.wants_thinking(task)]
        asked = {task.key: self._thinking_prompt(task, str(answers[task.key])) for task in drafted}
        thoughts = (
            self._sampled(drafted, asked, self.report.without_draft, self.config.max_characters) if drafted else {}
        )
        for task in tasks:
            if task.key in answers:
                yield self._row(task, str(answers[task.key]), thoughts.get(task.key))

    def _sampled(
        self, tasks: Sequence[GeneralTask], asked: Mapping[str, str], failures: Counter[str], longest: int
    ) -> dict[str, str]:
        """Sample a text for every task, the first good one in sample order; count the tasks without any."""
        if self.sampler is None:
            raise ConfigurationError(
                f"General row {tasks[0].key!r} has no answer, and there is no sampler to write one. Give a sampler, or the "
                "column that holds the answer."
            )
        found: dict[str, dict[int, Completion]] = {task.key: {} for task in tasks}
        requests = (SampleRequest(task.key, asked[task.key], self.config.tries) for task in tasks)
        for sample in self.sampler.stream(requests, self.settings):
            found[sample.key][sample.index] = sample.completion
        good: dict[str, str] = {}
        for task in tasks:
            reason = "nothing sampled"
            for _, completion in sorted(found[task.key].items()):
                text, reason = self._usable(completion, task.language, longest)
                if not reason:
                    good[task.key] = text
                    break
            else:
                failures[reason] += 1
        return good

    def _usable(self, completion: Completion, language: str, longest: int) -> tuple[str, str]:
        """The text a model wrote, its own thinking taken off, and why it cannot be used (`""` if it can)."""
        if completion.truncated:
            return "", "cut off"
        response = parse(completion.text, prefill=completion.prefill)
        # One that answers in R1-Zero's tags has said it inside them.
        text = (response.answer or response.summary if "<answer>" in response.summary else response.summary).strip()
        if not text:
            return "", "empty"
        if any(tag in text for tag in _TAGS):
            return "", "tags in the text"
        if len(text) > longest:
            return "", "too long"
        others = tuple(dict.fromkeys((*SCRIPT_LANGUAGES, *([language] if language != UNKNOWN else []))))
        share = None if language == UNKNOWN else language_share(text, language, others)
        if share is not None and share < self.config.min_language_share:
            return "", "wrong language"
        return text, ""

    def _answer_prompt(self, task: GeneralTask) -> str:
        if not self.config.instruct:
            return task.question
        return _rendered(
            "general_answer", kind=task.kind, question=task.prompt, language=_named(task.language),
            name=self.config.name, developer=self.config.developer,
        )  # fmt: skip

    def _thinking_prompt(self, task: GeneralTask, answer: str) -> str:
        return _rendered(
            "general_thinking", question=task.question, answer=answer, language=_named(task.language),
            sentences=self.config.sentences,
        )  # fmt: skip

    def _row(self, task: GeneralTask, answer: str, thinking: str | None) -> dict[str, Any]:
        self.report.rows[task.kind] += 1
        self.report.with_thinking[task.kind] += thinking is not None
        form, empty = self.config.answer_form, self.config.empty_thinking
        return general_row(task, answer, thinking, form=form, empty_thinking=empty)


def general_row(
    task: GeneralTask, answer: str, thinking: str | None = None, *, form: str = "boxed", empty_thinking: bool = False
) -> dict[str, Any]:
    """Put a general row together.

    Args:
        task ([`GeneralTask`]): The prompt.
        answer (`str`): What the user reads.
        thinking (`str`, *optional*): Before it, without tags.
        form (`str`, defaults to `"boxed"`): See [`GeneralConfig`].
        empty_thinking (`bool`, defaults to `False`): See [`GeneralConfig`].

    Returns:
        `dict`: As [`GeneralBuilder.build`].
    """
    if thinking and form == "answer":
        answer = r1_completion(thinking, answer, form=form)
    elif thinking:
        answer = f"{THINK_OPEN}\n{thinking.strip()}\n{THINK_CLOSE}\n\n{answer.strip()}"
    elif empty_thinking:
        answer = f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n{answer.strip()}"
    return {
        "id": task.key, "prompt": task.question, "completion": answer.strip(), "domain": "general",
        "language": task.language, "license": task.license, "source": task.source, "kind": task.kind,
    }  # fmt: skip


def self_cognition_tasks(*languages: str, license: str = "apache-2.0") -> list[GeneralTask]:
    """Questions about the model itself, in English, Chinese or both (the default).

    Raises:
        [`ConfigurationError`]: For another language.
    """
    tasks = []
    for language in languages or tuple(SELF_QUESTIONS):
        if language not in SELF_QUESTIONS:
            raise unknown("language of self-cognition questions", language, SELF_QUESTIONS)
        for number, question in enumerate(SELF_QUESTIONS[language]):
            key = f"self_cognition/{language}/{number}"
            tasks.append(GeneralTask(key, "self_cognition", question, language, None, license, "self_cognition"))
    return tasks


def tasks_from_rows(
    rows: Iterable[Row], kind: str, source: str, *, license: str = UNKNOWN, language: str | None = None
) -> Iterator[GeneralTask]:
    """Turn the rows of any data set ([`~trl_r1.data.sources.load_rows`]) into general tasks.

    Args:
        rows (`Iterable[Row]`): A row's `reference` is its answer, if it has one. Of rows with the same `id`, which is the
            same question, the first counts; how many others there were is logged.
        kind (`str`): One of [`KINDS`]; a greeting among them is recognised as one.
        source (`str`): Name of the data set.
        license (`str`, defaults to `"unknown"`): Its licence, a Hub id.
        language (`str`, *optional*): Of the answers, where a row names none; the prompt's when not given. Translations need
            it: theirs is another one than the prompt's.

    Returns:
        `Iterator[GeneralTask]`

    Raises:
        [`DataError`]: A prompt of several turns; a translation whose language nobody names.
    """
    seen: set[str] = set()
    repeats = 0
    for number, row in enumerate(rows):
        if not isinstance(row.prompt, str) and (len(row.prompt) != 1 or row.prompt[0]["role"] != "user"):
            raise DataError(
                f"Row {number} of {source!r} has {len(row.prompt)} messages: general rows are single turns."
            )
        prompt = row.prompt if isinstance(row.prompt, str) else row.prompt[0]["content"]
        code = row.language or language
        if kind == TRANSLATION and code is None:
            raise DataError(
                f"Row {number} of {source!r} is to be translated, but neither the row nor `language` (None) says into which "
                f"language. Give an ISO 639-1 code: tasks_from_rows(…, {kind!r}, {source!r}, language='de')."
            )
        key = row.id or f"{source}/{number}"
        if kind == TRANSLATION:
            key = f"{key}/{code}"  # the same text into two languages is two tasks
        if key in seen:
            repeats += 1
            continue
        seen.add(key)
        code = code or detect_language(prompt) or UNKNOWN
        named = GREETING if kind != TRANSLATION and is_simple(prompt) else kind
        yield GeneralTask(key, named, prompt, code, row.reference or None, license, source)
    if repeats:
        logger.warning("%d rows of %r ask a question again and are left out.", repeats, source)


def nano_general_rows(count: int, seed: int = 0, form: str = "answer") -> Iterator[dict[str, Any]]:
    """Yield general rows of the embedded world: greetings and refusals as they are, facts with a short thinking.

    Args:
        count (`int`): How many.
        seed (`int`, defaults to 0): Of the draw.
        form (`str`, defaults to `"answer"`): See [`GeneralConfig`]; the world's own by default.

    Returns:
        `Iterator[dict]`: As [`GeneralBuilder.build`], of the split `"train"`.

    Raises:
        [`DataError`]: The world holds fewer.
    """
    from trl_r1.nano import NanoWorld
    from trl_r1.nano.general import THOUGHT

    for row in NanoWorld().rows("train", count, tasks=["general"], seed=seed):
        language, style = str(row.language), str(row.id).split("/")[1]
        kind = {"greeting": GREETING, "fact": "factual_qa"}.get(style, "writing")
        task = GeneralTask(str(row.id), kind, str(row.prompt), language, row.reference, "apache-2.0", "nano")
        yield general_row(task, row.reference, None if kind == GREETING else THOUGHT[language][style], form=form)


@lru_cache(maxsize=4)
def _template(name: str) -> Template:
    return Template(template_source(name))


def _rendered(template: str, /, **values: Any) -> str:
    return _template(template).render(**values).strip()


def _named(language: str) -> str:
    return language_name(None if language == UNKNOWN else language)
