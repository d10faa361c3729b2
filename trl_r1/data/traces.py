r"""Traces to fine-tune on: a question, the thinking and the answer, from any file or data set.

A row is read from the first of these that it has (`columns` gives other names):

| columns | what becomes the target |
|---|---|
| `messages` | the last message, of the assistant, with its `reasoning_content` if there is one; those before are the prompt |
| `prompt`, `candidates` | each accepted candidate, of a rejection-sampling record |
| `prompt`, `completion` | the completion as it is, text or messages; `<think>` included |
| `prompt`, `reasoning`, `answer`, (`summary`) | R1-Zero's tags (`answer_form: answer`) or R1's thinking and summary (`boxed`) |
| `prompt`, `reasoning`, `summary` | thinking and summary |

Messages may be ShareGPT's (`from`, `value`), their contents lists of text parts ([`trl_r1.data.turns`]).
So the output of `trl-r1 cold-start` (JSONL; rows that a reviewer dropped are left out) and of `trl-r1 rejection-sampling`
(Parquet) is read as it is. Further columns are carried along: `id`, `domain`, `language`, `license`, `source`. A column that
is missing or empty in a row does not count for it, so a file may hold several kinds.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trl_r1.data.candidates import Candidate
from trl_r1.data.files import BUILDERS, json_lines, open_file, why
from trl_r1.data.nano_traces import DEFAULT_COUNT, DEFAULT_TASKS, nano_traces
from trl_r1.data.sources import NANO, question_key
from trl_r1.data.trace_rows import CARRIED, files_identity, to_dataset, traces_on_disk
from trl_r1.data.turns import read_completion, read_prompt, read_text, read_turns
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.prompts import FORMS, THINK_OPEN, r1_completion
from trl_r1.responses import THINK_CLOSE, completion_text
from trl_r1.rows import Prompt

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

FIELDS = ("prompt", "completion", "reasoning", "answer", "summary", "messages", "candidates")
WITHOUT_THINKING = ("refuse", "general", "allow")
_NAMED = 5


@dataclass
class TraceConfig:
    """Where the traces come from.

    Args:
        traces (`str`): `nano:<task>[,<task>…]` for the embedded world's right answers; Hub id, local `.jsonl`, `.json`,
            `.parquet` or `.csv` file, or a folder (saved by `datasets`, or of such files).
        traces_config (`str`, *optional*): Configuration name of a Hub data set.
        traces_split (`str`, defaults to `"train"`): Split to train on.
        traces_columns (`dict`, *optional*): What the module's table calls a column → its name in the data set.
        traces_depth (`int`, *optional*): Depth of nano's questions.
        traces_seed (`int`, defaults to 0): Seed of what nano draws.
        traces_dials (`dict`, *optional*): Dials of the world that writes nano's answers, such as `{"scan": 1.0}`.
        max_traces (`int`, *optional*): Most rows to read; how many nano draws, 1,000 by default.
        max_per_prompt (`int`, *optional*): Most accepted candidates of one record; all by default.
        without_thinking (`str`, defaults to `"refuse"`):
            Traces without `<think>…</think>`: `"refuse"` them with an error that names them, take those of the domain
            `"general"` (R1's own mixture has none for a greeting, v2 B.3.3), or `"allow"` all.
        traces_license (`str`, *optional*): Hub licence id of rows that do not carry their own.
    """

    traces: str = field(default="", metadata={"help": "Traces: Hub id, file, folder, or nano:<task>."})
    traces_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    traces_split: str = field(default="train", metadata={"help": "Split of the traces."})
    traces_columns: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": f"{', '.join(FIELDS)} → column, e.g. {{prompt: problem, completion: generation}}."},
    )
    traces_depth: int | None = field(default=None, metadata={"help": "Depth of nano's questions."})
    traces_seed: int = field(default=0, metadata={"help": "Seed of what nano draws."})
    traces_dials: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Dials of the world that writes nano's answers, e.g. {scan: 1.0}."}
    )
    max_traces: int | None = field(default=None, metadata={"help": "Most rows to read."})
    max_per_prompt: int | None = field(default=None, metadata={"help": "Most accepted candidates of one record."})
    without_thinking: str = field(
        default="refuse", metadata={"help": "Traces without thinking: refuse, general (take that domain's), allow."}
    )
    traces_license: str | None = field(default=None, metadata={"help": "Licence of rows that name none."})

    def __post_init__(self) -> None:
        if (others := getattr(super(), "__post_init__", None)) is not None:
            others()
        self.traces_columns = _mapping("traces_columns", self.traces_columns)
        self.traces_dials = _mapping("traces_dials", self.traces_dials)
        for name in self.traces_columns or {}:
            if name not in FIELDS + CARRIED:
                raise unknown("field of traces_columns", name, FIELDS + CARRIED)
        if self.without_thinking not in WITHOUT_THINKING:
            raise unknown("without_thinking", self.without_thinking, WITHOUT_THINKING)


def _mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """A mapping of the command line is JSON."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{name} is no JSON object: {value!r} ({error}).") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{name} is no JSON object: {value!r}.")
    return found


def load_traces(config: TraceConfig, form: str = "answer") -> Dataset:
    """Load traces as prompts and completions.

    Args:
        config ([`TraceConfig`]): Where from.
        form (`str`, defaults to `"answer"`): How a separate reasoning and answer are put together, `"answer"` or `"boxed"`.

    Returns:
        `datasets.Dataset`: `prompt` (text, or messages), `completion` (text) and the carried columns, all text. What was read
        from files or the Hub lies in the cache of `datasets`, where a second start and other processes find it.

    Raises:
        [`DataError`]: No such data, rows without a prompt or a target, traces without thinking (unless allowed).
    """
    if form not in FORMS:
        raise unknown("answer form", form, FORMS)
    if _is_nano(config.traces):
        return to_dataset(read_traces(read_examples(config), config, form))
    examples = open_examples(config)
    found = files_identity(config.traces) or getattr(examples, "_fingerprint", None)
    settings = [(one.name, getattr(config, one.name)) for one in fields(TraceConfig)]
    return traces_on_disk(lambda: iter_traces(read_examples(config), config, form), (found, settings, form))


def load_candidates(config: TraceConfig) -> Dataset:
    """Load rejection-sampling records with all their candidates, for a collator that draws from them.

    Args:
        config ([`TraceConfig`]): `traces` names a Parquet file, a folder or a Hub data set.

    Returns:
        `datasets.Dataset`: With `prompt`, `id` and `candidates`; a column `license` where the records or the configuration
        name one.

    Raises:
        [`DataError`]: No such data, records without these columns, accepted candidates without thinking (unless allowed).
    """
    from datasets import Dataset

    opened = open_examples(config)
    # R1's 800k traces fill the memory of a node: what `datasets` has on disk stays there.
    rows = opened if isinstance(opened, Dataset) else Dataset.from_list([dict(example) for example in opened])
    missing = [name for name in ("prompt", "id", "candidates") if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{config.traces!r} has no {', '.join(missing)}: draws need records of `trl-r1 rejection-sampling`. It has the "
            f"columns {', '.join(rows.column_names)}. Set draw: all for other traces."
        )
    accepted = 0
    thoughtless: list[str] = []
    for row in rows:
        texts = [Candidate.from_columns(one).full_text for one in row["candidates"] or () if one.get("accepted")]
        accepted += len(texts)
        thoughtless += [str(row["id"]) for text in texts if not _may_train(text, row.get("domain"), config)]
    if thoughtless:
        raise _without_thinking(config, thoughtless, accepted)
    if "license" not in rows.column_names and config.traces_license is not None:
        rows = rows.add_column("license", [config.traces_license] * len(rows))
    return rows


def read_traces(
    examples: Iterable[Mapping[str, Any]], config: TraceConfig, form: str = "answer", domain: str | None = None
) -> list[dict[str, Any]]:
    """Turn examples into rows of `prompt`, `completion` and the carried columns; see the module for what is read.

    Args:
        examples (`Iterable[Mapping]`): As loaded.
        config ([`TraceConfig`]): Names of the columns, and what is allowed.
        form (`str`, defaults to `"answer"`): See [`load_traces`].
        domain (`str`, *optional*): Domain of examples that name none.

    Raises:
        [`DataError`]: See [`load_traces`].
    """
    return list(iter_traces(examples, config, form, domain))


def iter_traces(
    examples: Iterable[Mapping[str, Any]], config: TraceConfig, form: str = "answer", domain: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield what [`read_traces`] returns, one after the other; what it raises comes at the end."""
    if form not in FORMS:
        raise unknown("answer form", form, FORMS)
    named: dict[str, str] = dict(config.traces_columns or {})  # type: ignore[arg-type]
    thoughtless: list[str] = []
    left_out: Counter[str] = Counter()
    total = made = 0
    for index, example in enumerate(examples):
        total += 1
        if (example.get("review") or {}).get("status") == "drop":
            left_out["rows that a reviewer dropped"] += 1
            continue
        values = {name: example.get(named.get(name, name)) for name in FIELDS + CARRIED}
        prompt, completions = _targets(values, named, form, index, sorted(example), config.max_per_prompt)
        if not completions:
            left_out["records without an accepted candidate"] += 1
        for completion in completions:
            row: dict[str, Any] = {"prompt": prompt, "completion": completion}
            row |= {name: None if values[name] is None else str(values[name]) for name in CARRIED}
            row["license"] = row["license"] or config.traces_license
            row["domain"] = row["domain"] or domain
            if _may_train(completion, row["domain"], config):
                made += 1
                yield row
            else:
                thoughtless.append(str(row["id"] or f"row {index}"))
    for what, count in left_out.items():
        logger.warning("%d of %d %s are left out.", count, total, what)
    if thoughtless:
        raise _without_thinking(config, thoughtless, made + len(thoughtless))
    if not made:
        raise DataError(f"{config.traces!r} holds no trace to train on ({total} rows were read).")


def read_examples(config: TraceConfig) -> Iterator[Mapping[str, Any]]:
    """Yield the examples of a data set, file or folder.

    Raises:
        [`DataError`]: There is no such data or split.
    """
    yield from open_examples(config)


def open_examples(config: TraceConfig) -> Dataset | Iterator[Mapping[str, Any]]:
    """Open a data set, file or folder: a `Dataset` where `datasets` reads it, else its examples one by one.

    Raises:
        [`DataError`]: There is no such data or split.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    source = config.traces
    if not source:
        raise DataError("traces is empty: name a Hub id, a file (.jsonl, .json, .parquet, .csv) or a folder of traces.")
    if _is_nano(source):
        tasks = [task.strip() for task in source.removeprefix(NANO).removeprefix(":").split(",") if task.strip()]
        count = DEFAULT_COUNT if config.max_traces is None else config.max_traces
        dials = cast("dict[str, float] | None", config.traces_dials)
        drawn: dict[str, Any] = {"depth": config.traces_depth, "seed": config.traces_seed, "dials": dials}
        return nano_traces(tasks or DEFAULT_TASKS, count, **drawn)
    path = Path(source)
    if path.suffix in (".jsonl", ".json") and not path.is_file():
        raise DataError(f"No such file: {source}. Looked from {Path.cwd()}.")
    if path.suffix == ".jsonl":
        # Read here: rows of one file may differ in their columns and in the types within.
        return islice(json_lines(path), config.max_traces)
    if path.is_file():
        loaded: Any = open_file(path)
    else:
        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                loaded = load_from_disk(source)
            else:
                loaded = load_dataset(source, config.traces_config)
        except Exception as error:  # the Hub's client raises a dozen unrelated kinds
            raise DataError(
                f"Traces {source!r} (configuration {config.traces_config!r}) cannot be loaded: {why(error)}. Give a Hub "
                f"id, a folder, or a file ending in {', '.join(BUILDERS)}."
            ) from error
    if isinstance(loaded, DatasetDict):
        if config.traces_split not in loaded:
            names = ", ".join(map(str, loaded))
            raise DataError(
                f"Traces {source!r} have no split {config.traces_split!r}. Splits: {names}. Set traces_split."
            )
        loaded = loaded[config.traces_split]
    found: Dataset = loaded
    return found if config.max_traces is None else found.select(range(min(config.max_traces, len(found))))


def _is_nano(source: str) -> bool:
    return source == NANO or source.startswith(f"{NANO}:")


def without_questions(traces: Dataset, questions: Iterable[Prompt]) -> tuple[Dataset, int]:
    """Drop the traces that answer a held-out question.

    Args:
        traces (`datasets.Dataset`): From [`load_traces`].
        questions (`Iterable[Prompt]`): The held-out questions.

    Returns:
        `tuple[Dataset, int]`: The rest, and how many were dropped.
    """
    held = {question_key(prompt) for prompt in questions}
    kept = [index for index, prompt in enumerate(traces["prompt"]) if question_key(prompt) not in held]
    return (traces if len(kept) == len(traces) else traces.select(kept)), len(traces) - len(kept)


def licenses(traces: Dataset) -> dict[str, int]:
    """Count the rows under each licence, `"unknown"` for those that name none; for reports and cards."""
    if "license" not in traces.column_names:
        return {"unknown": len(traces)}
    return dict(sorted(Counter(name or "unknown" for name in traces["license"]).items()))


def _targets(
    values: Mapping[str, Any], named: Mapping[str, str], form: str, index: int, available: list[str], most: int | None
) -> tuple[Prompt, list[str]]:
    """The prompt of an example and its targets: one, or one for each accepted candidate."""
    columns = {name: named.get(name, name) for name in FIELDS}
    if values["messages"]:
        turns, completion = split_conversation(values["messages"], index, columns["messages"])
        return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns, [completion]
    if not values["prompt"]:
        raise DataError(
            f"Row {index} has no prompt. It has the columns {', '.join(available)}; name them, e.g. traces_columns: "
            "{prompt: problem, completion: generation} or {messages: conversations}."
        )
    prompt = read_prompt(values["prompt"], columns["prompt"], index)
    if values["candidates"] is not None:
        accepted = [Candidate.from_columns(one).full_text for one in values["candidates"] if one.get("accepted")]
        return prompt, accepted[:most]
    if values["completion"]:
        return prompt, [read_completion(values["completion"], columns["completion"], index)]
    reasoning, summary = (read_text(values[name], columns[name], index) for name in ("reasoning", "summary"))
    answer = read_text(values["answer"], columns["answer"], index, numbers=True)
    if not (answer or summary):
        raise DataError(
            f"Row {index} has no target: neither completion, nor messages, nor reasoning with an answer or a summary. It has "
            f"the columns {', '.join(available)}; name them in traces_columns."
        )
    return prompt, [compose(reasoning, answer, summary, form)]


def split_conversation(
    messages: Sequence[Mapping[str, Any]], index: int, column: str = "messages"
) -> tuple[list[dict[str, str]], str]:
    """Part a conversation into what the model is given and what it is to write: the last turn, the assistant's.

    Args:
        messages (`Sequence[Mapping]`): The turns, in any shape of [`~trl_r1.data.turns.read_turns`].
        index (`int`): The row's place, for messages.
        column (`str`, defaults to `"messages"`): Its column, for messages.

    Returns:
        `tuple[list[dict], str]`: The turns before, with role and content alone, and the target as text, `reasoning_content`
        put back between thinking tags.

    Raises:
        [`DataError`]: A conversation that does not end in an answer, that calls tools or holds more than text.
    """
    if not messages:
        raise DataError(f"Row {index}: `{column}` is empty. Leave such rows out.")
    *turns, last = read_turns(messages, column, index)
    if last["role"] != "assistant" or not turns:
        raise DataError(
            f"Row {index}: the last of `{column}` must be the assistant's, after a question. Got {last!r:.200}"
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns], completion_text([last])


def compose(reasoning: str, answer: str = "", summary: str = "", form: str = "answer") -> str:
    r"""Put a target together from its parts.

    Args:
        reasoning (`str`): The thinking; without it the target is what is said to the user alone.
        answer (`str`): The final answer.
        summary (`str`): What is said to the user after the thinking.
        form (`str`, defaults to `"answer"`): Of a target with an answer ([`~trl_r1.prompts.r1_completion`]).

    Returns:
        `str`: With an answer, the form; with a summary alone, `<think>\n…\n</think>\n\n` and the summary.
    """
    if not reasoning:
        return summary or answer
    return (
        r1_completion(reasoning, answer, summary, form=form)
        if answer
        else f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n\n{summary}"
    )


def _thinks(completion: str) -> bool:
    before, closed, _ = completion.partition(THINK_CLOSE)
    return bool(closed and before.partition(THINK_OPEN)[2].strip())


def _may_train(completion: str, domain: str | None, config: TraceConfig) -> bool:
    """Whether a target thinks, or need not."""
    excused = config.without_thinking == "general" and domain == "general"
    return excused or config.without_thinking == "allow" or _thinks(completion)


def _without_thinking(config: TraceConfig, thoughtless: list[str], total: int) -> DataError:
    return DataError(
        f"{len(thoughtless)} of {total} traces of {config.traces!r} have no {THINK_OPEN}…{THINK_CLOSE} with something in it: "
        f"{', '.join(thoughtless[:_NAMED])}{', …' if len(thoughtless) > _NAMED else ''}. A model trained on them learns not to "
        "think. Leave them out, name the column that holds the thinking (traces_columns: {reasoning: …}), or set "
        "without_thinking: general or allow."
    )
