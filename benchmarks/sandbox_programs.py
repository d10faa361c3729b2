"""Programs per second of the sandbox, one after the other: bubblewrap anew for each, and the launcher that stays.

    python benchmarks/sandbox_programs.py --quick                                       # 20 programs each, seconds
    python benchmarks/sandbox_programs.py --results benchmarks/results/sandbox.json     # 300 each

Each program is `print(int(input()) * 2)` in Python, in fresh namespaces with its own box, limits and `/tmp`. Both ways take
turns, program by program, so that other work on the machine meets both alike. Prints one JSON object per row:

- `way`: `bubblewrap` or `launcher`; `programs`: how many; `equal`: all outputs were right;
- `programs_per_s` = 1 / the mean time of one, on one core; `median_ms`; `fastest_ms`, of the quickest tenth; `start_ms`: of the launcher;
- `ratio`: the launcher's programs per second over bubblewrap's; `load`: the machine's, when it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from trl_r1.sandbox import Program, Sandbox
from trl_r1.sandbox.launcher import Launcher


def measure(programs: int) -> list[dict[str, Any]]:
    """Run as many programs in both ways."""
    launcher = Launcher()
    ways = {"bubblewrap": Sandbox().run, "launcher": launcher.run}
    starts: dict[str, float] = {}
    for way, run in ways.items():
        start = time.perf_counter()
        run(Program(("python", "-c", "")))
        starts[way] = time.perf_counter() - start
    if launcher.problem is not None:
        raise SystemExit(launcher.problem)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    equal = dict.fromkeys(ways, True)
    for number in range(programs):
        program = Program(("python", "main.py"), {"main.py": b"print(int(input()) * 2)"}, b"%d\n" % number)
        for way, run in ways.items():
            start = time.perf_counter()
            outcome = run(program)
            seconds[way].append(time.perf_counter() - start)
            equal[way] &= outcome.ok and outcome.stdout == b"%d\n" % (2 * number)
    launcher.close()
    rows = [
        {
            "way": way,
            "programs": programs,
            "equal": equal[way],
            "programs_per_s": round(1 / statistics.fmean(times), 1),
            "median_ms": round(1000 * statistics.median(times), 1),
            "fastest_ms": round(1000 * statistics.quantiles(times, n=10)[0], 1),
            "start_ms": round(1000 * starts[way], 1),
            "load": round(os.getloadavg()[0], 1),
        }
        for way, times in seconds.items()
    ]
    rows[1]["ratio"] = round(sum(seconds["bubblewrap"]) / sum(seconds["launcher"]), 2)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 programs")
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--results", type=Path, help="JSON file to write the rows to")
    arguments = parser.parse_args()
    rows = measure(20 if arguments.quick else arguments.programs)
    for row in rows:
        print(json.dumps(row), flush=True)
    if arguments.results:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(rows, indent=1) + "\n")
    if not all(row["equal"] for row in rows):
        raise SystemExit("Outputs are wrong: no speed is comparable.")


if __name__ == "__main__":
    main()
