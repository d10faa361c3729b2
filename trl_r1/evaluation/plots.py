"""The curves of a run as one picture, and its before/after table as text.

matplotlib is imported inside, on its file-only backend: `import trl_r1.evaluation` stays quick and needs no display.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_r1.rows import DOMAINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True)
class Curve:
    """One line: the logged metric, its name in the legend, and the metrics that bound its interval, if any."""

    metric: str
    label: str
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True)
class Panel:
    """One small diagram: curves that share an axis. Without data it is not drawn."""

    title: str
    curves: tuple[Curve, ...]
    bounded: bool = False


def panels(log_history: Sequence[Mapping[str, Any]], cons_k: int | None = None) -> list[Panel]:
    """The panels a log has data for: accuracy, reward or loss, length, truncation, KL, entropy.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        cons_k (`int`, *optional*): Votes of cons@k; found in the log by default.

    Returns:
        `list[Panel]`: In drawing order, each with only the curves that have data.
    """
    logged = {key for entry in log_history for key in entry}
    cons = [f"eval_cons@{cons_k}"] if cons_k else sorted(key for key in logged if key.startswith("eval_cons@"))
    rewards = sorted(key for key in logged if key.startswith("rewards/") and key.endswith("/mean"))

    def parts(metric: str, *, domains: bool) -> list[Curve]:
        """Curves of a metric by domain (`eval_pass@1/math`) or by language (`eval_language_share/zh`)."""
        labels = {key: key.partition("/")[2] for key in sorted(logged) if key.startswith(f"eval_{metric}/")}
        return [Curve(key, label) for key, label in labels.items() if (label in DOMAINS) == domains]

    wanted = [
        Panel(
            "Held-out accuracy",
            (
                Curve("eval_pass@1", "pass@1", "eval_pass@1_low", "eval_pass@1_high"),
                *(Curve(key, key.removeprefix("eval_")) for key in cons),
            ),
            bounded=True,
        ),
        Panel("Held-out accuracy by domain", tuple(parts("pass@1", domains=True)), bounded=True),
        Panel(
            "Thinking's share of the question's language",
            (Curve("eval_language_share", "all"), *parts("language_share", domains=False)),
            bounded=True,
        ),
        Panel("Loss in nats per token", (Curve("loss", "training"), Curve("eval_loss", "held out"))),
        Panel("Tokens predicted right", (Curve("mean_token_accuracy", "training"),), bounded=True),
        Panel(
            "Reward",
            (Curve("reward", "sum"), *(Curve(key, key.split("/")[1].removesuffix("_reward")) for key in rewards)),
        ),
        Panel(
            "Mean length in tokens",
            (
                Curve("completions/mean_length_right", "right answers"),
                Curve("completions/mean_length_wrong", "wrong answers"),
                Curve("completions/mean_length", "all"),
            ),
        ),
        Panel(
            "Share of completions, of groups",
            (
                Curve("completions/truncated", "completions cut off"),
                Curve("completions/clipped_ratio", "completions cut off"),
                Curve("groups/without_spread", "groups without spread"),
            ),
            bounded=True,
        ),
        Panel("KL to the reference", (Curve("kl", "KL"),)),
        Panel("Entropy per token", (Curve("entropy", "entropy"),)),
        Panel("Reflective words per completion", (Curve("completions/reflective_words", "reflective words"),)),
    ]
    if "completions/truncated" in logged:  # the engine's finish reason, better than TRL's clipped_ratio (trap 17)
        logged.discard("completions/clipped_ratio")
    if "reward" in logged:  # the loss of reinforcement learning says nothing: only supervised runs show theirs
        logged.discard("loss")
    found = [
        Panel(panel.title, tuple(c for c in panel.curves if c.metric in logged), panel.bounded) for panel in wanted
    ]
    return [panel for panel in found if panel.curves]


def plot_curves(
    log_history: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    title: str = "",
    cons_k: int | None = None,
    columns: int | None = None,
) -> Path:
    """Draw the curves of a run into a PNG file.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`: one mapping per log, each with its `step`.
        path (`str` or `Path`): File to write; replaced in one step, so that a kill leaves the old picture or the new.
        title (`str`, *optional*): Line above the panels.
        cons_k (`int`, *optional*): Votes of the cons@k to draw; every one logged by default.
        columns (`int`, *optional*): Panels side by side; by default three, or four where there are many.

    Returns:
        `Path`: The picture.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    shown = panels(log_history, cons_k)
    columns = columns or (4 if len(shown) > 6 else min(3, max(1, len(shown))))
    rows = max(1, math.ceil(len(shown) / columns))
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    flat: list[Axes] = list(axes.flat)
    for axis, panel in zip(flat, shown, strict=False):
        _draw(axis, panel, log_history)
    for axis in flat[len(shown) :]:
        axis.set_axis_off()
    if not shown:
        flat[0].text(0.5, 0.5, "nothing was logged", ha="center", va="center")
    if title:
        figure.suptitle(title, fontsize=11)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG in one step and close it.

    Args:
        figure (`Figure`): The figure.
        path (`str` or `Path`): The file; its folder is made if needed.

    Returns:
        `Path`: The file.
    """
    from matplotlib import pyplot as plt

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.tmp")
    figure.savefig(partial, format="png", dpi=130)
    plt.close(figure)
    partial.replace(target)
    return target


def before_after_table(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    difference: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Set two summaries side by side, as text that is also valid Markdown.

    Args:
        before (`Mapping`): A summary ([`Evaluation.summary`]).
        after (`Mapping`): Another on the same questions.
        difference (`Mapping[str, Sequence[float]]`, *optional*):
            Paired change, low and high by metric; metrics without one show the plain change.

    Returns:
        `str`: One line per metric: shares in per cent, the rest as they are, 95 % intervals over questions in brackets.
    """
    lines = [("", "before", "after", "change")]
    intervals_before, intervals_after = before.get("intervals", {}), after.get("intervals", {})
    for name in [name for name in intervals_after if name in after]:
        share = is_share(name)
        change = (difference or {}).get(name)
        lines.append(
            (
                name + (" (%)" if share else ""),
                _cell(before.get(name), intervals_before.get(name), share),
                _cell(after[name], intervals_after[name], share),
                _cell(change[0], change[1:], share, sign=True) if change else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    rendered = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rendered.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rendered)


def is_share(metric: str) -> bool:
    """Whether a metric is a share in [0, 1] (shown in per cent) rather than a count."""
    return metric not in ("mean_tokens", "mean_tokens_correct", "reflective_words", "tries")


def _cell(value: float | None, interval: Sequence[float] | None, share: bool, sign: bool = False) -> str:
    if value is None:
        return "–"
    scale = 100 if share else 1
    text = f"{value * scale:{'+' if sign else ''}.1f}"
    return f"{text} [{interval[0] * scale:.1f}, {interval[1] * scale:.1f}]" if interval else text


def _draw(axis: Axes, panel: Panel, log_history: Sequence[Mapping[str, Any]]) -> None:
    for colour, curve in zip(cycle(COLOURS), panel.curves, strict=False):
        steps, values = series(log_history, curve.metric)
        few = len(steps) <= 30
        axis.plot(steps, values, color=colour, label=curve.label, marker="o" if few else None, markersize=3, lw=1.4)
        if curve.low and curve.high:
            bounds = [series(log_history, bound) for bound in (curve.low, curve.high)]
            if len(bounds[0][0]) == len(bounds[1][0]):
                axis.fill_between(bounds[0][0], bounds[0][1], bounds[1][1], color=colour, alpha=0.15, lw=0)
    style_axis(axis, panel.title, bounded=panel.bounded, legend=len(panel.curves) > 1)


def style_axis(axis: Axes, title: str, *, bounded: bool = False, legend: bool = False, xlabel: str = "step") -> None:
    """Give a panel its title, grid and legend; `bounded` panels show shares from 0 to 1."""
    if bounded:
        axis.set_ylim(-0.02, 1.02)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(xlabel, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    if legend:
        axis.legend(fontsize=7, frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def series(log_history: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; a step logged twice, as after a resume, keeps its last value."""
    points = {
        int(entry["step"]): float(entry[metric])
        for entry in log_history
        if "step" in entry and isinstance(entry.get(metric), int | float) and not math.isnan(float(entry[metric]))
    }
    ordered = sorted(points.items())
    return [step for step, _ in ordered], [value for _, value in ordered]
