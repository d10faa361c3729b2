"""Pictures and tables of the benchmarks' README, from the checked rows in `benchmarks/results/`.

python benchmarks/plot.py                  # draws the pictures, fills the tables between the README's markers
python benchmarks/plot.py --check          # only says whether the README is as the results make it (for CI)
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rows import BASELINE, Column, Row, number, table

FOLDER = Path(__file__).parent
# Okabe and Ito's palette, told apart by colour-blind readers too.
GREY, BLUE, ORANGE, GREEN = "#8A8A8A", "#0072B2", "#E69F00", "#009E73"
# Order and words of the variants.
NAMES = {
    "stock": "TRL, as it comes",
    "stock_float32": "TRL, float32 weights",
    "stock_nockpt": "TRL, no checkpointing",
    "stock_trimmed": "TRL, trimmed per micro-batch",
    "ours_ckpt": "packed, checkpointing as TRL",
    "ours_nockpt": "packed, no checkpointing",
    "ours": "trl_r1, everything on",
    "ours_ckpt_flash4": "packed, checkpointing as TRL, flash-attn 4",
    "ours_no_compile_flash4": "… without compiled layers, flash-attn 4",
    "ours_flash4": "trl_r1, everything on, flash-attn 4",
    "ours_no_packing": "… without packing",
    "ours_no_budget": "… without token budget",
    "ours_no_compile": "… without compiled layers",
    "ours_no_budget_ckpt": "… without token budget, with checkpointing",
    "ours_budget_ckpt": "… with checkpointing",
    "ours_old_pass": "… with the old-policy pass",
}
PARALLEL = {"one": "", "ddp": " DDP", "fsdp": " FSDP2"}
SCHEDULES = {
    "on_policy": "exactly on-policy, β = 0",
    "r1": "16 updates per rollout, β = 0.001",
    "sft": "supervised fine-tuning",
}
LENGTHS = {
    "long_tail": "log-normal lengths",
    "uniform": "equal lengths, the control",
    "constant_hazard": "lengths of a constant hazard",
}


def variant_name(row: Row) -> str:
    """Return a variant's words, or its own name where it has none."""
    return NAMES.get(row["variant"]) or str(row["variant"])


def case_title(row: Row) -> str:
    """Return one line that says what was measured and where."""
    case = row["case"]
    device = case["hardware"] if case["processes"] == 1 else f"{case['processes']} × {case['hardware']}"
    parts = [
        f"{case['model'].upper()}, {device}{PARALLEL.get(case['parallel'], case['parallel'])}",
        f"{case['completions']} completions, cap {case['cap']:,}, mean {row['mean_length']:,.0f} tokens "
        f"({LENGTHS[case['lengths']]})",
        SCHEDULES[case["schedule"]] + (", importance correction" if case["importance"] else ""),
    ]
    return "; ".join(parts)


def by_case(rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows by case, in the order of the file, and each group in the order of [`NAMES`]."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["case"]:
            groups.setdefault(json.dumps(row["case"], sort_keys=True), []).append(row)
    order = list(NAMES)

    def rank(row: Row) -> int:
        return order.index(row["variant"]) if row["variant"] in order else len(order)

    return [sorted(group, key=rank) for group in groups.values()]


def versions(row: Row) -> str:
    """Return the versions a figure belongs to, in one line."""
    return ", ".join(f"{name} {version}" for name, version in row["versions"].items())


TRAINER_STEP: list[Column] = [
    ("", variant_name),
    ("step (s)", number("step_s", ".2f")),
    ("tokens/s", number("tokens_per_s", ",.0f")),
    ("of the limit", number("limit_share", ".0%")),
    ("peak (GiB)", number("peak_gib", ".1f")),
    ("× TRL", number("ratio_to_stock", ".2f")),
    ("losses of 3 steps", lambda row: ", ".join(f"{loss:.5f}" for loss in row.get("losses", [])[:3]) or "–"),
    ("steps measured", lambda row: str(len(row.get("steps_s") or [])) if row.get("step_s") else "–"),
]
SFT_NAMES = {
    "stock": "TRL, a forward pass for each trace",
    "stock_packed": "TRL, packed",
    "ours": "trl_r1, packed",
    "ours_nockpt": "trl_r1, packed, no checkpointing",
}
SFT_STEP: list[Column] = [
    ("", lambda row: SFT_NAMES[row["variant"]]),
    ("attention", lambda row: str(row["attention"])),
    ("forward passes", number("forward_passes", ".0f")),
    *TRAINER_STEP[1:],
]
END_TO_END: list[Column] = [
    ("", variant_name),
    ("rollout (s)", number("rollout_s", ".1f")),
    ("training (s)", number("train_s", ".1f")),
    ("step (s)", number("step_s", ".1f")),
    ("rollout's share", number("rollout_share", ".0%")),
    ("tokens/s", number("tokens_per_s", ",.0f")),
    ("× TRL", number("ratio_to_stock", ".2f")),
    ("log-prob gap", number("logprob_gap", ".4f")),
    ("loss", lambda row: f"{row['losses'][-1]:.4f}" if row.get("losses") else "–"),
]
ROLLOUT: list[Column] = [
    ("", lambda row: ROLLOUT_NAMES.get(row["variant"], str(row["variant"]))),
    ("asynchronous", lambda row: "yes" if row["async_scheduling"] else "no"),
    ("ms per decoding step", number("ms_per_step", ".2f")),
    ("tokens/s", number("tokens_per_s", ",.0f")),
    ("× TRL", number("ratio_to_stock", ".2f")),
    ("of the limit", number("limit_share", ".1%")),
]
ROLLOUT_NAMES = {
    "stock": "TRL's request, vLLM's own scheduling",
    "stock_sync": "TRL's request, synchronous",
    "ours_logprobs": "trl_r1, log-probs of the sampled tokens",
    "ours_no_logprobs": "trl_r1, no log-probs",
    "ours_lora_adapter": "trl_r1, LoRA: the adapter handed over, log-probs",
    "ours_lora_merged": "trl_r1, LoRA: merged weights handed over, log-probs",
    "ours_fp8": "trl_r1, FP8 weights, log-probs",
    "ours_fp8_kv": "trl_r1, FP8 KV cache, log-probs",
}
COLUMNS = {"trainer_step": TRAINER_STEP, "sft_step": SFT_STEP, "end_to_end": END_TO_END}


def tables(benchmark: str, rows: Sequence[Row]) -> str:
    """Return the tables of a benchmark, one for each case, under a line that says what it is."""
    blocks = []
    for group in by_case(rows):
        blocks.append(f"**{case_title(group[0])}**\n\n{table(group, COLUMNS[benchmark])}")
    last = [f"Versions: {line}." for line in dict.fromkeys(versions(row) for row in rows if "versions" in row)]
    return "\n\n".join([*blocks, *last]) or "Not measured yet."


def rollout_table(rows: Sequence[Row]) -> str:
    """Return the table of the rollout engine alone."""
    if not rows:
        return "Not measured yet."
    order = list(ROLLOUT_NAMES)
    known = sorted(rows, key=lambda row: order.index(row["variant"]) if row["variant"] in order else len(order))
    stock = next((row["ms_per_step"] for row in rows if row["variant"] == BASELINE), None)
    shown = [row | {"ratio_to_stock": stock / row["ms_per_step"] if stock else None} for row in known]
    first = shown[0]
    what = f"**{first['model']}, {first['sequences']} sequences of {first['tokens']} tokens, {first['device']}**"
    return f"{what}\n\n{table(shown, ROLLOUT)}"


WEIGHT_SYNC: list[Column] = [
    ("", lambda row: SYNC_NAMES[row["variant"]]),
    ("tensors", number("tensors", ",.0f")),
    ("hand-over (ms)", number("sync_ms", ".2f")),
    ("one copy, tensor by tensor (ms)", number("copy_ms", ".2f")),
    ("all tensors in one copy (ms)", number("fused_copy_ms", ".2f")),
    ("× one copy", number("ratio_to_copy", ".2f")),
]
SYNC_NAMES = {
    "sync_stock": "TRL, all weights",
    "sync_ours_logprobs": "trl_r1, all weights",
    "sync_ours_lora_adapter": "trl_r1, LoRA: the adapter alone",
    "sync_ours_lora_merged": "trl_r1, LoRA: merged weights",
}

REWARDS: list[Column] = [
    ("completions", number("n", ",.0f")),
    ("of them pathological", number("pathological", ".0f")),
    ("workers", number("workers", ".0f")),
    ("trl_r1 (s)", number("ours_s", ".2f")),
    ("TRL (s)", lambda row: f"{row['trl_s']:.2f}" if row["trl_finished"] else f"stopped after {row['trl_s']:.0f}"),
    ("× TRL", lambda row: f"{'' if row['trl_finished'] else '> '}{row['ratio']:.2f}"),
    ("equal totals", lambda row: {True: "yes", False: "no", None: "–"}[row["equal"]]),
]

SANDBOX: list[Column] = [
    ("way", lambda row: row["way"]),
    ("programs", number("programs", ".0f")),
    ("programs/s, one core", number("programs_per_s", ".1f")),
    ("median (ms)", number("median_ms", ".1f")),
    ("quickest tenth (ms)", number("fastest_ms", ".1f")),
    ("× bubblewrap", number("ratio", ".2f")),
    ("load of the machine", number("load", ".1f")),
]

WORKER_POOL: list[Column] = [
    ("workers", number("workers", ".0f")),
    ("work in one message (ms)", number("chunk_seconds", ".0f", 1000)),
    ("the loop's rate, of that alone", number("share", ".0%")),
    ("answers/s meanwhile", number("answers_per_s", ",.0f")),
]

REJECTION_NAMES = {
    "bare": "vLLM's `LLM.generate`",
    "sampler": "our sampler, not looked at",
    "then_verify": "our sampler, verified afterwards",
    "streamed": "verified as they come, all k",
    "early_stop": "verified as they come, stopped early",
}
REJECTION: list[Column] = [
    ("", lambda row: REJECTION_NAMES[row["variant"]]),
    ("seconds", number("seconds", ",.1f")),
    ("completions", number("samples", ",.0f")),
    ("tokens/s", number("tokens_per_s", ",.0f")),
    ("of the engine's rate", number("share_of_bare", ".1%")),
    ("accepted/s", lambda row: number("accepted_per_s", ",.2f")(row) if row["accepted"] else "–"),
    ("× verified afterwards", number("ratio_to_then_verify", ".2f")),
]


def rejection_table(rows: Sequence[Row]) -> str:
    """Return the tables of rejection sampling, one for each case, under a line that says what it is."""
    blocks = []
    for group in by_case(rows):
        case, hardware = group[0]["case"], group[0]["machine"]["hardware"]
        what = (
            f"{case['model']} on {case['dataset']}, {hardware}, {case['backend']}: {case['questions']:,} questions × {case['samples']}, "
            f"at most {case['max_accepted']} accepted, cap {case['max_tokens']:,} tokens, {case['max_num_seqs']} at once"
        )
        order = list(REJECTION_NAMES)
        shown = sorted(group, key=lambda row: order.index(row["variant"]))
        blocks.append(f"**{what}**\n\n{table(shown, REJECTION)}")
    return "\n\n".join(blocks) or "Not measured yet."


def profile_table(rows: Sequence[Row]) -> str:
    """Return where the time of the profiled steps went, in shares of the step."""
    profiled = [row for row in rows if row.get("profile")]
    kinds = list(dict.fromkeys(kind for row in profiled for kind in row["profile"]["kinds"]))

    def share(kind: str) -> Callable[[Row], str]:
        return lambda row: f"{row['profile']['kinds'].get(kind, {'share': 0.0})['share']:.0%}"

    def idle(row: Row) -> str:
        return f"{row['profile']['idle_s'] / row['profile']['wall_s']:.0%}"

    columns: list[Column] = [
        ("", lambda row: f"{row['model'].upper()}, cap {row['cap']:,}, {row['schedule']}: {variant_name(row)}"),
        ("step (s)", lambda row: f"{row['profile']['wall_s']:.2f}"),
        *((kind, share(kind)) for kind in kinds),
        ("idle", idle),
    ]
    return table(profiled, columns) if profiled else "Not measured yet."


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between a document's markers `<!-- table:NAME -->` and `<!-- end -->`.

    Raises:
        `ValueError`: The document has no such markers.
    """
    pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no '<!-- table:{name} -->' … '<!-- end -->' in the document")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n{match[2]}", text)


def draw_trainer_step(rows: Sequence[Row], path: Path) -> bool:
    """Draw step times against TRL's and the limit, one panel per case; `False` if there is nothing to draw."""
    groups = [group for group in by_case(rows) if any(row.get("step_s") for row in group)]
    if not groups:
        return False
    plt = _pyplot()
    columns = min(2, len(groups))
    heights = [max(map(len, groups[i : i + columns])) + 3 for i in range(0, len(groups), columns)]  # 3: title and axis
    figure, axes = plt.subplots(
        len(heights),
        columns,
        figsize=(7.2 * columns, 0.6 + 0.34 * sum(heights)),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
        layout="constrained",
    )
    for axis, group in zip(axes.flat, groups, strict=False):
        _draw_step(axis, group)
    for axis in list(axes.flat)[len(groups) :]:
        axis.set_axis_off()
    figure.suptitle("One optimizer step on the same stored completions (shorter is better)", fontsize=11)
    _save(figure, path)
    return True


def _draw_step(axis: Any, group: list[Row]) -> None:
    shown = [row for row in group if row.get("step_s")]
    positions = range(len(shown))
    colours = [BLUE if not row["variant"].startswith("stock") else GREY for row in shown]
    axis.barh(positions, [row["step_s"] for row in shown], color=colours, height=0.68)
    axis.set_yticks(positions, [variant_name(row) for row in shown], fontsize=8)
    axis.invert_yaxis()
    longest = max(row["step_s"] for row in shown)
    for position, row in zip(positions, shown, strict=True):
        parts = [f" {row['step_s']:.2f} s"]
        if row.get("ratio_to_stock") and row["variant"] != BASELINE:
            parts.append(f"{row['ratio_to_stock']:.1f}×")
        parts.append(f"{row['tokens_per_s'] / 1000:.1f}k tok/s")
        if row.get("peak_gib"):
            parts.append(f"{row['peak_gib']:.0f} GiB")
        axis.text(row["step_s"], position, " · ".join(parts), va="center", fontsize=7.5)
    axis.set_xlim(0, longest * 1.55)
    limit = next((row["limit_s"] for row in shown if row.get("limit_s")), None)
    if limit:
        axis.axvline(limit, color=ORANGE, lw=1.4, ls="--")
        axis.text(limit, len(shown) - 0.42, f" arithmetic limit {limit:.2f} s", color=ORANGE, fontsize=7.5, va="top")
        axis.set_ylim(len(shown) + 0.1, -0.6)
    axis.set_title(case_title(shown[0]).replace("; ", "\n"), fontsize=8.5, loc="left")
    axis.set_xlabel("seconds per step", fontsize=8)
    _style(axis)


def draw_end_to_end(rows: Sequence[Row], path: Path) -> bool:
    """Draw whole steps as rollout and training, one panel for all cases; `False` if there is nothing to draw."""
    groups = [[row for row in group if row.get("step_s")] for group in by_case(rows)]
    shown = [row for group in groups for row in group]
    if not shown:
        return False
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8.4, 1.3 + 0.5 * len(shown)), layout="constrained")
    positions = range(len(shown))
    axis.barh(positions, [row["rollout_s"] for row in shown], color=GREEN, height=0.62, label="rollout")
    left = [row["rollout_s"] for row in shown]
    axis.barh(positions, [row["train_s"] for row in shown], left=left, color=BLUE, height=0.62, label="training")
    axis.set_yticks(positions, [f"{row['model_name']}: {variant_name(row)}" for row in map(_named, shown)], fontsize=8)
    axis.invert_yaxis()
    for position, row in zip(positions, shown, strict=True):
        ratio = f" ({row['ratio_to_stock']:.1f}×)" if row.get("ratio_to_stock") and row["variant"] != BASELINE else ""
        axis.text(row["step_s"], position, f" {row['step_s']:.1f} s{ratio}", va="center", fontsize=8)
    axis.set_xlim(0, max(row["step_s"] for row in shown) * 1.2)
    axis.set_xlabel("seconds per step", fontsize=8)
    axis.set_title(case_title(shown[0]).replace("; ", "\n"), fontsize=8.5, loc="left")
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    _style(axis)
    _save(figure, path)
    return True


def _named(row: Row) -> Row:
    case = row["case"]
    processes = f", {case['processes']} GPUs" if case["processes"] > 1 else ""
    return row | {"model_name": f"{case['model'].upper()}{processes}{PARALLEL.get(case['parallel'], '')}"}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    return pyplot


def _style(axis: Any) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140, metadata={"Software": None})
    _pyplot().close(figure)


def read(results: Path, benchmark: str) -> list[Row]:
    """Read a benchmark's checked rows, none if it has not been run."""
    path = results / f"{benchmark}.json"
    return json.loads(path.read_text()) if path.exists() else []


def main(argv: list[str] | None = None) -> int:
    """Draw and fill, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of the checked rows")
    parser.add_argument("--readme", type=Path, default=FOLDER / "README.md", help="document with the markers")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if the document is out of date")
    arguments = parser.parse_args(argv)
    before = text = arguments.readme.read_text()
    rows = {benchmark: read(arguments.results, benchmark) for benchmark in COLUMNS}
    for benchmark, found in rows.items():
        text = fill(text, benchmark, tables(benchmark, found))
    text = fill(text, "trainer_step_parts", tables("trainer_step", read(arguments.results, "trainer_step_parts")))
    text = fill(text, "profile", profile_table(rows["trainer_step"]))
    text = fill(text, "rollout", rollout_table(read(arguments.results, "rollout")))
    handed_over = read(arguments.results, "weight_sync")
    text = fill(text, "weight_sync", table(handed_over, WEIGHT_SYNC) if handed_over else "Not measured yet.")
    rewards = read(arguments.results, "rewards")
    text = fill(text, "rewards", table(rewards, REWARDS) if rewards else "Not measured yet.")
    programs = read(arguments.results, "sandbox")
    text = fill(text, "sandbox", table(programs, SANDBOX) if programs else "Not measured yet.")
    pools = read(arguments.results, "worker_pool")
    text = fill(text, "worker_pool", table(pools, WORKER_POOL) if pools else "Not measured yet.")
    text = fill(text, "rejection_sampling", rejection_table(read(arguments.results, "rejection_sampling")))
    if arguments.check:
        if text != before:
            print(f"{arguments.readme} is out of date: run python benchmarks/plot.py")
        return int(text != before)
    arguments.readme.write_text(text)
    for benchmark, draw in (("trainer_step", draw_trainer_step), ("end_to_end", draw_end_to_end)):
        path = arguments.results / f"{benchmark}.png"
        print(f"{path}: {'drawn' if draw(rows[benchmark], path) else 'nothing to draw'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
