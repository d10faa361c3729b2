"""Is this answer right? One function, `verify(answer, row) -> Verdict`, for training, rejection sampling and evaluation.

The row's `verifier`, or else its domain, picks the module. A verifier is a module with

- `verify(answer, row) -> Verdict`, whose `correct` is `None` only when the *gold* answer cannot be read;
- `readable(row) -> str | None`, why the gold answer cannot be read;
- `gold_answer(row) -> str | None`, a right answer, for previews and tests;
- `find_lenient(text, row) -> str | None`, the answer in a text whose form is ignored.

All run in bounded time on any thread. The `judge` asks a model, which [`configure_judge`] or environment variables name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from trl_r1 import sandbox
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.rows import DOMAINS, Row, Verdict
from trl_r1.verifiers import choice, code, exact, expression, gym, instructions, judge, math
from trl_r1.verifiers.judge import Judge, JudgeServer, configure_judge

_MODULES: dict[str, ModuleType] = {
    "math": math,
    "exact": exact,
    "expression": expression,
    "choice": choice,
    "code": code,
    "gym": gym,
    "judge": judge,
    "instructions": instructions,
}
VERIFIERS: dict[str, Callable[[str, Row], Verdict]] = {name: module.verify for name, module in _MODULES.items()}

# What a domain is verified by when the row does not say; `None` has no rule (arXiv 2501.12948v2, Table 4).
DOMAIN_VERIFIERS: dict[str, str | None] = {
    "math": "math",
    "stem": "choice",
    "logic": "exact",
    "code": "code",
    "general": None,
}
NAMES = tuple(VERIFIERS)

__all__ = [
    "DOMAIN_VERIFIERS",
    "NAMES",
    "VERIFIERS",
    "Judge",
    "JudgeServer",
    "check_references",
    "check_sandbox",
    "configure_judge",
    "gold_answer",
    "readable",
    "verifier_for",
    "verifier_name",
    "verify",
    "verify_all",
    "verify_lenient",
]


def verifier_name(row: Row) -> str | None:
    """Return the name of a row's verifier, `None` when its domain has no rule.

    Raises:
        [`ConfigurationError`]: For an unknown domain or verifier.
    """
    if row.domain not in DOMAINS:
        raise unknown("domain", row.domain, DOMAINS)
    name = row.verifier or DOMAIN_VERIFIERS[row.domain]
    if name is not None and name not in NAMES:
        raise unknown("verifier", name, NAMES, "Leave it out to use the domain's own.")
    return name


def verifier_for(row: Row) -> Callable[[str, Row], Verdict] | None:
    """Return the function that verifies answers to a row, `None` when there is none (yet)."""
    return VERIFIERS.get(verifier_name(row) or "")


def verify(answer: str | None, row: Row) -> Verdict:
    """Tell whether an answer to a row is right.

    Args:
        answer (`str`, *optional*): The final answer as [`trl_r1.responses.parse`] found it; `None` is a wrong answer.
        row ([`Row`]): The question with its gold answer.

    Returns:
        [`Verdict`]: `correct` is `None` when no rule applies or the gold answer cannot be read.
    """
    verifier = verifier_for(row)
    if verifier is None:
        return Verdict(None, f"no rule for {row.domain!r}")
    if answer is None:
        problem = readable(row)
        return Verdict(None, problem) if problem else Verdict(False, "no answer")
    return verifier(answer, row)


def verify_all(answers: Sequence[str | None], rows: Sequence[Row]) -> list[Verdict]:
    """Verify many answers as [`verify`] does one by one, but those for the judge all at once.

    Args:
        answers (`Sequence[str]`): Final answers.
        rows (`Sequence[Row]`): Their questions.

    Returns:
        `list[Verdict]`: In order.
    """
    judged = [
        i
        for i, (answer, row) in enumerate(zip(answers, rows, strict=True))
        if answer is not None and verifier_name(row) == "judge" and judge.readable(row) is None
    ]
    verdicts: dict[int, Verdict] = {}
    if judged:
        texts = [answers[i] or "" for i in judged]
        found = judge.current_judge().verdicts(texts, [rows[i] for i in judged])
        verdicts = dict(zip(judged, found, strict=True))
    return [verdicts[i] if i in verdicts else verify(answers[i], rows[i]) for i in range(len(rows))]


def verify_lenient(text: str, row: Row) -> Verdict:
    """Verify the last thing in a text that looks like an answer, whatever the text's form.

    For evaluation only: it tells what a model knows from what its form earns (last number, last formula, last
    expression, last option letter, last line).

    Args:
        text (`str`): A whole completion; tags mean nothing.
        row ([`Row`]): The question with its gold answer.
    """
    module = _MODULES.get(verifier_name(row) or "")
    return verify(None if module is None else module.find_lenient(text, row), row)


def readable(row: Row) -> str | None:
    """Return why the gold answer of a row cannot be read, or `None` when it can (or when no rule applies)."""
    name = verifier_name(row)
    if name is None:
        return None
    return _MODULES[name].readable(row)


def gold_answer(row: Row) -> str | None:
    """Return a right answer to a row: its text, the option's letter, an expression found by search.

    Returns:
        `str` or `None`: `None` when no rule applies, the gold answer cannot be read or there is none.
    """
    name = verifier_name(row)
    if name is None or readable(row) is not None:
        return None
    return _MODULES[name].gold_answer(row)


def check_references(rows: Iterable[Row | Mapping[str, Any]], max_unverifiable: float = 0.01) -> list[int]:
    """Refuse rows of which too many have a gold answer that no verifier can read.

    Args:
        rows (`Iterable[Row]` or data set): Rows or columns of rows; those without a rule (`general`) are not counted.
        max_unverifiable (`float`, defaults to 0.01): Largest share that is let through. [?] No source gives one.

    Returns:
        `list[int]`: Indices of the unreadable rows, which get the verdict `None`.

    Raises:
        [`DataError`]: Above the share, naming rows and reasons.
        [`ConfigurationError`]: For an unknown domain or verifier, for programs that could not be run in isolation here, and
            for a judge that is not configured, is not there or lacks the model.
    """
    total, bad = 0, []
    checks: dict[str, Callable[[], None]] = {"code": check_sandbox, "judge": lambda: judge.current_judge().check()}
    for index, item in enumerate(rows):
        row = item if isinstance(item, Row) else Row.from_columns({"reference": "", **item})
        name = verifier_name(row)
        if name is None:
            continue
        if name in checks:
            checks.pop(name)()
        total += 1
        problem = readable(row)
        if problem:
            bad.append((index, row, problem))
    if bad and len(bad) > max_unverifiable * total:
        shown = "; ".join(f"row {i}: {row.reference[:60]!r} ({problem})" for i, row, problem in bad[:5])
        raise DataError(
            f"{len(bad)} of {total} gold answers ({len(bad) / total:.1%}) cannot be verified; allowed are "
            f"{max_unverifiable:.1%}. {shown}. Extract the answer with a pattern (such as reference: '#### (.*)'), name "
            f"the right verifier ({', '.join(VERIFIERS)}), filter these rows, or raise max_unverifiable."
        )
    return [index for index, _, _ in bad]


def check_sandbox() -> None:
    """Refuse to verify programs where they could not be isolated.

    Raises:
        [`ConfigurationError`]: bubblewrap does not work here, and no other executor was put in its place.
    """
    ours = sandbox.own_sandbox()
    if ours is None or ours.allow_unisolated:
        return
    if problem := sandbox.isolation_problem():
        raise ConfigurationError(
            f"These rows are verified by running programs, which cannot be isolated here: {problem}. Install bubblewrap "
            "(`apt-get install bubblewrap`), leave out the domain 'code', give an executor of your own by "
            "`trl_r1.sandbox.use(...)`, or, for programs you trust, `sandbox.use(Sandbox(allow_unisolated=True))`."
        )
