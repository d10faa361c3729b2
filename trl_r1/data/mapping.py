"""One example of a data set becomes a row by a mapping of columns and patterns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trl_r1.exceptions import DataError
from trl_r1.rows import Row
from trl_r1.verifiers.choice import LETTERS

if TYPE_CHECKING:
    from trl_r1.data.sources import SourceConfig

# What `columns` and `patterns` may name: the fields of a row, and two that become part of its reference.
FIELDS = ("prompt", "reference", "domain", "language", "id", "verifier", "options", "tests")


def row_from_example(available: list[str], config: SourceConfig) -> Callable[[Mapping[str, Any], int], Row]:
    """Build the function that turns an example into a row.

    Args:
        available (`list[str]`): Columns of the data set.
        config ([`SourceConfig`]): Its `columns`, `patterns` and `domain`.

    Returns:
        `Callable`: From an example and its index to a [`Row`].

    Raises:
        [`DataError`]: For columns that do not exist, listing those that do.
    """
    named: dict[str, str] = dict(config.columns or {})  # type: ignore[arg-type]
    missing = {row_field: column for row_field, column in named.items() if column not in available}
    if missing:
        wrong = ", ".join(f"{row_field}: {column}" for row_field, column in missing.items())
        raise DataError(f"No such column: {wrong}. The data set has: {', '.join(available)}.")
    columns = {row_field: row_field for row_field in FIELDS if row_field in available} | named
    domain = config.domain or ("stem" if "options" in columns else "code" if "tests" in columns else "math")
    needed = ["prompt"] if domain == "general" or "tests" in columns else ["prompt", "reference"]
    absent = [row_field for row_field in needed if row_field not in columns]
    if absent:
        raise DataError(
            f"No column for {', '.join(absent)}. The data set has: {', '.join(available)}. Name it, e.g. columns: "
            "{prompt: question, reference: answer}."
        )
    patterns = {row_field: re.compile(pattern) for row_field, pattern in (config.patterns or {}).items()}  # type: ignore[union-attr]

    def make(example: Mapping[str, Any], index: int) -> Row:
        values = {row_field: example[column] for row_field, column in columns.items()}
        for row_field, pattern in patterns.items():
            if row_field in values:
                values[row_field] = _extract(values[row_field], pattern, row_field, index)
        return _row(values, domain, index)

    return make


def _extract(value: Any, pattern: re.Pattern[str], row_field: str, index: int) -> str:
    match = pattern.search(str(value))
    if match is None:
        raise DataError(
            f"Row {index}: pattern {pattern.pattern!r} of {row_field!r} does not match {str(value)[-200:]!r} (its last 200 "
            "characters). Change the pattern, or use a row_function that leaves such rows out."
        )
    found = match.group(1) if pattern.groups else match.group()
    return (found or "").strip()


def _row(values: dict[str, Any], domain: str, index: int) -> Row:
    """Build a row; options and tests become part of the reference."""
    prompt, reference = values["prompt"], values.get("reference")
    if prompt is None or prompt == "" or prompt == []:
        raise DataError(f"Row {index} has an empty prompt. Filter such rows, or map another column to prompt.")
    verifier = values.get("verifier")
    if values.get("options") is not None:
        options = _options(values["options"], index)
        reference = json.dumps({"answer": _letter(reference, options, index), "options": options}, ensure_ascii=False)
        prompt = _with_options(prompt, options)
        verifier = verifier or "choice"
    elif values.get("tests") is not None:
        tests = values["tests"]
        reference = tests if isinstance(tests, str) else json.dumps(tests, ensure_ascii=False)
        verifier = verifier or "code"
    elif isinstance(reference, dict):
        reference = json.dumps(reference, ensure_ascii=False)
    elif isinstance(reference, list):
        # A list of accepted answers; how one is compared is the verifier's choice.
        texts = [str(item) for item in reference]
        reference = texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)
    return Row(
        prompt=[{"role": m["role"], "content": m["content"]} for m in prompt]
        if isinstance(prompt, list)
        else str(prompt),
        reference="" if reference is None else str(reference),
        domain=values.get("domain") or domain,
        language=values.get("language"),
        id=None if values.get("id") is None else str(values["id"]),
        verifier=verifier,
    )


def _options(value: Any, index: int) -> list[str]:
    """Read options from a list, from JSON text, or from ARC's `{"text": […], "label": […]}`."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    if isinstance(value, Mapping):
        value = value.get("text", list(value.values()))
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= len(LETTERS):
        raise DataError(f"Row {index}: options must be a list of 2 to {len(LETTERS)} texts. Got {value!r:.200}.")
    return [str(option) for option in value]


def _letter(answer: Any, options: list[str], index: int) -> str:
    """Read which option is right: its index from 0, its letter, or its text."""
    text = str(answer).strip()
    if not isinstance(answer, str) or text not in options:
        if len(text) == 1 and text.upper() in LETTERS[: len(options)]:
            return text.upper()
        if re.fullmatch(r"[0-9]+", text) and int(text) < len(options):
            return LETTERS[int(text)]
    if text in options:
        return LETTERS[options.index(text)]
    raise DataError(
        f"Row {index}: the right option {answer!r} is neither an index from 0 to {len(options) - 1}, nor a letter, nor one "
        f"of the options {options!r:.200}."
    )


def _with_options(prompt: Any, options: list[str]) -> Any:
    """Write the options below the question."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    if isinstance(prompt, str):
        return f"{prompt.rstrip()}\n{listed}"
    last = {**prompt[-1], "content": f"{prompt[-1]['content'].rstrip()}\n{listed}"}
    return [*prompt[:-1], last]
