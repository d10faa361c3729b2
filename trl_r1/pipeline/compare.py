"""`trl-r1 compare A B`: two models on the same questions, with paired intervals over questions and seeds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trl_r1.evaluation.comparison_plots import plot_pass_at_k
from trl_r1.evaluation.contrast import contrast, contrast_table
from trl_r1.exceptions import ConfigurationError
from trl_r1.pipeline.files import write_json
from trl_r1.pipeline.runs import AFTER, BEFORE, read_evaluation


def run_compare(args: list[str]) -> dict[str, Any]:
    """Run `trl-r1 compare`.

    `trl-r1 compare RUN` contrasts a run's start with its end; `trl-r1 compare A B` two runs' ends (or two files of scores);
    `--first A1 A2 --second B1 B2` several seeds of each.

    Args:
        args (`list[str]`): Command-line arguments.

    Returns:
        `dict`: [`~trl_r1.evaluation.contrast.Contrast.asdict`].
    """
    parser = argparse.ArgumentParser(prog="trl-r1 compare", description=run_compare.__doc__.split("Args:")[0])  # type: ignore[union-attr]
    parser.add_argument("runs", nargs="*", help="one run (start against end), or two runs or files of scores")
    parser.add_argument("--first", nargs="+", default=[], help="several seeds of the first model")
    parser.add_argument("--second", nargs="+", default=[], help="as many seeds of the second")
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="what to call the two models")
    parser.add_argument("--out", help="folder for compare.json and compare.png")
    options = parser.parse_args(args)
    if (
        bool(options.first) != bool(options.second)
        or bool(options.first) == bool(options.runs)
        or len(options.runs) > 2
    ):
        raise ConfigurationError(
            f"Got runs {options.runs}, --first {options.first}, --second {options.second}. Give one run, two runs, or both "
            "--first and --second."
        )
    if len(options.runs) == 1:
        folder = Path(options.runs[0])
        first, second, names = [folder / BEFORE], [folder / AFTER], ("before", "after")
    elif options.runs:
        first, second = [Path(options.runs[0])], [Path(options.runs[1])]
        names = (first[0].name, second[0].name) if first[0].name != second[0].name else (str(first[0]), str(second[0]))
    else:
        first, second, names = [Path(p) for p in options.first], [Path(p) for p in options.second], ("first", "second")
    names = tuple(options.names) if options.names else names
    found = contrast([read_evaluation(path) for path in first], [read_evaluation(path) for path in second])
    print(contrast_table(found, names))
    data = {
        "names": list(names),
        "first_from": [str(p) for p in first],
        "second_from": [str(p) for p in second],
    } | found.asdict()
    if options.out:
        folder = Path(options.out)
        write_json(folder / "compare.json", data)
        plot_pass_at_k(data, folder / "compare.png")
        print(f"\nWritten to {folder}: compare.json, compare.png")
    return data
