"""Time and memory of a mixture with near-duplicate removal and decontamination.

    python benchmarks/mixture.py --quick                                             # 2,000 rows, seconds
    python benchmarks/mixture.py --rows 100000 --results benchmarks/results/mixture.json
    python benchmarks/mixture.py --data ../shared/data                               # real benchmarks instead of made-up ones

Rows are made up: three quarters reasoning with R1-like thinking (log-normal length, mean `--mean-characters`; 16,000 is about
R1's 5,355 tokens), one quarter general and a tenth as long. A known share of them nearly repeats an earlier row (two words
changed), another holds a question of a benchmark, so that each row of results says how many of those were found, and how
many clean rows were lost. Making the rows is not timed. Prints one JSON object:

- `rows`, `gigabytes`, `workers`, `seconds` and what each pass took of them (`stage_s`, `duplicates_s`, `write_s`); `cpu_s` of all processes and the machine's `load`, since
  a busy machine changes the one and not the other;
- `peak_rss_gib`: of this process plus, for each worker, the largest of any worker (an upper bound);
- `duplicates_found`, `contaminated_found`: share of those planted; `clean_lost`: share of the others that were left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DUPLICATE_SHARE, CONTAMINATED_SHARE, GENERAL_SHARE = 0.03, 0.01, 0.25
SIGMA = 0.9  # of the log-normal lengths, as in the trainer's benchmark
QUICK_ROWS = 2_000
_BENCHMARK_ROWS = 2_000
_VOCABULARY = 30_000


def words(seed: int = 0) -> list[str]:
    """Made-up words with lengths as in English."""
    rng = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = range(len(letters), 0, -1)
    return ["".join(rng.choices(letters, weights, k=rng.randint(2, 9))) for _ in range(_VOCABULARY)]


def sentences(vocabulary: list[str], count: int, seed: int) -> list[str]:
    """Made-up sentences, a third of them with a formula; common words are common."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        text = " ".join(vocabulary[int(_VOCABULARY * rng.random() ** 3)] for _ in range(rng.randint(8, 20)))
        if rng.random() < 1 / 3:
            text += f", so $\\frac{{{rng.randint(2, 99)}}}{{{rng.randint(2, 99)}}}x^2 + {rng.randint(2, 999)} = 0$"
        made.append(text.capitalize() + ".")
    return made


def questions(vocabulary: list[str], count: int, seed: int) -> list[str]:
    """Made-up questions of some thirty words and two numbers."""
    rng = random.Random(seed)
    return [
        f"If {' '.join(rng.choices(vocabulary, k=25))} is {rng.randint(2, 9999)} and {rng.choice(vocabulary)} is "
        f"{rng.randint(2, 9999)}, what is {' '.join(rng.choices(vocabulary, k=4))}?"
        for _ in range(count)
    ]


def write_rows(folder: Path, rows: int, mean: int, benchmark: list[str], seed: int = 0) -> dict[str, int]:
    """Write the sources; returns how many rows of each kind were planted."""
    rng = random.Random(seed)
    vocabulary = words(seed)
    pool = sentences(vocabulary, 200_000, seed + 1)
    planted = {"duplicate": 0, "contaminated": 0}
    general = int(rows * GENERAL_SHARE)
    recent: list[dict[str, Any]] = []
    for name, count, scale in (("reasoning", rows - general, mean), ("general", general, mean // 10)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for number, question in enumerate(questions(vocabulary, count, seed + 2 + scale)):
                kind, row = "clean", {"prompt": question, "completion": _thinking(rng, pool, scale)}
                draw = rng.random()
                if draw < DUPLICATE_SHARE and recent:
                    kind, row = "duplicate", _nearly(rng, rng.choice(recent), vocabulary)
                elif draw < DUPLICATE_SHARE + CONTAMINATED_SHARE:
                    kind, row["prompt"] = "contaminated", f"Please solve: {rng.choice(benchmark).upper()}"
                else:
                    recent = [*recent[-199:], row]
                planted[kind] = planted.get(kind, 0) + 1
                columns = {"id": f"{name}-{number}-{kind}", "license": "mit", "language": "en", "domain": "math"}
                file.write(json.dumps({**row, **columns, "domain": "general" if name == "general" else "math"}) + "\n")
    return planted


def _thinking(rng: random.Random, pool: list[str], mean: int) -> str:
    length = min(mean * rng.lognormvariate(-(SIGMA**2) / 2, SIGMA), 20 * mean)
    text = " ".join(rng.choices(pool, k=max(1, int(length / 100))))
    return f"<think>\n{text}\n</think>\n\nThe answer is \\boxed{{{rng.randint(0, 999)}}}."


def _nearly(rng: random.Random, row: dict[str, Any], vocabulary: list[str]) -> dict[str, Any]:
    """The same row with two words of the thinking changed."""
    pieces = row["completion"].split(" ")
    for _ in range(2):
        pieces[rng.randrange(1, max(2, len(pieces) - 5))] = rng.choice(vocabulary)
    return {"prompt": row["prompt"], "completion": " ".join(pieces)}


def peak_rss_gib(workers: int) -> float:
    """Peak memory of this process plus that of its largest child, once per worker."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (kib + workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 2**20


def cpu_seconds() -> float:
    """CPU time of this process and its children: what a busy machine does not change."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def mix(folder: Path, workers: int) -> dict[str, Any]:
    """Mix what [`write_rows`] wrote, in this process, and say how long it took."""
    from trl_r1.data import mixture
    from trl_r1.data.mixture import MixtureConfig, MixtureSource
    from trl_r1.data.mixture import mix as run

    benchmarks = tuple(
        mixture.Benchmark(path.stem, str(path)) for path in sorted((folder / "benchmarks").glob("*.jsonl"))
    )
    sources = (
        MixtureSource("reasoning", str(folder / "reasoning.jsonl"), weight=3),
        MixtureSource("general", str(folder / "general.jsonl"), weight=1),
    )
    marks = [time.perf_counter()]
    steps = mixture._Run
    for name in ("_stage", "_duplicates"):
        setattr(steps, name, _timed(getattr(steps, name), marks))
    config = MixtureConfig(sources, benchmarks=benchmarks)
    report = run(config, folder / "out", workers)
    end = time.perf_counter()
    start, _, staged, _, deduplicated = marks
    return {
        "seconds": round(end - start, 2),
        "stage_s": round(staged - start, 2),
        "duplicates_s": round(deduplicated - staged, 2),
        "write_s": round(end - deduplicated, 2),
        "cpu_s": round(cpu_seconds(), 2),
        "load": round(os.getloadavg()[0], 1),
        "peak_rss_gib": round(peak_rss_gib(workers), 3),
        "own_rss_gib": round(peak_rss_gib(0), 3),
        "rows_out": report["rows"],
        "dropped": report["dropped"],
    }


def _timed(step: Any, marks: list[float]) -> Any:
    def timed(*args: Any) -> Any:
        marks.append(time.perf_counter())
        result = step(*args)
        marks.append(time.perf_counter())
        return result

    return timed


def found(folder: Path, planted: dict[str, int]) -> dict[str, float]:
    """Compare what was left out with what was planted."""
    left_out: dict[str, int] = {}
    with (folder / "out" / "dropped.jsonl").open() as lines:
        for line in lines:
            kind = json.loads(line)["id"].rpartition("-")[2]
            left_out[kind] = left_out.get(kind, 0) + 1
    return {
        "duplicates_found": round(left_out.get("duplicate", 0) / max(1, planted["duplicate"]), 4),
        "contaminated_found": round(left_out.get("contaminated", 0) / max(1, planted["contaminated"]), 4),
        "clean_lost": round(left_out.get("clean", 0) / max(1, planted["clean"]), 6),
    }


def measure(rows: int, workers: int, mean: int, data: Path | None, scratch: Path | None) -> dict[str, Any]:
    """Make the rows, mix them in a fresh process, and compare."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        (folder / "benchmarks").mkdir()
        if data is None:
            benchmark = questions(words(), _BENCHMARK_ROWS, 99)
            text = "".join(json.dumps({"question": one, "answer": "7"}) + "\n" for one in benchmark)
            (folder / "benchmarks" / "made_up.jsonl").write_text(text)
        else:
            for path in ("math500", "gsm8k_test", "aime24", "mmlu_stem"):
                (folder / "benchmarks" / f"{path}.jsonl").write_text((data / f"{path}.jsonl").read_text())
            lines = (folder / "benchmarks" / "gsm8k_test.jsonl").read_text().splitlines()
            benchmark = [json.loads(line)["question"] for line in lines]
        planted = write_rows(folder, rows, mean, benchmark)
        size = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
        command = [sys.executable, __file__, "--mix", name, "--workers", str(workers)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        return {
            "benchmark": "mixture",
            "rows": rows,
            "gigabytes": round(size / 1e9, 3),
            "workers": workers,
            "benchmarks": "made up" if data is None else "MATH-500, GSM8K test, AIME24, MMLU STEM",
            **result,
            **found(folder, planted),
        }


def main() -> None:
    """Measure, print and write a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of rows (10,000 and 100,000)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mean-characters", type=int, default=16_000, help="mean length of a thinking")
    parser.add_argument("--data", type=Path, help="folder with math500, gsm8k_test, aime24 and mmlu_stem .jsonl")
    parser.add_argument("--scratch", type=Path, help="folder for the rows: about three times their size")
    parser.add_argument("--results", type=Path, help="JSON file to write the rows to")
    parser.add_argument("--mix", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mix:
        print(json.dumps(mix(arguments.mix, arguments.workers)))
        return
    measured = []
    for rows in arguments.rows or ([QUICK_ROWS] if arguments.quick else [10_000, 100_000]):
        row = measure(rows, arguments.workers, arguments.mean_characters, arguments.data, arguments.scratch)
        measured.append(row)
        print(json.dumps(row), flush=True)
    if arguments.results:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text("[\n" + ",\n".join(json.dumps(row) for row in measured) + "\n]\n")


if __name__ == "__main__":
    main()
