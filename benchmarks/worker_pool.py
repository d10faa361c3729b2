"""What verdicts in other processes cost the interpreter that asks for them, in which an engine is to run at its rate.

    python benchmarks/worker_pool.py                                             # two minutes
    python benchmarks/worker_pool.py --results benchmarks/results/worker_pool.json

A loop of small torch operations stands in for the engine: each gives the interpreter away and takes it back, as each launch of a
kernel does. Beside it as many answers a step are handed to a pool whose workers only wait (0.3 ms each, about what an easy verdict
takes), so that two cores are enough to see what sixteen workers ask of this process. Turns with and without a pool alternate.

- `chunk_seconds`: how much work one message carries; 0 is an item a message, 0.004 the pool's own choice, 0.02 rejection sampling's;
- `share`: the loop's rate beside the pool over its rate alone, the median of the turns; `answers_per_s`: checked meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from trl_r1.workers import Batch, WorkerPool

OPERATIONS = 400  # of one step: a step of nano's engine launches about as many kernels
SECONDS_EACH = 0.0003
GATHER = 32  # answers of one batch, as rejection sampling gathers them
TEXT = "x" * 300


def turn(
    seconds: float, pool: WorkerPool | None = None, answers: int = 0, chunk_seconds: float = 0.0
) -> tuple[float, float]:
    """Run the loop for a while.

    Args:
        seconds (`float`): How long.
        pool (`WorkerPool`, *optional*): Who checks answers meanwhile.
        answers (`int`, defaults to 0): How many are handed over after each step.
        chunk_seconds (`float`, defaults to 0.0): See [`WorkerPool.submit`].

    Returns:
        `tuple[float, float]`: Steps and answers per second.
    """
    numbers = torch.zeros(64)
    batches: deque[Batch[None]] = deque()
    waiting: list[tuple[str, float]] = []
    steps = checked = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(OPERATIONS):
            numbers.add_(1.0)
        steps += 1
        if pool is None:
            continue
        waiting += [(TEXT, SECONDS_EACH)] * answers
        if len(waiting) >= GATHER:
            batches.append(pool.submit(check, waiting, chunk_seconds=chunk_seconds))
            waiting = []
        while batches and batches[0].done():
            checked += len(batches.popleft().results())
    passed = time.perf_counter() - start
    for batch in batches:
        batch.results()
    return steps / passed, checked / passed


def check(item: tuple[str, float]) -> tuple[bool, str, None]:
    """What a worker does with an answer: nothing, for as long as a verdict takes."""
    time.sleep(item[1])
    return True, "", None


def measure(
    workers: int, chunk_seconds: float, answers: int = 3, turns: int = 6, seconds: float = 0.7
) -> dict[str, Any]:
    """Alternate turns without and with a pool; return one row."""
    import worker_pool  # by its name: workers import what they run, and there is no __main__ for them

    shares, rates = [], []
    with WorkerPool(workers) as pool:
        pool.map(worker_pool.check, [(TEXT, SECONDS_EACH)] * 400)  # warm, and its speed known
        for _ in range(turns):
            before, _ = turn(seconds)
            beside, rate = worker_pool.turn(seconds, pool, answers, chunk_seconds)
            after, _ = turn(seconds)
            shares.append(2 * beside / (before + after))
            rates.append(rate)
    return {
        "workers": workers,
        "chunk_seconds": chunk_seconds,
        "share": round(statistics.median(shares), 3),
        "answers_per_s": round(statistics.median(rates)),
        "turns": turns,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--chunk-seconds", type=float, nargs="*", default=[0.0, 0.004, 0.02])
    parser.add_argument("--answers", type=int, default=3, help="handed over after each step")
    parser.add_argument("--results", type=Path, help="JSON file to write the rows to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for workers in arguments.workers:
        for chunk_seconds in arguments.chunk_seconds:
            rows.append(measure(workers, chunk_seconds, arguments.answers))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.results:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
