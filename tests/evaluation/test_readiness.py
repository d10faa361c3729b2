"""What a probe's figures say."""

import pytest
from test_contrast import evaluation

from trl_r1.evaluation.readiness import STARTS, assess


@pytest.mark.parametrize(
    ("correct", "start"),
    [
        ([4] * 40, "zero"),
        ([16] * 25 + [8] * 10 + [0] * 5, "filter"),
        ([0] * 39 + [1], "cold_start"),
        ([16] * 38 + [15, 0], "data"),
    ],
)
def test_the_start_follows_from_the_spread(correct, start):
    found = assess(evaluation(correct), [100] * 640, 1024, 1000.0)
    assert found.start == start in STARTS
    assert all(reason.strip() for reason in found.reasons)


def test_settings_follow_from_lengths_and_rates():
    found = assess(evaluation([4] * 40), [100] * 600 + [300] * 40, 1024, 1000.0)
    assert found.settings == {"num_generations": 16, "max_completion_length": 608}
    assert found.measured["seconds_per_512_completions"] == pytest.approx(512 * 112.5 / 1000)
    rare = assess(evaluation([1] * 20 + [0] * 20), [100] * 640, 1024, 1000.0)
    assert rare.settings["num_generations"] > 16  # one right answer in sixteen: larger groups find it


def test_much_cut_off_asks_for_a_higher_cap():
    scores = evaluation([4] * 40)
    for problem in scores.problems:
        object.__setattr__(problem, "truncated", 8)
    found = assess(scores, [512] * 640, 512, 1000.0)
    assert found.settings["max_completion_length"] == 1024
    assert "cut off at 512 tokens" in " ".join(found.reasons)
