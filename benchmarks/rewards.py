"""Time to reward a batch of R1-like completions: `RewardPool(accuracy_reward)` against TRL's `accuracy_reward`.

    python benchmarks/rewards.py --quick                                          # 32 completions, under a minute
    python benchmarks/rewards.py --results benchmarks/results/rewards.json        # 512 and 8,192
    python benchmarks/rewards.py --n 512 --workers 16 --trl-limit 3600

Each figure is from fresh processes that scored another batch of 64 before, as in the middle of a training (the first use of
each notation is slow in both libraries), and saw none of the measured texts: the median of `--repeats`. Prints one JSON object per row:

- `n`, `workers`, `pathological` (how many answers are), `distinct` (pairs of gold and answer: ours does each once per worker);
- `ours_s` (pool warm), `cold_start_s` (start of the workers), `ours_serial_s` (our reward in one process), `trl_s`, `ratio` =
  `trl_s / ours_s`, `scaling` = `ours_serial_s / ours_s`;
- `equal`: the rewards of both sum to the same, `different`: how many single ones differ;
- `delay_s`: `ours_s` minus that of the row without pathological answers.

TRL's timeouts do not interrupt a long call into C. Where it is not done within `--trl-limit` seconds (or dies), `trl_s` is that
limit, `trl_finished` is false, the ratio is a lower bound and `equal` is null.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import reward_texts

from trl_r1.rewards import accuracy_reward
from trl_r1.rewards.pool import RewardPool
from trl_r1.workers import Failure, Limits, WorkerPool, default_workers

SIZES, QUICK_SIZES = (512, 8192), (32,)
PATHOLOGICAL_SHARE = 0.01
WARM_UP, WARM_UP_SEED = 64, 1_000_003


def in_fresh_process(function: Any, batches: list[reward_texts.Columns], seconds: float) -> Any:
    """Run one of [`reward_texts`]' functions; a [`Failure`] where it is stuck or dies."""
    limits = Limits(item_seconds=seconds, item_wall_seconds=seconds, memory_gib=16.0)
    with WorkerPool(1, limits) as pool:
        return pool.map(function, [batches])[0]


def pooled(batches: list[reward_texts.Columns], workers: int) -> tuple[float, float, list[float | None]]:
    """Seconds to start, seconds to score, rewards."""
    reward = RewardPool(accuracy_reward, workers)
    try:
        start = time.perf_counter()
        reward.start()
        cold = time.perf_counter() - start
        for columns in batches[:-1] * workers:  # chunks go to whichever worker is free
            reward(**columns)
        start = time.perf_counter()
        rewards = reward(**batches[-1])
        return cold, time.perf_counter() - start, rewards
    finally:
        reward.close()


def measure(n: int, share: float, workers: int, repeats: int, trl_limit: float) -> dict[str, Any]:
    """Measure one row."""
    columns = reward_texts.texts(n, share)
    batches = [reward_texts.texts(WARM_UP, seed=WARM_UP_SEED), columns]
    runs = [pooled(batches, workers) for _ in range(repeats)]
    rewards = runs[0][2]
    serial = [in_fresh_process(reward_texts.ours, batches, 3600.0) for _ in range(repeats)]
    stock = [in_fresh_process(reward_texts.trl, batches, trl_limit)]
    if not isinstance(stock[0], Failure):
        stock += [in_fresh_process(reward_texts.trl, batches, trl_limit) for _ in range(repeats - 1)]
    finished = [run for run in stock if not isinstance(run, Failure)]
    if any(isinstance(run, Failure) for run in serial) or any(run[2] != rewards for run in runs):
        raise RuntimeError(f"our own runs fail or differ: {[run for run in serial if isinstance(run, Failure)]}")
    ours_s = statistics.median(run[1] for run in runs)
    trl_s = statistics.median(run[0] for run in finished) if finished else trl_limit
    answers = {
        (gold, completion[0]["content"].rpartition("</think>")[2])
        for gold, completion in zip(columns["solution"], columns["completions"], strict=True)
    }
    row: dict[str, Any] = {
        "n": n,
        "workers": workers,
        "pathological": max(1, round(n * share)) if share else 0,
        "distinct": len(answers),
        "ours_s": round(ours_s, 4),
        "trl_s": round(trl_s, 4),
        "ratio": round(trl_s / ours_s, 2),
        "equal": _total(finished[0][1]) == _total(rewards) if finished else None,
        "different": sum(a != b for a, b in zip(finished[0][1], rewards, strict=True)) if finished else None,
        "trl_finished": bool(finished),
        "ours_serial_s": round(statistics.median(run[0] for run in serial), 4),
        "cold_start_s": round(statistics.median(run[0] for run in runs), 2),
        "total": _total(rewards),
        "serial_equal": serial[0][1] == rewards,
    }
    if not finished:
        row["trl_failure"] = f"{stock[0].kind}: {stock[0].detail.strip().splitlines()[-1]}"
    return row | {"scaling": round(row["ours_serial_s"] / ours_s, 2)}


def _total(rewards: list[float | None]) -> float:
    return sum(reward for reward in rewards if reward is not None)


def main() -> None:
    """Measure every size, without and with pathological answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few completions, one repeat, TRL stopped after 30 s")
    parser.add_argument("--n", type=int, nargs="*", help="numbers of completions (512 and 8192)")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes (one per core)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl-limit", type=float, default=900.0, help="seconds after which TRL is stopped")
    parser.add_argument("--results", type=Path, help="JSON file to write the rows to")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.trl_limit = 1, 30.0
    rows: list[dict[str, Any]] = []
    for n in arguments.n or (QUICK_SIZES if arguments.quick else SIZES):
        plain: dict[str, Any] = {}
        for share in (0.0, PATHOLOGICAL_SHARE):
            row = measure(n, share, arguments.workers, arguments.repeats, arguments.trl_limit)
            plain = plain or row
            if share:
                row["delay_s"] = round(row["ours_s"] - plain["ours_s"], 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if arguments.results:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(rows, indent=1) + "\n")
    if any(row["equal"] is False for row in rows):
        sys.exit("The totals differ: no speed is comparable.")


if __name__ == "__main__":
    main()
