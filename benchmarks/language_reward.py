"""What the language reward does: reasoning RL with and without it, over seeds, on the same held-out questions.

    python benchmarks/language_reward.py --with runs/language_on_0 runs/language_on_1 runs/language_on_2 \
        --without runs/language_off_0 runs/language_off_1 runs/language_off_2 --output table.json

Reads `heldout_before.json` and `heldout_after.json` of each run's folder. The k-th run of both lists must have the same
seed. Intervals are 95 % bootstrap intervals over questions and seeds; contrasts are paired over both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_r1.evaluation import Evaluation
from trl_r1.evaluation.metrics import ProblemScore
from trl_r1.statistics import Estimate, bootstrap_mean, bootstrap_ratio, paired_difference, paired_ratio_difference

Figures = NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--with", dest="on", nargs="+", type=Path, required=True, help="folders of runs with the reward"
    )
    parser.add_argument("--without", dest="off", nargs="+", type=Path, required=True, help="folders of runs without it")
    parser.add_argument("--output", type=Path, help="write the table here as well")
    args = parser.parse_args(argv)
    table = json.dumps(compare(args.on, args.off), indent=2)
    print(table)
    if args.output is not None:
        args.output.write_text(table + "\n", encoding="utf-8")


def compare(on: Sequence[Path], off: Sequence[Path]) -> dict[str, Any]:
    """Compare runs with and without the language reward; the k-th of both have the same seed.

    Returns:
        `dict`: `with` and `without` (accuracy before, after and its change, overall, by domain and by language; the
        thinking's share of the question's language), `contrast` (with minus without, after training) and the seeds.
    """
    seeds = [[_report(folder)["seed"] for folder in folders] for folders in (on, off)]
    if seeds[0] != seeds[1]:
        sys.exit(
            f"Seeds with the reward {seeds[0]} and without it {seeds[1]} differ. Give runs of equal seeds, in one order."
        )
    runs = {name: [_run(folder) for folder in folders] for name, folders in (("with", on), ("without", off))}
    asked = [[problem.id for problem in problems] for pairs in runs.values() for pair in pairs for problems in pair]
    if any(ids != asked[0] for ids in asked):
        sys.exit("The runs were not measured on the same held-out questions. Run them with the same data settings.")
    first = runs["with"][0][0]
    parts: dict[str, list[int]] = {"all": list(range(len(first)))}
    for name in ("domain", "language"):
        for key in sorted({str(getattr(problem, name)) for problem in first}):
            parts[f"{name} {key}"] = [i for i, problem in enumerate(first) if str(getattr(problem, name)) == key]
    table: dict[str, Any] = {"seeds": seeds[0], "questions": len(first), "samples": first[0].samples}
    for name, pairs in runs.items():
        table[name] = {key: _arm(pairs, chosen) for key, chosen in parts.items()}
    table["contrast"] = {
        key: {
            "accuracy": _shown(
                paired_difference(_accuracy(runs["without"], 1, chosen), _accuracy(runs["with"], 1, chosen))
            ),
            "language_share": _shown(
                paired_ratio_difference(_words(runs["without"], 1, chosen), _words(runs["with"], 1, chosen))
            ),
        }
        for key, chosen in parts.items()
    }
    return table


Run = tuple[list[ProblemScore], list[ProblemScore]]


def _run(folder: Path) -> Run:
    before, after = (
        Evaluation.from_dict(json.loads((folder / f"heldout_{when}.json").read_text(encoding="utf-8"))).problems
        for when in ("before", "after")
    )
    return before, after


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def _accuracy(runs: Sequence[Run], when: int, chosen: Sequence[int]) -> Figures:
    """Share of right samples, of shape `(seeds, questions)`."""
    return np.array([[run[when][i].correct / run[when][i].samples for i in chosen] for run in runs])


def _words(runs: Sequence[Run], when: int, chosen: Sequence[int]) -> tuple[Figures, Figures]:
    """Summed shares of the question's language, and samples whose thinking has words; each `(seeds, questions)`."""
    sums = [
        np.array([[float(getattr(run[when][i], name)) for i in chosen] for run in runs])
        for name in ("in_language", "worded")
    ]
    return sums[0], sums[1]


def _arm(runs: Sequence[Run], chosen: Sequence[int]) -> dict[str, Any]:
    sides = [_accuracy(runs, when, chosen) for when in (0, 1)]
    words = [_words(runs, when, chosen) for when in (0, 1)]
    return {
        "questions": len(chosen),
        "accuracy_before": _shown(bootstrap_mean(sides[0])),
        "accuracy_after": _shown(bootstrap_mean(sides[1])),
        "accuracy_change": _shown(paired_difference(*sides)),
        "accuracy_after_by_seed": [round(float(value), 4) for value in sides[1].mean(axis=1)],
        "language_share_before": _shown(bootstrap_ratio(*words[0])),
        "language_share_after": _shown(bootstrap_ratio(*words[1])),
        "language_share_change": _shown(paired_ratio_difference(*words)),
        "worded_after": round(float(words[1][1].sum() / sum(run[1][i].samples for run in runs for i in chosen)), 4),
    }


def _shown(estimate: Estimate) -> list[float | None]:
    """Value, low, high; `None` where nothing is known."""
    return [None if np.isnan(x) else round(float(x), 4) for x in (estimate.value, estimate.low, estimate.high)]


if __name__ == "__main__":
    main()
