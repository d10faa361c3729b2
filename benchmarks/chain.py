"""The chain on nano: what SFT makes of an R1-Zero checkpoint, with paired intervals.

    bash benchmarks/chain_runs.sh runs/chain/0                 # the runs (SEED, DEVICE, ROWS in the environment)
    python benchmarks/chain.py report runs/chain/0 [runs/chain/1 …] --output benchmarks/results/chain.json

The other two commands are steps of the script: `control` writes as many traces as pretraining holds them, `rl-steps` says how
many RL steps take as long as the distillation did, its teacher's sampling included.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from trl_r1.data.nano_traces import nano_traces
from trl_r1.evaluation import Evaluation
from trl_r1.statistics import Estimate, bootstrap_mean, bootstrap_ratio, paired_difference

WELL_FORMED, KEPT = 0.95, 0.9


def control(like: Path, out: Path, seed: int) -> None:
    """Write as many traces as `like` holds, drawn as the pretraining documents are, wrong and malformed ones among them."""
    count = sum(1 for line in like.read_text(encoding="utf-8").splitlines() if line.strip())
    rows = nano_traces(["countdown"], count, depth=3, seed=seed, as_pretrained=True)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{count} traces as pretraining holds them: {out}")


def rl_steps(distilled: Path, sampled: Path, calibration: Path) -> int:
    """Steps of RL in the seconds that the distillation took, sampling by the teacher included."""
    seconds = _json(distilled / "report.json")["step_seconds"] + _json(sampled / "report.json")["speed"]["seconds"]
    state = max(calibration.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])) / "trainer_state.json"
    times = [entry["step_time"] for entry in _json(state)["log_history"] if "step_time" in entry]
    # The first step pays for starting the engine.
    return max(1, math.ceil(seconds / float(np.mean(times[1:]))))


def report(folders: list[Path]) -> dict[str, Any]:
    """Read the runs of one or several seeds and contrast them on the same questions."""
    scores = {
        name: [_evaluation(folder / path) for folder in folders]
        for name, path in {
            "base": "zero/heldout_before.json",
            "zero": "zero/heldout_after.json",
            "cold_start": "sft_cold/heldout_after.json",
            "control": "sft_control/heldout_after.json",
            "rejection": "sft_rejection/heldout_after.json",
            "small": "distill_small/heldout_before.json",
            "distilled": "distill_small/heldout_after.json",
            "small_rl": "zero_small/heldout_after.json",
        }.items()
    }
    ids = {tuple(problem.id for problem in one.problems) for group in scores.values() for one in group}
    if len(ids) != 1:
        raise SystemExit("The runs were measured on different questions: nothing can be paired.")

    def metric(name: str, which: str = "pass@1") -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([one.per_problem(which) for one in scores[name]])

    ratio = bootstrap_ratio(metric("rejection"), metric("zero"))
    well_formed = bootstrap_mean(metric("cold_start", "well_formed"))
    against = {
        "cold start − base": ("base", "cold_start"),
        "cold start − SFT on pretraining traces": ("control", "cold_start"),
        "distilled student − its start": ("small", "distilled"),
        "distilled student − the student by RL": ("small_rl", "distilled"),
    }
    contrasts = {name: paired_difference(metric(a), metric(b)) for name, (a, b) in against.items()}
    truncated = {name: float(np.mean(metric(name, "truncated"))) for name in scores}
    return {
        "seeds": len(folders),
        "questions": len(next(iter(ids))),
        "pass@1": {name: _plain(bootstrap_mean(metric(name))) for name in scores},
        "well_formed": {name: _plain(bootstrap_mean(metric(name, "well_formed"))) for name in scores},
        "truncated": truncated,
        "cold start, well-formed": {
            **_plain(well_formed),
            "target": WELL_FORMED,
            "met": well_formed.value >= WELL_FORMED,
        },
        "rejection sampling + SFT from the base ÷ RL model": {
            **_plain(ratio),
            "target": KEPT,
            "met": ratio.value >= KEPT,
        },
        **{name: {**_plain(one), "met": one.low > 0} for name, one in contrasts.items()},
        "runs": [_run_facts(folder) for folder in folders],
    }


def _run_facts(folder: Path) -> dict[str, Any]:
    """Sizes, times and lineage of one seed's runs."""
    facts: dict[str, Any] = {}
    for path in sorted(folder.glob("*/report.json")):
        found = _json(path)
        kept = {
            key: found.get(key)
            for key in ("stage", "steps", "step_seconds", "train_seconds", "seconds", "device", "seed")
        }
        parent, data = found.get("parent") or {}, found.get("data") or {}
        kept |= {"parent": parent.get("model"), "parent_stage": parent.get("stage"), "rows": data.get("rows")}
        kept |= {"speed": found.get("speed"), "total": found.get("total")}
        facts[path.parent.name] = {key: value for key, value in kept.items() if value is not None}
    return facts


def _evaluation(path: Path) -> Evaluation:
    return Evaluation.from_dict(_json(path))


def _plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("control")
    made.add_argument("--like", type=Path, required=True)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--seed", type=int, default=0)
    steps = commands.add_parser("rl-steps")
    for name in ("distilled", "sampled", "calibration"):
        steps.add_argument(f"--{name}", type=Path, required=True)
    shown = commands.add_parser("report")
    shown.add_argument("folders", type=Path, nargs="+")
    shown.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "control":
        control(arguments.like, arguments.out, arguments.seed)
    elif arguments.command == "rl-steps":
        print(rl_steps(arguments.distilled, arguments.sampled, arguments.calibration))
    else:
        text = json.dumps(report(arguments.folders), indent=2, ensure_ascii=False)
        print(text)
        if arguments.output:
            arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
