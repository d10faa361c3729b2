"""Pictures of several runs or models side by side: curves over training, behaviours, pass@k."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_r1.evaluation.behaviours import Period
from trl_r1.evaluation.plots import COLOURS, save_figure, series, style_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Curves that several runs are compared by, in this order: (metric, title, whether it is a share).
_COMPARED = (
    ("eval_pass@1", "Held-out pass@1", True),
    ("reward", "Reward", False),
    ("completions/mean_length", "Mean length in tokens", False),
    ("completions/truncated", "Completions cut off", True),
    ("kl", "KL to the reference", False),
    ("entropy", "Entropy per token", False),
    ("loss", "Loss", False),
)
_BEHAVIOURS = (
    ("reflective", "Reflective words"),
    ("verifications", "Verifications"),
    ("restarts", "Re-starts"),
    ("alternatives", "Other approaches"),
    ("repetition", "Repetition (share)"),
    ("mixing", "Language mixing (share)"),
)


def plot_runs(logs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> Path | None:
    """Draw the same metrics of several runs into shared panels.

    Args:
        logs (`Mapping[str, Sequence[Mapping]]`): The trainers' logs by run.
        path (`str` or `Path`): PNG file to write.

    Returns:
        `Path` or `None`: The picture; `None` if no metric was logged by any run.
    """
    logged = {key for log in logs.values() for entry in log for key in entry}
    shown = [one for one in _COMPARED if one[0] in logged and not (one[0] == "loss" and "reward" in logged)]
    if not shown:
        return None
    figure, axes = _grid(len(shown))
    for axis, (metric, title, share) in zip(axes, shown, strict=False):
        for colour, (name, log) in zip(cycle(COLOURS), logs.items(), strict=False):
            steps, values = series(log, metric)
            marker = "o" if len(steps) <= 30 else None
            axis.plot(steps, values, color=colour, label=name, marker=marker, markersize=3, lw=1.4)
        style_axis(axis, title, bounded=share, legend=len(logs) > 1)
    return save_figure(figure, path)


def plot_behaviours(periods: Mapping[str, Sequence[Period]], path: str | Path) -> Path:
    """Draw behaviours per completion over training, with 95 % intervals over questions.

    Args:
        periods (`Mapping[str, Sequence[Period]]`): [`~trl_r1.evaluation.behaviours.over_training`] by run.
        path (`str` or `Path`): PNG file to write.

    Returns:
        `Path`: The picture.
    """
    figure, axes = _grid(len(_BEHAVIOURS))
    for axis, (name, title) in zip(axes, _BEHAVIOURS, strict=False):
        for colour, (run, found) in zip(cycle(COLOURS), periods.items(), strict=False):
            steps = [(period.first_step + period.last_step) / 2 for period in found]
            means = [period.behaviours[name] for period in found]
            axis.plot(steps, [m.value for m in means], color=colour, label=run, marker="o", markersize=3, lw=1.4)
            axis.fill_between(steps, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.15, lw=0)
        axis.set_ylim(bottom=0)
        style_axis(axis, title, legend=len(periods) > 1)
    return save_figure(figure, path)


def plot_pass_at_k(found: Mapping[str, Any], path: str | Path) -> Path:
    """Draw pass@k of two models and where they cross: sharpening or discovery.

    Args:
        found (`Mapping`): `names` and [`~trl_r1.evaluation.contrast.Contrast.asdict`].
        path (`str` or `Path`): PNG file to write.

    Returns:
        `Path`: The picture.
    """
    figure, (axis,) = _grid(1)
    points = found["pass_at_k"]
    ks = [point["k"] for point in points]
    for colour, side, name in zip(COLOURS, ("first", "second"), found["names"], strict=False):
        bounds = [point[side] for point in points]  # value, low, high
        axis.plot(ks, [b[0] for b in bounds], color=colour, label=name, marker="o", markersize=4, lw=1.6)
        axis.fill_between(ks, [b[1] for b in bounds], [b[2] for b in bounds], color=colour, alpha=0.15, lw=0)
    if found.get("crossing"):
        axis.axvline(found["crossing"], color="0.5", lw=1, ls="--")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    style_axis(axis, "pass@k", bounded=True, legend=True, xlabel="k")
    return save_figure(figure, path)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    flat: list[Axes] = list(axes.flat)
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, flat[:count]
