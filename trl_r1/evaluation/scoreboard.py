"""The tables of an evaluation: what was measured, and the published figures of others beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

Report = Mapping[str, Any]
# The order in which models stand in tables; others follow as they come.
_ORDER = (
    "DeepSeek-R1", "DeepSeek-R1-Zero", "OpenAI-o1-1217", "OpenAI-o1-0912", "OpenAI-o1-mini", "R1-Distill-Qwen-1.5B",
    "R1-Distill-Qwen-7B", "R1-Distill-Llama-8B", "R1-Distill-Qwen-14B", "R1-Distill-Qwen-32B", "R1-Distill-Llama-70B",
    "Qwen-32B-Zero",
)  # fmt: skip
_NOTHING = "–"
# Figures that are no shares.
_PLAIN = ("rating", "percentile")
_COLUMNS = ("benchmark", "questions × k", "pass@1", "cons@k", "no answer", "cut off", "tokens", "also")


def measured(report: Report) -> list[list[str]]:
    """One line per benchmark: pass@1 and cons@k with 95 % intervals, extraction failures, truncation, mean tokens.

    Args:
        report (`Mapping`): The content of `report.json`.

    Returns:
        `list[list[str]]`: The head, then the lines; benchmarks that failed say why.
    """
    lines = [list(_COLUMNS)]
    for entry in report["benchmarks"].values():
        also = [f"{name} {_share(entry, name)}" for name in entry if name.startswith("pass@") and name != "pass@1"]
        also = [text.replace("pass@1_lenient", "lenient pass@1") for text in also]
        also += [
            f"{name} {_share(entry, name)}"
            for name in ("rating", "percentile", "win_rate", "lc_win_rate", "arena_score")
            if name in entry
        ]
        for name, text in (
            ("unverifiable", "golds unreadable"),
            ("unscored", "not scored"),
            ("duplicates", "duplicates"),
        ):
            if entry.get(name):
                also.append(f"{entry[name]} {text}")
        lines.append(
            [
                entry["title"],
                f"{entry['problems']} × {entry['k']}",
                _share(entry, "pass@1"),
                _share(entry, f"cons@{entry['cons_k']}", prefix=f"@{entry['cons_k']} "),
                _share(entry, "no_answer", interval=False),
                _share(entry, "truncated", interval=False),
                f"{entry['mean_tokens']:,.0f}" if entry.get("mean_tokens") is not None else _NOTHING,
                "; ".join(also) or _NOTHING,
            ]
        )
    for name, reason in report.get("failed", {}).items():
        lines.append([name, *[_NOTHING] * (len(_COLUMNS) - 2), f"failed: {str(reason)[:160]}"])
    return lines


def compared(report: Report) -> list[list[str]]:
    """One line per model, this one first: its figures beside the published ones.

    Args:
        report (`Mapping`): The content of `report.json`.

    Returns:
        `list[list[str]]`: The head, then the lines; empty when nothing is published on these benchmarks.
    """
    columns: list[tuple[str, str]] = []
    for name, entry in report["benchmarks"].items():
        figures = {figure: None for published in entry["published"].values() for figure in published}
        columns += [(name, figure) for figure in figures]
    if not columns:
        return []
    entries = report["benchmarks"]
    models = list(dict.fromkeys(model for entry in entries.values() for model in entry["published"]))
    models.sort(key=lambda model: _ORDER.index(model) if model in _ORDER else len(_ORDER))
    lines = [["model", *(f"{entries[name]['title']} {figure}" for name, figure in columns)]]
    lines.append([f"{report['model']} (measured)", *(_share(entries[name], figure) for name, figure in columns)])
    for model in models:
        values = [entries[name]["published"].get(model, {}).get(figure) for name, figure in columns]
        lines.append([model, *(_NOTHING if value is None else f"{value:g}" for value in values)])
    return lines


def caveats(report: Report) -> list[str]:
    """Where this measurement differs from the published ones, in sentences."""
    said = []
    protocol = report["protocol"]
    r1 = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32768}
    other = [f"{name} {protocol[name]:,} (R1: {value:,})" for name, value in r1.items() if protocol[name] != value]
    if protocol["name"] != "r1":
        other.append(f"protocol {protocol['name']!r} (R1: boxed prompt, no system prompt, forced <think>)")
    if other:
        said.append(f"Measured with {', '.join(other)}.")
    for entry in report["benchmarks"].values():
        if entry.get("max_tokens", protocol["max_tokens"]) != protocol["max_tokens"]:
            said.append(
                f"{entry['title']}: completions were cut at {entry['max_tokens']:,} tokens, the model's context."
            )
    cut = [
        f"{entry['title']}: the first {entry['problems']}"
        for entry in report["benchmarks"].values()
        if entry.get("subset")
    ]
    if cut:
        said.append(f"Not all questions were asked ({'; '.join(cut)}).")
    judges = {str(entry["judge"]) for entry in report["benchmarks"].values() if entry.get("judge")}
    if judges:
        said.append(f"Win rates are those of the judge {', '.join(sorted(judges))}; the published ones are GPT-4's.")
    if any(entry["kind"] == "rating" for entry in report["benchmarks"].values()):
        said.append(
            "The rating is the likeliest by the ratings of the problems; the published ones come from contests."
        )
    sources = {entry["published_source"] for entry in report["benchmarks"].values() if entry["published"]}
    if sources:
        said.append(f"Published figures: {'; '.join(sorted(sources))}; v1 is arXiv 2501.12948v1. They are not ours.")
    return said


def markdown(report: Report) -> str:
    """The tables as Markdown, with what must be known to read them."""
    parts = [f"# Evaluation of {report['model']}", "Shares in percent with 95 % bootstrap intervals over questions."]
    parts.append(_markdown_table(measured(report)))
    others = compared(report)
    if others:
        parts += ["## Beside published figures", _markdown_table(others)]
    parts += caveats(report)
    return "\n\n".join(parts) + "\n"


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def rich_tables(report: Report) -> list[Table]:
    """The tables for a terminal."""
    tables = []
    for title, lines in (
        (f"Evaluation of {report['model']}", measured(report)),
        ("Published figures", compared(report)),
    ):
        if lines:
            table = Table(*lines[0], title=title)
            for line in lines[1:]:
                table.add_row(*line)
            tables.append(table)
    return tables


def _share(entry: Report, name: str, *, interval: bool = True, prefix: str = "") -> str:
    """A figure in percent with its interval; ratings and percentiles as they are."""
    value = entry.get(name)
    if value is None:
        return _NOTHING
    scale, digits = (1, 0 if name == "rating" else 1) if name in _PLAIN else (100, 1)
    text = f"{prefix}{value * scale:.{digits}f}"
    bounds = entry["intervals"].get(name)
    if interval and bounds is not None:
        text += f" [{bounds[0] * scale:.{digits}f}, {bounds[1] * scale:.{digits}f}]"
    return text
