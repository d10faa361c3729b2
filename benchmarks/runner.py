"""What the benchmarks of the trainer share: one process per variant, rows compared and printed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from profile_step import in_words
from rows import Column, Row, case_name, check_rows, read_rows, table, write_results, write_row

# Left out of what is printed: they are in the files.
_LONG = ("profile", "steps_s", "versions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where rows go."""
    parser.add_argument("--label", help="name of the row instead of the variant's, for runs with --set")
    parser.add_argument("--peak_tflops", type=float, help="measured matrix speed of the device, for limit_share")
    parser.add_argument("--tolerance", type=float, help="of the losses; the default depends on precision and schedule")
    parser.add_argument("--out", type=Path, help="folder for one file per row")
    parser.add_argument("--combine", type=Path, help="folder of rows: check, compare, print; run nothing")
    parser.add_argument("--results", type=Path, help="file for the checked rows")


def run_apart(script: str, benchmark: str, name: str, out: Path, argv: Sequence[str]) -> Row:
    """Run one variant in a process of its own, so that each starts with an empty device."""
    before = {json.dumps(row) for row in read_rows(out, benchmark)}
    command = [sys.executable, script, *argv, "--variant", name, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    new = [row for row in read_rows(out, benchmark) if json.dumps(row) not in before]
    if done.returncode or not new:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return {"benchmark": benchmark, "variant": name, "case": {}, "error": lines[-1] if lines else "no output"}
    return new[-1]


def without(argv: Sequence[str], *options: str) -> list[str]:
    """Take options and their values out of a command line."""
    kept, dropping = [], False
    for word in argv:
        dropping = word in options or (dropping and not word.startswith("--"))
        if not dropping:
            kept.append(word)
    return kept


def report(rows: Sequence[Row], columns: Sequence[Column], arguments: argparse.Namespace) -> int:
    """Check rows against each other, print them and a table for each case; 1 if any speed was refused."""
    checked = check_rows(rows, arguments.tolerance)
    for row in checked:
        print(json.dumps({key: value for key, value in row.items() if key not in _LONG}), flush=True)
    cases: dict[str, list[Row]] = {}
    for row in checked:
        cases.setdefault(case_name(row["case"]) if row["case"] else "failed", []).append(row)
    for name, of_case in cases.items():
        print(f"\n{name} on {of_case[0].get('hardware', '?')}\n\n{table(of_case, columns)}", flush=True)
        for row in of_case:
            if row.get("profile"):
                print(f"time of `{row['variant']}`: {in_words(row['profile'])}", flush=True)
    if arguments.results is not None:
        write_results(checked, arguments.results)
    return int(any("refused" in row or "error" in row for row in checked))


def run(
    script: str,
    benchmark: str,
    measure: Callable[[argparse.Namespace, str], Row],
    columns: Sequence[Column],
    arguments: argparse.Namespace,
    argv: Sequence[str],
    *,
    here: bool,
) -> int:
    """Do what the command line asks for, and return the exit status.

    Args:
        script (`str`): The benchmark's file, to start it again for each variant.
        benchmark (`str`): Its name in rows.
        measure (`Callable`): Measures one variant in this process and returns its row.
        columns (`list`): Of the table.
        arguments (`argparse.Namespace`): The parsed command line.
        argv (`list[str]`): The command line.
        here (`bool`): Measure all variants in this process instead of one in each.
    """
    if arguments.combine is not None:
        return report(read_rows(arguments.combine, benchmark), columns, arguments)
    alone = arguments.out is not None and len(arguments.variant) == 1
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not alone:
        raise SystemExit("Several processes measure one variant at a time: give --variant with one name, and --out.")
    if alone:
        row = measure(arguments, arguments.variant[0])
        if int(os.environ.get("RANK", "0")) == 0:
            path = write_row(row, arguments.out, benchmark)
            print(
                f"{path}: losses {row['losses'][:3]}; --combine {arguments.out} compares and prints speeds", flush=True
            )
        return 0
    if here:
        return report([measure(arguments, name) for name in arguments.variant], columns, arguments)
    with tempfile.TemporaryDirectory() as folder:
        passed_on = without(argv, "--variant", "--out", "--results")
        out = arguments.out or Path(folder)
        rows = [run_apart(script, benchmark, name, out, passed_on) for name in arguments.variant]
        return report(rows, columns, arguments)
