"""`trl-r1 report RUN…`: one HTML page over one or several runs, and its pictures as PNG files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from trl_r1 import __version__
from trl_r1.evaluation.behaviours import over_training
from trl_r1.evaluation.comparison_plots import plot_behaviours, plot_runs
from trl_r1.evaluation.plots import plot_curves
from trl_r1.evaluation.report import ReportRun, render_report
from trl_r1.pipeline.files import write_text
from trl_r1.pipeline.runs import Run, read_runs

PAGE = "report.html"


def write_report_page(folders: Sequence[str], output: str | Path | None = None) -> Path:
    """Write the page.

    Args:
        folders (`Sequence[str]`): `output_dir`s of training runs, in the order of their stages.
        output (`str` or `Path`, *optional*): Folder for the page and its pictures; by default the (last) run's own.

    Returns:
        `Path`: The page.

    Raises:
        [`DataError`]: If a folder is no run.
    """
    runs = read_runs(folders)
    target = Path(output) if output else runs[-1].folder
    shown = [_prepared(run, target, alone=len(runs) == 1) for run in runs]
    shared = plot_runs({run.name: run.log for run in runs}, target / "runs.png") if len(runs) > 1 else None
    footer = f"Written by trl-r1 {__version__}: trl-r1 report {' '.join(folders)}"
    return write_text(target / PAGE, render_report(shown, shared, footer))


def _prepared(run: Run, target: Path, alone: bool) -> ReportRun:
    # Not the name of the stage's own picture, which may lie in the same folder.
    prefix = "" if alone else run.name.replace("/", "_") + "_"
    curves = plot_curves(run.log, target / f"{prefix}report_curves.png", columns=3) if run.log else None
    rollouts = run.rollouts() if run.has_rollouts else []
    periods = over_training(rollouts) if rollouts else []
    behaviours = plot_behaviours({run.name: periods}, target / f"{prefix}behaviours.png") if periods else None
    return ReportRun(run.name, run.report, curves, behaviours, rollouts)


def run_report(args: list[str]) -> Path:
    """Run `trl-r1 report`.

    Args:
        args (`list[str]`): Command-line arguments.

    Returns:
        `Path`: The page.
    """
    parser = argparse.ArgumentParser(prog="trl-r1 report", description=__doc__)
    parser.add_argument("runs", nargs="+", help="output_dirs of training runs, in the order of their stages")
    parser.add_argument("--out", help="folder for the page and its pictures; by default the (last) run's own")
    options = parser.parse_args(args)
    page = write_report_page(options.runs, options.out)
    print(f"Written: {page}")
    return page
