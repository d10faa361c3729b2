"""Decontamination: rows that share ten words in a row with a benchmark's question or solution are left out.

R1 filters by "10-gram match on questions and solutions" (arXiv 2501.12948v2, D.1). What a token is and how LaTeX is read are
ours ([`trl_r1.data.shingles`]). A question too short for an n-gram is compared as a whole, and with each line of the row's
prompt (trap 32): ten words would never match it, fewer would match anything.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_r1.data.shingles import Hashes, Tokens, blocks, clean, exact_key, ngrams, tokenize, without_option_labels
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.prompts import BOXED_INSTRUCTION, TAG_INSTRUCTION
from trl_r1.rows import Prompt

# R1's n (arXiv 2501.12948v2, D.1).
NGRAM = 10
# Where benchmarks keep their question, and what else can give it away; the first that exists, and all that exist.
QUESTION_COLUMNS = ("question", "problem", "prompt", "query", "input")
SOLUTION_COLUMNS = ("solution", "answer", "reference", "completion")
CHOICE_COLUMNS = ("choices", "options")
_QUESTION, _SOLUTION = 0, 1
_FIELDS = ("question", "solution")
# Entries of a first look-up that most n-grams fail, a power of two: 4 MiB.
_FILTER_BITS = 22


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that no training row may resemble.

    Args:
        name (`str`): As the report calls it.
        dataset (`str`): A `.jsonl`, `.json`, `.parquet` or `.csv` file, a folder, or a Hub id.
        split (`str`, defaults to `"test"`): Split of a Hub data set.
        dataset_config (`str`, *optional*): Configuration of a Hub data set.
        question (`str`, *optional*): Column of the question; by default the first of [`QUESTION_COLUMNS`] there is.
        solution (`list[str]`, *optional*): Columns of solutions; by default all of [`SOLUTION_COLUMNS`] there are.
        choices (`str`, *optional*): Column of the options; by default the first of [`CHOICE_COLUMNS`] there is.
    """

    name: str
    dataset: str
    split: str = "test"
    dataset_config: str | None = None
    question: str | None = None
    solution: tuple[str, ...] | None = None
    choices: str | None = None

    def texts(self, row: Mapping[str, Any], index: int) -> tuple[str, list[str]]:
        """Return the question, options included, and the solutions of one of its rows.

        Raises:
            [`DataError`]: Without a column that holds the question.
        """
        name = self.question or next((column for column in QUESTION_COLUMNS if column in row), None)
        if name is None or row.get(name) is None:
            raise DataError(
                f"Benchmark {self.name!r}, row {index}: no question in column {name or ' or '.join(QUESTION_COLUMNS)}. It "
                f"has: {', '.join(row)}. Set `question` to the column that holds it."
            )
        question = prompt_text(row[name])
        column = self.choices or next((column for column in CHOICE_COLUMNS if row.get(column) is not None), None)
        if column is not None and row.get(column) is not None:
            options = row[column]
            options = options.get("text", list(options.values())) if isinstance(options, Mapping) else options
            question = "\n".join([question, *map(str, [options] if isinstance(options, str) else options)])
        columns = SOLUTION_COLUMNS if self.solution is None else self.solution
        return question, [str(row[c]) for c in columns if c != name and isinstance(row.get(c), str)]


def prompt_text(prompt: Prompt) -> str:
    """Return what a prompt asks as one text: its user's and system's messages, without the instructions we add ourselves."""
    text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt if m["role"] != "assistant")
    for instruction in (BOXED_INSTRUCTION, TAG_INSTRUCTION):
        text = text.replace(instruction, "")
    return text


@dataclass(frozen=True)
class Match:
    """What a row has in common with a benchmark.

    Args:
        benchmark (`str`): Its name.
        row (`int`): Which of its rows, from 0.
        field (`str`): `"question"` or `"solution"`.
        kind (`str`): `"10-gram"` (with the n asked for) or `"exact"`.
        text (`str`): The words in common, as the row has them.
        matches (`int`): Different n-grams in common with that row of the benchmark.
    """

    benchmark: str
    row: int
    field: str
    kind: str
    text: str
    matches: int = 1


@dataclass(frozen=True)
class DecontaminationIndex:
    """The n-grams and short questions of some benchmarks. Built by [`build_index`].

    Args:
        n (`int`): Tokens of an n-gram.
        names (`tuple[str, ...]`): The benchmarks.
        sizes (`tuple[int, ...]`): Their rows.
        hashes (`np.ndarray`): Shape `(n-grams,)`, sorted, distinct.
        owners (`np.ndarray`): Shape `(n-grams, 3)`: benchmark, row and field in which each is found first.
        short (`np.ndarray`): Shape `(short questions,)`, sorted: keys of questions that hold no n-gram.
        short_owners (`np.ndarray`): Shape `(short questions, 2)`: benchmark and row.
        min_matches (`int`, defaults to 1): Different n-grams of one benchmark row that make a row contaminated (R1: any).
        completions (`bool`, defaults to `True`): Whether completions are searched too, as R1 does, or only prompts.
    """

    n: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    hashes: Hashes
    owners: NDArray[np.int32]
    short: Hashes
    short_owners: NDArray[np.int32]
    min_matches: int = 1
    completions: bool = True
    _filter: NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        first_look = np.zeros(2**_FILTER_BITS, bool)
        first_look[self.hashes >> np.uint64(64 - _FILTER_BITS)] = True
        object.__setattr__(self, "_filter", first_look)

    def matches(self, tokens: Tokens, prompts: Sequence[str], prompt_characters: Sequence[int]) -> list[Match | None]:
        """Look up some texts.

        Args:
            tokens ([`~trl_r1.data.shingles.Tokens`]): Tokens of each row's prompt with its completion behind it.
            prompts (`Sequence[str]`): The prompts alone, as text.
            prompt_characters (`Sequence[int]`): How many characters of each text are its prompt.

        Returns:
            `list[Match | None]`: The match with most n-grams, or `None`.
        """
        found: list[Match | None] = [None] * len(prompts)
        for text, match in self._long(tokens, prompt_characters):
            found[text] = match
        return [match or self._short(prompt) for match, prompt in zip(found, prompts, strict=True)]

    def _long(self, tokens: Tokens, prompt_characters: Sequence[int]) -> Iterator[tuple[int, Match]]:
        """Yield the texts that hold n-grams of a benchmark, with the best match of each."""
        grams, first = ngrams(tokens, self.n)
        if not len(self.hashes):
            return
        maybe = np.flatnonzero(self._filter[grams >> np.uint64(64 - _FILTER_BITS)])
        place = np.minimum(np.searchsorted(self.hashes, grams[maybe]), len(self.hashes) - 1)
        hit = self.hashes[place] == grams[maybe]
        place, first = place[hit], first[maybe][hit]
        texts = np.searchsorted(tokens.bounds, first, side="right") - 1
        if not self.completions:
            limits = tokens.offsets[:-1] + np.asarray(prompt_characters)
            inside = tokens.ends[first + self.n - 1] <= limits[texts]
            place, first, texts = place[inside], first[inside], texts[inside]
        edges = np.flatnonzero(np.diff(texts, prepend=-1, append=-1))
        for start, stop in itertools.pairwise(edges):
            match = self._best(tokens, place[start:stop], first[start:stop])
            if match is not None:
                yield int(texts[start]), match

    def _best(self, tokens: Tokens, place: NDArray[np.int64], first: NDArray[np.int64]) -> Match | None:
        """The benchmark row that shares most n-grams with a text, if they are enough."""
        place, where = np.unique(place, return_index=True)
        first = first[where]
        owners = self.owners[place].astype(np.int64)
        rows, inverse, counts = np.unique(owners[:, 0] << 32 | owners[:, 1], return_inverse=True, return_counts=True)
        best = int(counts.argmax())
        if counts[best] < self.min_matches:
            return None
        mine = inverse == best
        token = int(first[mine].min())
        kind = int(owners[mine, 2][first[mine].argmin()])
        words = tokens.text[tokens.starts[token] : tokens.ends[token + self.n - 1]]
        return Match(
            self.names[int(rows[best]) >> 32],
            int(rows[best]) & 0xFFFFFFFF,
            _FIELDS[kind],
            f"{self.n}-gram",
            words,
            int(counts[best]),
        )

    def _short(self, prompt: str) -> Match | None:
        """Compare a prompt, and each of its lines, with the questions that are too short for an n-gram."""
        if not len(self.short):
            return None
        # The question may be set apart from instructions before or after it by a line.
        lines = [line for line in prompt.splitlines() if line.strip()]
        for text in dict.fromkeys([prompt, *lines] if len(lines) <= 32 else [prompt]):
            if len(text) > 32 * self.n:  # far more than so few tokens take
                continue
            key = np.uint64(exact_key(text))
            place = int(np.searchsorted(self.short, key))
            if place < len(self.short) and self.short[place] == key:
                benchmark, row = self.short_owners[place].tolist()
                return Match(self.names[benchmark], row, "question", "exact", text.strip())
        return None

    def save(self, path: str | Path) -> None:
        """Write the index to a file (not atomically; see the caller)."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            names=np.array(self.names, dtype=np.str_), sizes=np.array(self.sizes, np.int64), hashes=self.hashes,
            owners=self.owners, short=self.short, short_owners=self.short_owners,
            settings=np.array([self.n, self.min_matches, int(self.completions)]),
        )  # fmt: skip
        Path(path).write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> DecontaminationIndex:
        """Read what [`save`] wrote."""
        with np.load(path, allow_pickle=False) as data:
            n, min_matches, completions = data["settings"].tolist()
            arrays = {name: data[name] for name in ("hashes", "owners", "short", "short_owners")}
            names, sizes = tuple(data["names"].tolist()), tuple(data["sizes"].tolist())
        return cls(n, names, sizes, min_matches=min_matches, completions=bool(completions), **arrays)


def build_index(
    benchmarks: Mapping[str, Iterable[tuple[str, Sequence[str]]]],
    n: int = NGRAM,
    min_matches: int = 1,
    completions: bool = True,
) -> DecontaminationIndex:
    """Index the questions and solutions of some benchmarks.

    Args:
        benchmarks (`Mapping[str, Iterable]`): Name → question and solutions of each row (see [`Benchmark.texts`]).
        n (`int`, defaults to 10): Tokens of an n-gram.
        min_matches (`int`, defaults to 1): See [`DecontaminationIndex`].
        completions (`bool`, defaults to `True`): See [`DecontaminationIndex`].

    Returns:
        [`DecontaminationIndex`]

    Raises:
        [`ConfigurationError`]: For an n below 3 or a `min_matches` below 1.
        [`DataError`]: For a benchmark without rows.
    """
    if n < 3 or min_matches < 1:
        raise ConfigurationError(
            f"ngram={n}, min_matches={min_matches}: n-grams need at least 3 tokens, and at least one must match. R1: 10 and 1."
        )
    hashes: list[Hashes] = []
    owners: list[NDArray[np.int32]] = []
    short: dict[int, tuple[int, int]] = {}
    sizes = []
    for number, (name, rows) in enumerate(benchmarks.items()):
        entries = list(_entries(rows))
        if not entries:
            raise DataError(f"Benchmark {name!r} has no rows. Check its file and split.")
        sizes.append(entries[-1][0] + 1)
        done = 0
        for block in blocks(clean(without_option_labels(text)) for _, _, text in entries):
            grams, first, counts = _block_ngrams(block, n)
            mine = entries[done : done + len(block)]
            done += len(block)
            hashes.append(grams)
            whose = np.array([(number, row, kind) for row, kind, _ in mine], np.int32)
            owners.append(whose[first])
            for (row, kind, text), count in zip(mine, counts.tolist(), strict=True):
                if not count and kind == _QUESTION:
                    short.setdefault(exact_key(text), (number, row))
    every = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    distinct, where = np.unique(every, return_index=True)
    keys = sorted(short)
    return DecontaminationIndex(
        n,
        tuple(benchmarks),
        tuple(sizes),
        distinct,
        np.concatenate(owners)[where] if owners else np.zeros((0, 3), np.int32),
        np.array(keys, np.uint64),
        np.array([short[key] for key in keys], np.int32).reshape(-1, 2),
        min_matches,
        completions,
    )


def _block_ngrams(block: list[str], n: int) -> tuple[Hashes, NDArray[np.int64], NDArray[np.int64]]:
    """N-grams of some texts, the text of each, and how many each text has."""
    tokens = tokenize(block)
    grams, first = ngrams(tokens, n)
    texts = np.searchsorted(tokens.bounds, first, side="right") - 1
    return grams, texts, np.bincount(texts, minlength=len(block))


def _entries(rows: Iterable[tuple[str, Sequence[str]]]) -> Iterator[tuple[int, int, str]]:
    for row, (question, solutions) in enumerate(rows):
        yield row, _QUESTION, question
        for solution in solutions:
            yield row, _SOLUTION, solution


def joined_text(prompt: str, completion: str) -> tuple[str, int]:
    """Return a row's text as it is searched, and how many characters of it are the prompt."""
    prompt = clean(without_option_labels(prompt))
    return f"{prompt}\n{clean(completion)}", len(prompt)


def find_contaminated(
    index: DecontaminationIndex, prompts: Sequence[Prompt], completions: Sequence[str] | None = None
) -> list[Match | None]:
    """Find the rows that give a benchmark away, among rows that are in memory.

    Args:
        index ([`DecontaminationIndex`]): The benchmarks.
        prompts (`Sequence[Prompt]`): The rows' prompts.
        completions (`Sequence[str]`, *optional*): Their completions.

    Returns:
        `list[Match | None]`: For each row what it has in common with a benchmark, or `None`.

    Example:

    ```python
    >>> from trl_r1.data.decontamination import build_index, find_contaminated
    >>> index = build_index({"test": [("What is $3 + 5$?", ["8"])]})
    >>> [match and match.kind for match in find_contaminated(index, ["what is 3 + 5", "What is 3 - 5?"])]
    ['exact', None]
    ```
    """
    asked = [prompt_text(prompt) for prompt in prompts]
    texts = [joined_text(p, c) for p, c in zip(asked, completions or [""] * len(asked), strict=True)]
    found: list[Match | None] = []
    for block in blocks(text for text, _ in texts):
        part = slice(len(found), len(found) + len(block))
        found += index.matches(tokenize(block), asked[part], [size for _, size in texts[part]])
    return found
