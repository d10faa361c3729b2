"""Curves: what is drawn follows what was logged, and the picture is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trl_r1.evaluation.plots import before_after_table, panels, plot_curves


def history(steps: int = 40) -> list[dict[str, float]]:
    """A log as the trainer leaves it, with made-up but plausible curves."""
    generator = np.random.default_rng(0)
    entries: list[dict[str, float]] = []
    for step in range(0, steps + 1):
        grown = step / steps
        if step % 10 == 0:
            accuracy = 0.2 + 0.4 * grown
            entries.append(
                {
                    "step": step, "eval_pass@1": accuracy, "eval_pass@1_low": accuracy - 0.05,
                    "eval_pass@1_high": accuracy + 0.05, "eval_cons@4": accuracy + 0.1,
                }
            )  # fmt: skip
        if step:
            noise = generator.normal(scale=0.02)
            entries.append(
                {
                    "step": step, "reward": 0.9 + grown + noise, "rewards/accuracy_reward/mean": 0.2 + 0.4 * grown,
                    "rewards/format_reward/mean": 0.7 + 0.3 * grown, "kl": 0.01 * step, "entropy": 0.9 - 0.4 * grown,
                    "completions/mean_length": 40 + step, "completions/mean_length_right": 42 + step,
                    "completions/mean_length_wrong": 39 + step * 0.5, "completions/truncated": 0.02,
                    "groups/without_spread": 0.3 * grown, "completions/reflective_words": 1 + 3 * grown,
                }
            )  # fmt: skip
    return entries


def test_panels_are_those_with_data() -> None:
    assert [panel.title for panel in panels([{"step": 1, "kl": 0.1}])] == ["KL to the reference"]
    titles = [panel.title for panel in panels(history())]
    assert len(titles) == 7
    accuracy = panels(history())[0]
    assert [curve.label for curve in accuracy.curves] == ["pass@1", "cons@4"]


def test_picture_shows_every_panel(tmp_path: Path) -> None:
    from matplotlib import image

    picture = plot_curves(history(), tmp_path / "deep" / "curves.png", title="R1-Zero on nano:countdown")
    pixels = image.imread(picture)
    assert pixels.shape[0] > 700
    assert pixels.shape[1] > 1200
    assert pixels[..., :3].std() > 0.05
    assert list(picture.parent.iterdir()) == [picture]
    few = image.imread(plot_curves([{"step": 1, "kl": 0.1}, {"step": 2, "kl": 0.2}], tmp_path / "few.png"))
    assert few.shape[0] < pixels.shape[0]


def test_nothing_logged_is_said_not_raised(tmp_path: Path) -> None:
    assert plot_curves([], tmp_path / "empty.png").stat().st_size > 1000


def test_table_shows_shares_in_per_cent_with_their_intervals() -> None:
    before = {"pass@1": 0.25, "mean_tokens": 30.0, "intervals": {"pass@1": [0.2, 0.3], "mean_tokens": [28, 32]}}
    after = {"pass@1": 0.6, "mean_tokens": 75.5, "intervals": {"pass@1": [0.55, 0.65], "mean_tokens": [70, 80]}}
    table = before_after_table(before, after, {"pass@1": [0.35, 0.3, 0.4]})
    lines = table.splitlines()
    assert lines[0].split("|")[2].strip() == "before"
    assert "25.0 [20.0, 30.0]" in lines[2]
    assert "60.0 [55.0, 65.0]" in lines[2]
    assert "+35.0 [30.0, 40.0]" in lines[2]
    assert "75.5 [70.0, 80.0]" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_metric_measured_only_once_is_marked() -> None:
    table = before_after_table({"intervals": {}}, {"pass@1": 0.5, "intervals": {"pass@1": [0.4, 0.6]}})
    assert "–" in table


@pytest.mark.parametrize("value", [float("nan"), None])
def test_gaps_in_the_log_are_skipped(tmp_path: Path, value: float | None) -> None:
    log = [{"step": 1, "kl": 0.1}, {"step": 2, "kl": value}, {"step": 3, "kl": 0.3}]
    assert plot_curves(log, tmp_path / "gap.png").exists()
